//! A session's end as an exit code, and a word about ends that the code does not explain.

use proto_engine::{Exit, Problem};
use strata_fault::{Fault, Layer, code};

use super::Outcome;
use crate::error::{self, EXIT_ENGINE, Error};

/// docker's exit code for `outcome` of `command`.
pub(crate) fn code(outcome: &Outcome, command: &'static str) -> Result<u8, Error> {
    match outcome {
        Outcome::Exited(exit) => {
            if let Some(fault) = worth_saying(exit) {
                error::print(&fault);
            }
            Ok(of(exit))
        }
        Outcome::Detached => Ok(0),
        Outcome::Left(caught) => Ok((128 + caught.number) as u8),
        Outcome::Ended => Err(Error::Broken {
            during: command,
            source: tonic::Status::unknown("the stream ended without saying how the program ended"),
        }),
    }
}

/// The exit status of a process is a byte.
pub(crate) fn of(exit: &Exit) -> u8 {
    match exit.problem.as_ref().map(|problem| problem.code.as_str()) {
        // A program that could not be started has no exit code of its own.
        Some(code::COMMAND_NOT_FOUND) => 127,
        Some(code::COMMAND_NOT_EXECUTABLE) => 126,
        _ => u8::try_from(exit.code).unwrap_or(if exit.code == 0 { 0 } else { EXIT_ENGINE }),
    }
}

/// Why it ended, when that is more than the code says. A signal is in the code, and often asked for.
fn worth_saying(exit: &Exit) -> Option<Fault> {
    let problem = exit.problem.as_ref()?;
    (problem.code != code::KILLED_BY_SIGNAL).then(|| fault(problem))
}

/// A problem from a record in the form of an error.
pub(crate) fn fault(problem: &Problem) -> Fault {
    let layer = Layer::parse(&problem.layer).unwrap_or(Layer::Engine);
    let fault = Fault::new(layer, &problem.step, &problem.code, &problem.message);
    let hint = Some(problem.hint.clone()).filter(|hint| !hint.is_empty());
    Fault { causes: problem.causes.clone(), hint, ..fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dockers() {
        let exit = |code: u32, word: &str| Exit {
            code,
            problem: (!word.is_empty()).then(|| Problem { code: word.to_owned(), ..Problem::default() }),
            ..Exit::default()
        };
        for (exit, code) in [
            (exit(0, ""), 0),
            (exit(7, ""), 7),
            (exit(137, code::OOM_KILLED), 137),
            (exit(255, ""), 255),
            (exit(128, code::COMMAND_NOT_FOUND), 127),
            (exit(0, code::COMMAND_NOT_EXECUTABLE), 126),
            (exit(70_000, ""), 125),
        ] {
            assert_eq!(of(&exit), code, "{exit:?}");
        }
    }

    #[test]
    fn a_signal_is_not_worth_a_word_and_an_oom_kill_is() {
        let exit = |word: &str| Exit {
            problem: Some(Problem { code: word.to_owned(), layer: "kernel".to_owned(), ..Problem::default() }),
            ..Exit::default()
        };
        assert!(worth_saying(&exit(code::KILLED_BY_SIGNAL)).is_none());
        assert_eq!(worth_saying(&exit(code::OOM_KILLED)).unwrap().layer, Layer::Kernel);
    }
}
