//! The program; all of it is in the library, so that tests and fuzzers reach the parts.

fn main() {
    std::process::exit(lowrun::cli::main(std::env::args_os().collect()));
}
