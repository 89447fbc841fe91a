//! The client as a person meets it: the real program, on pipes and on terminals, against a small fake of engined (a server
//! of the public API).

mod errors;
mod fake;
mod foreground;
mod lists;
mod resume;
mod support;
mod terminal;
mod traces;
