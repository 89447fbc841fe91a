//! `strata explain`: how a container is, and why it ended or could not start: which layer, at which step, the causes and
//! what can be done, in plain words.

use std::time::SystemTime;

use clap::{ArgMatches, Command};
use proto_engine::{ContainerDetail, Exit, InspectContainerRequest, Problem, State, state::Status};
use strata_fault::code;

use super::Call;
use super::arguments::{Arity, rest, said, text, with_help, words};
use crate::engine::told;
use crate::error::Error;
use crate::output::value::Value;
use crate::output::{format, human, inspect_container, print, quote, time};

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let format = text("format", "string").short('f').help("Format the container's state: json, or a Go template");
    with_help(command.arg(format).arg(rest("words")), true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "explain", Arity::Exactly(1))?;
    let engine = call.connect().await?;
    let request = InspectContainerRequest { container: names[0].clone() };
    let detail = told("explain", engine.containers().inspect(request).await)?.container.unwrap_or_default();
    match said(&matches, "format").filter(|format| !format.is_empty()) {
        Some(template) => {
            let object = inspect_container::object(&detail);
            print(&format::object(template, object.field("State").unwrap_or(&Value::Null))?)?;
        }
        None => print(&in_words(&detail, SystemTime::now()))?,
    }
    Ok(0)
}

/// The explanation.
fn in_words(detail: &ContainerDetail, now: SystemTime) -> String {
    let summary = detail.summary.clone().unwrap_or_default();
    let state = summary.state.clone().unwrap_or_default();
    let exit = state.exit.clone();
    let mut lines = vec![format!("{} ({}) {}", summary.name, quote::short_id(&summary.id), sentence(&state, now))];
    if let Some(exit) = &exit {
        let last = matches!(state.status(), Status::Running | Status::Paused);
        let before = if last { "last time: " } else { "" };
        lines.push(format!("  why:   {before}{}", reason(exit, detail)));
        if let Some(problem) = &exit.problem {
            lines.extend(problem_lines(problem));
        } else if let Some(hint) = hint(exit, detail) {
            lines.push(format!("  hint:  {hint}"));
        }
    }
    if state.restart_count > 0 {
        lines.push(format!("  restarted {} times by its restart policy", state.restart_count));
    }
    lines.push(format!("  runs:  {}", quote::joined(&detail.args)));
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn sentence(state: &State, now: SystemTime) -> String {
    let age = |at: Option<&prost_types::Timestamp>| at.map(|at| time::age(at, now)).unwrap_or_default();
    let exit = state.exit.clone().unwrap_or_default();
    let ended = age(exit.at.as_ref());
    match state.status() {
        Status::Unspecified => "is in a state this client does not know".to_owned(),
        Status::Created if state.exit.is_some() => "could not be started".to_owned(),
        Status::Created => "was created and never started".to_owned(),
        Status::Running => format!("has been running for {} as process {}", age(state.started.as_ref()), state.pid),
        Status::Paused => format!("is paused; it was started {} ago", age(state.started.as_ref())),
        Status::Restarting => format!("waits to be restarted; it ended {ended} ago with code {}", exit.code),
        Status::Exited if exit.unknown => format!("ended {ended} ago, its exit code is unknown"),
        Status::Exited => format!("ended {ended} ago with code {}", exit.code),
        Status::Removing => "is being removed".to_owned(),
        Status::Dead => "is dead: it could not be removed wholly".to_owned(),
    }
}

/// Why a program ended.
fn reason(exit: &Exit, detail: &ContainerDetail) -> String {
    let memory = detail.spec.as_ref().and_then(|spec| spec.resources.as_ref()).map_or(0, |resources| resources.memory);
    let limit = if memory > 0 { format!(" of {}", human::binary_size(memory)) } else { String::new() };
    if exit.oom_killed {
        return format!("the kernel killed it because it used more memory than its limit{limit}");
    }
    if let Some(problem) = &exit.problem {
        return problem.message.clone();
    }
    match (exit.unknown, exit.signal, exit.code) {
        (true, ..) => "nobody could see how it ended: the shim that watched it had died".to_owned(),
        (_, 0, 0) => "the program ended by itself and says it succeeded".to_owned(),
        (_, 0, code @ 129..=192) => format!(
            "the program ended by itself with code {code}, which shells use for a child that signal {} ended",
            signal_name(code - 128)
        ),
        (_, 0, code) => format!("the program ended by itself and says it failed, with code {code}"),
        (_, signal, _) => format!("signal {} ended it", signal_name(signal)),
    }
}

fn problem_lines(problem: &Problem) -> Vec<String> {
    let mut lines = vec![format!("  layer: {}, at step {} ({})", problem.layer, problem.step, problem.code)];
    if problem.code == code::OOM_KILLED {
        lines.push(format!("  said:  {}", problem.message));
    }
    lines.extend(problem.causes.iter().map(|cause| format!("  cause: {cause}")));
    if !problem.hint.is_empty() {
        lines.push(format!("  hint:  {}", problem.hint));
    }
    lines
}

/// What to do, where the record does not say it.
fn hint(exit: &Exit, detail: &ContainerDetail) -> Option<String> {
    let name = detail.summary.as_ref().map_or("", |summary| &summary.name);
    match (exit.oom_killed, exit.signal, exit.code) {
        (true, ..) => Some("give it more with --memory, or find what uses it".to_owned()),
        (_, 0, code) if code > 0 => Some(format!("what it wrote last: strata logs --tail 20 {name}")),
        _ => None,
    }
}

/// `9 (KILL)`
fn signal_name(number: u32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = (number as usize).checked_sub(1).and_then(|index| NAMES.get(index));
    name.map_or_else(|| number.to_string(), |name| format!("{number} ({name})"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Timestamp;
    use proto_engine::{ContainerSpec, ContainerSummary, Resources};

    use super::*;

    fn explained(status: Status, exit: Option<Exit>) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let state = State {
            status: status.into(),
            pid: 42,
            started: Some(Timestamp { seconds: 700, nanos: 0 }),
            exit,
            ..State::default()
        };
        let detail = ContainerDetail {
            summary: Some(ContainerSummary {
                id: "0123456789abcdef".to_owned(),
                name: "web".to_owned(),
                state: Some(state),
                ..ContainerSummary::default()
            }),
            spec: Some(ContainerSpec {
                resources: Some(Resources { memory: 64 << 20, ..Resources::default() }),
                ..ContainerSpec::default()
            }),
            args: ["sh", "-c", "exit 7"].map(str::to_owned).into(),
            ..ContainerDetail::default()
        };
        in_words(&detail, now)
    }

    fn ended(exit: Exit) -> Option<Exit> {
        Some(Exit { at: Some(Timestamp { seconds: 940, nanos: 0 }), ..exit })
    }

    #[test]
    fn every_kind_of_end() {
        assert_eq!(
            explained(Status::Running, None),
            "web (0123456789ab) has been running for 5 minutes as process 42\n  runs:  sh -c 'exit 7'\n"
        );
        assert_eq!(
            explained(Status::Exited, ended(Exit { code: 7, ..Exit::default() })),
            "web (0123456789ab) ended About a minute ago with code 7\n  why:   the program ended by itself and says it failed, \
             with code 7\n  hint:  what it wrote last: strata logs --tail 20 web\n  runs:  sh -c 'exit 7'\n"
        );
        let killed = explained(Status::Exited, ended(Exit { code: 137, signal: 9, ..Exit::default() }));
        assert!(killed.contains("why:   signal 9 (KILL) ended it"), "{killed}");
        let oom = explained(Status::Exited, ended(Exit { code: 137, signal: 9, oom_killed: true, ..Exit::default() }));
        assert!(oom.contains("more memory than its limit of 64MiB") && oom.contains("--memory"), "{oom}");
        let unknown = explained(Status::Exited, ended(Exit { code: 255, unknown: true, ..Exit::default() }));
        assert!(unknown.contains("its exit code is unknown") && unknown.contains("shim"), "{unknown}");
    }

    #[test]
    fn a_problem_is_told_with_its_layer_and_causes() {
        let problem = Problem {
            layer: "runtime".to_owned(),
            step: "start".to_owned(),
            code: code::COMMAND_NOT_FOUND.to_owned(),
            message: "run \"nope\"".to_owned(),
            causes: vec!["No such file or directory (os error 2)".to_owned()],
            hint: "is it in the image?".to_owned(),
        };
        let text = explained(Status::Created, ended(Exit { problem: Some(problem), ..Exit::default() }));
        assert_eq!(
            text,
            "web (0123456789ab) could not be started\n  why:   run \"nope\"\n  layer: runtime, at step start \
             (COMMAND_NOT_FOUND)\n  cause: No such file or directory (os error 2)\n  hint:  is it in the image?\n  runs:  sh -c 'exit 7'\n"
        );
    }
}
