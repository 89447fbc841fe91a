//! clap's complaints in docker's words, and help.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command;
use crate::error::Error;
use crate::output;

/// docker's flags of `run` and `create` that this client does not have; naming one is not a slip of the pen.
const DOCKERS_FLAGS: [&str; 56] = [
    "add-host",
    "annotation",
    "blkio-weight",
    "blkio-weight-device",
    "cgroup-parent",
    "cgroupns",
    "cpu-count",
    "cpu-percent",
    "cpu-period",
    "cpu-quota",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "device",
    "device-cgroup-rule",
    "device-read-bps",
    "device-read-iops",
    "device-write-bps",
    "device-write-iops",
    "disable-content-trust",
    "dns",
    "dns-option",
    "dns-search",
    "domainname",
    "expose",
    "gpus",
    "group-add",
    "health-cmd",
    "health-interval",
    "health-retries",
    "health-start-interval",
    "health-start-period",
    "health-timeout",
    "init",
    "ip",
    "ip6",
    "ipc",
    "isolation",
    "kernel-memory",
    "link",
    "log-driver",
    "log-opt",
    "mac-address",
    "memory-reservation",
    "memory-swap",
    "network-alias",
    "oom-kill-disable",
    "oom-score-adj",
    "pid",
    "platform",
    "runtime",
    "shm-size",
    "sysctl",
    "userns",
];

/// What clap's answer means: help and version are printed; anything else is an error.
pub(super) fn explain(error: &clap::Error, typed: &[OsString]) -> Result<u8, Error> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::print(&error.render().to_string())?;
            Ok(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            // The version is a flag that needs no command, which clap finds missing first.
            if typed.iter().skip(1).any(|word| word == "--version" || word == "-v") {
                output::print_line(&format!("strata version {}", env!("CARGO_PKG_VERSION")))?;
                return Ok(0);
            }
            output::print(&command().render_help().to_string())?;
            Ok(0)
        }
        ErrorKind::InvalidSubcommand => Err(unknown_command(error)),
        _ => Err(wrong_flag(error, typed)),
    }
}

/// Prints the help of `name`, or of all.
pub(super) fn help(name: Option<&str>) -> Result<u8, Error> {
    let mut all = command();
    all.build();
    let Some(name) = name else {
        output::print(&all.render_help().to_string())?;
        return Ok(0);
    };
    let Some(found) = all.find_subcommand_mut(name) else {
        return Err(Error::Arity {
            message: format!("unknown command: strata {name}"),
            hint: "run 'strata --help' for the commands".to_owned(),
        });
    };
    output::print(&found.render_help().to_string())?;
    Ok(0)
}

fn unknown_command(error: &clap::Error) -> Error {
    let word = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
    let close = context(error, ContextKind::SuggestedSubcommand);
    let hint = close.map_or_else(
        || "run 'strata --help' for the commands".to_owned(),
        |close| format!("did you mean 'strata {close}'? 'strata --help' lists the commands"),
    );
    Error::Arity { message: format!("unknown command: strata {word}"), hint }
}

fn wrong_flag(error: &clap::Error, typed: &[OsString]) -> Error {
    let name = typed.get(1).map(|word| word.to_string_lossy()).unwrap_or_default();
    let help = format!("see 'strata {name} --help'");
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::UnknownArgument => return unknown_flag(&argument, help, typed),
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues if value.is_empty() => {
            format!("flag needs an argument: {flag}")
        }
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("invalid argument \"{value}\" for \"{flag}\" flag: {why}")
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        _ => error.render().to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    };
    Error::Usage { message, hint: Some(help) }
}

fn unknown_flag(argument: &str, help: String, typed: &[OsString]) -> Error {
    let Some(name) = argument.strip_prefix("--") else {
        let letter = argument.chars().nth(1).unwrap_or('-');
        let whole = typed
            .iter()
            .map(|word| word.to_string_lossy())
            .find(|word| word.starts_with('-') && !word.starts_with("--") && word.contains(letter))
            .map_or_else(|| argument.to_owned(), |word| word.into_owned());
        return Error::Usage { message: format!("unknown shorthand flag: '{letter}' in {whole}"), hint: Some(help) };
    };
    let name = name.split('=').next().unwrap_or(name);
    let hint = if DOCKERS_FLAGS.contains(&name) {
        format!("docker has --{name}; strata does not support it; {help}")
    } else {
        help
    };
    Error::Usage { message: format!("unknown flag: --{name}"), hint: Some(hint) }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}
