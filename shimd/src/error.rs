//! What can go wrong in shimd, and how it leaves.
//!
//! Every error says what was attempted on what, lower case, without its cause; the cause is its `source`. One function,
//! [`Error::fault`], turns it into the form of the seam; a fault that a shim handed up passes through unchanged.

use std::fmt;
use std::io;

use strata_fault::{Fault, GrpcCode, Layer, code};

/// Codes of shimd that only people read.
mod word {
    pub(super) const NOT_FOUND: &str = "NOT_FOUND";
    pub(super) const ALREADY_EXISTS: &str = "ALREADY_EXISTS";
    pub(super) const FAILED_PRECONDITION: &str = "FAILED_PRECONDITION";
    pub(super) const UNAVAILABLE: &str = "UNAVAILABLE";
    pub(super) const TOO_MANY: &str = "TOO_MANY";
    pub(super) const OUT_OF_RANGE: &str = "OUT_OF_RANGE";
    pub(super) const UNIMPLEMENTED: &str = "UNIMPLEMENTED";
    pub(super) const LAYER_INVALID: &str = "LAYER_INVALID";
    pub(super) const IO: &str = "IO";
    pub(super) const STORE: &str = "STORE";
    pub(super) const SHIM_START_FAILED: &str = "SHIM_START_FAILED";
}

/// An error of shimd.
#[derive(Debug)]
pub(crate) enum Error {
    /// A thing of that name is not there.
    NotFound { what: &'static str, name: String },
    /// A thing of that name is there already.
    Exists { what: &'static str, name: String },
    /// A field of the request is not well formed.
    Invalid { what: String, why: String },
    /// The state of things does not allow it.
    Refused { what: String, why: String },
    /// Another request is at it; trying again later may help.
    Busy { what: String },
    /// There are so many of something under way, and so many that wait, that no more are taken.
    TooMany { what: String },
    /// A position past the end, or not the one that is due.
    OutOfRange { what: String },
    /// A part of containerd's API that is not here.
    Unimplemented { what: String },
    /// Bytes do not have the digest that was promised.
    DigestMismatch { what: String, expected: String, actual: String },
    /// Bytes are more or fewer than promised.
    SizeMismatch { what: String, expected: u64, actual: u64 },
    /// A layer is malformed or hostile.
    Layer { what: String, why: String },
    /// A compressed stream cannot be read.
    Decompress { format: &'static str, source: io::Error },
    /// A system call failed.
    Io { attempted: String, source: io::Error },
    /// The metadata store failed.
    Store { attempted: &'static str, source: Box<redb::Error> },
    /// A record in the store is not what it should be.
    Record { what: &'static str, source: prost::DecodeError },
    /// A shim did not come up.
    ShimStart { runtime: String, why: String, source: Option<io::Error> },
    /// A shim ended before its container did.
    ShimDied { id: String },
    /// What a shim answered; passed on unchanged.
    Shim(Box<Fault>),
    /// What the registry helper answered; passed on unchanged.
    Registry(Box<Fault>),
}

/// The result of nearly everything here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn not_found(what: &'static str, name: impl Into<String>) -> Error {
        Error::NotFound { what, name: name.into() }
    }

    pub(crate) fn exists(what: &'static str, name: impl Into<String>) -> Error {
        Error::Exists { what, name: name.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), why: why.into() }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Refused { what: what.into(), why: why.into() }
    }

    pub(crate) fn layer(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Layer { what: what.into(), why: why.into() }
    }

    /// A failed system call; `attempted` says what on what.
    pub(crate) fn io(attempted: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Io { attempted: attempted.into(), source: source.into() }
    }

    /// Whether what was asked about is not there, by our own finding or the shim's.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Error::NotFound { .. } => true,
            Error::Shim(fault) => fault.grpc == GrpcCode::NotFound,
            _ => false,
        }
    }

    /// The fault that a caller gets, for a request at `step` of a run.
    pub(crate) fn fault(&self, step: &str) -> Fault {
        if let Error::Shim(fault) | Error::Registry(fault) = self {
            return (**fault).clone();
        }
        let (code, class) = self.class();
        let layer = if matches!(self, Error::ShimDied { .. } | Error::ShimStart { .. }) {
            Layer::Shim
        } else {
            Layer::Supervisor
        };
        let fault = Fault::new(layer, step, code, self.to_string()).grpc(class);
        match std::error::Error::source(self) {
            Some(source) => fault.caused_by(source),
            None => fault,
        }
    }

    /// The status that a gRPC client gets.
    pub(crate) fn status(&self, step: &str) -> tonic::Status {
        self.fault(step).into()
    }

    fn class(&self) -> (&'static str, GrpcCode) {
        match self {
            Error::NotFound { .. } => (word::NOT_FOUND, GrpcCode::NotFound),
            Error::Exists { .. } => (word::ALREADY_EXISTS, GrpcCode::AlreadyExists),
            Error::Invalid { .. } => (code::INVALID_ARGUMENT, GrpcCode::InvalidArgument),
            Error::Refused { .. } => (word::FAILED_PRECONDITION, GrpcCode::FailedPrecondition),
            Error::Busy { .. } => (word::UNAVAILABLE, GrpcCode::Unavailable),
            Error::TooMany { .. } => (word::TOO_MANY, GrpcCode::ResourceExhausted),
            Error::OutOfRange { .. } => (word::OUT_OF_RANGE, GrpcCode::OutOfRange),
            Error::Unimplemented { .. } => (word::UNIMPLEMENTED, GrpcCode::Unimplemented),
            // containerd's code for content that is not what was promised.
            Error::DigestMismatch { .. } => (code::DIGEST_MISMATCH, GrpcCode::FailedPrecondition),
            Error::SizeMismatch { .. } => (code::SIZE_MISMATCH, GrpcCode::FailedPrecondition),
            Error::Layer { .. } | Error::Decompress { .. } => (word::LAYER_INVALID, GrpcCode::InvalidArgument),
            Error::Io { source, .. } if is_full(source) => (code::NO_SPACE, GrpcCode::ResourceExhausted),
            Error::Io { .. } => (word::IO, GrpcCode::Unknown),
            Error::Store { source, .. } if is_store_full(source) => (code::NO_SPACE, GrpcCode::ResourceExhausted),
            Error::Store { .. } | Error::Record { .. } => (word::STORE, GrpcCode::Internal),
            Error::ShimStart { .. } => (word::SHIM_START_FAILED, GrpcCode::Unknown),
            Error::ShimDied { .. } => (code::SHIM_DIED, GrpcCode::Unavailable),
            Error::Shim(_) | Error::Registry(_) => (code::UNKNOWN, GrpcCode::Unknown),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn is_store_full(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(error) if is_full(error))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound { what, name } => write!(f, "{what} {name:?}: not found"),
            Error::Exists { what, name } => write!(f, "{what} {name:?}: already exists"),
            Error::Invalid { what, why } => write!(f, "{what}: {why}"),
            Error::Refused { what, why } => write!(f, "{what}: {why}"),
            Error::Busy { what } => write!(f, "{what}: locked by another request"),
            Error::TooMany { what } => write!(f, "{what}: too many are under way"),
            Error::OutOfRange { what } => f.write_str(what),
            Error::Unimplemented { what } => write!(f, "{what}: not implemented"),
            Error::DigestMismatch { what, expected, actual } => {
                write!(f, "{what}: digest is {actual}, expected {expected}")
            }
            Error::SizeMismatch { what, expected, actual } => {
                write!(f, "{what}: size is {actual} bytes, expected {expected}")
            }
            Error::Layer { what, why } => write!(f, "{what}: {why}"),
            Error::Decompress { format, .. } => write!(f, "decompress {format} data"),
            Error::Io { attempted, .. } => f.write_str(attempted),
            Error::Store { attempted, .. } => write!(f, "{attempted} in the metadata store"),
            Error::Record { what, .. } => write!(f, "decode a {what} record"),
            Error::ShimStart { runtime, why, .. } => write!(f, "start a shim of runtime {runtime:?}: {why}"),
            Error::ShimDied { id } => write!(f, "the shim of container {id:?} died"),
            Error::Shim(fault) | Error::Registry(fault) => f.write_str(&fault.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Decompress { source, .. } | Error::Io { source, .. } => Some(source),
            Error::Store { source, .. } => Some(source.as_ref()),
            Error::Record { source, .. } => Some(source),
            Error::ShimStart { source: Some(source), .. } => Some(source),
            _ => None,
        }
    }
}

/// An error with all its causes in one line, for the log.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = Error::io("write ingest \"r\"", io::Error::from_raw_os_error(libc::ENOSPC)).fault("pull");
        assert_eq!((full.code.as_str(), full.grpc), (code::NO_SPACE, GrpcCode::ResourceExhausted));
        assert_eq!(full.one_line(), "write ingest \"r\": No space left on device (os error 28)");
        let other = Error::io("write ingest \"r\"", io::Error::from_raw_os_error(libc::EIO)).fault("pull");
        assert_eq!(other.code, "IO");
    }

    #[test]
    fn a_shims_fault_passes_unchanged() {
        let fault = Fault::new(Layer::Runtime, "create:mounts", code::MOUNT_SOURCE_MISSING, "mount x").cause("ENOENT");
        assert_eq!(Error::Shim(Box::new(fault.clone())).fault("create"), fault);
    }
}
