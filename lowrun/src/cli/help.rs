//! `lowrun help`: what a person reads, out of the tables of `args`.
//!
//! Laid out as runc's help is, so that what looks for a heading or a flag in it (Podman does, for checkpoints) finds it.

use super::args::{Command, Flag, Typed};
use super::{COMMANDS, GLOBAL, Global, find, print};
use crate::fault::Result;

pub(super) const HELP: Command = Command {
    name: "help",
    about: "print all commands, or help for one",
    description: "",
    arguments: "[COMMAND]",
    flags: &[],
    count: (0, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn help(global: &Global, typed: &Typed) -> Result<i32> {
    let text = match typed.word(0)? {
        "" => overview(&global.program),
        name => of_command(&global.program, find(name)?.command),
    };
    print(&text).map(|()| 0)
}

/// All commands and the global flags.
pub(super) fn overview(program: &str) -> String {
    let commands: String =
        COMMANDS.iter().map(|entry| format!("   {:12}{}\n", entry.command.name, entry.command.about)).collect();
    format!(
        "NAME:\n   {program} - {}\n\nUSAGE:\n   {program} [global options] COMMAND [options] [arguments]\n\n\
         DESCRIPTION:\n{}\nCOMMANDS:\n{commands}\nGLOBAL OPTIONS:\n{}",
        GLOBAL.about,
        indented(GLOBAL.description),
        flag_lines(GLOBAL.flags),
    )
}

/// The help text of a command.
pub(super) fn of_command(program: &str, command: &Command) -> String {
    let name = command.name;
    let mut text = format!(
        "NAME:\n   {program} {name} - {}\n\nUSAGE:\n   {program} [global options] {}\n",
        command.about,
        synopsis(command)
    );
    if !command.description.is_empty() {
        text += &format!("\nDESCRIPTION:\n{}", indented(command.description));
    }
    if shown(command.flags).next().is_some() {
        text += &format!("\nOPTIONS:\n{}", flag_lines(command.flags));
    }
    text + &format!("\nGLOBAL OPTIONS:\n{}", flag_lines(GLOBAL.flags))
}

/// `run [options] CONTAINER`.
pub(super) fn synopsis(command: &Command) -> String {
    let options = if shown(command.flags).next().is_some() { " [options]" } else { "" };
    format!("{}{options} {}", command.name, command.arguments).trim_end().to_owned()
}

/// The flags that help mentions.
pub(super) fn shown(flags: &'static [Flag]) -> impl Iterator<Item = &'static Flag> {
    flags.iter().filter(|flag| !flag.help.is_empty())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("   {line}").trim_end().to_owned() + "\n").collect()
}

/// One line for each flag.
fn flag_lines(flags: &'static [Flag]) -> String {
    let left = |flag: &Flag| {
        let short = flag.short.map(|short| format!(", -{short}")).unwrap_or_default();
        let value = flag.value.map(|value| format!(" {value}")).unwrap_or_default();
        format!("   --{}{short}{value}", flag.name)
    };
    let width = shown(flags).map(|flag| left(flag).len()).max().unwrap_or(0);
    shown(flags).map(|flag| format!("{:width$}  {}\n", left(flag), flag.help)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_every_flag_has_help() {
        let overview = overview("lowrun");
        for entry in &COMMANDS {
            let command = entry.command;
            assert!(overview.contains(&format!("   {} ", command.name)), "{}", command.name);
            let text = of_command("runc", command);
            assert!(text.starts_with(&format!("NAME:\n   runc {} - ", command.name)), "{text}");
            for flag in shown(command.flags) {
                assert!(text.contains(&format!("--{}", flag.name)), "{}: {}", command.name, flag.name);
            }
        }
    }

    #[test]
    fn obsolete_flags_are_not_mentioned() {
        assert!(!overview("lowrun").contains("--criu"));
    }
}
