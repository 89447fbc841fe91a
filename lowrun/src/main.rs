//! The program; all of it is in the library, so that tests and fuzzers reach the parts.

fn main() {
    // The shim executes a descriptor, of which the kernel makes the name of its number.
    lowrun::sys::process::set_name(c"lowrun");
    let status = lowrun::cli::main(std::env::args_os().collect());
    // All output is written by now; nothing is left to do that `exit(3)` would do.
    lowrun::sys::process::exit_now(status);
}
