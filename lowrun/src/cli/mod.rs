//! The command line: what is typed becomes a call of one command. A file for each command, or for two that belong
//! together; the tables of their flags stand with them.

mod args;
mod create;
mod delete;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod ps;
mod spec;
mod start;
mod update;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use args::{Command, Typed, option, switch};

use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::log::{Format, Log};
use crate::sys::Call;
use crate::trace;

/// Where states are, if nobody says otherwise.
const DEFAULT_ROOT: &str = "/run/lowrun";

const GLOBAL: Command = Command {
    name: "",
    about: "the OCI runtime of Strata",
    arguments: "COMMAND",
    flags: &[
        switch("debug", None, "write debug lines to the log"),
        option("log", None, "FILE", "append log lines to FILE (default: stderr)"),
        option("log-format", None, "FORMAT", "form of log lines: text (default) or json"),
        option("root", None, "DIR", "where container states are kept (default: /run/lowrun)"),
        switch("systemd-cgroup", None, "let systemd make cgroups; cgroupsPath is then slice:prefix:name"),
        option("rootless", None, "MODE", "ignore cgroup permission errors: true, false or auto (default)"),
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

const COMMANDS: [Entry; 16] = [
    Entry { command: &create::CREATE, run: create::create },
    Entry { command: &create::RUN, run: create::run },
    Entry { command: &start::START, run: start::start },
    Entry { command: &list::STATE, run: list::state },
    Entry { command: &kill::KILL, run: kill::kill },
    Entry { command: &delete::DELETE, run: delete::delete },
    Entry { command: &exec::EXEC, run: exec::exec },
    Entry { command: &list::LIST, run: list::list },
    Entry { command: &ps::PS, run: ps::ps },
    Entry { command: &ps::EVENTS, run: ps::events },
    Entry { command: &pause::PAUSE, run: pause::pause },
    Entry { command: &pause::RESUME, run: pause::resume },
    Entry { command: &update::UPDATE, run: update::update },
    Entry { command: &spec::SPEC, run: spec::spec },
    Entry { command: &features::FEATURES, run: features::features },
    Entry { command: &features::VERSION, run: features::version },
];

/// What holds for every command.
pub(crate) struct Global {
    pub(crate) root: PathBuf,
    pub(crate) log: Log,
}

/// Runs the command line; gives the exit status.
pub fn main(line: Vec<OsString>) -> i32 {
    let mut line: Vec<OsString> = line.into_iter().skip(1).collect();
    let typed = match args::parse(&GLOBAL, &mut line, true) {
        Ok(typed) => typed,
        Err(fault) => return fail(&Log::default(), &fault),
    };
    let log = match open_log(&typed) {
        Ok(log) => log,
        Err(fault) => return fail(&Log::default(), &fault),
    };
    trace::begin(std::env::var("TRACEPARENT").ok().as_deref());
    let global = match root_dir(&typed) {
        Ok(root) => Global { root, log },
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
    // As runc: 255 tells that exec itself failed, since 1 may be the program's.
    if fault.step.starts_with("exec") { 255 } else { 1 }
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
    if typed.is_on("systemd-cgroup") {
        return Err(Fault::new(Code::Unsupported, "--systemd-cgroup")
            .cause("the systemd driver is not supported yet")
            .at("validate"));
    }
    let root = match typed.value("root") {
        Some(root) => PathBuf::from(root),
        None => default_root(),
    };
    if root.as_os_str().is_empty() {
        return Err(Fault::new(Code::InvalidArgument, "root not set").at("validate"));
    }
    absolute(&root).step("validate")
}

/// A user without privilege keeps states in the own runtime directory.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    own.map_or(PathBuf::from(DEFAULT_ROOT), |dir| Path::new(&dir).join("lowrun"))
}

/// A path from the working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let here = std::env::current_dir().call("getcwd").attempt(Code::SystemError, || "find the working directory")?;
    Ok(here.join(path))
}

fn dispatch(typed: &Typed, global: &Global, mut line: Vec<OsString>) -> Result<i32> {
    if typed.is_on("version") {
        return features::version(global, typed);
    }
    if typed.wants_help || line.is_empty() || line[0] == "help" {
        return print(&overview()).map(|()| 0);
    }
    let name = line.remove(0);
    let entry = COMMANDS.iter().find(|entry| name == entry.command.name).ok_or_else(|| {
        Fault::new(Code::InvalidArgument, format!("no such command: {}", name.display()))
            .hint("lowrun --help")
            .at("validate")
    })?;
    let typed = args::parse(entry.command, &mut line, false)?;
    if typed.wants_help {
        return print(&args::help(entry.command, GLOBAL.flags)).map(|()| 0);
    }
    (entry.run)(global, &typed).step(entry.command.name)
}

fn overview() -> String {
    let mut text = format!(
        "lowrun: {}\n\nUsage:\n  lowrun [global options] COMMAND [options] [arguments]\n\nCommands:\n",
        GLOBAL.about
    );
    for entry in &COMMANDS {
        text += &format!("  {:10}{}\n", entry.command.name, entry.command.about);
    }
    text + "\nGlobal options:\n" + &args::flag_lines(GLOBAL.flags)
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
