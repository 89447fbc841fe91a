//! Starting processes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;

use super::signal;

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The parent; the child has this pid.
    Parent(Pid),
    /// The child.
    Child,
}

/// Makes a copy of this process.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: the process has one thread, so the child is whole: no lock is held by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent)),
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

/// The status of a child that could not execute its program.
const NOT_EXECUTED: libc::c_int = 127;

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

/// Bytes of the stack on which a child runs until it executes its program.
const CHILD_STACK_LEN: usize = 32 << 10;

/// What a child needs, prepared by its parent, whose memory it shares: it allocates nothing.
struct Child<'a> {
    path: &'a CStr,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    descriptors: &'a [BorrowedFd<'a>],
    unblocked: libc::sigset_t,
    /// Why the program was not executed; zero if it was.
    error: libc::c_int,
}

impl Program<'_> {
    /// Starts it with no signal blocked or ignored; the child's pid. Fails when the exec fails.
    ///
    /// The child shares this process's memory and this process sleeps until the child has executed the program, as with
    /// vfork. posix_spawn does the same, but first asks the kernel about the disposition of each of 64 signals.
    pub(crate) fn start(&self) -> io::Result<u32> {
        let mut stack = vec![0_u128; CHILD_STACK_LEN / size_of::<u128>()];
        let mut child = Child {
            path: self.path,
            arguments: pointers(self.arguments),
            environment: pointers(self.environment),
            descriptors: self.descriptors,
            unblocked: signal::set_of(&[]),
            error: 0,
        };
        // SAFETY: the stack grows down from its end, which is aligned as any ABI wants; it and `child` live until clone
        // returns, which CLONE_VFORK delays until the child has executed a program or ended. The child gets no other
        // reference to this process's memory, and `run_child` only makes system calls.
        let pid = unsafe {
            libc::clone(
                run_child,
                stack.as_mut_ptr_range().end.cast(),
                libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                (&raw mut child).cast(),
            )
        };
        if pid == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the child has written it, and has ended or shares no memory any more.
        match unsafe { (&raw const child.error).read_volatile() } {
            0 => Ok(pid.cast_unsigned()),
            error => {
                // It has ended; nobody else waits for it.
                // SAFETY: the status is not asked for.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                Err(io::Error::from_raw_os_error(error))
            }
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// What the child does. The descriptors lie above the places that they are put into, so that none is overwritten before
/// it is used; [`crate::stdio::above_stdio`] sees to that. All else is close-on-exec.
extern "C" fn run_child(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `Program::start` passes a pointer to a `Child` and sleeps meanwhile.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    for (place, descriptor) in (0..).zip(child.descriptors) {
        // SAFETY: dup2 takes any numbers.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), place) } == -1 {
            return failed(child);
        }
    }
    signal::stop_ignoring();
    // SAFETY: the set is initialised; the arrays end with null and point to C strings that live in the sleeping parent.
    unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &raw const child.unblocked, ptr::null_mut());
        libc::execve(child.path.as_ptr(), child.arguments.as_ptr(), child.environment.as_ptr());
    }
    failed(child)
}

fn failed(child: &mut Child<'_>) -> libc::c_int {
    // An error number is never zero.
    child.error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    NOT_EXECUTED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

    fn start(path: &CStr, arguments: &[&CStr], output: &OwnedFd) -> io::Result<u32> {
        let arguments: Vec<CString> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let environment = [c"WORD=from the environment".to_owned()];
        let descriptors = [output.as_fd(); 3];
        Program { path, arguments: &arguments, environment: &environment, descriptors: &descriptors }.start()
    }

    #[test]
    fn a_program_runs_with_its_arguments_environment_and_descriptors() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let output = crate::stdio::above_stdio(OwnedFd::from(File::create(path.path()).unwrap())).unwrap();
        let pid = start(c"/bin/sh", &[c"sh", c"-c", c"echo $0 $WORD; exit 3", c"name"], &output).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.cast_signed());
        let (_, status) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(3));
        assert_eq!(std::fs::read_to_string(path.path()).unwrap(), "name from the environment\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_no_child() {
        let output = crate::stdio::above_stdio(OwnedFd::from(File::open("/dev/null").unwrap())).unwrap();
        let error = start(c"/nonexistent", &[c"x"], &output).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
