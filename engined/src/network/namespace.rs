//! Network namespaces: making one, entering one, and pinning one in a directory of ours.
//!
//! A thread that left the host's namespace never comes back to it here: it ends instead. So no thread of a pool can be
//! stranded in a container's namespace by an error on the way back.
//!
//! A pin is a bind mount on an empty file, `DIR/ID`. A namespace that nobody pinned lives as long as a descriptor of it:
//! what was prepared ahead and not yet used disappears with the process, and leaves nothing to clean up.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::UnmountFlags;

use super::endpoint::EndpointId;
use super::error::{Attempt, Error, Refusal};
use super::rtnl::Rtnl;

/// The calling thread's own namespace; `/proc/self` would name the first thread's.
const OWN: &str = "/proc/thread-self/ns/net";
/// `f_type` of the file system that namespaces live on (linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// The loopback link has this index in every namespace.
const LOOPBACK: u32 = 1;

/// IPv6 stays off on the links to come, as the bridge has none (the loopback keeps `::1`). Whatever else a container is
/// given stands in its spec: a path below `/proc/sys/net` leads through as many entries of one name as there are
/// namespaces, while the runtime writes to a proc of the container's own.
const IPV6_OFF: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// A network namespace that this process holds open.
pub(super) struct Namespace {
    fd: OwnedFd,
    /// Speaks about the links inside.
    pub(super) rtnl: Rtnl,
}

impl Namespace {
    /// A new namespace with its loopback up.
    pub(super) fn fresh() -> Result<Namespace, Error> {
        on_a_thread_of_its_own(|| {
            unshare(CloneFlags::CLONE_NEWNET).attempt(|| "create a network namespace".to_owned())?;
            write_if_known(IPV6_OFF, "1")?;
            let mut namespace = Namespace::of_this_thread()?;
            namespace.rtnl.bring_up(LOOPBACK, None).attempt(|| "bring up a new namespace's loopback".to_owned())?;
            Ok(namespace)
        })
    }

    /// The namespace that is pinned at `path`.
    pub(super) fn open(path: &Path) -> Result<Namespace, Error> {
        let gone = |refusal: Refusal| Error::NamespaceGone { path: path.to_owned(), source: refusal };
        let file = File::open(path).map_err(|error| gone(error.into()))?;
        if !is_namespace(&file).map_err(gone)? {
            // An empty file: the pin's mount did not survive (a reboot, or somebody unmounted it).
            return Err(gone(Refusal::from(io::Error::from_raw_os_error(libc::ENOENT))));
        }
        on_a_thread_of_its_own(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).attempt(|| "enter a container's network namespace".to_owned())?;
            Namespace::of_this_thread()
        })
    }

    fn of_this_thread() -> Result<Namespace, Error> {
        let fd = File::open(OWN).attempt(|| format!("open {OWN}"))?.into();
        let rtnl = Rtnl::open().attempt(|| "open a netlink socket in a network namespace".to_owned())?;
        Ok(Namespace { fd, rtnl })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `work` on a new thread, which may change its namespaces and then ends.
fn on_a_thread_of_its_own<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned()).stack_size(128 * 1024);
        let handle = builder.spawn_scoped(scope, work).attempt(|| "start a thread".to_owned())?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Writes a sysctl; a kernel that was built without it does without.
pub(super) fn write_if_known(path: &str, value: &str) -> Result<(), Error> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.attempt(|| format!("write {value} to {path}")),
    }
}

fn is_namespace(file: &File) -> Result<bool, Refusal> {
    let facts = rustix::fs::fstatfs(file)?;
    Ok(facts.f_type as u64 == NSFS_MAGIC)
}

/// The directory that namespaces are pinned in.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Creates the directory where it is missing.
    pub(super) fn open(directory: PathBuf) -> Result<Pins, Error> {
        let mut builder = fs::DirBuilder::new();
        let outcome = builder.recursive(true).mode(0o700).create(&directory);
        outcome.attempt(|| format!("create directory {}", directory.display()))?;
        Ok(Pins { directory })
    }

    /// Where the namespace of an endpoint is pinned: the path that stands in its container's spec.
    pub(super) fn path(&self, id: &EndpointId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// Pins a namespace and says where.
    pub(super) fn pin(&self, id: &EndpointId, namespace: BorrowedFd<'_>) -> Result<PathBuf, Error> {
        let path = self.path(id);
        // That it is new means that nothing is mounted there.
        let outcome = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        outcome.attempt(|| format!("create {}", path.display()))?;
        let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let outcome = rustix::mount::mount_bind(source.as_str(), &path);
        if outcome.is_err() {
            // The mount's refusal is what counts; an empty file is swept away at the next start.
            let _ = fs::remove_file(&path);
        }
        outcome.attempt(|| format!("pin a network namespace at {}", path.display()))?;
        Ok(path)
    }

    /// Removes a pin. The namespace goes when its last process and descriptor have gone; the kernel then takes its links
    /// apart on its own time. A pin that is not there is no error.
    pub(super) fn unpin(&self, path: &Path) -> Result<(), Error> {
        unmount(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.attempt(|| format!("remove {}", path.display())),
        }
    }

    /// The paths of all pins, whole or not.
    pub(super) fn list(&self) -> Result<Vec<PathBuf>, Error> {
        let reading = || format!("read directory {}", self.directory.display());
        let entries = fs::read_dir(&self.directory).attempt(reading)?;
        entries.map(|entry| Ok(entry.attempt(reading)?.path())).collect()
    }

    /// Removes the directory, which must be empty of pins.
    pub(super) fn remove_directory(&self) -> Result<(), Error> {
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.attempt(|| format!("remove directory {}", self.directory.display())),
        }
    }
}

/// Unmounts whatever is mounted at `path`, once or more often.
fn unmount(path: &Path) -> Result<(), Error> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: no mount point. ENOENT: not even a file.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno).attempt(|| format!("unmount {}", path.display())),
        }
    }
}
