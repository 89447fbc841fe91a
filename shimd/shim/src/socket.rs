//! Unix sockets, also where their paths are longer than `sun_path`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes of `sockaddr_un.sun_path`, with the final NUL.
pub(crate) const SUN_PATH_LEN: usize = 108;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Calls `act` with a name for `path` that fits: itself, or through a handle on its directory.
pub(crate) fn with_short_name<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() < SUN_PATH_LEN {
        return act(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    act(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

/// A socket at `path` that listens, does not block and that only its owner may open.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The mode is right from the first moment on, and there is one thread.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = with_short_name(path, |name| Ok(rustix::net::bind(&socket, &SocketAddrUnix::new(name)?)?));
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Whether somebody listens at `path`.
pub(crate) fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(io::Error::from)
        .and_then(|socket| {
            with_short_name(path, |name| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(name)?)?))
        });
    match connected {
        Ok(()) => true,
        // Its queue is full: it listens.
        Err(error) => error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()),
    }
}
