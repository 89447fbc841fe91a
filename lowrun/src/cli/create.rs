//! `lowrun create` and `lowrun run`.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::args::{Command, Flag, Typed, option, switch};
use super::{Global, absolute};
use crate::create::hooks::Point;
use crate::create::terminal::Terminal;
use crate::create::{self, Created, Request, hooks, notify, socket, wait};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::plan::unit::{self, UnitPlan};
use crate::plan::{self, Plan};
use crate::spec::{Hooks, Spec};
use crate::state::{self, Status};
use crate::sys::{self, Call};
use crate::systemd;
use crate::trace::span;

pub(super) const BUNDLE: Flag = option("bundle", Some('b'), "DIR", "the bundle (default: the working directory)");
pub(super) const CONSOLE_SOCKET: Flag =
    option("console-socket", None, "SOCKET", "send the terminal's master through this unix socket");
const PIDFD_SOCKET: Flag =
    option("pidfd-socket", None, "SOCKET", "send a pidfd of the process through this unix socket");
pub(super) const PID_FILE: Flag = option("pid-file", None, "FILE", "write the process's pid to FILE");
const NO_PIVOT: Flag = switch("no-pivot", None, "do not use pivot_root: for a root that is a ramfs, and less safe");
const NO_NEW_KEYRING: Flag = switch("no-new-keyring", None, "keep the caller's session keyring");
const PRESERVE_FDS: Flag = option("preserve-fds", None, "N", "hand N more descriptors, from 3 on, to the container");

pub(super) const CREATE: Command = Command {
    name: "create",
    about: "make a container that waits for start",
    description: "The bundle is --bundle DIR, else the working directory: config.json and the root file system that it names.\n\
                  The container's process is set up and waits; `lowrun start CONTAINER` lets it become the program.",
    arguments: "CONTAINER",
    flags: &[BUNDLE, CONSOLE_SOCKET, PIDFD_SOCKET, PID_FILE, NO_PIVOT, NO_NEW_KEYRING, PRESERVE_FDS],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) const RUN: Command = Command {
    name: "run",
    about: "make a container, run it and wait for its end",
    description: "As create and start, then waits for the program's end, passes signals on, removes the container and ends with the\n\
                  program's exit status. With --detach it ends when the program runs; `lowrun delete` is then the caller's.",
    arguments: "CONTAINER",
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        PID_FILE,
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
        switch("detach", Some('d'), "do not wait"),
        switch("no-subreaper", None, "do not adopt the container's orphans"),
        switch("keep", None, "keep the container's state and cgroup after its end"),
    ],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn create(global: &Global, typed: &Typed) -> Result<i32> {
    let program = protect(global)?;
    let input = Input::read(global, typed)?.notifying(global);
    let console = console_socket(typed, input.plan.process.terminal, true)?;
    let created = create::create(input.request(global, typed, (program, console), false)?)?;
    finish_creation(typed, &created).or_else(|fault| abandon(global, &created, fault)).map(|()| 0)
}

pub(super) fn run(global: &Global, typed: &Typed) -> Result<i32> {
    let program = protect(global)?;
    let input = Input::read(global, typed)?.notifying(global);
    let detached = typed.is_on("detach");
    let terminal = input.plan.process.terminal;
    let console = console_socket(typed, terminal, detached)?;
    if detached {
        let created = create::create(input.request(global, typed, (program, console), true)?)?;
        finish_run(global, typed, &created)?;
        hand_on_readiness(global, &created, None);
        return Ok(0);
    }
    if !typed.is_on("no-subreaper") {
        sys::process::set_subreaper().attempt(Code::SystemError, || "adopt orphans")?;
    }
    // Read as events from here on: one that comes while the container is made is not lost.
    let signals = create::block_signals()?;
    let (ours, theirs) =
        if terminal { terminal_pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))? } else { (None, None) };
    let request = input.request(global, typed, (program, theirs), true)?;
    // Where nobody is to be told that the program runs, what is left to do is to wait for its end.
    let stays = !terminal && !input.tells_beginning(typed);
    let mut created = create::create(Request { stays, ..request })?;
    finish_run(global, typed, &created)?;
    // While the program runs, another may enter or remove the container.
    created.container.dir.unlock();
    let relay = ours.as_ref().map(Terminal::receive).transpose();
    let mut relay = relay.or_else(|fault| abandon(global, &created, fault))?;
    if relay.is_none() {
        hand_on_readiness(global, &created, Some(&signals));
    }
    let status = wait::foreground(created.pidfd.as_fd(), &signals, relay.as_mut(), || created.await_program());
    drop(relay);
    let status = status.or_else(|fault| abandon(global, &created, fault))?;
    if created.container.dir.lock_again()? {
        if let Some(refusal) = created.take_refusal() {
            return Err(refusal);
        }
        if !typed.is_on("keep") {
            span("delete", || super::delete::destroy(global, &created.container))?;
        }
    }
    // The process ends: giving memory back piece by piece would only touch what it shared with the container's.
    std::mem::forget((input, created));
    Ok(status)
}

/// Before anything of a container is touched: what enters it must not be readable from inside, and must not lead to a
/// writable program file.
pub(super) fn protect(global: &Global) -> Result<Option<OwnedFd>> {
    // Who looks for the words of runc's debug log, wants to know that the program is sealed.
    const SEALED: &str = "the program file is sealed by a read-only mount, or a copy in memory, in place of \
                          \"runc exeseal: using /proc/self/exe clone\" and \
                          \"runc exeseal: using overlayfs for sealed /proc/self/exe\"";
    let attempted = || "protect lowrun from the container";
    sys::process::set_dumpable(false).attempt(Code::SystemError, attempted).step("create:protect")?;
    let program = span("protect", sys::exe::protect).attempt(Code::SystemError, attempted).step("create:protect")?;
    global.log.debug(SEALED);
    Ok(program)
}

/// What create and run are given.
pub(super) struct Input {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) spec: Box<Spec>,
    pub(super) plan: Box<Plan>,
    /// Whether the caller waits for the program's readiness.
    notifies: bool,
}

impl Input {
    pub(super) fn read(global: &Global, typed: &Typed) -> Result<Input> {
        let id = typed.word(0)?.to_owned();
        state::check_id(&id)?;
        let bundle = absolute(Path::new(typed.value("bundle").map_or(".".as_ref(), OsString::as_os_str)))?;
        let (spec, mut plan) = span("plan", || -> Result<(Box<Spec>, Box<Plan>)> {
            let spec = load_spec(&bundle)?;
            let mut plan = Box::new(plan::plan(&id, &bundle, &spec)?);
            if global.systemd {
                systemd::check_running()?;
                plan.cgroup.unit = Some(UnitPlan::parse(&id, &spec, unit::is_of_user())?);
            }
            Ok((spec, plan))
        })
        .step("create:plan")?;
        for warning in &plan.process.warnings {
            global.log.warn(warning);
        }
        let listening = listen_fds();
        if listening > 0 {
            plan.process.env.push(format!("LISTEN_FDS={listening}"));
            plan.process.env.push("LISTEN_PID=1".to_owned());
        }
        let bundle = plan::clean_bundle(&bundle);
        Ok(Input { id, bundle, spec, plan, notifies: false })
    }

    /// Whether something is to be done when the program runs, or may take long until it does.
    fn tells_beginning(&self, typed: &Typed) -> bool {
        let hooks = |hooks: &Hooks| !hooks.poststart.is_empty() || !hooks.start_container.is_empty();
        self.notifies || pid_file(typed).is_some() || self.spec.hooks.as_ref().is_some_and(hooks)
    }

    /// With a socket for the program's readiness, where the caller named one in the environment.
    fn notifying(mut self, global: &Global) -> Input {
        self.notifies = notify::of_caller().is_some();
        if self.notifies {
            notify::add_to(&mut self.plan, &global.root.join(&self.id));
        }
        self
    }

    fn request<'a>(
        &'a self,
        global: &'a Global,
        typed: &Typed,
        (program, console): (Option<OwnedFd>, Option<OwnedFd>),
        runs: bool,
    ) -> Result<Request<'a>> {
        let pidfd_socket = typed.value("pidfd-socket").filter(|path| !path.is_empty());
        Ok(Request {
            id: &self.id,
            bundle: &self.bundle,
            spec: &self.spec,
            plan: &self.plan,
            root: &global.root,
            log: &global.log,
            runs,
            stays: false,
            program,
            console,
            pidfd_socket: pidfd_socket.map(|path| socket::connect(Path::new(path))).transpose()?,
            extra_fds: extra_fds(typed, listen_fds())?,
            no_pivot: typed.is_on("no-pivot"),
            no_new_keyring: typed.is_on("no-new-keyring"),
            notifies: self.notifies,
            rootless: global.rootless,
        })
    }
}

/// Reads a bundle's config.json.
pub(super) fn load_spec(bundle: &Path) -> Result<Box<Spec>> {
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Fault::new(
                Code::BundleInvalid,
                format!("JSON specification file {} not found", path.display()),
            ));
        }
        result => result.call("open").attempt(Code::BundleInvalid, || format!("read {}", path.display()))?,
    };
    crate::spec::any_case::from_slice(&text)
        .map_err(|error| Fault::new(Code::SpecInvalid, format!("read {}", path.display())).cause(error.to_string()))
}

/// Descriptors that systemd's socket activation handed to lowrun.
fn listen_fds() -> u32 {
    let pid = std::env::var("LISTEN_PID").ok().and_then(|text| text.parse().ok());
    if pid != Some(std::process::id()) {
        return 0;
    }
    std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// How many descriptors from 3 on the container gets: the `listening` ones, then those of the flag; each must be open.
pub(super) fn extra_fds(typed: &Typed, listening: u32) -> Result<u32> {
    let preserved: u32 = typed.number("preserve-fds")?.unwrap_or(0);
    let (count, end) = (u64::from(listening) + u64::from(preserved), 3 + u64::from(listening) + u64::from(preserved));
    let is_open = |fd: u64| u32::try_from(fd).is_ok_and(sys::process::is_inherited);
    match ((3..end).find(|fd| !is_open(*fd)), u32::try_from(count)) {
        (None, Ok(count)) => Ok(count),
        (closed, _) => {
            let fd = closed.unwrap_or(end);
            Err(Fault::new(Code::InvalidArgument, format!("unable to stat preserved-fd {fd} (of {count})"))
                .cause("bad file descriptor"))
        }
    }
}

/// Connects to the console socket; with a terminal and nobody in the foreground there must be one, else there must not.
pub(super) fn console_socket(typed: &Typed, terminal: bool, detached: bool) -> Result<Option<OwnedFd>> {
    let path = typed.value("console-socket").filter(|path| !path.is_empty());
    match path {
        None if terminal && detached => Err(Fault::new(
            Code::InvalidArgument,
            "cannot allocate tty if lowrun will detach without setting console socket",
        )),
        Some(_) if !terminal || !detached => Err(Fault::new(
            Code::InvalidArgument,
            "cannot use console socket if lowrun will not detach or allocate tty",
        )),
        path => path.map(|path| socket::connect(Path::new(path))).transpose(),
    }
}

/// A socket pair for the terminal of a program in the foreground.
pub(super) fn terminal_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .call("socketpair")
        .attempt(Code::SystemError, || "make a socket for the terminal")
}

fn pid_file(typed: &Typed) -> Option<&OsString> {
    typed.value("pid-file").filter(|path| !path.is_empty())
}

pub(super) fn finish_creation(typed: &Typed, created: &Created) -> Result<()> {
    match pid_file(typed) {
        None => Ok(()),
        Some(path) => state::write_pid_file(Path::new(path), created.pid.as_raw_nonzero().get()),
    }
}

/// Until the program is ready or gone. It runs: that the caller cannot be told is no reason to end it.
fn hand_on_readiness(global: &Global, created: &Created, signals: Option<&OwnedFd>) {
    let Some(socket) = &created.notify else { return };
    // Who deletes the container meanwhile must not wait for it.
    created.container.dir.unlock();
    if let Err(fault) = notify::hand_on(socket, (created.pid, created.pidfd.as_fd()), signals).step("run:notify") {
        global.log.warn(&fault.one_line());
    }
}

fn finish_run(global: &Global, typed: &Typed, created: &Created) -> Result<()> {
    let container = &created.container;
    if !container.state.poststart.is_empty() {
        // What they do may be to enter the container.
        container.dir.unlock();
    }
    let document = container.hook_state(Status::Running);
    let place = hooks::Place { dir: Some(&container.state.bundle), ..hooks::Place::default() };
    let poststart = hooks::run(Point::Poststart, &container.state.poststart, &document, &place).step("run:hooks");
    poststart.and_then(|()| finish_creation(typed, created)).or_else(|fault| abandon(global, created, fault))
}

/// Ends a container of which the caller learns nothing but this fault: it must not stay.
pub(super) fn abandon<T>(global: &Global, created: &Created, fault: Box<Fault>) -> Result<T> {
    end(created.pidfd.as_fd());
    super::delete::destroy_once(global, &created.container)?;
    Err(fault)
}

/// Kills and reaps a child.
pub(super) fn end(pidfd: BorrowedFd<'_>) {
    let _ = sys::pidfd::send(pidfd, libc::SIGKILL);
    let _ = wait::reap(pidfd);
}
