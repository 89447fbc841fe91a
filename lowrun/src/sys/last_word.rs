//! What the process that becomes a program may have to say when the kernel refuses: told without a descriptor.
//!
//! In the middle of `execve(2)` the process has the new program's memory and still the old one's descriptors, and root of
//! its user namespace may look (seen on Linux 6.1). Memory that it shares with the host side is not there any more by
//! then. That the process has let go of it, by `execve` or by its end, the kernel tells: the word that the host side
//! waits at is in the process's list of robust futexes, which the kernel goes through in both cases.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Failure, Result, check};

/// Most bytes of the text.
pub const TEXT_MAX: usize = 64 * 1024;

/// The kernel wakes who waits only if the word says that somebody does.
const WAITERS: u32 = 1 << 31;
const OWNER_DIED: u32 = 1 << 30;

/// `struct robust_list_head` with its one entry, and what is shared.
#[repr(C)]
struct Shared {
    first: *const Entry,
    /// From an entry to its word.
    offset: libc::c_long,
    pending: *const Entry,
    entry: Entry,
    word: AtomicU32,
    length: AtomicU32,
    text: [u8; TEXT_MAX],
}

#[repr(C)]
struct Entry {
    next: *const Shared,
}

/// Bytes of `struct robust_list_head`.
const HEAD: usize = 3 * size_of::<usize>();

/// A piece of memory that both sides of a clone have; each has its own handle.
#[derive(Clone, Debug)]
pub struct LastWord(Rc<Mapping>);

#[derive(Debug)]
struct Mapping(*mut Shared);

impl LastWord {
    /// Made before the clone.
    pub fn new() -> Result<LastWord> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses. Its zeros are a valid `Shared`.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), protection, flags, -1, 0) };
        check("mmap", address as libc::c_long)?;
        Ok(LastWord(Rc::new(Mapping(address.cast()))))
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping lives as long as its handles, and is only touched through atomics and `text`.
        unsafe { &(*self.0.0).word }
    }

    fn length(&self) -> &AtomicU32 {
        // SAFETY: as in `word`.
        unsafe { &(*self.0.0).length }
    }

    /// In the process that will become a program: from here on its `execve` or end is told.
    pub fn arm(&self) -> Result<()> {
        let shared = self.0.0;
        // SAFETY: takes nothing. The kernel compares with the id that the process has in its own pid namespace.
        let own = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
        // SAFETY: the fields are in the mapping; nobody reads them but the kernel, when this process lets go.
        unsafe {
            (*shared).first = &raw const (*shared).entry;
            (*shared).entry.next = shared;
            (*shared).offset = std::mem::offset_of!(Shared, word) as i64 - std::mem::offset_of!(Shared, entry) as i64;
        }
        self.word().store(own | WAITERS, Ordering::SeqCst);
        // SAFETY: the list is a circle of one entry in memory that stays until `execve`.
        let told = check("set_robust_list", unsafe { libc::syscall(libc::SYS_set_robust_list, shared, HEAD) });
        if told.is_err() {
            self.word().store(0, Ordering::SeqCst);
        }
        told.map(drop)
    }

    /// Whether it was armed; the host side knows that once it has been told by other means that the process has come so far.
    pub fn is_armed(&self) -> bool {
        self.word().load(Ordering::SeqCst) != 0
    }

    /// In that process: leaves a text, which must fit, before it ends.
    pub fn say(&self, text: &[u8]) -> Result<()> {
        if text.len() > TEXT_MAX || !self.is_armed() {
            return Err(Failure { call: "last word", errno: Errno::PIPE });
        }
        // SAFETY: within the mapping; the host side reads only when the length is there.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), (&raw mut (*self.0.0).text).cast(), text.len()) };
        self.length().store(text.len() as u32, Ordering::SeqCst);
        Ok(())
    }

    /// On the host side: waits until the process has let go, but not longer than `patience`; gives the text, if it left one.
    pub fn wait(&self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.word().load(Ordering::SeqCst);
            let left = deadline.saturating_duration_since(Instant::now());
            if now & OWNER_DIED != 0 || left.is_zero() {
                return self.text();
            }
            self.wait_at(now, left);
        }
    }

    fn wait_at(&self, seen: u32, left: Duration) {
        let left = libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: the word and the time outlive the call. Why it returns does not matter: the caller looks again.
        unsafe { libc::syscall(libc::SYS_futex, self.word().as_ptr(), libc::FUTEX_WAIT, seen, &raw const left) };
    }

    /// The text, if the process has left one by now.
    pub fn text(&self) -> Option<Vec<u8>> {
        let length = self.length().load(Ordering::SeqCst) as usize;
        // SAFETY: who has set the length has written the text before, within the mapping, and writes no more.
        let text =
            unsafe { std::slice::from_raw_parts((&raw const (*self.0.0).text).cast::<u8>(), length.min(TEXT_MAX)) };
        (length != 0).then(|| text.to_vec())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; nothing refers to it any more. A process that has armed it ends by
        // `execve` or `_exit`, and drops nothing.
        unsafe { libc::munmap(self.0.cast(), size_of::<Shared>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clone::{Forked, clone3};
    use crate::sys::process::exit_now;

    /// What a child does after it has armed the word; the handle on the child.
    fn child(word: &LastWord, act: impl FnOnce()) -> std::os::fd::OwnedFd {
        match clone3(0, None).unwrap() {
            Forked::Child => {
                if word.arm().is_ok() {
                    act();
                }
                exit_now(0)
            }
            Forked::Parent { pidfd, .. } => pidfd,
        }
    }

    fn reap(pidfd: &std::os::fd::OwnedFd) {
        let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(pidfd));
        rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED).unwrap();
    }

    fn until_armed(word: &LastWord) {
        let begun = Instant::now();
        while !word.is_armed() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_end_is_told_with_the_text_that_was_left() {
        let word = LastWord::new().unwrap();
        let pidfd = child(&word, || word.say(b"refused").unwrap());
        until_armed(&word);
        assert_eq!(word.wait(Duration::from_secs(10)).as_deref(), Some(&b"refused"[..]));
        reap(&pidfd);
    }

    #[test]
    fn a_program_that_runs_is_told_at_once() {
        let word = LastWord::new().unwrap();
        let strings = |words: &[&std::ffi::CStr]| {
            crate::sys::process::Strings::new(words.iter().map(|word| (*word).to_owned()).collect())
        };
        let (arguments, environment) = (strings(&[c"sleep", c"2"]), strings(&[]));
        let begun = Instant::now();
        let pidfd = child(&word, || {
            crate::sys::process::execve(c"/bin/sleep", &arguments, &environment);
        });
        until_armed(&word);
        assert_eq!(word.wait(Duration::from_secs(10)), None);
        assert!(begun.elapsed() < Duration::from_millis(1900), "not only when it ended");
        reap(&pidfd);
    }

    #[test]
    fn patience_ends() {
        let word = LastWord::new().unwrap();
        let pidfd = child(&word, || std::thread::sleep(Duration::from_secs(1)));
        until_armed(&word);
        let begun = Instant::now();
        assert_eq!(word.wait(Duration::from_millis(50)), None);
        assert!(begun.elapsed() < Duration::from_millis(900));
        reap(&pidfd);
    }
}
