//! Locks on single bytes of a file, which go with the handle.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Waits until nobody else has the byte at `offset`, and has it as long as `file` is open. Neither must the byte be
/// there, nor does anything happen to it.
pub(crate) fn wait_for_byte(file: &OwnedFd, offset: u32) -> io::Result<()> {
    let mut wanted = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset.into(),
        l_len: 1,
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open, and the structure, which lives until the call returns, is what this command
        // takes.
        let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw mut wanted) };
        match outcome {
            0.. => return Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_had_one_by_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap());
        let (one, two) = (open(), open());
        wait_for_byte(&one, 7).unwrap();
        wait_for_byte(&two, 8).unwrap();
        let waiting = std::thread::spawn(move || wait_for_byte(&two, 7).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(one);
        waiting.join().unwrap();
    }
}
