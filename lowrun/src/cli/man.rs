//! `lowrun man`: manual pages, out of the tables of `args`.

use std::fmt::Write;

use super::args::{Command, Flag, Typed};
use super::help::{shown, synopsis};
use super::{COMMANDS, GLOBAL, Global, find, print};
use crate::fault::Result;

pub(super) const MAN: Command = Command {
    name: "man",
    about: "print a manual page, as man(1) reads it",
    description: "lowrun man run | man -l -\nlowrun man > /usr/local/share/man/man8/lowrun.8",
    arguments: "[COMMAND]",
    flags: &[],
    count: (0, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn man(_: &Global, typed: &Typed) -> Result<i32> {
    let page = match typed.word(0)? {
        "" => overview(),
        name => of_command(find(name)?.command),
    };
    print(&page).map(|()| 0)
}

fn head(title: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(".TH {} 8 \"\" \"lowrun {version}\" \"System Administration\"\n", title.to_uppercase())
}

fn overview() -> String {
    let mut page = head("lowrun");
    let _ = write!(
        page,
        ".SH NAME\nlowrun \\- {}\n.SH SYNOPSIS\n.B lowrun\n[global options] COMMAND [options] [arguments]\n\
         .SH DESCRIPTION\n{}.SH COMMANDS\n",
        escaped(GLOBAL.about),
        paragraphs(GLOBAL.description)
    );
    for entry in &COMMANDS {
        let _ = write!(page, ".TP\n.B {}\n{}\n", escaped(entry.command.name), escaped(entry.command.about));
    }
    let names = COMMANDS.iter().map(|entry| format!(".BR lowrun\\-{} (8)", escaped(entry.command.name)));
    let _ = write!(
        page,
        ".SH GLOBAL OPTIONS\n{}.SH EXIT STATUS\nThat of the program, for\n.B run\nand\n.B exec\n\
         in the foreground; 128 and the signal's number, if one ended it; 1 if lowrun failed, 255 if an exec could not \
         be started, 3 if there is no such command.\n\
         .SH FILES\n.TP\n.I /run/lowrun\nStates of containers, if\n.B \\-\\-root\nnames no other directory.\n\
         .SH SEE ALSO\n{}\n",
        options(GLOBAL.flags),
        names.collect::<Vec<_>>().join(",\n")
    );
    page
}

fn of_command(command: &Command) -> String {
    let mut page = head(&format!("lowrun-{}", command.name));
    let _ = write!(
        page,
        ".SH NAME\nlowrun\\-{} \\- {}\n.SH SYNOPSIS\n.B lowrun\n[global options]\n{}\n",
        escaped(command.name),
        escaped(command.about),
        escaped(&synopsis(command))
    );
    if !command.description.is_empty() {
        let _ = write!(page, ".SH DESCRIPTION\n{}", paragraphs(command.description));
    }
    if shown(command.flags).next().is_some() {
        let _ = write!(page, ".SH OPTIONS\n{}", options(command.flags));
    }
    page + ".SH SEE ALSO\n.BR lowrun (8)\n"
}

fn options(flags: &'static [Flag]) -> String {
    let one = |flag: &Flag| {
        let short = flag.short.map(|short| format!(", \\-{short}")).unwrap_or_default();
        let value = flag.value.map(|value| format!(" \\fI{}\\fR", escaped(value))).unwrap_or_default();
        format!(".TP\n\\fB\\-\\-{}{short}\\fR{value}\n{}\n", escaped(flag.name), escaped(flag.help))
    };
    shown(flags).map(one).collect()
}

/// Lines stay lines: descriptions hold commands to copy.
fn paragraphs(text: &str) -> String {
    text.lines()
        .map(|line| if line.is_empty() { ".PP\n".to_owned() } else { format!("{}\n.br\n", escaped(line)) })
        .collect()
}

/// A backslash begins a request's escape, a hyphen may become another character, a full stop at a line's start a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_its_head_and_its_flags() {
        for entry in &COMMANDS {
            let page = of_command(entry.command);
            assert!(page.starts_with(".TH LOWRUN-"), "{page}");
            for flag in shown(entry.command.flags) {
                assert!(page.contains(&format!("\\-\\-{}", flag.name.replace('-', "\\-"))), "{}", flag.name);
            }
        }
    }

    #[test]
    fn what_roff_would_take_for_a_request_is_escaped() {
        assert_eq!(escaped(".x -y \\z"), "\\&.x \\-y \\ez");
    }
}
