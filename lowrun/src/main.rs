//! The program; all of it is in the library, so that tests and fuzzers reach the parts.
#![no_main]

lowrun::entry!(run);

fn run() -> i32 {
    // The shim executes a descriptor, of which the kernel makes the name of its number.
    lowrun::sys::process::set_name(c"lowrun");
    lowrun::cli::main(std::env::args_os().collect())
}
