//! The serving process: one thread that waits in one place and does what comes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::poll::{Interest, Poller, Source};
use crate::publish::Publisher;
use crate::sys::{memory, signal};
use crate::task::Tasks;
use crate::timers::Due;
use crate::world::World;

/// After so much quiet, memory that a burst needed is given back.
const QUIET: Duration = Duration::from_secs(2);
/// A shim that was started and that nobody talks to ends after this.
const ABANDONED: Duration = Duration::from_secs(60);
/// How long a shim that was told to end tries to publish its last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// What a serving process needs to know.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) namespace: String,
    /// Where it listens.
    pub(crate) listener: OwnedFd,
    pub(crate) socket: PathBuf,
    /// Where events are published.
    pub(crate) events: PathBuf,
}

/// Serves until it is told to end. The working directory is the bundle.
pub(crate) fn serve(setting: Setting) -> Result<(), Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        |source| Error::System { what, source }
    };
    memory::keep_heap_small();
    let children = signal::take_over().map_err(failed("take over signals"))?;
    let mut poller = Poller::new().map_err(failed("make an epoll instance"))?;
    poller.add(&children, Source::Children, Interest::Read).map_err(failed("wait for children"))?;
    let publisher = Publisher::new(&setting.events, &setting.namespace);
    let world = World::new(&setting.namespace, (setting.listener, &setting.socket), poller, publisher)?;
    let mut shim = Shim { world, tasks: Tasks::default(), children };
    shim.run().map_err(failed("wait for events"))
}

struct Shim {
    world: World,
    tasks: Tasks,
    children: OwnedFd,
}

impl Shim {
    fn run(&mut self) -> std::io::Result<()> {
        while !self.is_done() {
            let happened = self.world.poller.wait(self.world.timers.until_next())?;
            let was_quiet = happened.is_empty();
            for token in happened {
                if let Some(source) = self.world.poller.source(token) {
                    self.act(source);
                }
            }
            while let Some(due) = self.world.timers.pop() {
                self.due(due);
            }
            self.tasks.after_answers(&mut self.world);
            self.world.publisher.advance(&mut self.world.poller, &mut self.world.timers);
            if !was_quiet {
                self.world.timers.set_once(Due::Trim, QUIET);
            } else if self.world.timers.until_next().is_none_or(|next| next >= QUIET) {
                // A late timer, or nothing but a stop and a continuation: what that executed is given back again.
                self.world.poller.expect_sleep();
            }
            if self.tasks.is_empty() {
                self.world.timers.set_once(Due::Abandoned, ABANDONED);
            }
        }
        Ok(())
    }

    /// Whether the shim was told to end and has told everything.
    fn is_done(&mut self) -> bool {
        if !self.tasks.is_quitting() {
            return false;
        }
        self.world.server.stop_listening(&mut self.world.poller);
        self.world.timers.set_once(Due::Quit, LAST_EVENTS);
        self.world.publisher.is_done()
    }

    fn act(&mut self, source: Source) {
        let world = &mut self.world;
        match source {
            Source::Listener => {
                if let Err(error) = world.server.accept(&mut world.poller) {
                    world.warn("accept a connection", &error);
                }
            }
            Source::Connection(number) => {
                for call in world.server.serve(number, &mut world.poller) {
                    self.tasks.handle(call, world);
                }
            }
            Source::Children => {
                signal::quiet(&self.children);
                self.tasks.reap(world);
            }
            Source::Publisher => world.publisher.ready(&mut world.poller, &mut world.timers),
            other => self.tasks.ready(other, world),
        }
    }

    fn due(&mut self, due: Due) {
        let world = &mut self.world;
        match due {
            Due::Publish => world.publisher.try_again(&mut world.poller, &mut world.timers),
            Due::Trim => {
                world.scratch.release();
                world.lingering.clear();
                self.tasks.hide_roots(world);
                memory::trim_heap();
                world.poller.expect_sleep();
            }
            Due::Abandoned if self.tasks.is_empty() && world.server.is_alone() => self.tasks.quit_if_empty(),
            Due::Abandoned if self.tasks.is_empty() => world.timers.set(Due::Abandoned, ABANDONED),
            // It has a container; when that is deleted, the time begins again.
            Due::Abandoned => {}
            Due::Quit => world.publisher.give_up(),
            other => self.tasks.due(other, world),
        }
    }
}
