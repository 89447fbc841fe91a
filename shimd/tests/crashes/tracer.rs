//! A debugger that ends a process exactly before or after its n-th effect of a kind, whichever of its threads it is; or
//! that lets the system call fail which has the effect.
//!
//! It is a process of its own (this program again, as the test [`tracer`]): stops of who is traced would else come to
//! whoever waits for a child here. It follows children, tells programs by their file, and lets users' programs alone.
//!
//! ```text
//! test ── environment: pids, point ──▶ tracer    tracer ── lines: @attached, @effect ROLE KIND, @killed ROLE, @failed ──▶ test
//!      ── end of its input: let all go ──▶
//! ```

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::effects::{Role, effect_of};

const ORDERS: &str = "SHIMD_TEST_TRACER";
/// `PTRACE_EVENT_STOP`: a stop that is no signal's.
const EVENT_STOP: i32 = 128;
/// Op codes of `PTRACE_GET_SYSCALL_INFO`.
const ENTRY: u8 = 1;
const EXIT: u8 = 2;

/// When a process is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) role: Role,
    pub(crate) effect: String,
    /// From 1.
    pub(crate) count: usize,
    pub(crate) harm: Harm,
}

/// What is done at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    KillBefore,
    KillAfter,
    /// shimd and the shim both.
    KillBothBefore,
    KillBothAfter,
    /// The call does nothing, and answers with this error.
    Fail(i32),
}

impl Harm {
    fn is_after(self) -> bool {
        matches!(self, Harm::KillAfter | Harm::KillBothAfter)
    }

    fn is_both(self) -> bool {
        matches!(self, Harm::KillBothBefore | Harm::KillBothAfter)
    }

    fn parse(word: &str) -> Option<Harm> {
        if let Ok(errno) = word.parse() {
            return Some(Harm::Fail(errno));
        }
        let kills = [Harm::KillBefore, Harm::KillAfter, Harm::KillBothBefore, Harm::KillBothAfter];
        kills.into_iter().find(|harm| harm.to_string() == word)
    }
}

impl std::fmt::Display for Harm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Harm::Fail(errno) => write!(f, "{errno}"),
            kill => write!(f, "{kill:?}"),
        }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} {} {}", self.role, self.effect, self.count, self.harm)
    }
}

impl Point {
    pub(crate) fn parse(text: &str) -> Option<Point> {
        let words: Vec<&str> = text.split(' ').collect();
        let [role, effect, count, harm] = words[..] else { return None };
        Some(Point {
            role: Role::parse(role)?,
            effect: effect.to_owned(),
            count: count.parse().ok()?,
            harm: Harm::parse(harm)?,
        })
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) effects: Vec<(Role, String)>,
    pub(crate) killed: Vec<Role>,
    /// Whether a call was made to fail.
    pub(crate) has_failed: bool,
}

/// A running one.
pub(crate) struct Tracer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Tracer {
    /// Attaches to processes with all their threads.
    pub(crate) fn attach(pids: &[i32], point: Option<&Point>) -> Tracer {
        let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
        let orders = format!("{};{}", pids.join(","), point.map_or_else(String::new, Point::to_string));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "tracer::tracer"])
            .env(ORDERS, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.ends_with("@attached\n") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the tracer has ended");
        }
        Tracer { child, lines }
    }

    /// Lets go of all.
    pub(crate) fn finish(mut self) -> Report {
        drop(self.child.stdin.take());
        let mut report = Report::default();
        for line in self.lines.by_ref().lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["@effect", role, kind] => report.effects.push((Role::parse(role).unwrap(), kind.to_owned())),
                ["@failed"] => report.has_failed = true,
                ["@killed", role] => report.killed.push(Role::parse(role).unwrap()),
                _ => {}
            }
        }
        self.child.wait().unwrap();
        report
    }
}

#[test]
#[ignore = "the debugger of the others"]
fn tracer() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let (pids, point) = orders.split_once(';').unwrap();
    let ending = Arc::new(AtomicBool::new(false));
    let end = ending.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        end.store(true, Ordering::Relaxed);
    });
    let mut hunt = Hunt { point: Point::parse(point), ..Hunt::default() };
    for pid in pids.split(',').filter_map(|pid| pid.parse().ok()) {
        hunt.seize(pid);
    }
    println!("\n@attached");
    hunt.go_on(&ending);
}

/// Whom it follows, and what it has counted.
#[derive(Default)]
struct Hunt {
    point: Option<Point>,
    threads: HashMap<Pid, Option<Role>>,
    met: usize,
    /// What comes when its call is over.
    doomed: HashMap<Pid, Harm>,
    is_letting_go: bool,
}

impl Hunt {
    fn seize(&mut self, pid: i32) {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        // Threads may be started meanwhile: those of one that is traced are traced from the beginning.
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).map(Pid::from_raw) {
            if ptrace::seize(thread, options).is_ok() {
                let _ = ptrace::interrupt(thread);
                self.threads.insert(thread, Role::of(pid));
            }
        }
    }

    fn go_on(&mut self, ending: &AtomicBool) {
        let mut let_go_at = None;
        let mut idle = 0;
        loop {
            if ending.load(Ordering::Relaxed) && let_go_at.is_none() {
                let_go_at = Some(Instant::now());
                self.is_letting_go = true;
                self.threads.keys().for_each(|thread| {
                    let _ = ptrace::interrupt(*thread);
                });
            }
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::StillAlive) => idle += 1,
                Ok(status) => {
                    idle = 0;
                    self.see(status);
                }
                Err(_) if let_go_at.is_some() => return,
                Err(_) => idle += 1,
            }
            if let_go_at.is_some_and(|at| at.elapsed() > Duration::from_secs(5)) {
                return;
            }
            if idle > 100 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    fn see(&mut self, status: WaitStatus) {
        match status {
            WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                self.threads.remove(&thread);
            }
            WaitStatus::PtraceSyscall(thread) => {
                self.see_call(thread);
                self.release(thread, None);
            }
            WaitStatus::PtraceEvent(thread, _, event) => {
                // A new one, or another program.
                if event == EVENT_STOP && !self.threads.contains_key(&thread) || event == libc::PTRACE_EVENT_EXEC {
                    self.threads.insert(thread, Role::of(thread.as_raw()));
                }
                self.release(thread, None);
            }
            WaitStatus::Stopped(thread, signal) => self.release(thread, Some(signal)),
            _ => {}
        }
    }

    /// Lets it go on; for good, where it is a user's program.
    fn release(&mut self, thread: Pid, signal: Option<Signal>) {
        // One that was killed cannot be told anything.
        if self.is_letting_go || self.threads.get(&thread).is_none_or(Option::is_none) {
            let _ = ptrace::detach(thread, signal);
            self.threads.remove(&thread);
        } else {
            let _ = ptrace::syscall(thread, signal);
        }
    }

    fn see_call(&mut self, thread: Pid) {
        let Some(Some(role)) = self.threads.get(&thread).copied() else { return };
        let Ok(info) = ptrace::syscall_info(thread) else { return };
        if info.op == EXIT {
            match self.doomed.remove(&thread) {
                Some(Harm::Fail(errno)) => fail(thread, errno),
                Some(_) => self.kill(thread, role),
                None => {}
            }
        }
        if info.op != ENTRY {
            return;
        }
        let Some(effect) = effect_of(thread.as_raw()) else { return };
        println!("@effect {role:?} {effect}");
        let Some(point) = &self.point else { return };
        if (point.role, &point.effect) != (role, &effect) {
            return;
        }
        self.met += 1;
        if self.met != point.count {
            return;
        }
        if matches!(point.harm, Harm::Fail(_)) {
            skip(thread);
        }
        if point.harm.is_after() || matches!(point.harm, Harm::Fail(_)) {
            self.doomed.insert(thread, point.harm);
        } else {
            self.kill(thread, role);
        }
    }

    /// SIGKILL; a call that was only entered does not take place.
    fn kill(&self, thread: Pid, role: Role) {
        let both = self.point.as_ref().is_some_and(|point| point.harm.is_both());
        let is_victim = |one: Option<Role>| both && matches!(one, Some(Role::Shimd | Role::Shim));
        let others = self.threads.iter().filter(|(_, one)| is_victim(**one)).map(|(thread, _)| *thread);
        for victim in std::iter::once(thread).chain(others) {
            let _ = kill(process_of(victim), Signal::SIGKILL);
        }
        println!("@killed {role:?}");
        if both {
            println!("@killed {:?}", if role == Role::Shimd { Role::Shim } else { Role::Shimd });
        }
    }
}

/// Whether system calls can be made to fail here.
pub(crate) const CAN_FAIL: bool = cfg!(target_arch = "x86_64");

/// The call that a thread has entered does not take place.
#[cfg(target_arch = "x86_64")]
fn skip(thread: Pid) {
    if let Ok(mut registers) = ptrace::getregs(thread) {
        registers.orig_rax = u64::MAX;
        let _ = ptrace::setregs(thread, registers);
    }
}

/// Its answer is an error.
#[cfg(target_arch = "x86_64")]
fn fail(thread: Pid, errno: i32) {
    if let Ok(mut registers) = ptrace::getregs(thread) {
        registers.rax = i64::from(-errno).cast_unsigned();
        if ptrace::setregs(thread, registers).is_ok() {
            println!("@failed");
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn skip(_: Pid) {}

#[cfg(not(target_arch = "x86_64"))]
fn fail(_: Pid, _: i32) {}

fn process_of(thread: Pid) -> Pid {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:")).and_then(|pid| pid.trim().parse().ok());
    pid.map_or(thread, Pid::from_raw)
}
