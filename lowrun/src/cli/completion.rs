//! `lowrun completion`: a script for the shell, out of the tables of `args`.

use super::args::{Command, Flag, Typed};
use super::help::shown;
use super::{COMMANDS, GLOBAL, Global, print};
use crate::fault::{Code, Fault, Result};

pub(super) const COMPLETION: Command = Command {
    name: "completion",
    about: "print a completion script for bash, zsh or fish",
    description: "bash:  source <(lowrun completion bash)\n\
                  zsh:   lowrun completion zsh > a file _lowrun in a directory of $fpath\n\
                  fish:  lowrun completion fish | source\n\n\
                  Ids of containers are completed from `lowrun list`.",
    arguments: "bash|zsh|fish",
    flags: &[],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn completion(_: &Global, typed: &Typed) -> Result<i32> {
    let text = match typed.word(0)? {
        "bash" => bash(),
        "zsh" => zsh(),
        "fish" => fish(),
        other => {
            return Err(Fault::new(Code::InvalidArgument, format!("no completion for shell {other:?}"))
                .hint("bash, zsh and fish are known"));
        }
    };
    print(&text).map(|()| 0)
}

/// Whether the first word of a command is the id of a container that exists.
fn wants_container(command: &Command) -> bool {
    command.arguments.starts_with("CONTAINER") && !matches!(command.name, "create" | "run" | "restore")
}

fn flag_names(flags: &'static [Flag]) -> Vec<String> {
    let names = shown(flags).flat_map(|flag| {
        let short = flag.short.map(|short| format!("-{short}"));
        std::iter::once(format!("--{}", flag.name)).chain(short)
    });
    names.collect()
}

/// Flags that take a value, as a pattern of `case`: the next word is not a flag, a command or an id.
fn valued(flags: &'static [Flag]) -> Option<String> {
    let names: Vec<String> = shown(flags)
        .filter(|flag| flag.value.is_some())
        .flat_map(|flag| {
            let short = flag.short.map(|short| format!("-{short}"));
            std::iter::once(format!("--{}", flag.name)).chain(short)
        })
        .collect();
    (!names.is_empty()).then(|| names.join("|"))
}

fn command_names() -> String {
    COMMANDS.iter().map(|entry| entry.command.name).collect::<Vec<_>>().join(" ")
}

fn bash() -> String {
    let global_values = valued(GLOBAL.flags).unwrap_or_default();
    let mut cases = String::new();
    for command in COMMANDS.iter().map(|entry| entry.command) {
        let flags = flag_names(command.flags).join(" ");
        let values = valued(command.flags).unwrap_or_else(|| "-".to_owned());
        let ids = if wants_container(command) { "$(lowrun \"${root[@]}\" list -q 2>/dev/null)" } else { "" };
        let words = match command.name {
            "completion" => "bash zsh fish".to_owned(),
            "help" | "man" => command_names(),
            _ => ids.to_owned(),
        };
        cases += &format!("    {}) flags=\"{flags}\" values=\"{values}\" words=\"{words}\" ;;\n", command.name);
    }
    format!(
        r#"# Completion of lowrun for bash.
_lowrun() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= i flags values words
  local -a root=()
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${{COMP_WORDS[i]}} in
      --root) root=(--root "${{COMP_WORDS[i+1]}}"); ((i++)) ;;
      {global_values}) ((i++)) ;;
      -*) ;;
      *) command=${{COMP_WORDS[i]}}; break ;;
    esac
  done
  case $command in
    "") flags="{global} --help" values="{global_values}" words="{commands}" ;;
{cases}    *) return ;;
  esac
  case "|$values|" in
    *"|$before|"*) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case $current in
    -*) COMPREPLY=($(compgen -W "$flags --help" -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
}}
complete -o filenames -F _lowrun lowrun
"#,
        global = flag_names(GLOBAL.flags).join(" "),
        commands = command_names(),
    )
}

/// Words within single quotes of zsh and fish.
fn quoted(text: &str) -> String {
    text.replace('\'', r"'\''")
}

fn zsh() -> String {
    let flag = |flag: &Flag| {
        // Brackets and colons end a part of a specification.
        let help = quoted(flag.help).replace('[', "(").replace(']', ")").replace(':', " -");
        let value = flag.value.map(|value| format!(":{}:_files", value.replace([':', '[', ']'], " ")));
        let value = value.unwrap_or_default();
        let names = std::iter::once(format!("--{}", flag.name)).chain(flag.short.map(|short| format!("-{short}")));
        names.map(|name| format!("      '{name}[{help}]{value}' \\\n")).collect::<String>()
    };
    let flags = |flags: &'static [Flag]| shown(flags).map(flag).collect::<String>();
    let mut cases = String::new();
    for command in COMMANDS.iter().map(|entry| entry.command) {
        let rest = match command.name {
            "completion" => "'1:shell:(bash zsh fish)'".to_owned(),
            "help" | "man" => format!("'1:command:({})'", command_names()),
            _ if wants_container(command) => "'1:container:_lowrun_containers' '*::argument:_files'".to_owned(),
            _ => "'*::argument:_files'".to_owned(),
        };
        cases += &format!("    {})\n      _arguments \\\n{}      {rest} ;;\n", command.name, flags(command.flags));
    }
    let commands: String = COMMANDS
        .iter()
        .map(|entry| format!("      '{}:{}'\n", entry.command.name, quoted(entry.command.about)))
        .collect();
    format!(
        r#"#compdef lowrun
# Completion of lowrun for zsh.
_lowrun_containers() {{
  local -a ids
  ids=(${{(f)"$(lowrun list -q 2>/dev/null)"}})
  compadd -a ids
}}
_lowrun() {{
  local curcontext="$curcontext" state line
  _arguments -C \
{global}      '1:command:->command' '*::argument:->argument'
  case $state in
  command)
    local -a commands=(
{commands}    )
    _describe command commands ;;
  argument)
    case $words[1] in
{cases}    esac ;;
  esac
}}
_lowrun "$@"
"#,
        global = flags(GLOBAL.flags),
    )
}

fn fish() -> String {
    let mut text = "# Completion of lowrun for fish.\ncomplete -c lowrun -f\n".to_owned();
    let flag = |condition: &str, flag: &Flag| {
        let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
        let value = if flag.value.is_some() { " -r -F" } else { "" };
        format!("complete -c lowrun -n '{condition}' -l {}{short}{value} -d '{}'\n", flag.name, quoted(flag.help))
    };
    for one in shown(GLOBAL.flags) {
        text += &flag("__fish_use_subcommand", one);
    }
    for command in COMMANDS.iter().map(|entry| entry.command) {
        let (name, about) = (command.name, quoted(command.about));
        text += &format!("complete -c lowrun -n __fish_use_subcommand -a {name} -d '{about}'\n");
        let condition = format!("__fish_seen_subcommand_from {name}");
        for one in shown(command.flags) {
            text += &flag(&condition, one);
        }
        let words = match name {
            "completion" => "bash zsh fish".to_owned(),
            "help" | "man" => command_names(),
            _ if wants_container(command) => "(lowrun list -q 2>/dev/null)".to_owned(),
            _ => continue,
        };
        text += &format!("complete -c lowrun -n '{condition}' -a '{words}'\n");
    }
    text
}
