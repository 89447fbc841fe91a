//! The command line that containerd gives a shim, in the manner of Go's flags: `-name value`, `-name=value`, one dash
//! or two, the command after them.

use std::ffi::OsString;
use std::fmt;

/// What the shim is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start serving and print the address.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Print the version.
    Version,
    /// Print what the shim and its runtime can do, as a message.
    Info,
}

/// The flags of containerd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's gRPC socket.
    pub(crate) address: String,
    pub(crate) publish_binary: String,
    /// Of `delete` where the working directory is not the bundle.
    pub(crate) bundle: String,
    pub(crate) debug: bool,
}

/// The command line is not one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage(problem) = self;
        write!(
            f,
            "{problem}; usage: -namespace NAMESPACE -id ID -address SOCKET [-debug] start|delete, or -v, or -info"
        )
    }
}

/// Reads the arguments, without the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Command, Flags), Usage> {
    let mut flags = Flags::default();
    let mut arguments = arguments.into_iter().map(text);
    while let Some(argument) = arguments.next().transpose()? {
        let Some(flag) = argument.strip_prefix('-') else {
            return command(&argument).map(|command| (command, flags));
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        match flag {
            "v" => return Ok((Command::Version, flags)),
            "info" => return Ok((Command::Info, flags)),
            "debug" | "debug=true" => flags.debug = true,
            "debug=false" => flags.debug = false,
            _ => {
                let (name, value) = match flag.split_once('=') {
                    Some((name, value)) => (name, value.to_owned()),
                    None => (flag, arguments.next().ok_or_else(|| Usage(format!("-{flag} has no value")))??),
                };
                *place(&mut flags, name)? = value;
            }
        }
    }
    Err(Usage("no command".to_owned()))
}

fn text(argument: OsString) -> Result<String, Usage> {
    argument.into_string().map_err(|argument| Usage(format!("{argument:?} is not UTF-8")))
}

fn command(word: &str) -> Result<Command, Usage> {
    match word {
        "start" => Ok(Command::Start),
        "delete" => Ok(Command::Delete),
        _ => Err(Usage(format!("unknown command {word:?}"))),
    }
}

fn place<'a>(flags: &'a mut Flags, name: &str) -> Result<&'a mut String, Usage> {
    match name {
        "namespace" => Ok(&mut flags.namespace),
        "id" => Ok(&mut flags.id),
        "address" => Ok(&mut flags.address),
        "publish-binary" => Ok(&mut flags.publish_binary),
        "bundle" => Ok(&mut flags.bundle),
        _ => Err(Usage(format!("unknown flag -{name}"))),
    }
}

impl Flags {
    /// Checks what `start` and `delete` need.
    pub(crate) fn complete(self) -> Result<Flags, Usage> {
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() || value.contains('/') || value.starts_with('.') {
                return Err(Usage(format!("-{name} {value:?} is not an identifier")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, Flags), Usage> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_own_command_line() {
        let line = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id x -debug start";
        let (command, flags) = parsed(line).unwrap();
        assert_eq!(command, Command::Start);
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.debug), ("default", "x", true));
        assert_eq!((flags.address.as_str(), flags.publish_binary.as_str()), ("/run/c.sock", "/usr/bin/containerd"));
    }

    #[test]
    fn two_dashes_and_equals_signs() {
        let (command, flags) = parsed("--namespace=n --id=i -bundle=/b delete").unwrap();
        assert_eq!((command, flags.id.as_str(), flags.bundle.as_str()), (Command::Delete, "i", "/b"));
        assert_eq!(parsed("-v").unwrap().0, Command::Version);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [("", "no command"), ("-id", "-id"), ("-what x start", "-what"), ("stop", "stop")] {
            assert!(parsed(line).unwrap_err().to_string().contains(word), "{line}");
        }
        let (_, flags) = parsed("-namespace n -id ../x start").unwrap();
        assert!(flags.complete().is_err());
    }
}
