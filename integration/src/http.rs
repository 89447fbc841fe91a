//! As much of HTTP as a test needs to fetch a page.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// The status and body of `GET path` at an address like `127.0.0.1:80`; `None` when nobody answers.
pub fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address.parse().ok()?, LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    ask(stream, path)
}

/// The same over a unix socket.
pub fn get_unix(socket: &Path, path: &str) -> Option<(u16, String)> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    ask(stream, path)
}

fn ask(mut stream: impl Read + Write, path: &str) -> Option<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_of_an_answer() {
        assert_eq!(parse("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\nno"), Some((404, "no".to_owned())));
        assert_eq!(parse("HTTP/1.0"), None);
    }
}
