//! `lowrun checkpoint` and `lowrun restore`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::{Command, Flag, Typed, option, switch};
use super::create::{
    CONSOLE_SOCKET, Input, PID_FILE, abandon, console_socket, finish_creation, load_spec, terminal_pair,
};
use super::{Global, absolute};
use crate::create::terminal::Terminal;
use crate::create::{self, notify, wait};
use crate::criu::{self, Options, Restore, field};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::plan;
use crate::state::{Container, Status};
use crate::sys::{self, Call};
use crate::trace::span;

const IMAGE_PATH: Flag = option("image-path", None, "DIR", "the images (default: ./checkpoint)");
const WORK_PATH: Flag = option("work-path", None, "DIR", "where CRIU works and logs (default: with the images)");
const TCP_ESTABLISHED: Flag = switch("tcp-established", None, "with open TCP connections");
const EXT_UNIX_SK: Flag = switch("ext-unix-sk", None, "with unix sockets to others");
const SHELL_JOB: Flag = switch("shell-job", None, "with a terminal from outside of the container");
const FILE_LOCKS: Flag = switch("file-locks", None, "with file locks: only safe if nobody else uses the files");
const MANAGE_CGROUPS_MODE: Flag =
    option("manage-cgroups-mode", None, "MODE", "soft, full, strict or ignore (default: CRIU's own)");
const EMPTY_NS: Flag = option("empty-ns", None, "KIND", "make a namespace without its contents: network");
const AUTO_DEDUP: Flag = switch("auto-dedup", None, "punch out of parent images what newer ones have");
const LAZY_PAGES: Flag = switch("lazy-pages", None, "move memory when it is needed, by userfaultfd");

/// How long hooks of the container's start may take before CRIU is asked all the same.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(2);
const PROGRAM_PAUSE: Duration = Duration::from_millis(1);

pub(super) const CHECKPOINT: Command = Command {
    name: "checkpoint",
    about: "save a running container's processes as images, by CRIU",
    description: "Needs criu(8). The container is removed, unless it is to go on.",
    arguments: "CONTAINER",
    flags: &[
        IMAGE_PATH,
        WORK_PATH,
        option("parent-path", None, "DIR", "images of a pre-dump, relative to the images"),
        switch("leave-running", None, "let the container go on"),
        TCP_ESTABLISHED,
        switch("tcp-skip-in-flight", None, "without TCP connections that are being made"),
        switch("link-remap", None, "with files that were unlinked"),
        EXT_UNIX_SK,
        SHELL_JOB,
        LAZY_PAGES,
        option(
            "status-fd",
            None,
            "FD",
            "with --lazy-pages: write a zero byte to this descriptor when the server is ready",
        ),
        option("page-server", None, "ADDRESS:PORT", "send memory to a page server"),
        FILE_LOCKS,
        switch("pre-dump", None, "save memory only, and let the container go on"),
        MANAGE_CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
    ],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) const RESTORE: Command = Command {
    name: "restore",
    about: "make a container of the images of a checkpoint, by CRIU",
    description: "Needs criu(8), and a bundle like that of the container that was saved. Without --detach it waits for the\n\
                  container's end as run does.",
    arguments: "CONTAINER",
    flags: &[
        CONSOLE_SOCKET,
        IMAGE_PATH,
        WORK_PATH,
        TCP_ESTABLISHED,
        EXT_UNIX_SK,
        SHELL_JOB,
        FILE_LOCKS,
        MANAGE_CGROUPS_MODE,
        super::create::BUNDLE,
        switch("detach", Some('d'), "do not wait"),
        PID_FILE,
        switch("no-subreaper", None, "do not adopt the container's orphans"),
        switch("no-pivot", None, "taken and without effect: CRIU changes the root"),
        EMPTY_NS,
        AUTO_DEDUP,
        LAZY_PAGES,
        option("lsm-profile", None, "TYPE:NAME", "another LSM profile than the saved one"),
        option("lsm-mount-context", None, "CONTEXT", "another LSM context of mounts"),
    ],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

/// Flags that are CRIU's own switches.
const SWITCHES: [(&str, u32); 9] = [
    ("leave-running", field::LEAVE_RUNNING),
    ("tcp-established", field::TCP_ESTABLISHED),
    ("tcp-skip-in-flight", field::TCP_SKIP_IN_FLIGHT),
    ("link-remap", field::LINK_REMAP),
    ("ext-unix-sk", field::EXT_UNIX_SK),
    ("shell-job", field::SHELL_JOB),
    ("file-locks", field::FILE_LOCKS),
    ("auto-dedup", field::AUTO_DEDUP),
    ("lazy-pages", field::LAZY_PAGES),
];

/// CRIU's modes by runc's words; without one it decides by itself.
const CGROUP_MODES: [(&str, u64); 5] = [("", 6), ("ignore", 0), ("soft", 3), ("full", 4), ("strict", 5)];

pub(super) fn checkpoint(global: &Global, typed: &Typed) -> Result<i32> {
    warn_rootless(global);
    let container = Container::load(&global.root, typed.word(0)?)?;
    let status = container.status();
    if matches!(status, Status::Created | Status::Creating | Status::Stopped) {
        let cause = format!("Container cannot be checkpointed in {} state", status.as_str());
        return Err(
            Fault::new(Code::ContainerNotRunning, format!("checkpoint container {}", container.state.id)).cause(cause)
        );
    }
    let options = options(typed)?;
    let spec = load_spec(&container.state.bundle)?;
    let mut plan = plan::plan(&container.state.id, &container.state.bundle, &spec).step("checkpoint:plan")?;
    if notify::is_in(container.dir.path()) {
        notify::add_to(&mut plan, container.dir.path());
    }
    if let Some(init) = &container.state.init {
        wait_for_program(init.pid);
    }
    span("criu", || criu::dump(&container, &plan, &options, &global.log)).step("checkpoint:criu")?;
    if options.has(field::LEAVE_RUNNING) || options.pre_dump {
        return Ok(0);
    }
    // Saved, and ended by CRIU.
    if let Err(fault) = super::delete::destroy(global, &container) {
        global.log.warn(&fault.one_line());
    }
    Ok(0)
}

/// Waits until the first process is the container's program. `start` answers a moment before: until then the process
/// shares lowrun's own file, in a mount that the container does not have, and CRIU refuses to save what it cannot find.
fn wait_for_program(pid: i32) {
    let file = |process: &str| std::fs::metadata(format!("/proc/{process}/exe")).map(|file| (file.dev(), file.ino()));
    let deadline = Instant::now() + PROGRAM_PATIENCE;
    while file(&pid.to_string()).is_ok_and(|it| file("self").is_ok_and(|own| own == it)) && Instant::now() < deadline {
        std::thread::sleep(PROGRAM_PAUSE);
    }
}

pub(super) fn restore(global: &Global, typed: &Typed) -> Result<i32> {
    warn_rootless(global);
    let options = options(typed)?;
    let mut input = Input::read(global, typed)?;
    let notifies = criu::has_notify(&options.images);
    if notifies {
        notify::add_to(&mut input.plan, &global.root.join(&input.id));
    }
    let detached = typed.is_on("detach");
    let terminal = input.plan.process.terminal;
    let console = console_socket(typed, terminal, detached)?;
    let request = |console: Option<OwnedFd>| Restore {
        id: &input.id,
        bundle: &input.bundle,
        spec: &input.spec,
        plan: &input.plan,
        root: &global.root,
        log: &global.log,
        options: &options,
        notifies,
        console,
    };
    if detached {
        let created = span("criu", || criu::restore(&request(console)))?;
        return finish_creation(typed, &created).or_else(|fault| abandon(global, &created, fault)).map(|()| 0);
    }
    if !typed.is_on("no-subreaper") {
        sys::process::set_subreaper().attempt(Code::SystemError, || "adopt orphans")?;
    }
    let signals = create::block_signals()?;
    let (ours, theirs) =
        if terminal { terminal_pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))? } else { (None, None) };
    let created = span("criu", || criu::restore(&request(theirs)))?;
    let relay = finish_creation(typed, &created).and_then(|()| ours.as_ref().map(Terminal::receive).transpose());
    let mut relay = relay.or_else(|fault| abandon(global, &created, fault))?;
    created.container.dir.unlock();
    let status = wait::foreground(created.pidfd.as_fd(), &signals, relay.as_mut(), || ());
    drop(relay);
    let status = status.or_else(|fault| abandon(global, &created, fault))?;
    span("delete", || super::delete::destroy_once(global, &created.container))?;
    Ok(status)
}

fn warn_rootless(global: &Global) {
    if !rustix::process::geteuid().is_root() {
        global.log.warn("checkpoints without root are untested");
    }
}

fn options(typed: &Typed) -> Result<Options> {
    let path = |flag: &str| typed.value(flag).filter(|path| !path.is_empty()).map(PathBuf::from);
    let images = absolute(&path("image-path").unwrap_or_else(|| "checkpoint".into()))?;
    let mut texts = Vec::new();
    for (flag, field) in [("lsm-profile", field::LSM_PROFILE), ("lsm-mount-context", field::LSM_MOUNT_CONTEXT)] {
        if let Some(text) = typed.text(flag)?.filter(|text| !text.is_empty()) {
            texts.push((field, text.to_owned()));
        }
    }
    if let Some(kind) = typed.all("empty-ns")?.iter().find(|kind| *kind != "network") {
        return Err(invalid("empty-ns", format!("namespace {kind:?} is not supported")));
    }
    Ok(Options {
        work: path("work-path").map(|path| absolute(&path)).transpose()?,
        parent: parent_path(typed, &images)?,
        switches: SWITCHES.iter().filter(|(flag, _)| typed.is_on(flag)).map(|(_, field)| *field).collect(),
        cgroup_mode: cgroup_mode(typed.text("manage-cgroups-mode")?.unwrap_or_default())?,
        page_server: page_server(typed)?,
        status_fd: typed.number("status-fd")?.filter(|fd| *fd != -1),
        pre_dump: typed.is_on("pre-dump"),
        texts,
        images,
    })
}

fn invalid(flag: &str, cause: impl Into<String>) -> Box<Fault> {
    Fault::new(Code::InvalidArgument, format!("--{flag}")).cause(cause)
}

fn cgroup_mode(word: &str) -> Result<u64> {
    let known = CGROUP_MODES.iter().find(|(name, _)| *name == word);
    known.map(|(_, mode)| *mode).ok_or_else(|| invalid("manage-cgroups-mode", "invalid manage-cgroups-mode value"))
}

fn parent_path(typed: &Typed, images: &Path) -> Result<Option<String>> {
    let Some(parent) = typed.text("parent-path")?.filter(|path| !path.is_empty()) else { return Ok(None) };
    if parent.starts_with('/') {
        return Err(invalid("parent-path", "--parent-path must be relative"));
    }
    let real = images.join(parent);
    let metadata = std::fs::metadata(&real)
        .call("stat")
        .attempt(Code::InvalidArgument, || format!("invalid --parent-path {}", real.display()))?;
    if metadata.is_dir() { Ok(Some(parent.to_owned())) } else { Err(invalid("parent-path", "not a directory")) }
}

/// `ADDRESS:PORT`, with brackets around an IPv6 address.
fn page_server(typed: &Typed) -> Result<Option<(String, u16)>> {
    let Some(text) = typed.text("page-server")?.filter(|text| !text.is_empty()) else { return Ok(None) };
    let usage = || invalid("page-server", "Use --page-server ADDRESS:PORT to specify page server");
    let (address, port) = text.rsplit_once(':').ok_or_else(usage)?;
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if address.is_empty() || port.is_empty() {
        return Err(usage());
    }
    let port = port.parse().map_err(|_| invalid("page-server", "Invalid port number"))?;
    Ok(Some((address.to_owned(), port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;

    fn typed(line: &[&str]) -> Typed {
        let mut line = line.iter().map(std::ffi::OsString::from).collect();
        args::parse(&CHECKPOINT, &mut line, false).unwrap()
    }

    #[test]
    fn flags_become_criu_options() {
        let line = ["c", "--leave-running", "--page-server", "[::1]:27", "--manage-cgroups-mode", "full"];
        let options = options(&typed(&line)).unwrap();
        assert_eq!(options.switches, [field::LEAVE_RUNNING]);
        assert_eq!(options.page_server, Some(("::1".to_owned(), 27)));
        assert_eq!(options.cgroup_mode, 4);
        assert!(options.images.is_absolute() && options.images.ends_with("checkpoint"));
    }

    #[test]
    fn impossible_options_are_refused() {
        for (flag, value) in [
            ("--page-server", "here"),
            ("--page-server", ":1"),
            ("--page-server", "h:x"),
            ("--manage-cgroups-mode", "moon"),
            ("--empty-ns", "pid"),
            ("--parent-path", "/abs"),
            ("--parent-path", "../missing"),
            ("--status-fd", "x"),
        ] {
            let fault = options(&typed(&["c", flag, value])).unwrap_err();
            assert_eq!(fault.code, Code::InvalidArgument, "{flag} {value}: {fault:?}");
        }
    }
}
