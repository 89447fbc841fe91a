//! The one place where the shim waits: an epoll instance, and what each registered descriptor is for.
//!
//! A registration has a number of its own that is never used again, so an event of a descriptor that was closed (and
//! whose number another one bears by now) finds nobody instead of the wrong one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::sys::memory;
use crate::task::Key;

/// Events taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 16;

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The socket on which containerd or shimd connects.
    Listener,
    /// A child has ended.
    Children,
    /// A connection of a ttrpc client.
    Connection(u32),
    /// The connection to which events are published.
    Publisher,
    /// One of the outputs of a process, or where it goes.
    Output(Key, u8),
    /// The standard input of a process, or where it comes from.
    Input(Key),
    /// A logger says that it is ready.
    Logger(Key),
    /// A logger has ended.
    LoggerEnd(Key),
    /// The kernel killed for memory, or the cgroup went.
    Oom,
}

/// A registration.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
pub(crate) struct Token(u64);

/// Which events are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Interest::Read => epoll::EventFlags::IN,
            Interest::Write => epoll::EventFlags::OUT,
            Interest::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        }
    }
}

/// An epoll instance with its registrations.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    sources: BTreeMap<Token, Source>,
    last: u64,
    will_sleep: bool,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: BTreeMap::new(),
            last: 0,
            will_sleep: false,
        })
    }

    /// Waits for events of `fd` on behalf of `source`.
    pub(crate) fn add(&mut self, fd: impl AsFd, source: Source, interest: Interest) -> io::Result<Token> {
        self.last += 1;
        let token = Token(self.last);
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.0), interest.flags())?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Changes what is waited for.
    pub(crate) fn change(&mut self, token: Token, fd: impl AsFd, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.0), interest.flags())?)
    }

    /// Waits no longer. To be called before `fd` is closed, and also to pause: a registration without interest would
    /// still report a peer that hung up, for ever.
    pub(crate) fn remove(&mut self, token: Token, fd: impl AsFd) {
        self.sources.remove(&token);
        // A descriptor that cannot be removed is not registered, which is what was asked for.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// The next wait is expected to be long.
    pub(crate) fn expect_sleep(&mut self) {
        self.will_sleep = true;
    }

    /// Waits until something happens or `limit` is over, and hands each source to `act` with this poller.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> io::Result<Vec<Token>> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [nothing; EVENTS_AT_ONCE];
        if std::mem::take(&mut self.will_sleep) {
            // Here and nowhere else: what runs from now on until something happens is a handful of instructions.
            memory::release_stack();
            memory::release_code();
        }
        match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Ok(count) => Ok(events[..count].iter().map(|event| Token(event.data.u64())).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// What a registration is for; `None` when it ended in the meantime.
    pub(crate) fn source(&self, token: Token) -> Option<Source> {
        self.sources.get(&token).copied()
    }
}
