//! `lowrun events`: what a container uses, and what happens to its memory, a line of JSON for each.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::{Command, Typed, option, switch};
use super::{Global, print};
use crate::cgroup::notify::{Level, Notice};
use crate::cgroup::stats::{self, Stats};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::state::{Container, Identity, Status};
use crate::sys;

pub(super) const EVENTS: Command = Command {
    name: "events",
    about: "print what a container uses, and OOM events",
    description: "Prints lines of JSON until the container ends: {\"type\":\"stats\",…} at each interval, {\"type\":\"oom\",…} when the\n\
                  kernel killed for memory, and with --pressure {\"type\":\"memory-pressure\",…}. Of v2 and PSI the stats have the\n\
                  pressure (cpu.psi, memory.psi, blkio.psi).",
    arguments: "CONTAINER",
    flags: &[
        option("interval", None, "DURATION", "time between two lines of stats, as 5s or 100ms (default: 5s)"),
        switch("stats", None, "print one line of stats and end"),
        option("pressure", None, "LEVEL", "tell memory pressure too: low, medium or critical"),
    ],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

#[derive(Serialize)]
struct Event<'a, T: Serialize> {
    r#type: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

pub(super) fn events(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    let interval = match typed.text("interval")? {
        None => Duration::from_secs(5),
        Some(text) => parse_duration(text).ok_or_else(|| {
            Fault::new(Code::InvalidArgument, "duration interval must be greater than 0").cause(format!("{text:?}"))
        })?,
    };
    let level = typed.text("pressure")?.map(parse_level).transpose()?;
    if container.status() == Status::Stopped {
        return Err(Fault::new(
            Code::ContainerNotRunning,
            format!("container with id {} is not running", container.state.id),
        ));
    }
    if typed.is_on("stats") {
        return tell_stats(&container).map(|()| 0);
    }
    Watch::begin(global, &container, level)?.until_the_end(interval).map(|()| 0)
}

fn parse_level(word: &str) -> Result<Level> {
    Level::parse(word).ok_or_else(|| {
        Fault::new(Code::InvalidArgument, format!("invalid --pressure: {word:?}")).hint("low, medium or critical")
    })
}

/// What is waited for.
struct Watch<'a> {
    container: &'a Container,
    init: OwnedFd,
    oom: Option<Notice>,
    pressure: Option<(Level, Notice)>,
}

impl<'a> Watch<'a> {
    fn begin(global: &Global, container: &'a Container, level: Option<Level>) -> Result<Watch<'a>> {
        let init = container.state.init.as_ref().and_then(Identity::open).ok_or_else(|| container.not_running())?;
        // Stats are worth having where the memory of a container cannot be watched.
        let oom = Notice::of_oom(&container.state.cgroup).inspect_err(|fault| global.log.warn(&fault.one_line())).ok();
        let of_pressure = |level| Notice::of_pressure(&container.state.cgroup, level).map(|notice| (level, notice));
        Ok(Watch { container, init, oom, pressure: level.map(of_pressure).transpose()? })
    }

    fn until_the_end(mut self, interval: Duration) -> Result<()> {
        let mut next = Instant::now() + interval;
        loop {
            let ready = self.wait(next.saturating_duration_since(Instant::now()))?;
            if ready.oom && self.oom.as_mut().is_some_and(Notice::take) {
                tell::<()>("oom", &self.container.state.id, None)?;
            }
            if ready.pressure
                && let Some((level, notice)) = &mut self.pressure
                && notice.take()
            {
                let data = std::collections::BTreeMap::from([("level", level.as_str())]);
                tell("memory-pressure", &self.container.state.id, Some(data))?;
            }
            // After the notices: a kill that ended the container is told first.
            if ready.end {
                return Ok(());
            }
            if Instant::now() >= next {
                tell_stats(self.container)?;
                next = Instant::now() + interval;
            }
        }
    }

    fn wait(&self, patience: Duration) -> Result<Ready> {
        let notices = [self.oom.as_ref(), self.pressure.as_ref().map(|(_, notice)| notice)];
        let others: Vec<_> = notices.into_iter().flatten().map(Notice::poll).collect();
        let (end, seen) = sys::pidfd::poll(self.init.as_fd(), &others, Some(patience))
            .attempt(Code::SystemError, || "wait for events")?;
        let is_ready = |index: usize| seen.get(index).is_some_and(|flags| !flags.is_empty());
        let after_oom = usize::from(self.oom.is_some());
        Ok(Ready {
            end,
            oom: self.oom.is_some() && is_ready(0),
            pressure: self.pressure.is_some() && is_ready(after_oom),
        })
    }
}

#[derive(Default)]
struct Ready {
    end: bool,
    oom: bool,
    pressure: bool,
}

fn tell_stats(container: &Container) -> Result<()> {
    tell::<Stats>("stats", &container.state.id, Some(stats::usage(&container.state.cgroup)))
}

fn tell<T: Serialize>(kind: &str, id: &str, data: Option<T>) -> Result<()> {
    let line = serde_json::to_string(&Event { r#type: kind, id, data })
        .map_err(|error| Fault::new(Code::SystemError, "write to stdout").cause(error.to_string()))?;
    print(&(line + "\n"))
}

/// The longest duration of Go's, 292 years.
const LONGEST: Duration = Duration::from_nanos(i64::MAX as u64);

/// `5s`, `1m30s`, `500ms`, as Go writes durations.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|letter: char| letter.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[unit_end..];
    }
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (seconds > 0.0 && duration <= LONGEST).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        for text in ["", "5", "0s", "x", "5 s", "99999999999999999999s", "999999999999s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
