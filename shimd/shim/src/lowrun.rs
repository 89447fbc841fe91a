//! Calling the runtime, lowrun or any other that has runc's command line.
//!
//! A call is a child process; nothing here waits for it. The loop hands the exit status to [`Call::outcome`].

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use proto_shim::runc;
use rustix::fs::{Access, CWD};
use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};
use strata_fault::Fault;
use strata_trace::{Span, TraceParent};

use crate::error::Error;
use crate::runtime_log::{self, Told};
use crate::stdio::above_stdio;
use crate::sys::process::Program;

/// Where containerd's shims keep the runtime's state unless told otherwise.
const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// The runtime unless the options name another.
const DEFAULT_PROGRAM: &str = "lowrun";
/// The file in the bundle that tells `delete` what it needs to know of the options.
const OPTIONS_FILE: &str = "options.json";
/// The log of the runtime in the bundle.
const LOG_FILE: &str = "log.json";
/// Where a wait status is the number of a signal instead of a program's own.
const SIGNALLED: u32 = 128;

/// How the runtime is called for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Options {
    /// Empty: lowrun.
    binary_name: String,
    /// Of all containers of the namespace.
    root: String,
    systemd_cgroup: bool,
    pub(crate) no_pivot_root: bool,
    pub(crate) no_new_keyring: bool,
    #[serde(skip)]
    pub(crate) io_uid: u32,
    #[serde(skip)]
    pub(crate) io_gid: u32,
}

impl Options {
    pub(crate) fn new(namespace: &str, options: runc::Options) -> Options {
        let root = if options.root.is_empty() { DEFAULT_ROOT.to_owned() } else { options.root };
        Options {
            binary_name: options.binary_name,
            root: format!("{root}/{namespace}"),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
        }
    }

    /// Leaves them for `delete`.
    pub(crate) fn save(&self, bundle: &Path) -> Result<(), Error> {
        let path = bundle.join(OPTIONS_FILE);
        let text = serde_json::to_vec(self).map_err(|source| Error::System {
            what: "encode the runtime's options".to_owned(),
            source: source.into(),
        })?;
        std::fs::write(&path, text)
            .map_err(|source| Error::System { what: format!("write {}", path.display()), source })
    }

    /// Whether a container was ever begun to be made in `bundle`: before the runtime hears of it they are saved.
    pub(crate) fn are_saved(bundle: &Path) -> bool {
        bundle.join(OPTIONS_FILE).exists()
    }

    /// What was saved in `bundle`; the defaults where that cannot be read.
    pub(crate) fn load(bundle: &Path, namespace: &str) -> Options {
        let saved = std::fs::read(bundle.join(OPTIONS_FILE)).ok();
        let saved = saved.and_then(|text| serde_json::from_slice(&text).ok());
        saved.unwrap_or_else(|| Options::new(namespace, runc::Options::default()))
    }
}

/// A runtime that was found.
#[derive(Debug)]
pub(crate) struct Runtime {
    options: Options,
    path: PathBuf,
    /// What is executed: `path`, or a way to `image`.
    executed: CString,
    /// The program on a read-only mount that nobody else has: a container that gets hold of its runtime's
    /// `/proc/self/exe` (CVE-2019-5736) cannot write to it, so lowrun need not copy itself first.
    _image: Option<OwnedFd>,
}

impl Runtime {
    /// Looks for the program that the options name.
    pub(crate) fn find(options: Options) -> Result<Runtime, Error> {
        let name = if options.binary_name.is_empty() { DEFAULT_PROGRAM } else { &options.binary_name };
        let path = search(OsStr::new(name)).map_err(|source| Error::Runtime { program: name.to_owned(), source })?;
        let image = protected(&path).ok();
        let executed = match &image {
            Some(image) => c_string(format!("/proc/self/fd/{}", image.as_raw_fd()).into_bytes())?,
            None => c_string(path.as_os_str().as_bytes())?,
        };
        Ok(Runtime { options, path, executed, _image: image })
    }

    /// The options that it is called with.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Where the program is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the container's init is a process that the shim may signal itself, as with runc and those like it, or
    /// something that only the runtime can reach.
    pub(crate) fn is_like_runc(&self) -> bool {
        matches!(self.path.file_name().and_then(OsStr::to_str), Some("lowrun" | "runc" | "crun"))
    }

    /// Starts the runtime with the arguments after the global ones.
    pub(crate) fn call(
        &self,
        bundle: &Path,
        command: &[&str],
        descriptors: [BorrowedFd<'_>; 3],
        trace: Option<TraceParent>,
        log: LogName,
    ) -> Result<Call, Error> {
        let log = Log::new(bundle, log);
        let arguments = self.arguments(&log, command)?;
        let environment = environment(trace);
        let program = Program {
            path: &self.executed,
            arguments: &arguments,
            environment: &environment,
            descriptors: &descriptors,
        };
        let begun_ns = strata_trace::now_ns();
        let pid =
            program.start().map_err(|source| Error::Runtime { program: self.path.display().to_string(), source })?;
        Ok(Call { pid, log, begun_ns, is_traced: trace.is_some() })
    }

    fn arguments(&self, log: &Log, command: &[&str]) -> Result<Vec<CString>, Error> {
        let mut arguments = vec![c_string(self.path.as_os_str().as_bytes())?];
        let log = log.path.to_string_lossy();
        let global = ["--root", &self.options.root, "--log", &log, "--log-format", "json"];
        let systemd = self.options.systemd_cgroup.then_some("--systemd-cgroup");
        for argument in global.into_iter().chain(systemd).chain(command.iter().copied()) {
            arguments.push(c_string(argument)?);
        }
        Ok(arguments)
    }
}

/// A string for the kernel.
fn c_string(bytes: impl Into<Vec<u8>>) -> Result<CString, Error> {
    CString::new(bytes).map_err(|error| Error::Invalid {
        what: format!("{:?} contains a zero byte", String::from_utf8_lossy(&error.into_vec())),
    })
}

/// A path for `name`: itself if it is one, else beside the shim, else in PATH.
fn search(name: &OsStr) -> io::Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(name));
    }
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = own.into_iter().chain(std::env::split_paths(&path)).map(|directory| directory.join(name));
    for candidate in candidates {
        if rustix::fs::accessat(CWD, &candidate, Access::EXEC_OK, rustix::fs::AtFlags::EACCESS).is_ok() {
            return Ok(candidate);
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

/// The program on a mount of its own, read-only. Not for scripts: their interpreter could not open them again.
fn protected(path: &Path) -> io::Result<OwnedFd> {
    let mut magic = [0; 4];
    File::open(path)?.read_exact(&mut magic)?;
    if magic != *b"\x7fELF" {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let image = above_stdio(rustix::mount::open_tree(CWD, path, flags)?)?;
    crate::sys::mount::set_read_only(&image)?;
    Ok(image)
}

/// The shim's own environment, with the trace of this call in place of an older one.
fn environment(trace: Option<TraceParent>) -> Vec<CString> {
    const TRACEPARENT: &str = "TRACEPARENT";
    let own = std::env::vars_os().filter(|(name, _)| name != TRACEPARENT).map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let trace = trace.map(|trace| OsString::from(format!("{TRACEPARENT}={trace}")));
    // The environment holds no zero bytes.
    own.chain(trace).filter_map(|pair| CString::new(pair.into_vec()).ok()).collect()
}

/// Which log a call writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogName {
    /// The one that operators know; for calls that run alone.
    Common,
    /// One of its own, so that another call's words are not taken for this one's; removed afterwards.
    Own(u32),
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    /// What earlier calls have written.
    offset: u64,
    is_own: bool,
}

impl Log {
    fn new(bundle: &Path, name: LogName) -> Log {
        match name {
            LogName::Common => {
                let path = bundle.join(LOG_FILE);
                let offset = rustix::fs::stat(&path).map_or(0, |stat| stat.st_size as u64);
                Log { path, offset, is_own: false }
            }
            LogName::Own(number) => Log { path: bundle.join(format!("log-{number}.json")), offset: 0, is_own: true },
        }
    }

    fn read(&self, step: &str) -> Told {
        runtime_log::read(&self.path, self.offset, step)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.is_own {
            // The runtime may not have written one.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A runtime at work.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) pid: u32,
    log: Log,
    begun_ns: u64,
    is_traced: bool,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: Result<(), Box<Fault>>,
    /// The call itself, then what the runtime told.
    pub(crate) spans: Vec<Span>,
}

impl Call {
    /// What became of the call, now that its process has ended with `status`.
    pub(crate) fn outcome(self, status: u32, step: &str) -> Outcome {
        if status == 0 && !self.is_traced {
            return Outcome { result: Ok(()), spans: Vec::new() };
        }
        let told = self.log.read(step);
        let result = match (status, told.fault) {
            (0, _) => Ok(()),
            (_, Some(fault)) => Err(Box::new(fault)),
            (status, None) => Err(Box::new(runtime_log::foreign(&ended(status), step))),
        };
        let mut spans = told.spans;
        if self.is_traced {
            spans.push(crate::trace::span(&format!("lowrun {step}"), self.begun_ns));
        }
        Outcome { result, spans }
    }
}

fn ended(status: u32) -> String {
    match status.checked_sub(SIGNALLED) {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {status}"),
    }
}

/// Whether a call's status says that a signal ended it.
pub(crate) fn was_killed(status: u32) -> bool {
    status > SIGNALLED
}

/// Whether a runtime's words say that the container was started before.
pub(crate) fn says_running(fault: &Fault) -> bool {
    fault.code == strata_fault::code::CONTAINER_RUNNING || fault.message.contains("already running")
}

/// Whether a runtime's words say that it does not know the container (any more).
pub(crate) fn says_gone(fault: &Fault) -> bool {
    fault.code == strata_fault::code::CONTAINER_NOT_FOUND || fault.message.contains("does not exist")
}

/// `/dev/null`, for calls that need no stdio.
pub(crate) fn null_stdio(null: &OwnedFd) -> [BorrowedFd<'_>; 3] {
    [null.as_fd(), null.as_fd(), null.as_fd()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_again_by_delete() {
        let bundle = tempfile::tempdir().unwrap();
        let wire = runc::Options {
            binary_name: "/x/runc".to_owned(),
            root: "/r".to_owned(),
            systemd_cgroup: true,
            ..runc::Options::default()
        };
        let options = Options::new("n", wire);
        assert_eq!(options.root, "/r/n");
        options.save(bundle.path()).unwrap();
        assert_eq!(Options::load(bundle.path(), "other"), options);
        let defaults = Options::load(Path::new("/nonexistent"), "n");
        assert_eq!(defaults.root, "/run/containerd/runc/n");
    }

    #[test]
    fn a_program_is_searched_in_path() {
        assert!(search(OsStr::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(search(OsStr::new("/a/b")).unwrap(), Path::new("/a/b"));
        assert!(search(OsStr::new("no-such-program-anywhere")).is_err());
    }

    #[test]
    fn a_runtime_that_says_nothing_is_reported_by_its_status() {
        let bundle = tempfile::tempdir().unwrap();
        let call = Call { pid: 1, log: Log::new(bundle.path(), LogName::Own(1)), begun_ns: 0, is_traced: false };
        let fault = call.outcome(137, "create").result.unwrap_err();
        assert_eq!(fault.message, "OCI runtime create failed: killed by signal 9");
    }
}
