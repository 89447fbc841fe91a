//! The program; all of it is in the library, so that tests and fuzzers reach the parts.
// A program of tests has the `main` of tests.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
lowrun::entry!(run);

#[cfg(not(test))]
fn run() -> i32 {
    // The shim executes a descriptor, of which the kernel makes the name of its number.
    lowrun::sys::process::set_name(c"lowrun");
    lowrun::cli::main(std::env::args_os().collect())
}
