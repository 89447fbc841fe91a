//! Handles on processes: what is done with one meets this process and no later one of its number.
//!
//! Mostly they are pidfds. Where a filter around lowrun denies `pidfd_open`, the handle is the process's directory in
//! procfs, which leads to that process or, when it is gone, to nothing. Where `pidfd_send_signal` is denied, the signal
//! goes to the number, after the handle has said that the process is there, and that it began when the one of that
//! number did.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId};

use super::{Call, Failure, Result, check, process, read_kernel_file, read_kernel_file_at};

/// How often the end of a process is looked for that cannot be waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// How long, and how often, a new program is looked for: a program of the very words of lowrun is never told from it.
const EXEC_PATIENCE: Duration = Duration::from_millis(20);
const EXEC_PAUSE: Duration = Duration::from_micros(20);

/// The namespaces of a process by their files below `ns`.
const NAMESPACES: [(libc::c_int, &str); 8] = [
    (libc::CLONE_NEWNS, "mnt"),
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
    (0x80, "time"),
    (libc::CLONE_NEWUSER, "user"),
];

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// Clock ticks since boot, field 22.
    pub start_time: u64,
}

impl Stat {
    /// Of the process that has this number now.
    pub fn of(pid: i32) -> Result<Stat> {
        Stat::parse(&read_kernel_file(format!("/proc/{pid}/stat"))?)
    }

    fn of_handle(handle: BorrowedFd<'_>) -> Result<Stat> {
        Stat::parse(&read_kernel_file_at(handle, "stat")?)
    }

    /// The name, field 2, may hold anything, also `)`: fields are counted after the last one.
    fn parse(text: &[u8]) -> Result<Stat> {
        let parse = || {
            let end = text.iter().rposition(|byte| *byte == b')')?;
            let mut fields = std::str::from_utf8(&text[end + 1..]).ok()?.split_whitespace();
            let pid = text.split(|byte| *byte == b' ').next()?;
            Some(Stat {
                pid: std::str::from_utf8(pid).ok()?.parse().ok()?,
                state: fields.next()?.chars().next()?,
                start_time: fields.nth(18)?.parse().ok()?,
            })
        };
        parse().ok_or(Failure { call: "read(stat)", errno: Errno::INVAL })
    }

    /// Whether it is not a zombie.
    pub fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// A handle on the process that has this number now.
pub fn open(pid: Pid) -> Result<OwnedFd> {
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let path = format!("/proc/{}", pid.as_raw_nonzero());
            rustix::fs::open(path, flags, Mode::empty()).call("open").map_err(gone)
        }
        result => result.call("pidfd_open"),
    }
}

fn is_directory(handle: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(handle).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// What procfs says of a process that is gone, as a call on its handle would.
fn gone(failure: Failure) -> Failure {
    if failure.errno == Errno::NOENT { Failure { errno: Errno::SRCH, ..failure } } else { failure }
}

/// The number of the process, as this procfs counts, while it is there.
pub fn number(handle: BorrowedFd<'_>) -> Result<Pid> {
    let none = Failure { call: "read(fdinfo)", errno: Errno::SRCH };
    if is_directory(handle) {
        return Pid::from_raw(Stat::of_handle(handle).map_err(gone)?.pid).ok_or(none);
    }
    let info = read_kernel_file(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    let info = String::from_utf8_lossy(&info);
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|text| text.trim().parse().ok());
    number.filter(|number: &i32| *number > 0).and_then(Pid::from_raw).ok_or(none)
}

/// Sends a signal (also 0, which only asks whether it could be sent).
pub fn send(handle: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for what kill(2) would send.
    let sent = check("pidfd_send_signal", unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, info, 0)
    });
    match sent {
        // What the kernel itself denies, it denies by number as well.
        Err(failure) if matches!(failure.errno, Errno::NOSYS | Errno::PERM | Errno::BADF) => by_number(handle, signal),
        result => result.map(drop),
    }
}

fn by_number(handle: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let pid = number(handle)?;
    let began = Stat::of(pid.as_raw_nonzero().get()).map_err(gone)?.start_time;
    // The process was there after its start time was read: so that is the one of the number.
    if number(handle)? != pid || is_directory(handle) && Stat::of_handle(handle).map_err(gone)?.start_time != began {
        return Err(Failure { call: "kill", errno: Errno::SRCH });
    }
    // SAFETY: takes integers only.
    check("kill", unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into()).map(drop)
}

/// What `waitid(2)` takes for a child.
pub fn wait_id(handle: BorrowedFd<'_>) -> WaitId<'_> {
    match is_directory(handle).then(|| number(handle)) {
        Some(Ok(pid)) => WaitId::Pid(pid),
        _ => WaitId::PidFd(handle),
    }
}

/// Joins the namespaces `kinds` (`CLONE_NEW*`) of the process.
pub fn join_namespaces(handle: BorrowedFd<'_>, kinds: u64) -> Result<()> {
    if !is_directory(handle) {
        // All at once (Linux 5.8): the kernel takes the user namespace first and checks the others with both privileges.
        return process::setns(handle, kinds);
    }
    let chosen = NAMESPACES.iter().filter(|(kind, _)| kinds & *kind as u64 != 0);
    let opened = chosen.map(|(kind, name)| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(handle, format!("ns/{name}"), flags, Mode::empty()).call("openat")?;
        Ok((*kind as u64, file))
    });
    let opened: Vec<(u64, OwnedFd)> = opened.collect::<Result<_>>().map_err(gone)?;
    // Those of the host with the host's privilege; those that belong to the user namespace again from within it.
    let join = |(kind, file): &&(u64, OwnedFd)| process::setns(std::os::fd::AsFd::as_fd(file), *kind);
    let (user, others): (Vec<_>, Vec<_>) = opened.iter().partition(|(kind, _)| *kind == libc::CLONE_NEWUSER as u64);
    let later: Vec<_> = others.into_iter().filter(|one| join(one).is_err()).collect();
    user.iter().chain(&later).try_for_each(join)
}

/// As `poll(2)`, of the process's end and of `others`: whether it has ended, and what there is of each of them. Nothing
/// of either after a signal, or after `patience`.
pub fn poll(
    handle: BorrowedFd<'_>,
    others: &[(BorrowedFd<'_>, PollFlags)],
    patience: Option<Duration>,
) -> Result<(bool, Vec<PollFlags>)> {
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let watches = !is_directory(handle);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let round = if watches { left } else { Some(left.map_or(PAUSE, |left| left.min(PAUSE))) };
        let mut fds: Vec<PollFd<'_>> = others.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        if watches {
            fds.push(PollFd::from_borrowed_fd(handle, PollFlags::IN));
        }
        let timeout = round.and_then(|round| Timespec::try_from(round).ok());
        let count = match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok((false, vec![PollFlags::empty(); others.len()])),
            result => result.call("poll")?,
        };
        let mut seen: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let has_ended = match watches {
            true => seen.pop().is_some_and(|flags| !flags.is_empty()),
            false => !Stat::of_handle(handle).is_ok_and(|stat| stat.lives()),
        };
        if has_ended || count > 0 || left.is_some_and(|left| left <= round.unwrap_or_default()) {
            return Ok((has_ended, seen));
        }
    }
}

/// Waits, not long, until a copy of this process that is in the middle of `execve(2)` is the program to others too. It has
/// let go of its old memory by then; that it has the new one, with the program's words in it, is a matter of moments.
pub fn await_program(handle: BorrowedFd<'_>) {
    let words = |pid: &str| read_kernel_file(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let Ok(pid) = number(handle) else { return };
    let (pid, own) = (pid.as_raw_nonzero().to_string(), words("self"));
    let deadline = Instant::now() + EXEC_PATIENCE;
    loop {
        let now = words(&pid);
        // Without words it is between the two, or has ended.
        let is_between = now.is_empty() && matches!(poll(handle, &[], Some(Duration::ZERO)), Ok((false, _)));
        if !is_between && now != own || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(EXEC_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn directory(pid: u32) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).unwrap()
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let text = b"7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3\n";
        assert_eq!(Stat::parse(text), Ok(Stat { pid: 7, state: 'S', start_time: 4242 }));
        assert!(Stat::parse(b"7 (x").is_err());
    }

    #[test]
    fn either_handle_leads_to_the_process_and_to_no_other() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let handles = [open(pid).unwrap(), directory(child.id())];
        for handle in &handles {
            assert_eq!(number(handle.as_fd()), Ok(pid));
            by_number(handle.as_fd(), 0).unwrap();
            let begun = Instant::now();
            assert_eq!(poll(handle.as_fd(), &[], Some(Duration::from_millis(50))), Ok((false, vec![])));
            assert!(begun.elapsed() >= Duration::from_millis(50));
        }
        by_number(handles[1].as_fd(), libc::SIGKILL).unwrap();
        for handle in &handles {
            assert_eq!(poll(handle.as_fd(), &[], None), Ok((true, vec![])));
        }
        child.wait().unwrap();
        for handle in &handles {
            assert_eq!(by_number(handle.as_fd(), 0).unwrap_err().errno, Errno::SRCH);
            assert_eq!(poll(handle.as_fd(), &[], None), Ok((true, vec![])));
        }
    }
}
