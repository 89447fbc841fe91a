//! A fault: the form an error has when it crosses a seam of Strata.
//!
//! Inside a program errors are enums of that program. Where one leaves the program it becomes a [`Fault`], which says
//! which *layer* failed, at which *step* of a run, by which stable *code*, in plain words, with its chain of causes down
//! to the errno and the path, and a hint where one helps. On gRPC and ttrpc a fault travels as the standard
//! `google.rpc.Status` whose details hold one `google.rpc.ErrorInfo`; a layer that passes on somebody else's fault
//! passes it on unchanged.
//!
//! This crate decides nothing: it neither logs nor prints nor maps codes to exit statuses.

mod wire;

#[cfg(feature = "tonic")]
mod grpc;

use std::fmt;

pub use wire::{DecodeError, GrpcCode};

/// ttrpc metadata of a caller that reads faults. containerd from 2.0 on shows its users each detail of a shim's status as
/// a further error, in the words of a debugger; it does not ask for them.
pub const DETAILS: &str = "strata-fault-details";

/// The codes that a program, not only a person, acts upon. Any other `UPPER_SNAKE` word may be a code too.
pub mod code {
    /// A request field, flag, config key or reference is not well formed; the message names it.
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    /// The caller may not do this (socket, file, kernel).
    pub const PERMISSION_DENIED: &str = "PERMISSION_DENIED";
    /// Nobody answers at the daemon's address.
    pub const DAEMON_UNREACHABLE: &str = "DAEMON_UNREACHABLE";
    /// The registry has no such repository, tag or digest.
    pub const IMAGE_NOT_FOUND: &str = "IMAGE_NOT_FOUND";
    /// The image is not here and the caller asked not to pull it.
    pub const IMAGE_NOT_LOCAL: &str = "IMAGE_NOT_LOCAL";
    /// The image is used by a container.
    pub const IMAGE_IN_USE: &str = "IMAGE_IN_USE";
    /// Nobody answers at the registry's address.
    pub const REGISTRY_UNREACHABLE: &str = "REGISTRY_UNREACHABLE";
    /// The registry wants credentials, or other ones.
    pub const REGISTRY_UNAUTHORIZED: &str = "REGISTRY_UNAUTHORIZED";
    /// Bytes do not have the digest that was promised.
    pub const DIGEST_MISMATCH: &str = "DIGEST_MISMATCH";
    /// Bytes are more or fewer than promised.
    pub const SIZE_MISMATCH: &str = "SIZE_MISMATCH";
    /// A manifest, index or config is not what the specifications allow.
    pub const MANIFEST_INVALID: &str = "MANIFEST_INVALID";
    /// A file system is full (`ENOSPC`, `EDQUOT`).
    pub const NO_SPACE: &str = "NO_SPACE";
    /// The program to run does not exist in the container; a client exits with 127.
    pub const COMMAND_NOT_FOUND: &str = "COMMAND_NOT_FOUND";
    /// The program to run cannot be executed; a client exits with 126.
    pub const COMMAND_NOT_EXECUTABLE: &str = "COMMAND_NOT_EXECUTABLE";
    /// The host path of a bind mount does not exist.
    pub const MOUNT_SOURCE_MISSING: &str = "MOUNT_SOURCE_MISSING";
    /// A user or group name is not known in the image.
    pub const USER_UNKNOWN: &str = "USER_UNKNOWN";
    /// A resource limit is out of range or the kernel refused it.
    pub const LIMIT_INVALID: &str = "LIMIT_INVALID";
    /// A published port is taken.
    pub const PORT_IN_USE: &str = "PORT_IN_USE";
    /// A container of that name exists.
    pub const NAME_IN_USE: &str = "NAME_IN_USE";
    /// No container has that name, id or id prefix.
    pub const CONTAINER_NOT_FOUND: &str = "CONTAINER_NOT_FOUND";
    /// The operation needs a running container.
    pub const CONTAINER_NOT_RUNNING: &str = "CONTAINER_NOT_RUNNING";
    /// The operation needs a container that does not run.
    pub const CONTAINER_RUNNING: &str = "CONTAINER_RUNNING";
    /// The shim ended before its container did.
    pub const SHIM_DIED: &str = "SHIM_DIED";
    /// The kernel killed the container for its memory limit.
    pub const OOM_KILLED: &str = "OOM_KILLED";
    /// A signal ended the container.
    pub const KILLED_BY_SIGNAL: &str = "KILLED_BY_SIGNAL";
    /// The peer sent no code: it is not one of Strata's programs.
    pub const UNKNOWN: &str = "UNKNOWN";
}

/// Which program of the stack an error belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// `strata`, the command line.
    Client,
    /// engined, without its network and registry parts.
    Engine,
    /// The conversation with an image registry.
    Registry,
    /// Bridges, addresses, published ports.
    Network,
    /// shimd: content, snapshots, containers, tasks.
    Supervisor,
    /// The process that watches one container.
    Shim,
    /// lowrun.
    Runtime,
    /// A system call that the kernel refused.
    Kernel,
    /// The user's program itself.
    Application,
}

impl Layer {
    const ALL: [Layer; 9] = [
        Layer::Client,
        Layer::Engine,
        Layer::Registry,
        Layer::Network,
        Layer::Supervisor,
        Layer::Shim,
        Layer::Runtime,
        Layer::Kernel,
        Layer::Application,
    ];

    /// The word used on the wire and on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layer::Client => "client",
            Layer::Engine => "engine",
            Layer::Registry => "registry",
            Layer::Network => "network",
            Layer::Supervisor => "supervisor",
            Layer::Shim => "shim",
            Layer::Runtime => "runtime",
            Layer::Kernel => "kernel",
            Layer::Application => "application",
        }
    }

    /// The layer of that name, as [`Layer::as_str`] writes it.
    pub fn parse(word: &str) -> Option<Layer> {
        Self::ALL.into_iter().find(|layer| layer.as_str() == word)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error on its way over a seam.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who failed.
    pub layer: Layer,
    /// Where on the path of a run: `validate`, `pull`, `create`, …; finer steps after a colon (`create:mounts`).
    pub step: String,
    /// Stable, `UPPER_SNAKE`; see [`code`].
    pub code: String,
    /// The class that the transport knows, for clients that know nothing of Strata.
    pub grpc: GrpcCode,
    /// Plain words, lower case: what was attempted, on what. Without the causes.
    pub message: String,
    /// Why, outermost first, down to the errno and path.
    pub causes: Vec<String>,
    /// What a person can do about it.
    pub hint: Option<String>,
}

impl Fault {
    /// A fault without causes and hint.
    pub fn new(layer: Layer, step: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Fault {
        let code = code.into();
        Fault {
            layer,
            step: step.into(),
            grpc: GrpcCode::for_code(&code),
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// Adds `error` and all its sources as causes.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Fault {
        let mut next = Some(error);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// Adds one cause in words.
    #[must_use]
    pub fn cause(mut self, words: impl Into<String>) -> Fault {
        self.causes.push(words.into());
        self
    }

    /// Says what a person can do.
    #[must_use]
    pub fn hint(mut self, words: impl Into<String>) -> Fault {
        self.hint = Some(words.into());
        self
    }

    /// Chooses another transport class than the code's usual one.
    #[must_use]
    pub fn grpc(mut self, class: GrpcCode) -> Fault {
        self.grpc = class;
        self
    }

    /// Message and causes in one line, `message: cause: cause`.
    pub fn one_line(&self) -> String {
        let mut line = self.message.clone();
        for cause in &self.causes {
            line.push_str(": ");
            line.push_str(cause);
        }
        line
    }
}

impl fmt::Display for Fault {
    /// `layer: step: message`, without the causes, which [`std::error::Error`] reporters have no chain for here:
    /// use [`Fault::one_line`] for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.layer, self.step, self.message)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_parsed_back() {
        for layer in Layer::ALL {
            assert_eq!(Layer::parse(layer.as_str()), Some(layer));
        }
        assert_eq!(Layer::parse("moon"), None);
    }

    #[test]
    fn causes_follow_the_chain_of_sources() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("read /x")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let outer = Outer(std::io::Error::from_raw_os_error(2));
        let fault =
            Fault::new(Layer::Engine, "validate", code::INVALID_ARGUMENT, "read the env file").caused_by(&outer);
        assert_eq!(fault.causes, ["read /x", "No such file or directory (os error 2)"]);
        assert_eq!(fault.one_line(), "read the env file: read /x: No such file or directory (os error 2)");
    }
}
