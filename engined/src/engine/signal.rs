//! Signals by name and number.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{Error, Field};

/// The standard signals, at their numbers from 1 on (x86-64 and arm64 agree).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// glibc keeps 32 and 33 for itself.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Signal(u8);

impl Signal {
    pub(crate) const KILL: Signal = Signal(9);
    pub(crate) const TERM: Signal = Signal(15);

    /// Reads `TERM`, `SIGTERM`, `15`, `RTMIN+3` or `RTMAX-1`, in any case; `field` is named when it is none.
    pub(crate) fn parse(field: Field, text: &str) -> Result<Signal, Error> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = match text.parse::<u8>() {
            Ok(number) => Some(number),
            Err(_) => NAMES.iter().position(|name| *name == bare).map(|at| at as u8 + 1).or_else(|| other(bare)),
        };
        number.filter(|number| (1..=RTMAX).contains(number)).map(Signal).ok_or_else(|| {
            Error::invalid(field, text, "a signal's name such as SIGTERM or TERM, or a number from 1 to 64")
        })
    }

    /// The signal of that number, if it is one.
    pub(crate) fn from_number(number: u32) -> Option<Signal> {
        u8::try_from(number).ok().filter(|number| (1..=RTMAX).contains(number)).map(Signal)
    }

    pub(crate) fn number(self) -> u32 {
        self.0.into()
    }
}

fn other(bare: &str) -> Option<u8> {
    match bare {
        "IOT" => return Some(6),
        "CLD" => return Some(17),
        "POLL" => return Some(29),
        "RTMIN" => return Some(RTMIN),
        "RTMAX" => return Some(RTMAX),
        _ => {}
    }
    let in_range = |number: u8| (RTMIN..=RTMAX).contains(&number).then_some(number);
    if let Some(above) = bare.strip_prefix("RTMIN+") {
        return in_range(RTMIN.checked_add(above.parse().ok()?)?);
    }
    in_range(RTMAX.checked_sub(bare.strip_prefix("RTMAX-")?.parse().ok()?)?)
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 == RTMAX => f.write_str("SIGRTMAX"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "SIG{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("sigkill", 9),
            ("SIGTERM", 15),
            ("15", 15),
            ("SIGWINCH", 28),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
            ("SIGSYS", 31),
        ] {
            assert_eq!(Signal::parse(Field::Signal, text).unwrap().number(), number, "{text}");
        }
        for text in ["", "0", "65", "-1", "NOPE", "SIG", "RTMIN+31", "RTMAX-31", "SIGSIGKILL", "1 "] {
            assert!(Signal::parse(Field::Signal, text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for number in (1..=31).chain(34..=64) {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(Signal::parse(Field::Signal, &signal.to_string()).unwrap(), signal);
        }
    }
}
