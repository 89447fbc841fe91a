//! `lowrun checkpoint`: a container's processes into a directory of images.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::client::{Ask, Client, Notification};
use super::wire::Message;
use super::{
    DESCRIPTORS, Draft, NOTIFIES, NULL, Options, cgroup_binds, external_key, external_namespaces, field, make_dir,
    resolved, version,
};
use crate::create::notify;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::log::Log;
use crate::path::Root;
use crate::plan::Plan;
use crate::plan::mounts::MountKind;
use crate::state::{Container, Identity};
use crate::sys::{self, Call};

/// What CRIU calls its log of a dump.
const LOG: &str = "dump.log";
/// From this version on CRIU says when its page server is ready, instead of writing to a descriptor itself.
const VERSION_STATUS_READY: u32 = 31_500;
/// From this version on it freezes v2 cgroups.
const VERSION_FREEZES_V2: u32 = 31_400;

/// Dumps a container; `plan` is that of its bundle.
pub fn dump(container: &Container, plan: &Plan, options: &Options, log: &Log) -> Result<()> {
    let version = version(log)?;
    let init = container.running_init()?;
    make_dir(&options.images)?;
    let needs_tracking = options.pre_dump;
    let needs_lazy_pages = options.has(field::LAZY_PAGES);
    if needs_tracking || needs_lazy_pages {
        check_features(needs_tracking, needs_lazy_pages)?;
    }
    let mut status = options.status_fd.filter(|_| needs_lazy_pages).map(take_status_fd).transpose()?;
    let mut draft = Draft::begin(options, &container.state.annotations, LOG)?;
    describe(&mut draft, container, init, options, version)?;
    let tells_itself = version < VERSION_STATUS_READY;
    if let Some(status) = status.as_ref().filter(|_| tells_itself) {
        draft.options.signed(field::STATUS_FD, status.as_raw_fd());
    }
    if !options.pre_dump {
        describe_mounts(&mut draft, container, init, plan);
        save_descriptors(options, init.pid)?;
        if notify::is_in(container.dir.path()) {
            let path = options.images.join(NOTIFIES);
            std::fs::write(&path, "")
                .call("write")
                .attempt(Code::InvalidArgument, || format!("write {}", path.display()))?;
        }
    }
    let ask = if options.pre_dump { Ask::PreDump } else { Ask::Dump };
    let client = Client::start(false, &[])?;
    let mut notified = |notification: &Notification, _| {
        log.debug(&format!("criu: {}", notification.script));
        // Closed then: whoever waits at the other end waits for the end.
        if notification.script == "status-ready" && !tells_itself {
            status.take().map(|status| rustix::io::write(&status, &[0]));
        } else if tells_itself {
            // As CRIU has said something, it has opened the descriptor for itself.
            status.take();
        }
        Ok(())
    };
    let answer = client.ask(ask, &draft.request(), &mut notified).and_then(|_| client.end(ask));
    answer.map_err(|fault| draft.explain(fault))
}

fn describe(draft: &mut Draft, container: &Container, init: &Identity, options: &Options, version: u32) -> Result<()> {
    let state = &container.state;
    draft.options.text(field::ROOT, &state.rootfs.display().to_string()).signed(field::PID, init.pid);
    for (kind, path) in external_namespaces(&state.namespaces) {
        // The path of the spec may lead to it no more.
        let inode = std::fs::metadata(format!("/proc/{}/ns/{}", init.pid, kind.proc_name()))
            .call("stat")
            .attempt(Code::NamespaceFailed, || format!("find {} namespace {}", kind.as_str(), path.display()))?
            .ino();
        let external = format!("{}[{inode}]:{}", kind.proc_name(), external_key(kind));
        draft.options.text(field::EXTERNAL, &external);
    }
    let freezer = if state.cgroup.is_unified() { state.cgroup.unified() } else { state.cgroup.controller("freezer") };
    if let Some(freezer) = freezer.filter(|freezer| !freezer.is_unified() || version >= VERSION_FREEZES_V2) {
        draft.options.text(field::FREEZE_CGROUP, &freezer.dir.display().to_string());
    }
    if let Some((address, port)) = &options.page_server {
        let mut server = Message::default();
        server.text(1, address).number(2, u64::from(*port));
        draft.options.message(field::PAGE_SERVER, &server);
    }
    if let Some(parent) = &options.parent {
        draft.options.text(field::PARENT_IMAGE, parent).flag(field::TRACK_MEM, true);
    }
    Ok(())
}

/// Mounts that come from outside of the container: CRIU does not look into them.
fn describe_mounts(draft: &mut Draft, container: &Container, init: &Identity, plan: &Plan) {
    // The container's own view: on the host's side its root file system may be mounted no more.
    let root = super::open_dir(Path::new(&format!("/proc/{}/root", init.pid))).ok();
    let rootfs = root.as_ref().and_then(|root| std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).ok());
    let (root, rootfs) = (root.map(Root::new), rootfs.unwrap_or_else(|| container.state.rootfs.clone()));
    let mut outside = |path: String| draft.external_mount(&path, &path);
    for mount in &plan.mounts {
        if matches!(mount.kind, MountKind::Bind { .. }) {
            outside(resolved(root.as_ref(), &rootfs, &mount.destination));
        }
        cgroup_binds(plan, &container.state.cgroup, mount).into_iter().for_each(|(path, _)| outside(path));
    }
    plan.devices.iter().for_each(|device| outside(device.path.display().to_string()));
    // Masked files are the host's null device. Masked directories are a tmpfs, which CRIU saves; what was not there has
    // no mount.
    for path in plan.masked_paths.iter().filter(|path| is_masked_file(init, path)) {
        draft.external_mount(&path.display().to_string(), NULL);
    }
}

/// As the container sees it now.
fn is_masked_file(init: &Identity, path: &Path) -> bool {
    let root = super::open_dir(Path::new(&format!("/proc/{}/root", init.pid))).map(Root::new);
    let handle = root.ok().and_then(|root| root.resolve(path).ok());
    let stat = handle.and_then(|handle| crate::path::stat(handle.as_fd()).ok());
    stat.is_some_and(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFDIR)
}

/// Which pipes stdio was: whoever restores hands in others for them.
fn save_descriptors(options: &Options, pid: i32) -> Result<()> {
    let path = options.images.join(DESCRIPTORS);
    let attempted = || format!("write {}", path.display());
    let link = |fd: i32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    let names: Vec<String> =
        (0..3).map(|fd| link(fd).map(|target| target.display().to_string()).unwrap_or_default()).collect();
    let text = serde_json::to_vec(&names)
        .map_err(|error| Fault::new(Code::SystemError, attempted()).cause(error.to_string()))?;
    let mut file = std::fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, &text))
        .call("write")
        .attempt(Code::InvalidArgument, attempted)
}

fn check_features(memory: bool, lazy_pages: bool) -> Result<()> {
    let mut features = Message::default();
    features.flag(1, memory).flag(2, lazy_pages);
    let client = Client::start(false, &[])?;
    let mut request = Message::default();
    request.message(5, &features);
    let has = client.ask(Ask::FeatureCheck, &request, &mut |_, _| Ok(()))?;
    client.end(Ask::FeatureCheck)?;
    let missing = [("MemTrack", memory && !has.tracks_memory), ("LazyPages", lazy_pages && !has.has_lazy_pages)];
    let missing: Vec<&str> = missing.iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Fault::new(Code::Unsupported, "criu is missing features").cause(missing.join(", ")))
}

/// The descriptor of the caller's number, if it can be written to.
fn take_status_fd(number: i32) -> Result<OwnedFd> {
    let invalid =
        |cause: &str| Fault::new(Code::InvalidArgument, format!("invalid --status-fd argument {number}")).cause(cause);
    let is_open = u32::try_from(number).is_ok_and(|number| number > 2 && sys::process::is_open(number));
    if !is_open {
        return Err(invalid("bad file descriptor"));
    }
    let status = sys::process::take_descriptor(number);
    let flags = rustix::fs::fcntl_getfl(&status).unwrap_or(OFlags::RDONLY);
    if flags.intersects(OFlags::WRONLY | OFlags::RDWR) { Ok(status) } else { Err(invalid("not writable")) }
}
