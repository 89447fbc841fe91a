//! The error of lowrun: which layer, at which step, by which code, in plain words, with its causes and a hint.
//!
//! Made where something is attempted, carried unchanged from the container side to the host side over the channel, and
//! reported once, in `log`. The form is that of every seam of Strata; it is written down again here because lowrun
//! links nothing that the daemons need.

use serde::{Deserialize, Serialize};

use crate::sys::{self, Failure};

/// What lowrun returns.
pub type Result<T> = std::result::Result<T, Box<Fault>>;

/// Who failed: lowrun by its own judgement, or a system call.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// lowrun said no.
    Runtime,
    /// The kernel said no.
    Kernel,
}

/// Stable words that programs act upon.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// A flag or an argument of the command line.
    InvalidArgument,
    /// A field of config.json, process.json or resources; the message names it.
    SpecInvalid,
    /// config.json is not there.
    BundleInvalid,
    /// The kernel or the file system does not allow it.
    PermissionDenied,
    /// A file system is full.
    NoSpace,
    /// The program is not in the container.
    CommandNotFound,
    /// The program cannot be executed.
    CommandNotExecutable,
    /// The host path of a bind mount does not exist.
    MountSourceMissing,
    /// A mount could not be made.
    MountFailed,
    /// The root file system is missing, a symlink or not a directory.
    RootfsInvalid,
    /// A path of the root file system leads where it must not.
    RootfsUnsafe,
    /// The user, group or groups cannot be taken.
    UserInvalid,
    /// The working directory is missing or outside of the container.
    CwdInvalid,
    /// A limit is out of range, or the kernel refused it.
    LimitInvalid,
    /// The cgroup cannot be made, entered or removed.
    CgroupFailed,
    /// The cgroup is there already, with processes of somebody else or frozen.
    CgroupInUse,
    /// A namespace cannot be made or joined.
    NamespaceFailed,
    /// The seccomp profile or its filter.
    SeccompFailed,
    /// A hook failed or took too long.
    HookFailed,
    /// A container of that id exists.
    ContainerExists,
    /// No container has that id.
    ContainerNotFound,
    /// The operation needs a running container.
    ContainerNotRunning,
    /// The operation needs a container that does not run.
    ContainerRunning,
    /// The state directory is damaged, or of another version.
    StateInvalid,
    /// CRIU could not save or restore a container.
    CheckpointFailed,
    /// The kernel lacks something that was asked for.
    Unsupported,
    /// A system call failed, with no better word for it.
    SystemError,
}

impl Code {
    /// The word on the wire.
    pub fn as_str(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// What failed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Fault {
    pub layer: Layer,
    /// `create:mounts`: the step of a run, and the part of lowrun's own work.
    pub step: String,
    pub code: Code,
    /// What was attempted, on what; without its causes.
    pub message: String,
    /// Why, outermost first, down to the system call.
    pub causes: Vec<String>,
    pub hint: Option<String>,
}

impl Fault {
    /// A fault of lowrun's own judgement.
    pub fn new(code: Code, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault {
            layer: Layer::Runtime,
            step: String::new(),
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        })
    }

    /// A fault because of a refused system call; its errno may choose a more telling code.
    pub fn of(code: Code, message: impl Into<String>, failure: Failure) -> Box<Fault> {
        use rustix::io::Errno;
        let code = match failure.errno {
            Errno::NOSPC | Errno::DQUOT => Code::NoSpace,
            Errno::PERM | Errno::ACCESS if code == Code::SystemError => Code::PermissionDenied,
            _ => code,
        };
        let mut fault = Fault::new(code, message).cause(failure.to_string());
        fault.layer = Layer::Kernel;
        fault
    }

    /// Adds a cause.
    #[must_use]
    pub fn cause(mut self: Box<Self>, words: impl Into<String>) -> Box<Fault> {
        self.causes.push(words.into());
        self
    }

    /// Says what a person can do.
    #[must_use]
    pub fn hint(mut self: Box<Self>, words: impl Into<String>) -> Box<Fault> {
        self.hint = Some(words.into());
        self
    }

    /// Names the step, unless a step further in has named itself.
    #[must_use]
    pub fn at(mut self: Box<Self>, step: &str) -> Box<Fault> {
        if self.step.is_empty() {
            self.step = step.to_owned();
        }
        self
    }

    /// Message and causes in one line, as runc writes them.
    pub fn one_line(&self) -> String {
        escaped(self.causes.iter().fold(self.message.clone(), |line, cause| line + ": " + cause))
    }
}

/// A value that others wrote may have line ends, and words for a terminal.
fn escaped(line: String) -> String {
    if !line.contains(char::is_control) {
        return line;
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    line.chars().map(escape).collect()
}

/// Turns a refused system call into a fault that says what was attempted.
pub trait Attempt<T> {
    /// `message` is built only on failure.
    fn attempt<M: Into<String>>(self, code: Code, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Attempt<T> for sys::Result<T> {
    fn attempt<M: Into<String>>(self, code: Code, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|failure| Fault::of(code, message(), failure))
    }
}

/// Names the step of a result.
pub trait Step<T> {
    /// See [`Fault::at`].
    fn step(self, step: &str) -> Result<T>;
}

impl<T> Step<T> for Result<T> {
    fn step(self, step: &str) -> Result<T> {
        self.map_err(|fault| fault.at(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_fault_is_one_line_with_its_causes_in_order() {
        let failure = Failure { call: "open_tree", errno: Errno::NOENT };
        let fault = Fault::of(Code::MountSourceMissing, "bind /src to /dst", failure);
        assert_eq!(fault.one_line(), "bind /src to /dst: open_tree: no such file or directory");
        assert_eq!(fault.layer, Layer::Kernel);
    }

    #[test]
    fn a_fault_is_one_line_whatever_was_written() {
        let fault = Fault::new(Code::SpecInvalid, "a\nb").cause("\u{1b}[2J é\t\u{9b}");
        assert_eq!(fault.one_line(), r"a\nb: \u{1b}[2J é\t\u{9b}");
    }

    #[test]
    fn the_innermost_step_wins() {
        let fault = Fault::new(Code::SpecInvalid, "x").at("create:plan").at("create");
        assert_eq!(fault.step, "create:plan");
    }

    #[test]
    fn a_full_disk_is_told_as_such_whatever_was_attempted() {
        let fault = Fault::of(Code::CgroupFailed, "x", Failure { call: "write", errno: Errno::NOSPC });
        assert_eq!(fault.code.as_str(), "NO_SPACE");
    }

    #[test]
    fn codes_are_upper_snake_case() {
        assert_eq!(Code::CommandNotFound.as_str(), "COMMAND_NOT_FOUND");
        assert_eq!(serde_json::to_string(&Layer::Kernel).unwrap(), "\"kernel\"");
    }
}
