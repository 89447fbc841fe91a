//! What the core itself refuses, and the fault that each refusal becomes.
//!
//! What fails below (the supervisor, the network, a registry) is a fault already when it comes here, and passes unchanged.

use std::fmt;
use std::path::PathBuf;

use strata_fault::{Fault, GrpcCode, Layer, code};

/// The parts of a request, in the API's names; a person's client translates them into its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Image,
    Name,
    Container,
    Command,
    Entrypoint,
    Env,
    WorkingDir,
    User,
    Hostname,
    Labels,
    MountTarget,
    MountSource,
    MountPropagation,
    MountKind,
    TmpfsMode,
    Ports,
    HostIp,
    Memory,
    NanoCpus,
    PidsLimit,
    CapAdd,
    CapDrop,
    Seccomp,
    StopSignal,
    Signal,
    Restart,
    Ulimits,
    Filters,
    Size,
}

impl Field {
    const fn as_str(self) -> &'static str {
        match self {
            Field::Image => "image",
            Field::Name => "name",
            Field::Container => "container",
            Field::Command => "command",
            Field::Entrypoint => "entrypoint",
            Field::Env => "env",
            Field::WorkingDir => "working_dir",
            Field::User => "user",
            Field::Hostname => "hostname",
            Field::Labels => "labels",
            Field::MountTarget => "mounts.target",
            Field::MountSource => "mounts.source",
            Field::MountPropagation => "mounts.propagation",
            Field::MountKind => "mounts.kind",
            Field::TmpfsMode => "mounts.tmpfs_mode",
            Field::Ports => "network.ports",
            Field::HostIp => "network.ports.host_ip",
            Field::Memory => "resources.memory",
            Field::NanoCpus => "resources.nano_cpus",
            Field::PidsLimit => "resources.pids_limit",
            Field::CapAdd => "security.cap_add",
            Field::CapDrop => "security.cap_drop",
            Field::Seccomp => "security.seccomp",
            Field::StopSignal => "stop_signal",
            Field::Signal => "signal",
            Field::Restart => "restart",
            Field::Ulimits => "ulimits",
            Field::Filters => "filters",
            Field::Size => "size",
        }
    }

    /// A limit that is out of range has a code of its own: a client tells it from a syntax error.
    const fn code(self) -> &'static str {
        match self {
            Field::Memory | Field::NanoCpus | Field::PidsLimit | Field::Ulimits => code::LIMIT_INVALID,
            _ => code::INVALID_ARGUMENT,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal of the core. The text never holds its cause.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum Error {
    /// A value that cannot be; `accepted` says what can.
    Invalid { field: Field, value: String, accepted: &'static str },
    /// Two wishes that exclude each other.
    Conflict { one: &'static str, other: &'static str },
    /// A seccomp profile that is none.
    SeccompProfile { source: serde_json::Error },
    /// Neither the request nor the image names a program.
    NoCommand { image: String },
    /// The image is not here, and was not to be pulled.
    ImageNotLocal { image: String },
    /// Another container has the name.
    NameInUse { name: String, holder: String },
    /// No container has that name or id.
    ContainerNotFound { wanted: String },
    /// Several ids begin so.
    ContainerAmbiguous { prefix: String },
    /// `attempt` needs a running container.
    NotRunning { attempt: &'static str, container: String },
    /// `attempt` needs one that does not run.
    Running { attempt: &'static str, container: String },
    /// Somebody is at it already.
    BeingRemoved { container: String },
    /// The container has gone while its request waited.
    Gone { container: String },
    /// stdin was not asked for when the container was made.
    StdinClosed { container: String },
    /// The container has no terminal.
    NoTerminal { container: String },
    /// A bind mount's source is not there.
    MountSourceMissing { path: PathBuf },
    /// A user or group that is not in the image.
    UserUnknown { what: &'static str, name: String, image: String },
    /// A number that no user or group has.
    UserOutOfRange { what: &'static str, number: String },
    /// The image's passwd or group cannot be trusted.
    UserFile { path: &'static str, image: String, why: &'static str },
    /// A file of the engine could not be made, read or removed.
    File { attempt: &'static str, path: PathBuf, source: std::io::Error },
    /// A system call failed.
    Kernel { attempt: String, source: std::io::Error },
    /// A record could not be kept.
    Store { source: crate::store::StoreError },
    /// The container's log could not be read.
    Log { container: String, source: strata_log::Error },
    /// A document of ours could not be written as JSON.
    Json { what: &'static str, source: serde_json::Error },
}

impl Error {
    pub(crate) fn invalid(field: Field, value: impl Into<String>, accepted: &'static str) -> Error {
        Error::Invalid { field, value: value.into(), accepted }
    }

    pub(crate) fn file(attempt: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Error {
        Error::File { attempt, path: path.into(), source: source.into() }
    }

    /// Code, transport class where it is not the code's usual one, and step of the path of a run.
    fn class(&self) -> (&'static str, Option<GrpcCode>, &'static str) {
        match self {
            Error::Invalid { field, .. } => (field.code(), None, "validate"),
            Error::Conflict { .. } | Error::SeccompProfile { .. } | Error::NoCommand { .. } => {
                (code::INVALID_ARGUMENT, None, "validate")
            }
            Error::ImageNotLocal { .. } => (code::IMAGE_NOT_LOCAL, None, "validate"),
            Error::NameInUse { .. } => (code::NAME_IN_USE, None, "validate"),
            Error::ContainerNotFound { .. } | Error::Gone { .. } => (code::CONTAINER_NOT_FOUND, None, "validate"),
            Error::ContainerAmbiguous { .. } => (code::INVALID_ARGUMENT, None, "validate"),
            Error::NotRunning { .. } => (code::CONTAINER_NOT_RUNNING, None, "validate"),
            Error::Running { .. } => (code::CONTAINER_RUNNING, None, "validate"),
            Error::BeingRemoved { .. } => ("CONTAINER_BEING_REMOVED", Some(GrpcCode::FailedPrecondition), "validate"),
            Error::StdinClosed { .. } => ("STDIN_CLOSED", Some(GrpcCode::FailedPrecondition), "validate"),
            Error::NoTerminal { .. } => ("NO_TERMINAL", Some(GrpcCode::FailedPrecondition), "validate"),
            Error::MountSourceMissing { .. } => (code::MOUNT_SOURCE_MISSING, None, "validate"),
            Error::UserUnknown { .. } => (code::USER_UNKNOWN, None, "configure"),
            Error::UserOutOfRange { .. } => (code::INVALID_ARGUMENT, None, "validate"),
            Error::UserFile { .. } => ("USER_FILE_INVALID", Some(GrpcCode::FailedPrecondition), "configure"),
            Error::File { source, .. } | Error::Kernel { source, .. } => io_class(source),
            Error::Store { source } => io_class(source.io()),
            Error::Log { .. } => ("LOG_UNREADABLE", Some(GrpcCode::Internal), "report"),
            Error::Json { .. } => ("INTERNAL", Some(GrpcCode::Internal), "configure"),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::NameInUse { .. } => Some("remove or rename that container, or choose another name".to_owned()),
            Error::ImageNotLocal { .. } => Some("pull it first, or run with another pull policy".to_owned()),
            Error::Running { .. } => Some("stop the container first, or use force".to_owned()),
            Error::ContainerAmbiguous { .. } => Some("give more digits of the id, or the name".to_owned()),
            Error::MountSourceMissing { path } => Some(format!("create {} on the host first", path.display())),
            Error::NoCommand { .. } => Some("give a command after the image".to_owned()),
            _ => None,
        }
    }
}

fn io_class(source: &std::io::Error) -> (&'static str, Option<GrpcCode>, &'static str) {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => (code::NO_SPACE, None, "configure"),
        Some(libc::EACCES | libc::EPERM) => (code::PERMISSION_DENIED, None, "configure"),
        _ => ("IO_FAILED", Some(GrpcCode::Internal), "configure"),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid { field, value, accepted } => write!(f, "{field} = {value:?}: expected {accepted}"),
            Error::Conflict { one, other } => write!(f, "{one} and {other} exclude each other"),
            Error::SeccompProfile { .. } => write!(f, "{}: read the seccomp profile", Field::Seccomp),
            Error::NoCommand { image } => write!(f, "no command: neither the request nor image {image} names one"),
            Error::ImageNotLocal { image } => write!(f, "image {image} is not here, and was not to be pulled"),
            Error::NameInUse { name, holder } => write!(f, "the name {name:?} is in use by container {holder}"),
            Error::ContainerNotFound { wanted } => write!(f, "no such container: {wanted}"),
            Error::ContainerAmbiguous { prefix } => write!(f, "several containers' ids begin with {prefix}"),
            Error::NotRunning { attempt, container } => write!(f, "{attempt}: container {container} is not running"),
            Error::Running { attempt, container } => write!(f, "{attempt}: container {container} is running"),
            Error::BeingRemoved { container } => write!(f, "container {container} is being removed"),
            Error::Gone { container } => write!(f, "container {container} was removed meanwhile"),
            Error::StdinClosed { container } => write!(f, "container {container} was made without an open stdin"),
            Error::NoTerminal { container } => write!(f, "container {container} has no terminal"),
            Error::MountSourceMissing { path } => write!(f, "bind mount source {} does not exist", path.display()),
            Error::UserUnknown { what, name, image } => write!(f, "{what} {name:?} is not known in image {image}"),
            Error::UserOutOfRange { what, number } => {
                write!(f, "user: {what} {number} is out of range (0 to 2147483647)")
            }
            Error::UserFile { path, image, why } => write!(f, "read {path} of image {image}: {why}"),
            Error::File { attempt, path, .. } => write!(f, "{attempt} {}", path.display()),
            Error::Kernel { attempt, .. } => f.write_str(attempt),
            Error::Store { .. } => f.write_str("keep the container's record"),
            Error::Log { container, .. } => write!(f, "read the log of container {container}"),
            Error::Json { what, .. } => write!(f, "write {what} as JSON"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::SeccompProfile { source } | Error::Json { source, .. } => Some(source),
            Error::File { source, .. } | Error::Kernel { source, .. } => Some(source),
            Error::Store { source } => Some(source),
            Error::Log { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let (word, class, step) = error.class();
        let layer = match &error {
            Error::Kernel { .. } => Layer::Kernel,
            _ => Layer::Engine,
        };
        let mut fault = Fault::new(layer, step, word, error.to_string());
        fault.grpc = class.unwrap_or(fault.grpc);
        fault.hint = error.hint();
        match std::error::Error::source(&error) {
            Some(source) => fault.caused_by(source),
            None => fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_value_names_the_field_and_what_is_accepted() {
        let fault = Fault::from(Error::invalid(Field::WorkingDir, "x", "an absolute path"));
        assert_eq!(fault.message, "working_dir = \"x\": expected an absolute path");
        assert_eq!(
            (fault.layer, fault.step.as_str(), fault.grpc),
            (Layer::Engine, "validate", GrpcCode::InvalidArgument)
        );
        let limit = Fault::from(Error::invalid(Field::Memory, "1", "at least 6291456 bytes"));
        assert_eq!(limit.code, code::LIMIT_INVALID);
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let error = Error::file("make directory", "/x", std::io::Error::from_raw_os_error(libc::ENOSPC));
        let fault = Fault::from(error);
        assert_eq!((fault.code.as_str(), fault.message.as_str()), (code::NO_SPACE, "make directory /x"));
        assert_eq!(fault.causes.len(), 1);
    }
}
