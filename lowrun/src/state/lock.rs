//! The lock of a container's directory (`flock`), which who makes or removes the container has.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::Dir;
use crate::fault::{Attempt, Code, Result};
use crate::sys::Call;

impl Dir {
    /// Waits until nobody else makes or removes the container, and keeps others from it until this is dropped.
    pub fn lock(&self) -> Result<()> {
        let attempted = || format!("lock {}", self.path.display());
        let mut lock = self.lock.borrow_mut();
        let file = match lock.take() {
            Some(file) => file,
            None => self.open_again().attempt(Code::StateInvalid, attempted)?,
        };
        rustix::fs::flock(&file, FlockOperation::LockExclusive).call("flock").attempt(Code::StateInvalid, attempted)?;
        *lock = Some(file);
        Ok(())
    }

    /// As [`Dir::lock`], when others could get at it meanwhile: whether it is still there, and none of them has removed it.
    pub fn lock_again(&self) -> Result<bool> {
        self.lock()?;
        Ok(!self.is_removed())
    }

    /// Lets others at the container.
    pub fn unlock(&self) {
        if let Some(file) = &*self.lock.borrow() {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }

    /// In a cloned child: gives its copy of the lock away, so that the lock ends with the parent.
    pub fn leave_lock_to_parent(&self) {
        self.lock.take();
    }

    /// As [`Dir::lock`], if that can be had at once.
    pub fn try_lock(&self) -> bool {
        let Ok(file) = self.open_again() else { return false };
        let is_ours = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        *self.lock.borrow_mut() = is_ours.then_some(file);
        is_ours
    }

    /// Whether somebody else keeps the lock.
    pub(crate) fn is_locked(&self) -> bool {
        if self.lock.borrow().is_some() {
            return false;
        }
        // The handle is this process's alone for as long as that takes.
        let is_locked = rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
        if !is_locked {
            let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
        }
        is_locked
    }

    /// Whether it has been removed since it was opened, by another.
    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    fn open_again(&self) -> crate::sys::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, ".", flags, Mode::empty()).call("openat")
    }
}
