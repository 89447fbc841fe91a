//! Notices of the kernel about a container's memory: an OOM kill, pressure.
//!
//! v1 signals an eventfd that was named in `cgroup.event_control`, for `memory.oom_control` or `memory.pressure_level`,
//! and also when the cgroup is removed. v2 changes `memory.events`, which inotify tells, and wakes who waits at
//! `memory.pressure` with a threshold (PSI, Linux 5.2). Called by `lowrun events`.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};

use super::{Cgroup, Hierarchy, read, write};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::{self, Call};

/// How hard memory is pressed before it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Low,
    Medium,
    Critical,
}

impl Level {
    /// The level of v1's word.
    pub fn parse(word: &str) -> Option<Level> {
        [Level::Low, Level::Medium, Level::Critical].into_iter().find(|level| level.as_str() == word)
    }

    /// v1's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Low => "low",
            Level::Medium => "medium",
            Level::Critical => "critical",
        }
    }

    /// The nearest of v2: some task, or all tasks, stalled for so many microseconds of one second.
    fn threshold(self) -> &'static str {
        match self {
            Level::Low => "some 50000 1000000",
            Level::Medium => "some 150000 1000000",
            Level::Critical => "full 150000 1000000",
        }
    }
}

/// A descriptor that becomes ready when something was noticed.
#[derive(Debug)]
pub struct Notice {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `_source` is what the eventfd is about: the kernel ends the notices when it is closed.
    V1 {
        control: PathBuf,
        _source: OwnedFd,
    },
    V2Oom {
        file: PathBuf,
        kills: u64,
    },
    V2Pressure,
}

impl Notice {
    /// Of OOM kills in a container.
    pub fn of_oom(cgroup: &Cgroup) -> Result<Notice> {
        let attempted = || "wait for OOM events";
        match memory(cgroup)? {
            hierarchy if hierarchy.is_unified() => of_oom_v2(&hierarchy.dir),
            hierarchy => of_v1(&hierarchy.dir, "memory.oom_control", ""),
        }
        .attempt(Code::CgroupFailed, attempted)
    }

    /// Of memory pressure in a container.
    pub fn of_pressure(cgroup: &Cgroup, level: Level) -> Result<Notice> {
        let attempted = || format!("wait for {} memory pressure", level.as_str());
        match memory(cgroup)? {
            hierarchy if hierarchy.is_unified() => of_pressure_v2(&hierarchy.dir, level),
            hierarchy => of_v1(&hierarchy.dir, "memory.pressure_level", level.as_str()),
        }
        .attempt(Code::CgroupFailed, attempted)
    }

    /// What to poll, and for what.
    pub fn poll(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.fd.as_fd(), if matches!(self.kind, Kind::V2Pressure) { PollFlags::PRI } else { PollFlags::IN })
    }

    /// After the descriptor became ready: whether it happened, and not merely the end of the cgroup.
    pub fn take(&mut self) -> bool {
        match &mut self.kind {
            Kind::V2Pressure => true,
            Kind::V1 { control, .. } => {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.fd, &mut count);
                control.exists()
            }
            Kind::V2Oom { file, kills } => {
                let mut buffer = [MaybeUninit::uninit(); 1024];
                while inotify::Reader::new(&self.fd, &mut buffer).next().is_ok() {}
                let before = std::mem::replace(kills, oom_kills(file));
                *kills > before
            }
        }
    }
}

fn memory(cgroup: &Cgroup) -> Result<&Hierarchy> {
    let found = if cgroup.is_unified() { cgroup.unified() } else { cgroup.controller("memory") };
    found
        .ok_or_else(|| Fault::new(Code::Unsupported, "watch the container's memory").cause("memory controller missing"))
}

fn of_v1(dir: &Path, file: &str, argument: &str) -> sys::Result<Notice> {
    let source = rustix::fs::open(dir.join(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call("open")?;
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).call("eventfd")?;
    let control = dir.join("cgroup.event_control");
    write(&control, &format!("{} {} {argument}", fd.as_raw_fd(), source.as_raw_fd()))?;
    Ok(Notice { fd, kind: Kind::V1 { control, _source: source } })
}

/// How many processes of a cgroup the kernel has killed for want of memory; none where it does not count them.
pub(super) fn oom_kills_in(cgroup: &Cgroup) -> u64 {
    memory(cgroup).map_or(0, |hierarchy| {
        let file = if hierarchy.is_unified() { "memory.events" } else { "memory.oom_control" };
        oom_kills(&hierarchy.dir.join(file))
    })
}

fn of_oom_v2(dir: &Path) -> sys::Result<Notice> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).call("inotify_init1")?;
    let file = dir.join("memory.events");
    inotify::add_watch(&fd, &file, inotify::WatchFlags::MODIFY).call("inotify_add_watch")?;
    // Counted after the watch is there: what happens in between is told by the watch, and counted once.
    let kills = oom_kills(&file);
    Ok(Notice { fd, kind: Kind::V2Oom { file, kills } })
}

fn of_pressure_v2(dir: &Path, level: Level) -> sys::Result<Notice> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir.join("memory.pressure"), flags, Mode::empty()).call("open")?;
    rustix::io::write(&fd, level.threshold().as_bytes()).call("write")?;
    Ok(Notice { fd, kind: Kind::V2Pressure })
}

fn oom_kills(file: &Path) -> u64 {
    let text = read(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
