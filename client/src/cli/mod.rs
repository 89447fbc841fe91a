//! What is typed, and what is meant by it: a file per command. Names, flags, words and exit codes are docker's.
//!
//! Each command describes its flags to clap only when it is the one called: describing all of them would cost more than
//! the request.

mod arguments;
mod attach;
mod auth;
mod completion;
mod container;
mod create;
mod each;
mod events;
mod exec;
mod explain;
mod images;
mod info;
mod inspect;
mod kill;
mod logs;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod start;
mod stop;
mod tracing;
mod usage;
mod value;
mod version;
mod wait;

use std::ffi::OsString;
use std::pin::Pin;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::engine::Engine;
use crate::engine::address::{self, Address};
use crate::error::{Error, ExitRule};

/// What a command gets beside its own flags.
pub(crate) struct Call {
    /// Where engined listens, as `--host` said.
    host: Option<String>,
    /// The whole line as it was typed.
    line: String,
    began_ns: u64,
}

impl Call {
    /// The connection to engined.
    async fn connect(&self) -> Result<Engine, Error> {
        Engine::connect(Address::of_call(self.host.as_deref())?).await
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<u8, Error>>>>;

/// A command.
struct Entry {
    name: &'static str,
    about: &'static str,
    /// How it is called, after its name.
    usage: &'static str,
    flags: fn(Command) -> Command,
    run: fn(ArgMatches, Call) -> Answer,
    rule: ExitRule,
}

macro_rules! entry {
    ($module:ident, $rule:ident, $usage:literal, $about:literal) => {
        Entry {
            name: stringify!($module),
            about: $about,
            usage: $usage,
            flags: $module::flags,
            run: |matches, call| Box::pin($module::run(matches, call)),
            rule: ExitRule::$rule,
        }
    };
}

/// All commands, in the order of their help.
const COMMANDS: [Entry; 21] = [
    entry!(run, Run, "[OPTIONS] IMAGE [COMMAND] [ARG...]", "Create and run a new container from an image"),
    entry!(exec, Exec, "[OPTIONS] CONTAINER COMMAND [ARG...]", "Execute a command in a running container"),
    entry!(ps, Plain, "[OPTIONS]", "List containers"),
    entry!(pull, Plain, "[OPTIONS] NAME[:TAG|@DIGEST]", "Download an image from a registry"),
    entry!(images, Plain, "[OPTIONS] [REPOSITORY[:TAG]]", "List images"),
    entry!(attach, Plain, "[OPTIONS] CONTAINER", "Attach local standard streams to a running container"),
    entry!(create, Plain, "[OPTIONS] IMAGE [COMMAND] [ARG...]", "Create a new container"),
    entry!(events, Plain, "[OPTIONS]", "Get real time events from the server"),
    entry!(
        explain,
        Plain,
        "[OPTIONS] CONTAINER",
        "Say in plain words how a container is, or why it ended or did not start"
    ),
    entry!(info, Plain, "[OPTIONS]", "Display system-wide information"),
    entry!(inspect, Plain, "[OPTIONS] NAME|ID [NAME|ID...]", "Return low-level information on containers and images"),
    entry!(kill, Plain, "[OPTIONS] CONTAINER [CONTAINER...]", "Kill one or more running containers"),
    entry!(logs, Plain, "[OPTIONS] CONTAINER", "Fetch the logs of a container"),
    entry!(rm, Plain, "[OPTIONS] CONTAINER [CONTAINER...]", "Remove one or more containers"),
    entry!(rmi, Plain, "[OPTIONS] IMAGE [IMAGE...]", "Remove one or more images"),
    entry!(start, Plain, "[OPTIONS] CONTAINER [CONTAINER...]", "Start one or more stopped containers"),
    entry!(stop, Plain, "[OPTIONS] CONTAINER [CONTAINER...]", "Stop one or more running containers"),
    entry!(version, Plain, "[OPTIONS]", "Show the version of the client and of engined"),
    entry!(
        wait,
        Plain,
        "CONTAINER [CONTAINER...]",
        "Block until one or more containers stop, then print their exit codes"
    ),
    entry!(completion, Plain, "bash|zsh|fish|elvish|powershell", "Generate the completion script for a shell"),
    Entry {
        name: "help",
        about: "Print the help of a command",
        usage: "[COMMAND]",
        flags: |command| command.arg(Arg::new("command")),
        run: |_, _| Box::pin(async { Ok(0) }),
        rule: ExitRule::Plain,
    },
];

/// The length of the word of a command's help that wraps its options.
const HELP: &str = "{usage-heading}  {usage}\n\n{about}\n\nOptions:\n{options}\n";
const HELP_WITHOUT_OPTIONS: &str = "{usage-heading}  {usage}\n\n{about}\n";
const MAIN_HELP: &str = "{usage-heading}  {usage}\n\n{about}\n\nCommands:\n{subcommands}\n\nOptions:\n{options}\n\n\
    Run 'strata COMMAND --help' for more information on a command.\n";

/// The whole command line, for clap.
fn command() -> Command {
    let command = Command::new("strata")
        .about("A container engine: docker's words, a small stack below")
        .override_usage("strata [OPTIONS] COMMAND")
        .help_template(MAIN_HELP)
        .disable_help_subcommand(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .subcommand_required(true)
        .arg(arguments::text("host", "address").short('H').help(format!(
            "engined's socket (default ${}, else {})",
            address::VARIABLE,
            address::DEFAULT
        )))
        .arg(
            Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::SetTrue)
                .help("Print the version and quit"),
        );
    COMMANDS.iter().fold(command, |command, entry| command.subcommand(subcommand(entry)))
}

fn subcommand(entry: &'static Entry) -> Command {
    Command::new(entry.name)
        .about(entry.about)
        .override_usage(format!("strata {} {}", entry.name, entry.usage))
        .disable_help_flag(true)
        .args_override_self(true)
        .defer(entry.flags)
        .help_template(if entry.usage.starts_with("[OPTIONS]") { HELP } else { HELP_WITHOUT_OPTIONS })
}

/// Does what was typed; also says which exit codes hold for the command.
pub(crate) fn run(typed: Vec<OsString>, began_ns: u64) -> (ExitRule, Result<u8, Error>) {
    let line = typed.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let typed = tracing::join_trace_file(typed);
    let matches = match command().try_get_matches_from(&typed) {
        Ok(matches) => matches,
        Err(error) => return (ExitRule::Plain, usage::explain(&error, &typed)),
    };
    let Some((name, own)) = matches.subcommand() else { return (ExitRule::Plain, Ok(0)) };
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else { return (ExitRule::Plain, Ok(0)) };
    if name == "help" {
        return (entry.rule, usage::help(own.get_one::<String>("command").map(String::as_str)));
    }
    let call = Call { host: matches.get_one::<String>("host").cloned(), line, began_ns };
    (entry.rule, block_on((entry.run)(own.clone(), call)))
}

/// One thread is enough for one connection, and starts at once.
fn block_on(answer: Answer) -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Terminal { attempted: "start the client's event loop", source })?;
    let result = runtime.block_on(answer);
    // A blocked writer thread or a request under way ends with the process.
    std::mem::forget(runtime);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault_in_any_command() {
        let mut command = command();
        command.build();
        command.debug_assert();
    }
}
