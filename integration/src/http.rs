//! As much of HTTP as a test needs to fetch a page, or to call gRPC as its C library does.

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

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// Calls `method` (`/package.Service/Method`) with an empty message over a unix socket, as what stands on gRPC's C library
/// does: the host is the socket's path, with `%2F` for `/`. Gives the answer's bytes.
///
/// # Errors
/// When the server ends the stream or the connection instead.
pub fn call_grpc_as_c_does(socket: &Path, method: &str) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("call {method}: {error}");
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(failed)?;
    let host = socket.display().to_string().trim_start_matches('/').replace('/', "%2F");
    let field = |name: &str, value: &str| [&[0x40][..], &text(name), &text(value)].concat();
    // POST and http have indices of their own; all else is spelt out, also what has one.
    let fields = [
        field(":path", method),
        field(":authority", &host),
        vec![0x83, 0x86],
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ];
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, &[]),
        frame(HEADERS, END_HEADERS, &fields.concat()),
        frame(DATA, END_STREAM, &[0; 5]),
    ];
    stream.write_all(&request.concat()).map_err(failed)?;
    let mut answer = Vec::new();
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).map_err(failed)?;
        let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
        stream.read_exact(&mut payload).map_err(failed)?;
        match (header[3], header[4] & END_STREAM) {
            (RST_STREAM, _) => return Err(format!("call {method}: the stream was ended: {payload:?}")),
            (DATA, _) => answer.extend(payload),
            (HEADERS, END_STREAM) => return Ok(answer),
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let stream = u8::from(kind != SETTINGS);
    [&[0, length[0], length[1], kind, flags, 0, 0, 0, stream], payload].concat()
}

fn text(value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).ok().filter(|length| *length < 127);
    [&[length.expect("a short field")], value.as_bytes()].concat()
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
