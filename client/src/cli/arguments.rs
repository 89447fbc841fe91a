//! The kinds of flags that docker's command line has, as clap arguments; and reading them.

use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::value::{Parsed, number};
use crate::error::Error;

/// A flag that is there or not; `--flag=false` is said too.
pub(super) fn switch(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(ValueParser::new(boolean))
        .hide_possible_values(true)
        .value_name("bool")
        .hide_default_value(true)
}

fn boolean(text: &str) -> Result<bool, String> {
    number::boolean(text)
}

/// A flag with a value; said twice, the last one counts. The next word is the value, whatever it looks like.
pub(super) fn text(name: &'static str, placeholder: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(placeholder).num_args(1).allow_hyphen_values(true)
}

/// A flag that may be said several times.
pub(super) fn list(name: &'static str, placeholder: &'static str) -> Arg {
    text(name, placeholder).action(ArgAction::Append)
}

/// Words that are no flags; how many there must be is checked by [`words`].
pub(super) fn rest(name: &'static str) -> Arg {
    Arg::new(name).num_args(0..).action(ArgAction::Append).hide(true)
}

/// `--help`, and `-h` where the command has no other use for it.
pub(super) fn with_help(command: Command, short: bool) -> Command {
    let help = Arg::new("help").long("help").action(ArgAction::Help).help("Print usage");
    command.arg(if short { help.short('h') } else { help })
}

/// How many words a command takes.
#[derive(Clone, Copy)]
pub(super) enum Arity {
    None,
    Exactly(usize),
    AtLeast(usize),
    AtMost(usize),
}

/// The words of a command, as many as it takes; else the error in docker's words.
pub(super) fn words(
    matches: &ArgMatches,
    name: &'static str,
    command: &str,
    arity: Arity,
) -> Result<Vec<String>, Error> {
    let words: Vec<String> = matches.get_many::<String>(name).into_iter().flatten().cloned().collect();
    let plural = |count: usize| if count == 1 { "argument" } else { "arguments" };
    let (fits, wanted) = match arity {
        Arity::None => (words.is_empty(), "accepts no arguments".to_owned()),
        Arity::Exactly(count) => (words.len() == count, format!("requires exactly {count} {}", plural(count))),
        Arity::AtLeast(count) => (words.len() >= count, format!("requires at least {count} {}", plural(count))),
        Arity::AtMost(count) => (words.len() <= count, format!("accepts at most {count} {}", plural(count))),
    };
    if fits {
        return Ok(words);
    }
    Err(Error::Arity {
        message: format!("'strata {command}' {wanted}"),
        hint: format!("see 'strata {command} --help'"),
    })
}

/// Whether a switch is on.
pub(super) fn on(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(false)
}

/// Whether a switch that is on unless said otherwise is on.
pub(super) fn not_off(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(true)
}

/// A flag's value.
pub(super) fn said<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

/// All values of a flag.
pub(super) fn all<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = &'a str> {
    matches.get_many::<String>(name).into_iter().flatten().map(String::as_str)
}

/// A flag's value through its parser; `flag` is how docker writes it in an error.
pub(super) fn parsed<T>(
    matches: &ArgMatches,
    name: &str,
    flag: &str,
    parse: impl Fn(&str) -> Parsed<T>,
) -> Result<Option<T>, Error> {
    said(matches, name).map(|text| parse(text).map_err(|why| Error::flag_value(flag, text, why))).transpose()
}

/// All values of a flag through their parser.
pub(super) fn parsed_all<T>(
    matches: &ArgMatches,
    name: &str,
    flag: &str,
    parse: impl Fn(&str) -> Parsed<T>,
) -> Result<Vec<T>, Error> {
    all(matches, name).map(|text| parse(text).map_err(|why| Error::flag_value(flag, text, why))).collect()
}

/// A file that a flag names.
pub(super) fn read_file(attempted: &'static str, path: &str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { attempted, path: PathBuf::from(path), source })
}

/// A file's content through its parser.
pub(super) fn parsed_file<T>(
    attempted: &'static str,
    path: &str,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> Result<T, Error> {
    let content = read_file(attempted, path)?;
    parse(&content).map_err(|why| Error::Content { attempted, path: Path::new(path).to_owned(), why })
}
