mod db; mod error; mod name; mod filter; mod mask; mod sys; mod diff; mod tree; mod layout; mod trash; mod snapshot; mod clock; mod lease;
fn main(){}
