//! Where the C library hands over to lowrun: `main` itself, without the start-up of Rust's `main`.
//!
//! That start-up finds the bounds of the stack by reading `/proc/self/maps`, and maps and announces a stack for a handler
//! that tells of an overflow: some fifteen calls, for a program that lives for milliseconds. What of it matters here is
//! done by [`prepare`]. The arguments are there without it (with glibc, std takes them from an initialiser of its own).

#[cfg(not(target_env = "gnu"))]
compile_error!("std finds the arguments without Rust's start-up with glibc alone");

use std::os::fd::IntoRawFd;

use rustix::fs::{Mode, OFlags};

/// Makes `$run`, a `fn() -> i32`, the program.
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        // SAFETY: the one symbol of this name in the program, called once by the C library with this signature.
        #[unsafe(no_mangle)]
        pub extern "C" fn main(_count: std::ffi::c_int, _words: *const *const std::ffi::c_char) -> std::ffi::c_int {
            $crate::sys::entry::prepare();
            // All output is written by now; nothing is left to do that `exit(3)` would do.
            $crate::sys::process::exit_now($run())
        }
    };
}

/// What every program may count on: that what it opens is not taken for its output, and that a reader who goes away
/// is an error and no signal.
pub fn prepare() {
    for fd in 0..3 {
        if !super::process::is_open(fd) {
            // The lowest free number is this one. Without /dev/null there is nothing to run, and nobody to tell it.
            match rustix::fs::open(c"/dev/null", OFlags::RDWR, Mode::empty()) {
                Ok(null) => drop(null.into_raw_fd()),
                Err(_) => super::process::exit_now(1),
            }
        }
    }
    super::signal::ignore_pipe();
}
