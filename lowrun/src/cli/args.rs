//! The command line, by table: one description of each command serves parsing, help, completion, manual and errors.
//!
//! Not clap: building its tree of twenty commands costs more than all the parsing of one call, and runc's line has
//! forms of Go's flag package (`-bundle DIR`, `--detach=false`) that callers use and clap does not know.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::fault::{Code, Fault, Result};

/// A flag of a command.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    /// What stands for the value in help; `None` is a switch.
    pub(super) value: Option<&'static str>,
    /// Empty for a flag that is only taken so that old callers do not fail: no help mentions it.
    pub(super) help: &'static str,
}

/// A switch.
pub(super) const fn switch(name: &'static str, short: Option<char>, help: &'static str) -> Flag {
    Flag { name, short, value: None, help }
}

/// A flag with a value.
pub(super) const fn option(name: &'static str, short: Option<char>, value: &'static str, help: &'static str) -> Flag {
    Flag { name, short, value: Some(value), help }
}

/// A flag with a value that runc once had: it does nothing.
pub(super) const fn obsolete(name: &'static str) -> Flag {
    Flag { name, short: None, value: Some("VALUE"), help: "" }
}

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// More words, in paragraphs; may be empty.
    pub(super) description: &'static str,
    /// The words after the flags, for help.
    pub(super) arguments: &'static str,
    pub(super) flags: &'static [Flag],
    /// Fewest and most words.
    pub(super) count: (usize, usize),
    /// After this many words all others are words: they belong to another program.
    pub(super) flags_end_after: usize,
}

/// What was typed.
#[derive(Debug, Default)]
pub(super) struct Typed {
    flags: Vec<(&'static str, OsString)>,
    pub(super) words: Vec<OsString>,
    pub(super) wants_help: bool,
}

impl Typed {
    /// The last value of a flag.
    pub(super) fn value(&self, name: &str) -> Option<&OsString> {
        self.flags.iter().rev().find(|(flag, _)| *flag == name).map(|(_, value)| value)
    }

    /// The last value of a flag as text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>> {
        self.value(name).map(|value| utf8(value, name)).transpose()
    }

    /// All values of a flag.
    pub(super) fn all(&self, name: &str) -> Result<Vec<String>> {
        let values = self.flags.iter().filter(|(flag, _)| *flag == name);
        values.map(|(_, value)| utf8(value, name).map(str::to_owned)).collect()
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| value == "true")
    }

    /// A number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = text.parse().map_err(|_| invalid(format!("invalid value {text:?} for flag --{name}")))?;
        Ok(Some(number))
    }

    /// A word as text.
    pub(super) fn word(&self, index: usize) -> Result<&str> {
        self.words.get(index).map_or(Ok(""), |word| utf8(word, "argument"))
    }
}

fn utf8<'a>(text: &'a OsStr, name: &str) -> Result<&'a str> {
    text.to_str().ok_or_else(|| invalid(format!("{name}: {} is not UTF-8", text.display())))
}

fn invalid(message: impl Into<String>) -> Box<Fault> {
    Fault::new(Code::InvalidArgument, message).at("validate")
}

/// Takes the flags and words of a command from the front of `line`. `is_global` leaves the rest at the first word.
pub(super) fn parse(command: &Command, line: &mut Vec<OsString>, is_global: bool) -> Result<Typed> {
    let mut typed = Typed::default();
    line.reverse();
    while let Some(word) = line.pop() {
        let is_flag = word.len() > 1 && word.as_bytes()[0] == b'-' && typed.words.len() < command.flags_end_after;
        if word == "--" && typed.words.len() < command.flags_end_after {
            typed.words.extend(line.drain(..).rev());
        } else if is_flag {
            take_flag(command, &mut typed, &word, line)?;
        } else if is_global {
            line.push(word);
            break;
        } else {
            typed.words.push(word);
        }
    }
    line.reverse();
    check_count(command, &typed, is_global)?;
    Ok(typed)
}

fn check_count(command: &Command, typed: &Typed, is_global: bool) -> Result<()> {
    let count = typed.words.len();
    if is_global || typed.wants_help || (command.count.0..=command.count.1).contains(&count) {
        return Ok(());
    }
    let (least, most) = command.count;
    let wanted = match (least, most) {
        (least, most) if least == most => format!("exactly {least} argument(s)"),
        (least, usize::MAX) => format!("a minimum of {least} argument(s)"),
        (least, most) => format!("{least} to {most} arguments"),
    };
    Err(invalid(format!("lowrun {}: requires {wanted}, got {count}", command.name))
        .hint(format!("lowrun {} --help", command.name)))
}

/// `--name`, `-name`, `-n`, each with `=value` or the value as the next word.
fn take_flag(command: &Command, typed: &mut Typed, word: &OsStr, rest: &mut Vec<OsString>) -> Result<()> {
    let bytes = word.as_bytes();
    let bare = bytes.strip_prefix(b"--").unwrap_or(&bytes[1..]);
    let (name, inline) = match bare.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bare[..at], Some(OsString::from_vec(bare[at + 1..].to_vec()))),
        None => (bare, None),
    };
    let name = String::from_utf8_lossy(name);
    if matches!(name.as_ref(), "help" | "h") && !command.flags.iter().any(|flag| flag.short == Some('h')) {
        typed.wants_help = true;
        return Ok(());
    }
    let is_this = |flag: &&Flag| flag.name == name || flag.short.is_some_and(|short| name.chars().eq([short]));
    let Some(flag) = command.flags.iter().find(is_this) else {
        return take_short_switches(command, typed, &name, bytes.starts_with(b"--") || inline.is_some());
    };
    let value = match (flag.value, inline) {
        (None, None) => OsString::from("true"),
        (None, Some(value)) if matches!(value.to_str(), Some("true" | "1" | "t" | "T")) => OsString::from("true"),
        (None, Some(value)) if matches!(value.to_str(), Some("false" | "0" | "f" | "F")) => OsString::from("false"),
        (None, Some(value)) => {
            return Err(invalid(format!("invalid value {:?} for flag --{name}", value.display().to_string())));
        }
        (Some(_), Some(value)) => value,
        (Some(_), None) => rest.pop().ok_or_else(|| invalid(format!("flag needs an argument: --{}", flag.name)))?,
    };
    typed.flags.push((flag.name, value));
    Ok(())
}

/// `-dt`: several switches in one word.
fn take_short_switches(command: &Command, typed: &mut Typed, name: &str, is_long: bool) -> Result<()> {
    let unknown =
        || invalid(format!("flag provided but not defined: -{name}")).hint(format!("lowrun {} --help", command.name));
    if is_long || name.is_empty() {
        return Err(unknown());
    }
    let mut found = Vec::new();
    for letter in name.chars() {
        let flag = command.flags.iter().find(|flag| flag.short == Some(letter) && flag.value.is_none());
        found.push((flag.ok_or_else(unknown)?.name, OsString::from("true")));
    }
    typed.flags.extend(found);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: Command = Command {
        name: "exec",
        about: "",
        description: "",
        arguments: "",
        flags: &[
            switch("detach", Some('d'), ""),
            switch("tty", Some('t'), ""),
            option("env", Some('e'), "NAME=VALUE", ""),
        ],
        count: (1, usize::MAX),
        flags_end_after: 1,
    };

    fn typed(line: &[&str]) -> Result<Typed> {
        parse(&COMMAND, &mut line.iter().map(OsString::from).collect(), false)
    }

    #[test]
    fn every_form_of_a_flag_is_read() {
        for line in [&["--env", "A=1", "id"][..], &["--env=A=1", "id"], &["-env", "A=1", "id"], &["-e=A=1", "id"]] {
            assert_eq!(typed(line).unwrap().text("env").unwrap(), Some("A=1"), "{line:?}");
        }
        assert!(typed(&["-dt", "id"]).unwrap().is_on("tty"));
        assert!(!typed(&["--detach=false", "id"]).unwrap().is_on("detach"));
    }

    #[test]
    fn words_of_the_other_program_stay_words() {
        let typed = typed(&["-d", "id", "ls", "-t", "--", "-x"]).unwrap();
        assert_eq!(typed.words, ["id", "ls", "-t", "--", "-x"]);
        assert!(!typed.is_on("tty"));
    }

    #[test]
    fn mistakes_are_told() {
        for line in [&["--moon", "id"][..], &["-x", "id"], &["--env"], &[], &["--detach=maybe", "id"]] {
            assert_eq!(typed(line).unwrap_err().code, Code::InvalidArgument, "{line:?}");
        }
    }
}
