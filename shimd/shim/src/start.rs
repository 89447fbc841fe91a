//! `start`: makes the socket, leaves a process that serves on it, and says where it is.
//!
//! The serving process is a copy of this one, not a second program: an exec costs more than everything else here. This
//! process ends, so the other becomes init's (or the nearest subreaper's) child and outlives every daemon.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use prost::Message;
use proto_shim::bootstrap::{BootstrapParams, BootstrapResult};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};

use crate::cli::Flags;
use crate::error::Error;
use crate::group;
use crate::serve::{self, Setting};
use crate::socket::{SUN_PATH_LEN, is_served, listen};
use crate::sys::lock;
use crate::sys::process::{Forked, close_inherited, exit_now, fork};

/// Where sockets go when their own directory has too long a name for a socket.
const SHORT_DIRECTORY: &str = "/run/containerd/s";
/// The extension of the file beside the directory of sockets by which the starts of one group are put in order.
const LOCK: &str = "lock";
/// Where the bundles of sandboxes are in the state of containerd from 2.0 on.
const SANDBOXES: &str = "io.containerd.sandbox.controller.v1.shim";
/// Hexadecimal digits of a socket's name.
const NAME_LEN: usize = 32;
/// What containerd from 2.3 on writes to a shim's standard input is less than this.
const PARAMS_MAX: u64 = 1 << 20;
/// The task service that containerd 2.0 and later are told to use; earlier ones use version 2 unasked.
const TASK_VERSION: i32 = 3;
/// The highest score that the kernel takes.
const OOM_SCORE_MAX: i32 = 1000;

/// Starts a shim for the bundle in the working directory.
pub(crate) fn start(flags: &Flags) -> Result<(), Error> {
    close_inherited();
    let params = params(flags);
    let form = Form::of(env::var("MAX_SHIM_VERSION").ok().as_deref(), params.is_some(), &working_directory()?);
    let group = group::of(Path::new("."));
    let socket = socket_path(flags, params.as_ref(), group.as_deref());
    let address = format!("unix://{}", socket.display());
    // Before the socket is there, and in the bundle of each container of a group: whoever cleans up after this process
    // finds the socket by it.
    write("address", &address)?;
    let Some(listener) = new_socket(&socket, group.is_some())? else { return answer(&address, form) };
    let serving = leave_serving(flags, params.as_ref(), listener, socket.clone());
    let told = serving.and_then(|pid| answer(&address, form).inspect_err(|_| end(pid)));
    // Nobody serves on it.
    told.inspect_err(|_| drop(fs::remove_file(&socket)))
}

/// Ends the serving process where nobody could be told of it: the caller was killed. It is this process's child, so
/// that the pid cannot be another's.
fn end(pid: Pid) {
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

/// What containerd from 2.3 on writes to the standard input. Earlier ones write the runtime's options there, or
/// nothing; those come with Create anyway.
fn params(flags: &Flags) -> Option<BootstrapParams> {
    env::var_os("MAX_SHIM_VERSION")?;
    let mut bytes = Vec::new();
    io::stdin().lock().take(PARAMS_MAX).read_to_end(&mut bytes).ok()?;
    let params = BootstrapParams::decode(bytes.as_slice()).ok()?;
    (params.instance_id == flags.id && !params.containerd_ttrpc_address.is_empty()).then_some(params)
}

/// The socket of this container: beside containerd's own, named by what makes it unique. Containers that share a shim
/// share the last word of the name: the group's in place of the container's own.
fn socket_path(flags: &Flags, params: Option<&BootstrapParams>, group: Option<&str>) -> PathBuf {
    let identity = Path::new(&flags.address).join(&flags.namespace).join(group.unwrap_or(&flags.id));
    let digest = Sha256::digest(identity.as_os_str().as_encoded_bytes());
    let mut name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    name.truncate(NAME_LEN);
    let wanted = params.and_then(|params| params.socket_dir.clone()).filter(|directory| !directory.is_empty());
    let beside = || Path::new(&flags.address).parent().map(|directory| directory.join("s"));
    let directory = wanted.map(PathBuf::from).or_else(beside).filter(|directory| directory.is_absolute());
    let path = directory.unwrap_or_else(|| PathBuf::from(SHORT_DIRECTORY)).join(&name);
    if path.as_os_str().len() < SUN_PATH_LEN { path } else { Path::new(SHORT_DIRECTORY).join(name) }
}

/// A socket that listens, or `None` when a shim serves there already.
fn new_socket(socket: &Path, is_shared: bool) -> Result<Option<OwnedFd>, Error> {
    let failed = |source| Error::System { what: format!("listen on {}", socket.display()), source };
    // Shims of one group may start at once: one that has bound its socket and does not listen yet would be taken for
    // dead.
    let _alone = if is_shared { lock_name(socket) } else { lock_bundle() }.map_err(failed)?;
    let listened = match listen_in_new_directory(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_served(socket) {
                return Ok(None);
            }
            // Of a shim that died.
            fs::remove_file(socket).map_err(failed)?;
            listen(socket)
        }
        other => other,
    };
    listened.map(Some).map_err(failed)
}

fn listen_in_new_directory(socket: &Path) -> io::Result<OwnedFd> {
    match listen(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_directory(parent(socket)?)?;
            listen(socket)
        }
        other => other,
    }
}

/// The right to bind a socket that nobody else shares, as long as the handle is held: it lies in the bundle, so that no
/// shim waits for another container's. No process is left with it.
fn lock_bundle() -> io::Result<OwnedFd> {
    let bundle = rustix::fs::open(".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&bundle, FlockOperation::LockExclusive)?;
    Ok(bundle)
}

/// The same for the socket of a group: a byte of a file that all sockets of the directory have in common, so that no
/// file is left for each.
fn lock_name(socket: &Path) -> io::Result<OwnedFd> {
    let directory = parent(socket)?;
    make_directory(directory)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(directory.with_extension(LOCK), flags, Mode::RUSR | Mode::WUSR)?;
    lock::wait_for_byte(&file, byte_of(socket))?;
    Ok(file)
}

/// The byte that stands for a socket: the head of its name, which is a digest.
fn byte_of(socket: &Path) -> u32 {
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    name.get(..8).and_then(|head| u32::from_str_radix(head, 16).ok()).unwrap_or(0)
}

fn parent(socket: &Path) -> io::Result<&Path> {
    socket.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn make_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn write(name: &str, text: &str) -> Result<(), Error> {
    fs::write(name, text).map_err(|source| Error::System { what: format!("write {name} in the bundle"), source })
}

/// Leaves a process that serves, and notes its number for whoever looks for it later; without the note there is no
/// process.
fn leave_serving(
    flags: &Flags,
    params: Option<&BootstrapParams>,
    listener: OwnedFd,
    socket: PathBuf,
) -> Result<Pid, Error> {
    let setting =
        Setting { namespace: flags.namespace.clone(), listener, socket, events: events_address(flags, params) };
    match fork().map_err(|source| Error::System { what: "fork the serving process".to_owned(), source })? {
        Forked::Parent(pid) => {
            write("shim.pid", &pid.as_raw_nonzero().to_string()).map(|()| pid).inspect_err(|_| end(pid))
        }
        Forked::Child => {
            let served = become_a_daemon().and_then(|()| serve::serve(setting));
            // There is nobody left to tell: standard error is /dev/null.
            exit_now(i32::from(served.is_err()));
        }
    }
}

/// Where events are published.
fn events_address(flags: &Flags, params: Option<&BootstrapParams>) -> PathBuf {
    let told = params.map(|params| params.containerd_ttrpc_address.clone()).or_else(|| env::var("TTRPC_ADDRESS").ok());
    let address = match told.filter(|address| !address.is_empty()) {
        Some(address) => address,
        None if flags.address.is_empty() => String::new(),
        None => format!("{}.ttrpc", flags.address),
    };
    PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address))
}

/// Cuts every tie with whoever started the shim, and becomes the parent of what its containers leave behind.
fn become_a_daemon() -> Result<(), Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        |error: Errno| Error::System { what, source: error.into() }
    };
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.map_err(failed("open /dev/null"))?;
    // First of all: the caller reads the other ends until they close.
    rustix::stdio::dup2_stdin(&null).map_err(failed("replace standard input"))?;
    rustix::stdio::dup2_stdout(&null).map_err(failed("replace standard output"))?;
    rustix::stdio::dup2_stderr(null.as_fd()).map_err(failed("replace standard error"))?;
    rustix::process::setsid().map_err(failed("begin a session"))?;
    rustix::process::set_child_subreaper(Some(Pid::INIT)).map_err(failed("become a subreaper"))?;
    raise_oom_score();
    Ok(())
}

/// The kernel shall rather kill a shim, which loses one container, than the daemon above, which it inherited its score
/// from. Where that is not permitted nothing is lost.
fn raise_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score.filter(|score| *score < OOM_SCORE_MAX) {
        let _ = fs::write(FILE, (score + 1).to_string());
    }
}

fn working_directory() -> Result<PathBuf, Error> {
    env::current_dir().map_err(|source| Error::System { what: "find the working directory".to_owned(), source })
}

/// In which words the caller understands where the shim serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The address alone, which stands for version 2.
    Plain,
    /// containerd from 2.0 on, for sandboxes: it gives a shim of version 2 none of the containers of its sandbox.
    Json,
    /// containerd from 2.3 on.
    Protobuf,
}

impl Form {
    /// By the highest version that the caller says it speaks, whether it gave parameters, and the bundle. containerd
    /// 2.0 to 2.2 speak version 3 and say 2, as 1.7 does, which refuses 3; but no 1.7 has a sandbox in that place.
    fn of(highest: Option<&str>, has_params: bool, bundle: &Path) -> Form {
        let highest = highest.and_then(|version| version.parse::<i32>().ok()).unwrap_or_default();
        let is_sandbox = bundle.components().any(|part| part.as_os_str() == SANDBOXES);
        match has_params {
            true => Form::Protobuf,
            false if highest >= TASK_VERSION || is_sandbox => Form::Json,
            false => Form::Plain,
        }
    }

    fn words(self, address: &str) -> Vec<u8> {
        let (address, protocol) = (address.to_owned(), "ttrpc".to_owned());
        match self {
            Form::Plain => address.into_bytes(),
            Form::Json => {
                let result = serde_json::json!({ "version": TASK_VERSION, "address": address, "protocol": protocol });
                result.to_string().into_bytes()
            }
            Form::Protobuf => {
                let result = BootstrapResult { version: TASK_VERSION, address, protocol, ..BootstrapResult::default() };
                result.encode_to_vec()
            }
        }
    }
}

/// Says where the shim serves.
fn answer(address: &str, form: Form) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&form.words(address))
        .and_then(|()| stdout.flush())
        .map_err(|source| Error::System { what: "print the address".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(address: &str, id: &str) -> Flags {
        Flags { namespace: "n".to_owned(), id: id.to_owned(), address: address.to_owned(), ..Flags::default() }
    }

    #[test]
    fn sockets_lie_beside_containerds_and_differ() {
        let path = socket_path(&flags("/run/x/c.sock", "a"), None, None);
        assert_eq!(path.parent(), Some(Path::new("/run/x/s")));
        assert_ne!(path, socket_path(&flags("/run/x/c.sock", "b"), None, None));
        assert_ne!(path, socket_path(&flags("/run/y/c.sock", "a"), None, None));
        let grouped = |id: &str| socket_path(&flags("/run/x/c.sock", id), None, Some("g"));
        assert_eq!(grouped("a"), grouped("b"));
        assert_ne!(byte_of(&grouped("a")), byte_of(&path));
        let long = format!("/{}/c.sock", "x".repeat(100));
        assert_eq!(socket_path(&flags(&long, "a"), None, None).parent(), Some(Path::new(SHORT_DIRECTORY)));
        let params = BootstrapParams { socket_dir: Some("/t".to_owned()), ..BootstrapParams::default() };
        assert_eq!(socket_path(&flags("/run/x/c.sock", "a"), Some(&params), None).parent(), Some(Path::new("/t")));
    }

    #[test]
    fn each_caller_is_answered_in_its_words() {
        let (task, sandbox) =
            (Path::new("/run/c/io.containerd.runtime.v2.task/n/a"), Path::new("/run/c").join(SANDBOXES));
        for (highest, form) in [(None, Form::Plain), (Some("2"), Form::Plain), (Some("3"), Form::Json)] {
            assert_eq!(Form::of(highest, false, task), form, "{highest:?}");
        }
        assert_eq!(Form::of(Some("2"), false, &sandbox.join("n/pod")), Form::Json);
        assert_eq!(Form::of(Some("4"), true, task), Form::Protobuf);
        assert_eq!(Form::Plain.words("unix:///s"), b"unix:///s");
        let json: serde_json::Value = serde_json::from_slice(&Form::Json.words("unix:///s")).unwrap();
        assert_eq!((json["version"].as_i64(), json["address"].as_str()), (Some(3), Some("unix:///s")));
        assert_eq!(BootstrapResult::decode(Form::Protobuf.words("unix:///s").as_slice()).unwrap().version, 3);
    }

    #[test]
    fn options_on_stdin_are_not_taken_for_parameters() {
        let any = prost_types::Any { type_url: "containerd.runc.v1.Options".to_owned(), value: b"x".to_vec() };
        let params = BootstrapParams::decode(any.encode_to_vec().as_slice()).unwrap();
        assert!(params.containerd_ttrpc_address.is_empty());
    }
}
