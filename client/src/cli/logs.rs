//! `strata logs`: what a container wrote, and with `--follow` what it writes.

use std::time::SystemTime;

use bytes::Bytes;
use clap::{ArgMatches, Command};
use prost_types::Timestamp;
use proto_engine::{LogsEvent, LogsRequest, Stream};

use super::Call;
use super::arguments::{Arity, on, parsed, rest, switch, text, with_help, words};
use super::value::{Parsed, moment};
use crate::engine::reconnect::{Patience, may_pass};
use crate::engine::{Engine, failure, told};
use crate::error::Error;
use crate::output::logs::Stamper;
use crate::terminal::sink::Sink;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(switch("follow").short('f').help("Follow log output"))
        .arg(text("since", "string").help("Show logs since a time (2026-01-02T13:23:37Z) or an age (42m)"))
        .arg(text("tail", "string").short('n').help("Number of lines to show from the end of the logs (default all)"))
        .arg(switch("timestamps").short('t').help("Show timestamps"))
        .arg(text("until", "string").help("Show logs before a time (2026-01-02T13:23:37Z) or an age (42m)"))
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "logs", Arity::Exactly(1))?;
    let now = SystemTime::now();
    let time = |text: &str| moment::moment(text, now);
    let request = LogsRequest {
        container: names[0].clone(),
        follow: on(&matches, "follow"),
        tail: parsed(&matches, "tail", "-n, --tail", tail)?.flatten(),
        since: parsed(&matches, "since", "--since", time)?,
        until: parsed(&matches, "until", "--until", time)?,
        stdout: true,
        stderr: true,
    };
    let mut engine = call.connect().await?;
    let mut writer = Writer::new(on(&matches, "timestamps"));
    let shown = show(&mut engine, request, &mut writer).await;
    let (stdout, stderr) = (writer.stdout.finish().await, writer.stderr.finish().await);
    shown?;
    stdout.and(stderr).map_err(output_failed)?;
    Ok(0)
}

/// A number of lines; `all`, or a negative number, is all of them.
fn tail(text: &str) -> Parsed<Option<u64>> {
    match text.parse::<i64>() {
        Ok(lines) => Ok(u64::try_from(lines).ok()),
        Err(_) if text == "all" => Ok(None),
        Err(_) => Err("want a number of lines, or all".to_owned()),
    }
}

/// Shows the log; when engined goes while it is followed, it is asked again for what came after the last piece shown.
async fn show(engine: &mut Engine, mut request: LogsRequest, writer: &mut Writer) -> Result<(), Error> {
    let mut patience = Patience::new();
    loop {
        let error = match pass(engine, &request, writer, &mut patience).await {
            Err(error) if request.follow && writer.began && may_pass(&error) => error,
            result => return result,
        };
        writer.say_lost();
        patience.wait(error).await?;
        engine.reconnect(&mut patience).await?;
        if let Some(at) = writer.last {
            (request.since, request.tail) = (Some(at), None);
        }
    }
}

async fn pass(
    engine: &mut Engine,
    request: &LogsRequest,
    writer: &mut Writer,
    patience: &mut Patience,
) -> Result<(), Error> {
    let mut events = told("logs", engine.containers().logs(request.clone()).await)?;
    while let Some(event) = events.message().await.map_err(|status| failure("logs", status))? {
        *patience = Patience::new();
        writer.write(event).await?;
    }
    Ok(())
}

/// Where the log goes.
struct Writer {
    stdout: Sink,
    stderr: Sink,
    /// With times: for stdout and stderr, each its own lines.
    stampers: Option<(Stamper, Stamper)>,
    began: bool,
    /// The time and the place of the last piece shown.
    last: Option<Timestamp>,
    next: u64,
    said_lost: bool,
}

impl Writer {
    fn new(timestamps: bool) -> Writer {
        Writer {
            stdout: Sink::stdout(),
            stderr: Sink::stderr(),
            stampers: timestamps.then(Default::default),
            began: false,
            last: None,
            next: 0,
            said_lost: false,
        }
    }

    async fn write(&mut self, event: LogsEvent) -> Result<(), Error> {
        self.began = true;
        let Some(output) = event.output else { return Ok(()) };
        // Pieces of the same instant that were shown before a break.
        if output.next <= self.next && self.next > 0 {
            return Ok(());
        }
        self.next = output.next;
        self.last = event.at.or(self.last);
        if output.lost > 0 {
            eprintln!("strata: {} bytes of the log were rotated away before they could be shown", output.lost);
        }
        let is_stderr = output.stream() == Stream::Stderr;
        let data = match (&mut self.stampers, &event.at) {
            (Some((out, err)), Some(at)) => Bytes::from(if is_stderr { err } else { out }.stamp(&output.data, at)),
            _ => output.data,
        };
        let sink = if is_stderr { &mut self.stderr } else { &mut self.stdout };
        if data.is_empty() { Ok(()) } else { sink.write(data).await.map_err(output_failed) }
    }

    fn say_lost(&mut self) {
        if !self.said_lost {
            self.said_lost = true;
            eprintln!("strata: the connection to engined is lost; connecting again");
        }
    }
}

fn output_failed(source: std::io::Error) -> Error {
    Error::Terminal { attempted: "write the log", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails() {
        assert_eq!(tail("all"), Ok(None));
        assert_eq!(tail("-1"), Ok(None));
        assert_eq!(tail("0"), Ok(Some(0)));
        assert_eq!(tail("10"), Ok(Some(10)));
        assert!(tail("some").is_err());
    }
}
