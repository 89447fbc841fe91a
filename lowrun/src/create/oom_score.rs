//! `oom_score_adj` where it cannot be set from outside: what the process is to have, lowrun has while it makes it.

use std::os::fd::BorrowedFd;

use super::open_to_own_user;
use crate::fault::{Attempt, Code, Result};
use crate::path::{open_in_proc, write_in_proc};
use crate::sys::{self, Call};

const FILE: &str = "self/oom_score_adj";

/// Sets lowrun's own score, which a child inherits; gives the one of before. Without privilege the file can be opened
/// only while this process is not protected.
pub(super) fn set_own(proc: BorrowedFd<'_>, score: &str) -> Result<String> {
    open_to_own_user(true)?;
    let exchanged = read(proc).and_then(|before| write_in_proc(proc, FILE, score).map(|()| before));
    open_to_own_user(false)?;
    exchanged.attempt(Code::LimitInvalid, || format!("set oom_score_adj to {score}"))
}

fn read(proc: BorrowedFd<'_>) -> sys::Result<String> {
    let file = open_in_proc(proc, FILE, rustix::fs::OFlags::RDONLY)?;
    let mut text = [0; 16];
    let length = rustix::io::read(&file, &mut text).call("read")?;
    Ok(String::from_utf8_lossy(&text[..length]).trim().to_owned())
}
