//! How a container ended, and whose doing it was.

use serde::{Deserialize, Serialize};
use strata_fault::{Fault, Layer, code};

use crate::engine::signal::Signal;
use crate::engine::stamp::Stamp;

/// The exit code of what nobody saw.
const UNKNOWN: u32 = 255;
/// What shells, and the supervisor, add to a signal's number.
const SIGNALLED: u32 = 128;

/// The end of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// The program's own; 128 + n for signal n; 255 when unknown; 126, 127 and 128 when it could not be started.
    pub(crate) code: u32,
    #[serde(default)]
    pub(crate) oom_killed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<Signal>,
    /// Nobody could see the exit code.
    #[serde(default)]
    pub(crate) unknown: bool,
    pub(crate) at: Stamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<Problem>,
}

impl Exit {
    /// The program ended, with what its parent saw.
    pub(crate) fn seen(status: u32, at: Stamp, oom_killed: bool, memory_limit: Option<u64>) -> Exit {
        // The supervisor's interface has one number for both ways to end; codes above 128 are read as shells write them.
        let signal = status.checked_sub(SIGNALLED).and_then(Signal::from_number);
        let problem = match (oom_killed, signal) {
            (true, _) => Some(out_of_memory(memory_limit)),
            (false, Some(signal)) => Some(signalled(signal)),
            (false, None) => None,
        };
        Exit { code: status, oom_killed, signal, unknown: false, at, problem }
    }

    /// Nobody could see how it ended.
    pub(crate) fn unseen(at: Stamp, problem: Problem) -> Exit {
        Exit { code: UNKNOWN, oom_killed: false, signal: None, unknown: true, at, problem: Some(problem) }
    }

    /// The program was never started: `fault` says why.
    pub(crate) fn refused(fault: &Fault, at: Stamp) -> Exit {
        let code = match fault.code.as_str() {
            code::COMMAND_NOT_FOUND => 127,
            code::COMMAND_NOT_EXECUTABLE => 126,
            _ => 128,
        };
        Exit { code, oom_killed: false, signal: None, unknown: false, at, problem: Some(Problem::from(fault)) }
    }

    /// Whether a restart policy that acts on failures acts.
    pub(crate) fn is_failure(&self) -> bool {
        self.code != 0
    }
}

fn out_of_memory(limit: Option<u64>) -> Problem {
    let message = match limit {
        Some(limit) => format!("the kernel killed a process of the container: its memory limit is {limit} bytes"),
        None => "the kernel killed a process of the container: the host was out of memory".to_owned(),
    };
    let hint = limit.map(|_| "give it a higher memory limit, or find out what it needs the memory for".to_owned());
    Problem { hint, ..Problem::new(Layer::Kernel, "watch", code::OOM_KILLED, message) }
}

fn signalled(signal: Signal) -> Problem {
    let message = format!("the program was ended by signal {} ({signal})", signal.number());
    Problem::new(Layer::Application, "watch", code::KILLED_BY_SIGNAL, message)
}

/// A fault as a record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) layer: String,
    pub(crate) step: String,
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(layer: Layer, step: &str, word: &str, message: impl Into<String>) -> Problem {
        Problem::from(&Fault::new(layer, step, word, message))
    }
}

impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Problem {
        Problem {
            layer: fault.layer.as_str().to_owned(),
            step: fault.step.clone(),
            code: fault.code.clone(),
            message: fault.message.clone(),
            causes: fault.causes.clone(),
            hint: fault.hint.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u32, oom: bool) -> Exit {
        Exit::seen(status, Stamp::from_ns(1), oom, Some(8 << 20))
    }

    #[test]
    fn codes_above_128_are_signals() {
        assert_eq!(seen(7, false).problem, None);
        assert_eq!(seen(128, false).signal, None);
        assert_eq!(seen(255, false).signal, None);
        let crash = seen(139, false);
        assert_eq!((crash.code, crash.signal.map(Signal::number)), (139, Some(11)));
        let problem = crash.problem.unwrap();
        assert_eq!((problem.layer.as_str(), problem.code.as_str()), ("application", code::KILLED_BY_SIGNAL));
        assert_eq!(problem.message, "the program was ended by signal 11 (SIGSEGV)");
    }

    #[test]
    fn a_kill_for_memory_is_the_kernels_doing() {
        let problem = seen(137, true).problem.unwrap();
        assert_eq!((problem.layer.as_str(), problem.code.as_str()), ("kernel", code::OOM_KILLED));
    }

    #[test]
    fn what_could_not_be_started_has_dockers_codes() {
        for (word, expected) in
            [(code::COMMAND_NOT_FOUND, 127), (code::COMMAND_NOT_EXECUTABLE, 126), (code::PORT_IN_USE, 128)]
        {
            let fault = Fault::new(Layer::Runtime, "create", word, "x");
            assert_eq!(Exit::refused(&fault, Stamp::from_ns(1)).code, expected);
        }
    }
}
