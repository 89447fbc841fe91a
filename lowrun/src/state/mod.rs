//! What is remembered of a container between two invocations: one directory per id below `--root`.
//!
//! ```text
//! ROOT/ID/state.json   what and where, a line written before anything else is made; then a line that names the process
//! ROOT/ID/exec.fifo    there while a created container waits for `start`
//! ROOT/ID/seccomp.bpf  the filter in force, for `exec`
//! ```
//!
//! ```text
//! creating --container whole--> created --start--> running <--pause, resume--> paused
//!     \___________________________\_________________/______ process gone _____> stopped
//! ```
//!
//! The status is never stored: it follows from the process, the FIFO, the locks and the freezer, so it is true after any crash.
//! The directory is locked (`flock`) while a container is made or removed. Until who makes it has made the state file, too, it
//! may be taken for what a removal left, and go; then it is made again.

mod file;
mod identity;
mod lock;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::create::seccomp::FILTER_FILE;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::plan::namespaces::Namespaces;
use crate::spec;
use crate::sys::Call;

pub(crate) use file::{Remains, read_state};
pub use file::{StateFile, parse_state};
pub use identity::{Identity, NamespaceIdentity};

const EXEC_FIFO: &str = "exec.fifo";
/// How often the directory of a new container may be taken for a removal's before the creation gives up.
const CLAIMS: u32 = 100;
/// Longest id: it is a file name.
const ID_MAX: usize = 255;

/// What a line of `state.json` holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub format: u32,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339 with nanoseconds, UTC.
    pub created: String,
    pub annotations: BTreeMap<String, String>,
    /// The first process; missing while it is made.
    pub init: Option<Identity>,
    pub cgroup: Cgroup,
    /// Its place in resctrl, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<crate::rdt::Group>,
    pub namespaces: Namespaces,
    /// Of the mount namespace that is joined, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<NamespaceIdentity>,
    /// What an exec inherits.
    pub process: Box<spec::Process>,
    pub personality: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<crate::plan::MemoryPolicy>,
    /// Flags of the seccomp filter, if there is one in `seccomp.bpf`.
    pub seccomp_flags: Option<u64>,
    pub seccomp_listener: Option<crate::create::seccomp::Listener>,
    pub poststart: Vec<spec::Hook>,
    pub poststop: Vec<spec::Hook>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// The word of runtime-spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The state directory of one container.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    fd: OwnedFd,
    /// Opened apart: a child that keeps a copy of a locked descriptor keeps the lock.
    lock: RefCell<Option<OwnedFd>>,
}

/// A container that exists.
#[derive(Debug)]
pub struct Container {
    pub dir: Dir,
    pub state: State,
}

/// Whether `id` may name a container: the letters that runc takes, and no name of a directory.
pub fn check_id(id: &str) -> Result<()> {
    let invalid = |cause: &str| Err(Fault::new(Code::InvalidArgument, format!("container id {id:?}")).cause(cause));
    if id.is_empty() {
        return Err(Fault::new(Code::InvalidArgument, "container id cannot be empty"));
    }
    if id.len() > ID_MAX {
        let start: String = id.chars().take(32).collect();
        return Err(Fault::new(Code::InvalidArgument, format!("container id {start:?}…"))
            .cause(format!("invalid container ID format: longer than {ID_MAX} bytes")));
    }
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if !id.bytes().all(is_letter) || id == "." || id == ".." {
        return invalid("invalid container ID format");
    }
    Ok(())
}

impl Dir {
    /// Makes the directory of a new container and its state file, both locked.
    pub fn create(root: &Path, id: &str) -> Result<(Dir, StateFile)> {
        check_id(id)?;
        let path = root.join(id);
        let attempted = || format!("make the state directory {}", path.display());
        for _ in 0..CLAIMS {
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o711)) {
                Err(Errno::NOENT) => {
                    make_root(root)?;
                    continue;
                }
                Err(Errno::EXIST) => {
                    return Err(Fault::new(Code::ContainerExists, format!("create container {id}"))
                        .cause("container with given ID already exists"));
                }
                result => result.call("mkdir").attempt(Code::StateInvalid, attempted)?,
            }
            if let Some(made) = Dir::take(&path, attempted)? {
                return Ok(made);
            }
        }
        Err(Fault::new(Code::StateInvalid, attempted()).cause("others remove it again and again"))
    }

    /// The directory that was just made, locked. Until it is claimed, it looks like one that a removal left: `None` if it
    /// was taken for that and is gone.
    fn take(path: &Path, attempted: impl Fn() -> String) -> Result<Option<(Dir, StateFile)>> {
        let dir = match Dir::open(path.to_owned()) {
            Err(failure) if failure.errno == Errno::NOENT => return Ok(None),
            result => result.attempt(Code::StateInvalid, &attempted)?,
        };
        dir.lock()?;
        match StateFile::claim(&dir) {
            Ok(file) => Ok(file.map(|file| (dir, file))),
            Err(failure) => {
                // It may be one that another has made meanwhile.
                dir.remove_empty();
                Err(Fault::of(Code::StateInvalid, attempted(), failure))
            }
        }
    }

    /// Opens the directory of a container that may be there.
    pub fn open(path: PathBuf) -> crate::sys::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).call("open")?;
        Ok(Dir { path, fd, lock: RefCell::new(None) })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A handle of the directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The directory of the container `id`.
    pub fn find(root: &Path, id: &str) -> Result<Dir> {
        check_id(id)?;
        let path = root.join(id);
        match Dir::open(path.clone()) {
            Err(failure) if failure.errno == Errno::NOENT => Err(missing(id)),
            result => result.attempt(Code::StateInvalid, || format!("open {}", path.display())),
        }
    }

    /// Reads the state of the container `id`.
    pub fn read(&self, id: &str) -> Result<State> {
        self.told(id, read_state(self)).and_then(|text| parse_state(&self.path, &text))
    }

    /// As [`Dir::read`]; `None` while the container is made or removed.
    pub fn read_settled(&self, id: &str) -> Result<Option<State>> {
        let text = self.told(id, file::read_settled(self))?;
        text.map(|text| parse_state(&self.path, &text)).transpose()
    }

    /// What was read of the container `id`, or what its user is told.
    fn told<T>(&self, id: &str, read: crate::sys::Result<T>) -> Result<T> {
        match read {
            Err(failure) if failure.errno == Errno::NOENT => Err(missing(id)),
            result => result.attempt(Code::StateInvalid, || format!("read {}", self.path.join(file::NAME).display())),
        }
    }

    /// Makes the FIFO that a created container waits at, and gives the end that it waits with.
    ///
    /// The end is open for reading and writing: so the open does not block, and a `start` that dies in between is no
    /// end of file. It is opened here, on the host side, because a path could not be trusted later.
    pub fn create_fifo(&self) -> Result<OwnedFd> {
        let attempted = || format!("make {}", self.path.join(EXEC_FIFO).display());
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(&self.fd, EXEC_FIFO, kind, Mode::from_raw_mode(0o600), 0)
            .call("mknodat")
            .attempt(Code::StateInvalid, attempted)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, EXEC_FIFO, flags, Mode::empty())
            .call("openat")
            .attempt(Code::StateInvalid, attempted)
    }

    /// Lets the process go on that waits at the FIFO, and removes the FIFO.
    pub fn release_fifo(&self) -> crate::sys::Result<()> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // ENXIO: nobody waits, the process has died.
        let fifo = rustix::fs::openat(&self.fd, EXEC_FIFO, flags, Mode::empty()).call("openat")?;
        rustix::io::write(&fifo, b"0").call("write")?;
        self.remove_fifo()
    }

    /// Removes the FIFO.
    pub fn remove_fifo(&self) -> crate::sys::Result<()> {
        rustix::fs::unlinkat(&self.fd, EXEC_FIFO, AtFlags::empty()).call("unlinkat")
    }

    fn has_fifo(&self) -> bool {
        rustix::fs::accessat(&self.fd, EXEC_FIFO, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// The owner's uid.
    pub fn owner(&self) -> u32 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.uid())
    }

    /// Removes the directory if no state was ever written in it.
    pub fn remove_empty(&self) {
        let size = rustix::fs::statat(&self.fd, file::NAME, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_size);
        if size == Ok(0) {
            // The filter is put there before the state that tells of it, and goes before what says that there is no state.
            for name in [FILTER_FILE, file::NAME] {
                let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
            }
        }
        let _ = rustix::fs::rmdir(&self.path);
    }

    /// Removes the directory and all in it.
    pub fn remove(&self) -> Result<()> {
        // The state last: by it a removal that was killed is found and gone through again.
        for name in [EXEC_FIFO, FILTER_FILE, file::NAME] {
            let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // What is there now is another container's.
            Err(_) if self.is_removed() => Ok(()),
            Err(_) => std::fs::remove_dir_all(&self.path)
                .call("remove")
                .attempt(Code::StateInvalid, || format!("remove {}", self.path.display())),
        }
    }
}

fn missing(id: &str) -> Box<Fault> {
    Fault::new(Code::ContainerNotFound, format!("container {id}")).cause("container does not exist")
}

fn make_root(root: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .call("mkdir")
        .attempt(Code::StateInvalid, || format!("make the root directory {}", root.display()))
}

impl Container {
    /// Reads the container `id`.
    pub fn load(root: &Path, id: &str) -> Result<Container> {
        let dir = Dir::find(root, id)?;
        let state = dir.read(id)?;
        Ok(Container { dir, state })
    }

    /// Where the container is in its life.
    pub fn status(&self) -> Status {
        let Some(init) = &self.state.init else {
            return if self.dir.is_locked() { Status::Creating } else { Status::Stopped };
        };
        if !init.is_alive() {
            return Status::Stopped;
        }
        // Asked first, as by runc: also a container that waits for `start` can be paused.
        match self.state.cgroup.is_frozen() {
            true => Status::Paused,
            false if !self.dir.has_fifo() => Status::Running,
            false if file::is_half_made(&self.dir) => Status::Creating,
            false => Status::Created,
        }
    }

    /// Whether it waits for `start`; cheaper to tell than its status.
    pub fn waits_for_start(&self) -> bool {
        self.dir.has_fifo() && self.state.init.as_ref().is_some_and(Identity::is_alive)
    }

    /// The first process, if it lives.
    pub fn running_init(&self) -> Result<&Identity> {
        self.state.init.as_ref().filter(|init| init.is_alive()).ok_or_else(|| self.not_running())
    }

    /// The fault of an operation that needs a live process.
    pub fn not_running(&self) -> Box<Fault> {
        Fault::new(Code::ContainerNotRunning, format!("container {}", self.state.id)).cause("container not running")
    }

    /// The document that hooks get on stdin.
    pub fn hook_state(&self, status: Status) -> Vec<u8> {
        hook_state(&self.state, status, self.state.init.as_ref().map_or(0, |init| init.pid))
    }
}

/// The document that hooks get on stdin; `pid` as the hook sees it.
pub fn hook_state(state: &State, status: Status, pid: i32) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Document<'a> {
        oci_version: &'a str,
        id: &'a str,
        status: Status,
        #[serde(skip_serializing_if = "is_zero")]
        pid: i32,
        bundle: &'a Path,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: &'a BTreeMap<String, String>,
    }
    fn is_zero(pid: &i32) -> bool {
        *pid == 0
    }
    let document = Document {
        oci_version: spec::OCI_VERSION,
        id: &state.id,
        status,
        pid,
        bundle: &state.bundle,
        annotations: &state.annotations,
    };
    serde_json::to_vec(&document).unwrap_or_default()
}

impl State {
    /// The state of a container that is about to be made.
    pub fn new(id: &str, bundle: &Path, spec: &spec::Spec, plan: &crate::plan::Plan, mut cgroup: Cgroup) -> State {
        let created = crate::log::rfc3339(std::time::SystemTime::now(), 9);
        if let Some(unit) = &mut cgroup.unit {
            unit.description = format!("lowrun container {id}, created {created}");
        }
        State {
            format: file::FORMAT,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            rootfs: plan.rootfs.clone(),
            created,
            annotations: spec.annotations.clone(),
            init: None,
            cgroup,
            rdt: None,
            namespaces: plan.namespaces.clone(),
            mount_namespace: None,
            process: spec.process.clone().unwrap_or_default(),
            personality: plan.personality,
            memory_policy: plan.memory_policy.clone(),
            seccomp_flags: None,
            seccomp_listener: None,
            poststart: plan.hooks.poststart.clone(),
            poststop: plan.hooks.poststop.clone(),
        }
    }

    /// What a stage of mounts is called in the mount table: an id alone may be another container's, below another root.
    pub fn stage_name(&self) -> String {
        format!("lowrun-stage:{}:{}", self.id, self.created)
    }
}

/// The ids below `root`, sorted; `None` if there is no such directory.
pub fn list(root: &Path) -> Result<Option<Vec<String>>> {
    let attempted = || format!("list {}", root.display());
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        result => result.call("open").attempt(Code::StateInvalid, attempted)?,
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut ids: Vec<String> = directories
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| check_id(name).is_ok() && has_state(&root.join(name)))
        .collect();
    ids.sort_unstable();
    Ok(Some(ids))
}

/// A file that has nothing in it yet is nobody's state.
fn has_state(dir: &Path) -> bool {
    std::fs::metadata(dir.join(file::NAME)).is_ok_and(|metadata| metadata.len() > 0)
}

/// Writes the pid, whole or not at all: beside, then renamed.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let attempted = || format!("write the pid file {}", path.display());
    let name = path.file_name().unwrap_or_default();
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
        file.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&temporary, path)
    };
    write().call("open").attempt(Code::SystemError, attempted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_files_and_no_more() {
        for id in ["a", "A-b_c+d.e", "..a", &"x".repeat(255)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(1025)] {
            assert_eq!(check_id(id).unwrap_err().code, Code::InvalidArgument, "{id}");
        }
    }

    #[test]
    fn a_new_directory_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("deep/root");
        let (dir, _file) = Dir::create(&root, "c1").unwrap();
        assert_eq!(Dir::create(&root, "c1").unwrap_err().code, Code::ContainerExists);
        assert_eq!(Container::load(&root, "c1").unwrap_err().code, Code::ContainerNotFound);
        let other = Dir::open(dir.path().to_owned()).unwrap();
        assert!(other.is_locked() && !dir.is_locked());
        dir.remove().unwrap();
        assert!(!root.join("c1").exists());
    }
}
