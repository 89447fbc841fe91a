//! `--trace [FILE.html|FILE.json]` of the commands that have it.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command};

use super::{Call, command, value::Parsed};
use crate::engine::Engine;
use crate::error::Error;
use crate::trace::{Destination, Recorder, is_file};

const FLAG: &str = "trace";

/// The flag.
pub(super) fn argument() -> Arg {
    Arg::new(FLAG)
        .long(FLAG)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("")
        .value_name("file")
        .help("Show the time of each step on the way down; with FILE.html a timeline, with FILE.json Perfetto's format")
}

/// Where the trace is wanted, if it is.
pub(super) fn destination(matches: &ArgMatches) -> Result<Option<Destination>, Error> {
    let parse = |text: &str| -> Parsed<Destination> {
        if text.is_empty() { Ok(Destination::Terminal) } else { Destination::parse(text) }
    };
    super::arguments::parsed(matches, FLAG, "--trace", parse)
}

/// Makes the engine's requests traced, when a trace is wanted. What was done so far is the step "parse".
pub(super) fn begin(engine: &mut Engine, call: &Call, wanted: &Option<Destination>) {
    if wanted.is_some() {
        let mut recorder = Recorder::new(call.began_ns);
        recorder.add("parse", call.began_ns);
        engine.recorder = Some(recorder);
    }
}

/// Shows the trace. An error of the command goes before one of showing.
pub(super) fn end<T>(
    engine: &mut Engine,
    call: &Call,
    wanted: Option<Destination>,
    result: Result<T, Error>,
) -> Result<T, Error> {
    crate::terminal::raw::leave();
    match (engine.recorder.take(), wanted) {
        (Some(recorder), Some(destination)) => {
            let shown = recorder.finish(&call.line, &destination);
            result.and_then(|value| shown.map(|()| value))
        }
        _ => result,
    }
}

/// `--trace FILE.html`: the word after the flag is its value when it can be, and stands before the command's first plain
/// word. clap cannot tell the file from an image; this can, by its ending.
pub(super) fn join_trace_file(mut typed: Vec<OsString>) -> Vec<OsString> {
    if !typed.iter().any(|word| word == "--trace") {
        return typed;
    }
    let Some(at) = trace_flag(&typed) else { return typed };
    if let Some(file) = typed.get(at + 1).and_then(|word| word.to_str()).filter(|word| is_file(word)) {
        typed[at] = format!("--trace={file}").into();
        typed.remove(at + 1);
    }
    typed
}

/// Where `--trace` stands among the flags of the command.
fn trace_flag(typed: &[OsString]) -> Option<usize> {
    let mut all = command();
    all.build();
    let mut current: &Command = &all;
    let mut at = 1;
    while at < typed.len() {
        let word = typed[at].to_str()?;
        if word == "--trace" {
            return Some(at);
        }
        match word {
            "--" => return None,
            _ if !word.starts_with('-') => {
                // The first plain word is the command, the next one the image or container.
                if !std::ptr::eq(current, &all) {
                    return None;
                }
                current = all.find_subcommand(word)?;
            }
            _ if takes_next(current, word) => at += 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Whether the word after the flag `word` is its value.
fn takes_next(command: &Command, word: &str) -> bool {
    let takes = |argument: Option<&Arg>| {
        argument.is_some_and(|argument| {
            argument.get_num_args().is_some_and(|range| range.min_values() > 0) && argument.get_action().takes_values()
        })
    };
    if let Some(name) = word.strip_prefix("--") {
        return takes(command.get_arguments().find(|argument| argument.get_long() == Some(name)));
    }
    // Of letters that stand together the first one with a value takes the rest, or the next word when it is the last.
    let letters: Vec<char> = word.chars().skip(1).collect();
    let with_value = letters
        .iter()
        .position(|letter| takes(command.get_arguments().find(|argument| argument.get_short() == Some(*letter))));
    with_value.is_some_and(|position| position + 1 == letters.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(line: &str) -> String {
        let typed = line.split(' ').map(OsString::from).collect();
        let words: Vec<String> =
            join_trace_file(typed).into_iter().map(|word| word.into_string().unwrap_or_default()).collect();
        words.join(" ")
    }

    #[test]
    fn a_file_after_the_flag_is_its_value() {
        for (line, expected) in [
            ("strata run --trace a.html --rm busybox true", "strata run --trace=a.html --rm busybox true"),
            ("strata run --rm -e A=b -it --trace a.json busybox", "strata run --rm -e A=b -it --trace=a.json busybox"),
            ("strata -H unix:///x run --trace a.html busybox", "strata -H unix:///x run --trace=a.html busybox"),
            ("strata run --trace busybox a.html", "strata run --trace busybox a.html"),
            ("strata run busybox prog --trace a.html", "strata run busybox prog --trace a.html"),
            ("strata run --name --trace a.html busybox", "strata run --name --trace a.html busybox"),
            ("strata run -ite --trace a.html", "strata run -ite --trace a.html"),
            ("strata ps", "strata ps"),
        ] {
            assert_eq!(joined(line), expected);
        }
    }
}
