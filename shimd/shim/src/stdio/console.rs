//! The terminal of a process: the runtime makes it and sends its master over a socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags, recvmsg};
use rustix::termios::Winsize;

use crate::error::Error;
use crate::socket::{SUN_PATH_LEN, listen};
use crate::task::Key;

#[derive(Debug)]
pub(crate) struct Console {
    listener: Option<OwnedFd>,
    path: PathBuf,
    /// What the runtime is told: the path, or a shorter name for it.
    name: String,
    master: Option<OwnedFd>,
}

impl Console {
    /// Makes the socket in the bundle, which is nobody else's.
    pub(super) fn listen(bundle: &Path, key: Key) -> Result<Console, Error> {
        let file = format!("pty-{}.sock", key.number());
        let path = bundle.join(&file);
        // The runtime's working directory is the shim's own, which is the bundle.
        let is_short = path.as_os_str().len() < SUN_PATH_LEN;
        let name = if is_short { path.display().to_string() } else { file };
        let listener =
            listen(&path).map_err(|source| Error::Stdio { what: format!("listen on {}", path.display()), source })?;
        Ok(Console { listener: Some(listener), path, name, master: None })
    }

    pub(super) fn path(&self) -> &str {
        &self.name
    }

    /// Takes the master. The runtime has ended, so it has been sent: nothing to wait for.
    pub(super) fn receive(&mut self) -> Result<&OwnedFd, Error> {
        let master = self.listener.as_ref().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), receive);
        let master =
            master.map_err(|source| Error::Stdio { what: "take the terminal from the runtime".to_owned(), source })?;
        self.listener = None;
        self.remove_socket();
        Ok(self.master.insert(master))
    }

    pub(super) fn resize(&self, width: u16, height: u16) -> Result<(), Error> {
        let Some(master) = &self.master else { return Ok(()) };
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(master, size)
            .map_err(|error| Error::System { what: "resize the terminal".to_owned(), source: error.into() })
    }

    fn remove_socket(&self) {
        // It lies in the bundle, which is removed whole.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if self.listener.is_some() {
            self.remove_socket();
        }
    }
}

fn receive(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let message = recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let master = descriptors.next().and_then(|mut descriptors| descriptors.next());
    let master = master.ok_or(io::ErrorKind::UnexpectedEof)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok(master)
}
