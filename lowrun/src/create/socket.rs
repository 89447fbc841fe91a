//! Sockets that the caller names.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::fault::{Attempt, Code, Result};
use crate::sys::Call;

/// Connects to a stream socket in the file system.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let attempted = || format!("connect to {}", path.display());
    let address = SocketAddrUnix::new(path).call("connect").attempt(Code::InvalidArgument, attempted)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .call("socket")
        .attempt(Code::SystemError, attempted)?;
    rustix::net::connect(&socket, &address).call("connect").attempt(Code::InvalidArgument, attempted)?;
    Ok(socket)
}
