//! What can go wrong in a shim, and the one place where that becomes a fault.

use std::fmt;
use std::io;

use strata_fault::{Fault, GrpcCode, Layer, code};

/// The mount of the container's root file system failed.
const ROOTFS_MOUNT_FAILED: &str = "ROOTFS_MOUNT_FAILED";
/// A FIFO, file, log or logger for the container's stdio cannot be used.
const STDIO_UNAVAILABLE: &str = "STDIO_UNAVAILABLE";
/// The runtime's program cannot be started.
const RUNTIME_NOT_FOUND: &str = "RUNTIME_NOT_FOUND";
/// Anything else that the kernel refused the shim.
const SHIM_FAILED: &str = "SHIM_FAILED";
/// An exec of that id exists.
const EXEC_IN_USE: &str = "EXEC_IN_USE";

/// Why a call fails.
#[derive(Debug)]
pub(crate) enum Error {
    /// The message of a call, or a field in it.
    Invalid { what: String },
    /// No such container, or no such exec.
    NotFound { what: String },
    /// The container or the exec exists already.
    Exists { what: String },
    /// The process is not in a state in which that can be done.
    State { what: String, is_running: bool },
    /// There is too much of something.
    Busy { what: String },
    /// The shim does not do this.
    Unimplemented { what: String },
    /// A mount of the root file system.
    Mount { what: String, source: io::Error },
    /// The ends of the container's stdio.
    Stdio { what: String, source: io::Error },
    /// The container's log.
    Log { source: strata_log::Error },
    /// The runtime's program does not start.
    Runtime { program: String, source: io::Error },
    /// The runtime failed and said why.
    Told(Box<Fault>),
    /// Another system call.
    System { what: String, source: io::Error },
}

impl Error {
    /// What the runtime said, if it was the runtime that failed.
    pub(crate) fn told(&self) -> Option<&Fault> {
        match self {
            Error::Told(fault) => Some(fault),
            _ => None,
        }
    }

    /// The error as it leaves the shim, for the caller's `step`.
    pub(crate) fn into_fault(self, step: &str) -> Fault {
        if let Error::Told(fault) = self {
            return *fault;
        }
        let (step, code, class) = self.classified(step);
        let fault = Fault::new(Layer::Shim, step, code, self.to_string());
        let fault = match class {
            Some(class) => fault.grpc(class),
            None => fault,
        };
        match std::error::Error::source(&self) {
            Some(source) => fault.caused_by(source),
            None => fault,
        }
    }

    fn classified<'a>(&self, step: &'a str) -> (&'a str, &'static str, Option<GrpcCode>) {
        if self.errno().is_some_and(|errno| errno == libc::ENOSPC || errno == libc::EDQUOT) {
            return (step, code::NO_SPACE, None);
        }
        match self {
            Error::Invalid { .. } => (step, code::INVALID_ARGUMENT, None),
            Error::NotFound { .. } => (step, code::CONTAINER_NOT_FOUND, None),
            Error::Exists { .. } => (step, EXEC_IN_USE, Some(GrpcCode::AlreadyExists)),
            Error::State { is_running: true, .. } => (step, code::CONTAINER_RUNNING, None),
            Error::State { is_running: false, .. } => (step, code::CONTAINER_NOT_RUNNING, None),
            Error::Busy { .. } => (step, SHIM_FAILED, Some(GrpcCode::ResourceExhausted)),
            Error::Unimplemented { .. } => (step, code::UNKNOWN, Some(GrpcCode::Unimplemented)),
            Error::Mount { .. } => ("assemble", ROOTFS_MOUNT_FAILED, Some(GrpcCode::FailedPrecondition)),
            Error::Stdio { .. } | Error::Log { .. } => (step, STDIO_UNAVAILABLE, Some(GrpcCode::FailedPrecondition)),
            Error::Runtime { .. } => (step, RUNTIME_NOT_FOUND, Some(GrpcCode::FailedPrecondition)),
            Error::Told(_) | Error::System { .. } => (step, SHIM_FAILED, None),
        }
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Error::Mount { source, .. } | Error::Stdio { source, .. } | Error::System { source, .. } => {
                source.raw_os_error()
            }
            Error::Log { source } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid { what }
            | Error::NotFound { what }
            | Error::Exists { what }
            | Error::State { what, .. }
            | Error::Busy { what }
            | Error::Unimplemented { what }
            | Error::Mount { what, .. }
            | Error::Stdio { what, .. }
            | Error::System { what, .. } => f.write_str(what),
            Error::Log { .. } => f.write_str("open the container's log"),
            Error::Runtime { program, .. } => write!(f, "start the runtime {program:?}"),
            Error::Told(fault) => f.write_str(&fault.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Mount { source, .. }
            | Error::Stdio { source, .. }
            | Error::System { source, .. }
            | Error::Runtime { source, .. } => Some(source),
            Error::Log { source } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_to_be_one() {
        let error = Error::Stdio { what: "open \"/x\"".to_owned(), source: io::Error::from_raw_os_error(libc::ENOSPC) };
        let fault = error.into_fault("create");
        assert_eq!((fault.code.as_str(), fault.grpc), (code::NO_SPACE, GrpcCode::ResourceExhausted));
        assert_eq!(fault.causes, ["No space left on device (os error 28)"]);
    }

    #[test]
    fn the_runtimes_fault_is_passed_on_unchanged() {
        let told = Fault::new(Layer::Kernel, "create:mounts", code::MOUNT_SOURCE_MISSING, "mount").cause("ENOENT");
        assert_eq!(Error::Told(Box::new(told.clone())).into_fault("create"), told);
    }

    #[test]
    fn containerd_learns_what_it_acts_upon() {
        let class = |error: Error| error.into_fault("kill").grpc;
        assert_eq!(class(Error::NotFound { what: String::new() }), GrpcCode::NotFound);
        assert_eq!(class(Error::Exists { what: String::new() }), GrpcCode::AlreadyExists);
        assert_eq!(class(Error::Unimplemented { what: String::new() }), GrpcCode::Unimplemented);
        assert_eq!(class(Error::State { what: String::new(), is_running: true }), GrpcCode::FailedPrecondition);
    }
}
