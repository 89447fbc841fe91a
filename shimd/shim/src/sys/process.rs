//! Starting processes.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::signal;

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The parent; the child has this pid.
    Parent(u32),
    /// The child.
    Child,
}

/// Makes a copy of this process.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: the process has one thread, so the child is whole: no lock is held by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid.cast_unsigned())),
    }
}

/// Closes what the process inherited beyond its standard descriptors. To be called before it has opened any.
pub(crate) fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: nothing of this process owns a descriptor yet. A kernel without the call leaves them open, which is no
    // worse than what started this process.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
}

/// Ends the process now: no handler, no buffer, nothing of the parent's that the child would do twice.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(status) }
}

/// A program to be started: as few system calls as there can be (vfork, dup2, exec).
pub(crate) struct Program<'a> {
    /// A path; it is not searched for.
    pub(crate) path: &'a CStr,
    /// With the name of the program as the first.
    pub(crate) arguments: &'a [CString],
    /// `NAME=value`.
    pub(crate) environment: &'a [CString],
    /// What becomes the descriptors 0, 1, 2, and perhaps 3 and so on. All others must be close-on-exec.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
}

impl Program<'_> {
    /// Starts it with no signal blocked or ignored; the child's pid. Fails when the exec fails.
    pub(crate) fn start(&self) -> io::Result<u32> {
        let actions = Actions::new(self.descriptors)?;
        let attributes = Attributes::new()?;
        let arguments = pointers(self.arguments);
        let environment = pointers(self.environment);
        let mut pid = 0;
        // SAFETY: both arrays end with null and point to C strings that live through the call; actions and attributes
        // were initialised. posix_spawn waits until the child has called exec or failed to.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.path.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        checked(error)?;
        Ok(pid.cast_unsigned())
    }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn checked(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    /// Puts each descriptor in its place. The descriptors must lie above the places, so that none is overwritten before
    /// it is used; [`crate::stdio::above_stdio`] sees to that.
    fn new(descriptors: &[BorrowedFd<'_>]) -> io::Result<Actions> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: init initialises what it is given; assumed only after it succeeded.
        let mut actions = unsafe {
            checked(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Actions(actions.assume_init())
        };
        for (place, descriptor) in (0..).zip(descriptors) {
            // SAFETY: the actions are initialised, and the descriptors are open.
            checked(unsafe {
                libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, descriptor.as_raw_fd(), place)
            })?;
        }
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Attributes> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: init initialises what it is given; assumed only after it succeeded.
        let mut attributes = unsafe {
            checked(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Attributes(attributes.assume_init())
        };
        let (none, defaults) = (signal::set_of(&[]), signal::ignored());
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: the attributes are initialised, the sets too.
        unsafe {
            checked(libc::posix_spawnattr_setsigmask(&raw mut attributes.0, &raw const none))?;
            checked(libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, &raw const defaults))?;
            checked(libc::posix_spawnattr_setflags(&raw mut attributes.0, flags as libc::c_short))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}
