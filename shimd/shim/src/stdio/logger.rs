//! `binary://`: a program that takes the container's output itself, by the contract of containerd's shims.
//!
//! It gets stdout on descriptor 3, stderr on 4, and on 5 a pipe: when that closes, it is ready and the container may be
//! created. With `binary-v2://` it must write a byte first, so that a crash is not taken for readiness. The query of
//! the address is its arguments; `CONTAINER_ID` and `CONTAINER_NAMESPACE` stand in its environment.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::above_stdio;
use crate::error::Error;
use crate::poll::{Interest, Poller, Source, Token};
use crate::sys::process::Program;
use crate::task::Key;

/// What the addresses begin with.
pub(super) const SCHEME: &str = "binary";

#[derive(Debug)]
pub(crate) struct Logger {
    program: String,
    /// A pidfd: the shim reaps all its children, and a pid might be another's by then.
    process: OwnedFd,
    ready: OwnedFd,
    token: Option<Token>,
    end_token: Option<Token>,
    must_write: bool,
    has_ended: bool,
}

impl Logger {
    /// Starts the program; also the ends for the container's stdout and stderr.
    pub(super) fn start(
        uri: &str,
        container: &str,
        namespace: &str,
        null: &OwnedFd,
    ) -> Result<(Logger, [OwnedFd; 2]), Error> {
        let address = parse(uri).ok_or_else(|| Error::Invalid { what: format!("logger address {uri:?}") })?;
        let failed = |source| Error::Stdio { what: format!("start the logger {:?}", address.program), source };
        let (stdout, out_end) = pipe().map_err(failed)?;
        let (stderr, err_end) = pipe().map_err(failed)?;
        let (ready, ready_end) = pipe().map_err(failed)?;
        let program = Program {
            path: &c_string(&address.program).map_err(failed)?,
            arguments: &arguments(&address).map_err(failed)?,
            environment: &environment(container, namespace),
            descriptors: &[null.as_fd(), null.as_fd(), null.as_fd(), stdout.as_fd(), stderr.as_fd(), ready_end.as_fd()],
        };
        let pid = program.start().map_err(failed)?;
        let process = pidfd(pid).map_err(failed)?;
        let logger = Logger {
            must_write: address.must_write,
            program: address.program,
            process,
            ready,
            token: None,
            end_token: None,
            has_ended: false,
        };
        Ok((logger, [out_end, err_end]))
    }

    /// Waits for the program to be ready.
    pub(crate) fn await_ready(&mut self, key: Key, poller: &mut Poller) -> Result<(), Error> {
        let token = poller.add(&self.ready, Source::Logger(key), Interest::Read);
        self.token = Some(token.map_err(|source| self.failed(source))?);
        let token = poller.add(&self.process, Source::LoggerEnd(key), Interest::Read);
        self.end_token = Some(token.map_err(|source| self.failed(source))?);
        Ok(())
    }

    /// The pipe says something: is the program ready?
    pub(crate) fn is_ready(&mut self, poller: &mut Poller) -> Result<(), Error> {
        if let Some(token) = self.token.take() {
            poller.remove(token, &self.ready);
        }
        match rustix::io::read(&self.ready, &mut [0; 1]) {
            Ok(0) if self.must_write => Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(error.into())),
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Stdio { what: format!("wait for the logger {:?}", self.program), source }
    }

    /// The program has ended: it has taken all output that it will ever take.
    pub(crate) fn end(&mut self, poller: &mut Poller) {
        self.has_ended = true;
        if let Some(token) = self.end_token.take() {
            poller.remove(token, &self.process);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Asks a program to end that did not do so when the output was at its end.
    pub(super) fn stop(mut self, poller: &mut Poller) {
        if let Some(token) = self.token.take() {
            poller.remove(token, &self.ready);
        }
        if !self.has_ended {
            self.end(poller);
            // It may have ended just now.
            let _ = rustix::process::pidfd_send_signal(&self.process, Signal::TERM);
        }
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

#[derive(Debug, PartialEq)]
struct Address {
    program: String,
    arguments: Vec<String>,
    must_write: bool,
}

fn parse(uri: &str) -> Option<Address> {
    let (scheme, rest) = uri.split_once("://")?;
    let must_write = match scheme {
        "binary" => false,
        "binary-v2" => true,
        _ => return None,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decoded(key, true)?);
        if !value.is_empty() {
            arguments.push(decoded(value, true)?);
        }
    }
    let program = decoded(path, false)?;
    program.starts_with('/').then_some(Address { program, arguments, must_write })
}

/// Undoes percent-encoding, and in a query the plus sign for a space.
fn decoded(text: &str, in_query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'%' => {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &tail[2..];
            }
            b'+' if in_query => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn arguments(address: &Address) -> io::Result<Vec<CString>> {
    std::iter::once(&address.program).chain(&address.arguments).map(|argument| c_string(argument)).collect()
}

fn environment(container: &str, namespace: &str) -> Vec<CString> {
    let own = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name.into_vec()
    });
    let ours = [format!("CONTAINER_ID={container}"), format!("CONTAINER_NAMESPACE={namespace}")];
    own.chain(ours.map(String::into_bytes)).filter_map(|pair| CString::new(pair).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_the_arguments() {
        let address = parse("binary:///usr/bin/my%20log?id=a+b&flag&x=%26").unwrap();
        assert_eq!(address.program, "/usr/bin/my log");
        assert_eq!(address.arguments, ["id", "a b", "flag", "x", "&"]);
        assert!(!address.must_write);
        assert!(parse("binary-v2:///x").unwrap().must_write);
        assert_eq!(parse("binary://relative"), None);
        assert_eq!(parse("binary:///x%z"), None);
    }
}
