//! The last steps before the program runs: from a process that may do everything to one that may do what the spec says.
//!
//! Shared by the container's first process and by `exec`. The order is that of necessity: what needs privilege stands
//! before what takes it away, and the seccomp filter as late as it can be, because it judges all that follows.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::program::{environment, exec_fault, find, strings};
use super::{Setup, dev};
use crate::channel::{FromInit, InitEnd};
use crate::create::hooks::{self, Point};
use crate::create::seccomp::Filter;
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::log::Log;
use crate::path::{descriptors, write_in_proc};
use crate::plan::MemoryPolicy;
use crate::plan::capabilities::{Capabilities, NAMES, names, numbers};
use crate::plan::namespaces::Kind;
use crate::plan::process::{ProcessPlan, Rlimit};
use crate::state::{Status, hook_state};
use crate::sys::caps::{self, Sets};
use crate::sys::process as kernel;
use crate::sys::{self, Call, Failure};
use crate::trace::{self, span};

/// A program and the process that becomes it.
pub struct Program<'a> {
    pub process: &'a ProcessPlan,
    pub personality: Option<u64>,
    pub memory_policy: Option<&'a MemoryPolicy>,
    pub filter: Option<&'a Filter>,
    /// `/proc` of the host, verified.
    pub proc: BorrowedFd<'a>,
    /// Descriptors from 3 on that the program gets.
    pub extra_fds: u32,
    pub in_user_namespace: bool,
    /// Whether the host side has no privilege.
    pub caller_is_user: bool,
    pub log: &'a Log,
    pub channel: &'a InitEnd,
    /// Of the container's first process: what it may have to wait for, and its hooks.
    pub first: Option<&'a Setup<'a>>,
}

/// Gives up what the program may not have, waits to be started, and becomes the program.
pub fn become_program(program: &Program<'_>) -> Result<std::convert::Infallible> {
    if program.first.is_none_or(|setup| setup.fifo.is_none()) {
        // Where it cannot be, the channel stays open until the program runs.
        program.channel.outlive();
    }
    // Before the filter, which may not know the call. What is opened from here on closes itself, as all of lowrun's.
    close_rest(program).step("create:process")?;
    let fault = super::fault_of(|| take_last_steps(program), "create:process");
    fail(program, fault)
}

/// Tells it here: nobody above may drop descriptors that are closed already.
fn fail(program: &Program<'_>, fault: Box<Fault>) -> ! {
    // A created container's host side has gone when `start` comes: then the log is the only place to tell.
    let is_told = program.channel.send(&FromInit::Fault(fault.clone())).is_ok();
    if let (false, true) = (is_told, program.first.is_some()) {
        program.log.fault(&fault);
    }
    kernel::exit_now(if program.first.is_some() { 1 } else { 255 })
}

fn take_last_steps(program: &Program<'_>) -> Result<std::convert::Infallible> {
    let process = program.process;
    if program.first.is_some_and(|setup| setup.fifo.is_some()) {
        end_by_signals().step("create:process")?;
    }
    // What the image has for it is looked up when there is little left that a link in `/proc/self/fd` could lead to.
    reopen_null().step("create:process")?;
    set_attributes(program).step("create:process")?;
    set_limits(program).step("create:limits")?;
    if let (Some(filter), false) = (program.filter, process.no_new_privileges) {
        // Without no_new_privs a filter takes privilege, so it comes before that goes.
        span("seccomp", || install_filter(program, filter)).step("create:seccomp")?;
    }
    span("user", || take_identity(program)).step("create:user")?;
    let environment = environment(process);
    let path = find(process).step("create:program")?;
    let arguments = strings(&process.args);
    let environment_strings = strings(&environment);
    if let (Some(filter), true) = (program.filter, process.no_new_privileges) {
        span("seccomp", || install_filter(program, filter)).step("create:seccomp")?;
    }
    trace::flush(program.log);
    tell_ready(program)?;
    if let Some(setup) = program.first {
        wait_for_start(program, setup).step("start")?;
        run_start_hooks(setup, &environment).step("start:hooks")?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022)));
    sys::signal::reset_broken_pipe();
    close_last(program);
    let failure = kernel::execve(&path, &arguments, &environment_strings);
    Err(exec_fault(&process.args[0], failure).at("start:exec"))
}

/// Lets go of the state file, and tells the host side that it is done.
///
/// From the former on the container may be started, so nothing after it may depend on the host side. Killed before that,
/// the host side takes the container with it; killed after it, it leaves a container that is whole.
fn tell_ready(program: &Program<'_>) -> Result<()> {
    let channel = program.channel;
    let gone = || Fault::new(Code::SystemError, "tell the host side that all is ready").cause("it is gone");
    let waits = program.first.is_some_and(|setup| setup.fifo.is_some());
    if waits && channel.is_abandoned() {
        return Err(gone());
    }
    if let Some(setup) = program.first {
        kernel::close(setup.state_file);
    }
    if channel.send_ready()? || waits { Ok(()) } else { Err(gone()) }
}

/// Closes what the program does not get, but for what the last steps need.
///
/// Not left to `execve(2)`: there the process is for a moment one that root of its user namespace may trace, because it
/// has the new program's memory, and still has the old one's descriptors (seen on Linux 6.1).
fn close_rest(program: &Program<'_>) -> Result<()> {
    let fifo = program.first.and_then(|setup| setup.fifo.as_ref()).map(AsRawFd::as_raw_fd);
    let state_file = program.first.map(|setup| setup.state_file);
    let kept =
        [Some(program.proc.as_raw_fd()), fifo, state_file, program.log.descriptor(), program.channel.descriptor()];
    kernel::close_from(3 + program.extra_fds, &kept, || descriptors(program.proc))
        .attempt(Code::SystemError, || "close descriptors")
}

/// As [`close_rest`], what the last steps needed. Of a failure the host side hears without a descriptor; where it has
/// gone, as after `create`, the container's own stderr gets the words, as by runc.
fn close_last(program: &Program<'_>) {
    let waited = program.first.and_then(|setup| setup.fifo.as_ref());
    // Who has waited for `start` has closed procfs already.
    let last = match waited {
        Some(fifo) => [Some(fifo.as_raw_fd()), program.log.descriptor()],
        None => [Some(program.proc.as_raw_fd()), program.log.descriptor()],
    };
    last.into_iter().flatten().for_each(kernel::close);
    if program.channel.is_outlived() {
        program.channel.close();
    }
}

/// Stdio that is the host's null device becomes the container's: no handle into the host's file systems stays.
fn reopen_null() -> Result<()> {
    let attempted = || "reopen /dev/null";
    let mut own: Option<OwnedFd> = None;
    for (number, fd) in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()].iter().enumerate() {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        if !dev::is_null(&stat) {
            continue;
        }
        if own.is_none() {
            own = open_null().attempt(Code::RootfsUnsafe, attempted)?;
        }
        let Some(own) = &own else { return Ok(()) };
        match number {
            0 => rustix::stdio::dup2_stdin(own),
            1 => rustix::stdio::dup2_stdout(own),
            _ => rustix::stdio::dup2_stderr(own),
        }
        .call("dup3")
        .attempt(Code::SystemError, attempted)?;
    }
    Ok(())
}

/// The container's null device; `None` if it has none.
fn open_null() -> sys::Result<Option<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let null = match rustix::fs::open("/dev/null", flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::NXIO) => return Ok(None),
        result => result.call("open")?,
    };
    if !dev::is_null(&crate::path::stat(null.as_fd())?) {
        return Err(Failure { call: "open", errno: Errno::NODEV });
    }
    rustix::fs::fcntl_setfl(&null, OFlags::RDWR).call("fcntl")?;
    Ok(Some(null))
}

fn set_attributes(program: &Program<'_>) -> Result<()> {
    let process = program.process;
    if process.no_new_privileges {
        kernel::set_no_new_privs().attempt(Code::SystemError, || "set no_new_privs")?;
    }
    if let Some(scheduler) = process.scheduler {
        kernel::set_scheduler(scheduler).map_err(|failure| scheduler_fault(program, failure))?;
    }
    if let Some(priority) = process.io_priority {
        kernel::set_io_priority(priority).attempt(Code::LimitInvalid, || "set the I/O priority")?;
    }
    if let Some(personality) = program.personality {
        kernel::set_personality(personality).attempt(Code::SystemError, || "set the personality")?;
    }
    if let Some(policy) = program.memory_policy {
        kernel::set_memory_policy(policy.mode, &policy.nodes)
            .attempt(Code::LimitInvalid, || "set the memory policy")?;
    }
    if !process.apparmor_profile.is_empty() {
        set_apparmor(program.proc, &process.apparmor_profile)?;
    }
    if !process.selinux_label.is_empty() {
        set_selinux(program.proc, &process.selinux_label)?;
    }
    Ok(())
}

/// A deadline scheduler wants all CPUs, which a cpuset takes away.
fn scheduler_fault(program: &Program<'_>, failure: Failure) -> Box<Fault> {
    let fault = Fault::of(Code::LimitInvalid, "set the scheduler", failure);
    let cpu = program.first.and_then(|setup| setup.plan.cgroup.resources.cpu.as_ref());
    if failure.errno == Errno::PERM && cpu.is_some_and(|cpu| !cpu.cpus.is_empty()) {
        return fault.cause("process scheduler can't be used together with AllowedCPUs (linux.resources.cpu.cpus)");
    }
    fault
}

fn set_selinux(proc: BorrowedFd<'_>, label: &str) -> Result<()> {
    write_in_proc(proc, "self/attr/exec", label).map_err(|failure| match is_selinux_there(proc) {
        true => Fault::of(Code::SpecInvalid, format!("set the SELinux label {label:?}"), failure),
        false => Fault::new(Code::Unsupported, "process.selinuxLabel")
            .cause("selinux label is specified in config, but selinux is disabled or not supported"),
    })
}

/// A file system that the kernel knows with SELinux only.
fn is_selinux_there(proc: BorrowedFd<'_>) -> bool {
    let known = sys::read_kernel_file_at(proc, "filesystems").unwrap_or_default();
    String::from_utf8_lossy(&known).lines().any(|line| line.ends_with("\tselinuxfs"))
}

fn set_apparmor(proc: BorrowedFd<'_>, profile: &str) -> Result<()> {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
        || crate::path::open_in_proc(proc, "self/attr/apparmor/exec", OFlags::WRONLY).is_ok();
    if !enabled {
        return Err(Fault::new(Code::Unsupported, "process.apparmorProfile")
            .cause("apparmor profile is specified in config, but apparmor is disabled or not supported"));
    }
    let text = format!("exec {profile}");
    // The file of its own (5.8) first: the other may be another security module's.
    write_in_proc(proc, "self/attr/apparmor/exec", &text)
        .or_else(|_| write_in_proc(proc, "self/attr/exec", &text))
        .attempt(Code::SpecInvalid, || format!("set the AppArmor profile {profile:?}"))
}

/// Limits come late, so that a low one does not stop the setup; raising one needs the host's privilege.
fn set_limits(program: &Program<'_>) -> Result<()> {
    let limits = &program.process.rlimits;
    if limits.is_empty() {
        return Ok(());
    }
    if program.in_user_namespace {
        return program.channel.ask(&FromInit::Limits);
    }
    limits.iter().try_for_each(|limit| set_limit(None, limit))
}

/// Sets one limit, of another process or the own.
pub fn set_limit(pid: Option<rustix::process::Pid>, limit: &Rlimit) -> Result<()> {
    sys::process::set_rlimit(pid, limit.resource, limit.soft, limit.hard).attempt(Code::LimitInvalid, || {
        format!("process.rlimits: set {} to {}:{}", limit.name(), limit.soft, limit.hard)
    })
}

/// Installs the filter; with a listener, the host side must have taken its descriptor before any call is notified.
fn install_filter(program: &Program<'_>, filter: &Filter) -> Result<()> {
    program.log.debug(&format!("seccomp filter flags: {}", filter.flags));
    let listener = sys::seccomp::install(&filter.program, filter.flags)
        .attempt(Code::SeccompFailed, || "install the seccomp filter")?;
    match listener {
        Some(listener) if program.caller_is_user => program.channel.hand_over(listener.as_fd()),
        Some(listener) => program.channel.offer(listener.as_fd()),
        None => Ok(()),
    }
}

/// Working directory, bounding set, ids, capabilities.
fn take_identity(program: &Program<'_>) -> Result<()> {
    let process = program.process;
    // Entered with privilege first, as runc does: the program may have a directory that its user could not enter.
    let entered = enter_cwd(&process.cwd, true)?;
    drop_bounding(process.capabilities.bounding)?;
    caps::keep_caps(true).attempt(Code::SystemError, || "keep capabilities")?;
    own_stdio(process.uid)?;
    set_ids(process, program.proc).map_err(|failure| {
        let (uid, gid) = (process.uid, process.gid);
        let fault = Fault::of(Code::UserInvalid, format!("become user {uid}:{gid}"), failure);
        match failure.errno {
            Errno::INVAL => fault.hint("the user namespace of the container does not map this id"),
            _ => fault,
        }
    })?;
    // A change of ids may have made the process dumpable.
    kernel::set_dumpable(false).attempt(Code::SystemError, || "protect the process")?;
    if !entered {
        enter_cwd(&process.cwd, false)?;
    }
    check_cwd(&process.cwd)?;
    set_capabilities(&process.capabilities, program.log)
}

/// A user namespace without the right to give up groups keeps those it has, whether lowrun or somebody before made it.
fn set_ids(process: &ProcessPlan, proc: BorrowedFd<'_>) -> sys::Result<()> {
    match kernel::set_ids(process.uid, process.gid, Some(&process.groups)) {
        Err(failure) if failure.call == "setgroups" && setgroups_is_denied(proc) => {
            kernel::set_ids(process.uid, process.gid, None)
        }
        result => result,
    }
}

/// Whether it was entered; without privilege being refused is left for later.
fn enter_cwd(cwd: &Path, may_be_refused: bool) -> Result<bool> {
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM) if may_be_refused => Ok(false),
        Err(errno) => Err(Fault::of(
            Code::CwdInvalid,
            format!("chdir to cwd ({:?}) set in config.json failed", cwd.to_string_lossy()),
            Failure { call: "chdir", errno },
        )),
    }
}

/// A working directory that came from a leaked descriptor lies outside of the root: the kernel then has no path for it.
fn check_cwd(cwd: &Path) -> Result<()> {
    let outside = || {
        Fault::new(Code::CwdInvalid, format!("working directory {}", cwd.display()))
            .cause("current working directory is outside of container mount namespace root")
            .hint("possible container breakout detected")
    };
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(Errno::NOENT) => Err(outside()),
        Err(errno) => {
            Err(Fault::of(Code::CwdInvalid, "check the working directory", Failure { call: "getcwd", errno }))
        }
    }
}

fn drop_bounding(keep: u64) -> Result<()> {
    for number in 0..64 {
        if keep >> number & 1 == 1 {
            continue;
        }
        match caps::bounding_drop(number) {
            Ok(()) => {}
            // The first number that the kernel does not know ends its list.
            Err(failure) if failure.errno == Errno::INVAL => break,
            Err(failure) => {
                let name = NAMES.get(number as usize).copied().unwrap_or("an unknown capability");
                return Err(Fault::of(Code::SystemError, format!("drop {name}"), failure));
            }
        }
    }
    Ok(())
}

fn set_capabilities(wanted: &Capabilities, log: &Log) -> Result<()> {
    let attempted = || "set the capabilities";
    caps::keep_caps(false).attempt(Code::SystemError, attempted)?;
    // Asking for one that lowrun itself has not (a nested container) is a warning, as in runc.
    let have = caps::capget().attempt(Code::SystemError, attempted)?.permitted;
    let missing = wanted.permitted & !have;
    if missing != 0 {
        log.warn(&format!("ignoring unknown or unavailable capabilities: [{}]", names(missing)));
    }
    let permitted = wanted.permitted & have;
    let sets = Sets { permitted, effective: wanted.effective & permitted, inheritable: wanted.inheritable };
    let unbound = wanted.inheritable & !wanted.bounding;
    caps::capset(sets).map_err(|failure| match failure.errno {
        // Allowed to who had it in that set before.
        Errno::PERM if unbound != 0 => Fault::new(Code::SpecInvalid, "process.capabilities.inheritable")
            .cause(format!("not in process.capabilities.bounding: {}", names(unbound))),
        _ => Fault::of(Code::SystemError, attempted(), failure),
    })?;
    match caps::ambient_clear() {
        Err(failure) if failure.errno != Errno::INVAL => {
            return Err(Fault::of(Code::SystemError, attempted(), failure));
        }
        _ => {}
    }
    raise_ambient(wanted, log);
    Ok(())
}

/// What is not inheritable cannot be ambient (capabilities(7)), which runc warns of. Where nothing is inheritable, the ambient set
/// is nobody's wish: Buildah before 1.29 fills it by habit, and made for a runc that said nothing, shows each warning to its user.
fn raise_ambient(wanted: &Capabilities, log: &Log) {
    for number in numbers(wanted.ambient) {
        let Err(failure) = caps::ambient_raise(number) else { continue };
        let message = format!("can't raise ambient capability {}: {failure}", NAMES[number as usize]);
        match wanted.inheritable {
            0 => log.debug(&message),
            _ => log.warn(&message),
        }
    }
}

/// Stdio belongs to the program's user, so that `/dev/stdout` can be opened again; what cannot be given away stays.
fn own_stdio(uid: u32) -> Result<()> {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        if stat.st_uid == uid || dev::is_null(&stat) {
            continue;
        }
        match rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
            Err(errno) => {
                let failure = Failure { call: "fchown", errno };
                return Err(Fault::of(Code::SystemError, "give stdio to the container's user", failure));
            }
        }
    }
    Ok(())
}

fn setgroups_is_denied(proc: BorrowedFd<'_>) -> bool {
    let file = crate::path::open_in_proc(proc, "self/setgroups", OFlags::RDONLY);
    let mut text = [0; 8];
    file.is_ok_and(|file| rustix::io::read(&file, &mut text).is_ok_and(|length| text[..length].starts_with(b"deny")))
}

/// A user without privilege enters a container that waits (`exec`) only if its first process can be traced. So it can be,
/// where the user namespace is the container's own, and what could be found there of the caller goes before: the
/// environment, and the log, in whose place the container's own stderr hears of a failure. What is left is memory that knows
/// the configuration, and the FIFO.
fn open_to_own_user(program: &Program<'_>, setup: &Setup<'_>) -> Result<()> {
    if !program.caller_is_user || !setup.plan.namespaces.is_new(Kind::User) {
        return Ok(());
    }
    let attempted = || "let the container's user in";
    setup.log.let_go().attempt(Code::SystemError, attempted)?;
    kernel::forget_environment();
    kernel::set_dumpable(true).attempt(Code::SystemError, attempted)
}

/// Waits at the FIFO for `start`. That may take for ever, so what leads to the host is given up before: all but the
/// FIFO and the log.
fn wait_for_start(program: &Program<'_>, setup: &Setup<'_>) -> Result<()> {
    let Some(fifo) = &setup.fifo else { return Ok(()) };
    program.channel.close();
    let kept = [Some(fifo.as_raw_fd()), setup.log.descriptor()];
    kernel::close_from(3 + program.extra_fds, &kept, || descriptors(program.proc))
        .attempt(Code::SystemError, || "close descriptors")?;
    open_to_own_user(program, setup)?;
    loop {
        match rustix::io::read(fifo, &mut [0; 1]) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => {
                let failure = Failure { call: "read", errno };
                return Err(Fault::of(Code::SystemError, "wait to be started", failure));
            }
        }
    }
}

/// The first process of a pid namespace is not ended by a signal that it does not handle. Until the program runs, which
/// may handle it, a signal that would end any other process ends this one. Said before the filter, which may know none of the
/// calls that wait for a signal.
fn end_by_signals() -> Result<()> {
    const HARMLESS: [i32; 7] =
        [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    sys::signal::end_by_signals(&HARMLESS).attempt(Code::SystemError, || "handle signals")
}

fn run_start_hooks(setup: &Setup<'_>, environment: &[String]) -> Result<()> {
    let hooks = &setup.plan.hooks.start_container;
    if hooks.is_empty() {
        return Ok(());
    }
    let me = rustix::process::getpid().as_raw_nonzero().get();
    // All else is closed already, procfs too.
    let place = hooks::Place { environment: Some(environment), kept: setup.extra_fds, ..hooks::Place::default() };
    hooks::run(Point::StartContainer, hooks, &hook_state(setup.state, Status::Created, me), &place)
}
