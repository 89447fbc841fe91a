//! What the tasks act upon: everything of the shim that is not a task.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::poll::Poller;
use crate::publish::Publisher;
use crate::server::Server;
use crate::stdio::{Scratch, above_stdio};
use crate::timers::Timers;

/// The FIFO in the bundle that containerd reads and prints.
const LOG_FIFO: &str = "log";

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) namespace: String,
    pub(crate) poller: Poller,
    pub(crate) server: Server,
    pub(crate) publisher: Publisher,
    pub(crate) timers: Timers,
    pub(crate) scratch: Scratch,
    /// `/dev/null`.
    pub(crate) null: OwnedFd,
    log: Option<std::fs::File>,
    /// Handles on file systems that are unmounted and whose last reference takes long to drop: dropped when nobody
    /// waits, at the latest, and usually, by the end of this process.
    pub(crate) lingering: Vec<OwnedFd>,
}

impl World {
    pub(crate) fn new(
        namespace: &str,
        (listener, socket): (OwnedFd, &Path),
        mut poller: Poller,
        publisher: Publisher,
    ) -> Result<World, Error> {
        let failed = |what: &str| {
            let what = what.to_owned();
            |source| Error::System { what, source }
        };
        let server = Server::new(listener, socket, &mut poller).map_err(failed("serve"))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let null = null.map_err(std::io::Error::from).and_then(above_stdio).map_err(failed("open /dev/null"))?;
        Ok(World {
            namespace: namespace.to_owned(),
            poller,
            server,
            publisher,
            timers: Timers::default(),
            scratch: Scratch::default(),
            null,
            log: None,
            lingering: Vec::new(),
        })
    }

    /// Tells an operator what no caller learns. Nobody may be listening; then nobody is told.
    pub(crate) fn warn(&mut self, what: &str, error: &dyn std::error::Error) {
        if self.log.is_none() {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            self.log = rustix::fs::open(Path::new(LOG_FIFO), flags, Mode::empty()).ok().map(std::fs::File::from);
        }
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "level=warning msg={:?}", format!("{what}: {text}"));
        }
    }
}
