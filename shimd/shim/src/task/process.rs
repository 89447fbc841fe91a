//! One process of a container: its init, or an exec.
//!
//! ```text
//!           lowrun create       Start, lowrun start     the kernel says     output taken
//! Creating ─────────────▶ Created ──▶ Starting ──▶ Running ──────▶ Ending ──────────────▶ Stopped
//!                            │                        (an exit before lowrun start returns waits for it)
//!                            └────────── killed before it was started ──▶ Ending
//! ```
//! An exec begins as Created, when it is only a request; Start runs `lowrun exec`.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use proto_shim::process::Status;

use crate::server::Reply;
use crate::stdio::{Io, Request};

/// A number that stands for one process of this shim and never for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u32);

impl Key {
    pub(crate) fn new(number: u32) -> Key {
        Key(number)
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exit {
    /// Its own status, or 128 and the number of the signal.
    pub(crate) status: u32,
    pub(crate) at: Timestamp,
}

impl Exit {
    pub(crate) fn now(status: u32) -> Exit {
        Exit { status, at: timestamp() }
    }
}

/// Now.
pub(crate) fn timestamp() -> Timestamp {
    // A clock before 1970 is told as 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() as i32 }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Phase {
    /// The runtime makes the container.
    Creating,
    /// It is there and waits to be started.
    Created,
    /// The runtime starts it; it may have ended meanwhile.
    Starting(Option<Exit>),
    Running,
    /// It has ended; its output, or its execs, have not.
    Ending(Exit),
    /// All that can be known of it is known.
    Stopped(Exit),
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) key: Key,
    /// Empty for the init.
    pub(crate) exec_id: String,
    pub(crate) phase: Phase,
    /// Zero until the runtime has told it.
    pub(crate) pid: u32,
    pub(crate) request: Request,
    pub(crate) io: Option<Io>,
    /// Who called Wait.
    pub(crate) waiting: Vec<Reply>,
    /// Who called Delete while output was left.
    pub(crate) deleting: Option<Reply>,
    /// What an exec runs: JSON of an OCI process.
    pub(crate) spec: Vec<u8>,
}

impl Process {
    pub(crate) fn new(key: Key, exec_id: String, phase: Phase, request: Request) -> Process {
        Process {
            key,
            exec_id,
            phase,
            pid: 0,
            request,
            io: None,
            waiting: Vec::new(),
            deleting: None,
            spec: Vec::new(),
        }
    }

    /// How it ended, once that may be told.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether the kernel has, or may have, a process of it.
    pub(crate) fn is_alive(&self) -> bool {
        match self.phase {
            Phase::Starting(exit) => exit.is_none(),
            Phase::Running => true,
            Phase::Created => self.exec_id.is_empty(),
            Phase::Creating | Phase::Ending(_) | Phase::Stopped(_) => false,
        }
    }

    /// Whether its end, or the outcome of its start, is still to be told.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Starting(_) | Phase::Running | Phase::Ending(_))
    }

    /// As clients see it.
    pub(crate) fn status(&self) -> Status {
        match self.phase {
            Phase::Creating | Phase::Created => Status::Created,
            Phase::Starting(_) => Status::Created,
            Phase::Running | Phase::Ending(_) => Status::Running,
            Phase::Stopped(_) => Status::Stopped,
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.io.as_ref().is_none_or(Io::is_drained)
    }
}
