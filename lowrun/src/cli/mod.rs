//! The command line: what is typed becomes a call of one command. A file for each command, or for two that belong
//! together; the tables of their flags stand with them.

mod args;
mod checkpoint;
mod completion;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod help;
mod kill;
mod list;
mod man;
mod pause;
mod ps;
mod spec;
mod start;
mod update;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

pub use exec::parse_user;

use args::{Command, Typed, obsolete, option, switch};

use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::log::{Format, Log};
use crate::rootless;
use crate::sys::Call;
use crate::trace;

/// Where states are, if nobody says otherwise.
const DEFAULT_ROOT: &str = "/run/lowrun";

const GLOBAL: Command = Command {
    name: "",
    about: "Open Container Initiative runtime of Strata: sets containers up, then exits",
    description: "A container is made from a bundle: a directory with config.json (OCI runtime-spec) and a root file\n\
                  system. Commands, flags, output and exit statuses are those of runc 1.5.1.\n\n    \
                  lowrun spec                 write a config.json to begin with\n    \
                  lowrun run CONTAINER        make a container, run it, wait, remove it\n    \
                  lowrun help COMMAND         tell the flags of a command\n",
    arguments: "COMMAND",
    flags: &[
        switch("debug", None, "write debug lines to the log"),
        option("log", None, "FILE", "append log lines to FILE (default: stderr)"),
        option("log-format", None, "FORMAT", "form of log lines: text (default) or json"),
        option("root", None, "DIR", "where container states are kept (default: /run/lowrun)"),
        switch("systemd-cgroup", None, "let systemd make cgroups; cgroupsPath is then slice:prefix:name"),
        option("rootless", None, "MODE", "ignore cgroup permission errors: true, false or auto (default)"),
        obsolete("criu"),
        switch("version", Some('v'), "print the version"),
    ],
    count: (0, usize::MAX),
    flags_end_after: 1,
};

/// A command's table and what it does.
struct Entry {
    command: &'static Command,
    run: fn(&Global, &Typed) -> Result<i32>,
}

static COMMANDS: [Entry; 21] = [
    Entry { command: &create::CREATE, run: create::create },
    Entry { command: &create::RUN, run: create::run },
    Entry { command: &start::START, run: start::start },
    Entry { command: &list::STATE, run: list::state },
    Entry { command: &kill::KILL, run: kill::kill },
    Entry { command: &delete::DELETE, run: delete::delete },
    Entry { command: &exec::EXEC, run: exec::exec },
    Entry { command: &list::LIST, run: list::list },
    Entry { command: &ps::PS, run: ps::ps },
    Entry { command: &events::EVENTS, run: events::events },
    Entry { command: &pause::PAUSE, run: pause::pause },
    Entry { command: &pause::RESUME, run: pause::resume },
    Entry { command: &update::UPDATE, run: update::update },
    Entry { command: &checkpoint::CHECKPOINT, run: checkpoint::checkpoint },
    Entry { command: &checkpoint::RESTORE, run: checkpoint::restore },
    Entry { command: &spec::SPEC, run: spec::spec },
    Entry { command: &features::FEATURES, run: features::features },
    Entry { command: &features::VERSION, run: features::version },
    Entry { command: &help::HELP, run: help::help },
    Entry { command: &completion::COMPLETION, run: completion::completion },
    Entry { command: &man::MAN, run: man::man },
];

/// What holds for every command.
pub(crate) struct Global {
    pub(crate) root: PathBuf,
    /// Whether the caller named it.
    pub(crate) root_is_named: bool,
    /// What `--rootless` says, if not auto.
    pub(crate) rootless: Option<bool>,
    /// Whether systemd makes cgroups.
    pub(crate) systemd: bool,
    pub(crate) log: Log,
    /// The name that lowrun was called by: where it stands in for runc, help says runc.
    pub(crate) program: String,
}

/// Runs the command line; gives the exit status.
pub fn main(line: Vec<OsString>) -> i32 {
    let mut line = line;
    let program = program_name(if line.is_empty() { OsString::new() } else { line.remove(0) });
    let typed = match args::parse(&GLOBAL, &mut line, true) {
        Ok(typed) => typed,
        Err(fault) => return fail(&Log::default(), &fault),
    };
    let log = match open_log(&typed) {
        Ok(log) => log,
        Err(fault) => return fail(&Log::default(), &fault),
    };
    trace::begin(std::env::var("TRACEPARENT").ok().as_deref(), log.is_debug());
    let global = match root_dir(&typed) {
        Ok(root) => match rootless(&typed) {
            Ok(rootless) => Global {
                root,
                root_is_named: typed.value("root").is_some(),
                rootless,
                systemd: typed.is_on("systemd-cgroup"),
                log,
                program,
            },
            Err(fault) => return fail(&log, &fault),
        },
        Err(fault) => return fail(&log, &fault),
    };
    let status = match dispatch(&typed, &global, line) {
        Ok(status) => status,
        Err(fault) => fail(&global.log, &fault),
    };
    trace::flush(&global.log);
    status
}

fn fail(log: &Log, fault: &Fault) -> i32 {
    log.fault(fault);
    match fault.step.split(':').next() {
        // As runc: 255 tells that exec itself failed, since 1 may be the program's; 3 that there is no such command.
        Some("exec") => 255,
        Some("command") => 3,
        _ => 1,
    }
}

fn program_name(path: OsString) -> String {
    Path::new(&path).file_name().map_or_else(|| "lowrun".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn open_log(typed: &Typed) -> Result<Log> {
    let format = match typed.text("log-format")? {
        None | Some("" | "text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => {
            return Err(Fault::new(Code::InvalidArgument, format!("invalid log-format: {other}")).at("validate"));
        }
    };
    Log::open(typed.value("log").filter(|path| !path.is_empty()), format, typed.is_on("debug")).step("validate")
}

fn root_dir(typed: &Typed) -> Result<PathBuf> {
    let root = match typed.value("root") {
        Some(root) => PathBuf::from(root),
        None => default_root(),
    };
    if root.as_os_str().is_empty() {
        return Err(Fault::new(Code::InvalidArgument, "root not set").at("validate"));
    }
    let root = absolute(&root).step("validate")?;
    // A root of too many dots: every directory of the machine would be a container.
    if crate::path::clean(&root.to_string_lossy()) == Path::new("/") {
        return Err(Fault::new(Code::InvalidArgument, "Option --root argument should not be set to /").at("validate"));
    }
    Ok(root)
}

/// `--rootless`; a word that means nothing is not taken for one that does.
fn rootless(typed: &Typed) -> Result<Option<bool>> {
    match typed.text("rootless")?.unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "auto" => Ok(None),
        "true" | "t" | "1" => Ok(Some(true)),
        "false" | "f" | "0" => Ok(Some(false)),
        other => Err(Fault::new(Code::InvalidArgument, format!("invalid --rootless: {other:?}"))
            .hint("true, false or auto")
            .at("validate")),
    }
}

/// A user without privilege, or root of a user namespace, keeps states in the own runtime directory.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty() && rootless::lacks_privilege());
    own.map_or(PathBuf::from(DEFAULT_ROOT), |dir| Path::new(&dir).join("lowrun"))
}

/// A path from the working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let here = std::env::current_dir().call("getcwd").attempt(Code::SystemError, || "find the working directory")?;
    // Without the dots that mean nothing: the path is seen in errors and in the state.
    Ok(here.join(path).components().collect())
}

fn dispatch(typed: &Typed, global: &Global, mut line: Vec<OsString>) -> Result<i32> {
    if typed.is_on("version") {
        return features::version(global, typed);
    }
    if typed.wants_help || line.is_empty() {
        return print(&help::overview(&global.program)).map(|()| 0);
    }
    let name = line.remove(0);
    let entry = find(&name.to_string_lossy())?;
    if global.program == "runc" {
        global.log.speak_as_runc(entry.command.name);
    }
    let typed = args::parse(entry.command, &mut line, false)?;
    if typed.wants_help {
        return print(&help::of_command(&global.program, entry.command)).map(|()| 0);
    }
    (entry.run)(global, &typed).step(entry.command.name)
}

/// The command of a name; of help its short form too, as runc has it.
fn find(name: &str) -> Result<&'static Entry> {
    let name = if name == "h" { "help" } else { name };
    COMMANDS.iter().find(|entry| name == entry.command.name).ok_or_else(|| {
        Fault::new(Code::InvalidArgument, format!("No help topic for '{name}'"))
            .cause("no such command")
            .hint("`lowrun help` lists the commands")
            .at("command")
    })
}

/// Writes to stdout.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.call("write").attempt(Code::SystemError, || "write to stdout")
}

/// Writes a document to stdout, indented by two.
pub(crate) fn print_json<T: serde::Serialize>(value: &T, end: &str) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Fault::new(Code::SystemError, "write to stdout").cause(error.to_string()))?;
    print(&(text + end))
}

/// A document in lines, indented as runc does for it.
fn indented(document: &serde_json::Value, indent: &str) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // A value serialises without fail.
    let _ = serde::Serialize::serialize(document, &mut serializer);
    String::from_utf8_lossy(&text).into_owned()
}
