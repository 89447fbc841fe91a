//! A container's files: where they are, how they are made, how they go.
//!
//! ```text
//! ROOT/containers/<id>/log/                          what lasts: the log
//! STATE/containers/<id>/{hosts,hostname,resolv.conf} what every start writes anew
//! STATE/containers/<id>/{stdin,stdout,stderr}        FIFOs, where they are needed
//! STATE/execs/<exec id>/{stdin,stdout,stderr}        FIFOs
//! ```
//!
//! The directories are root's alone. What is mounted into containers is readable by all, as its readers are in there.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::stdin;
use super::wanted::NetworkMode;
use crate::engine::error::Error;
use crate::network::files as contents;

/// The host's own resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Largest that is read of it.
const RESOLV_CONF_MAX: u64 = 1 << 20;

/// The directories of one container.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    lasting: PathBuf,
    passing: PathBuf,
}

impl Files {
    pub(crate) fn new(root: &Path, state: &Path, id: &str) -> Files {
        Files { lasting: root.join("containers").join(id), passing: state.join("containers").join(id) }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.lasting.join("log")
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.passing.join("hosts")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.passing.join("hostname")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.passing.join("resolv.conf")
    }

    pub(crate) fn stdin(&self) -> PathBuf {
        self.passing.join("stdin")
    }

    /// FIFOs for a logger that reads in a stock shim's place.
    pub(crate) fn stdout(&self) -> PathBuf {
        self.passing.join("stdout")
    }

    pub(crate) fn stderr(&self) -> PathBuf {
        self.passing.join("stderr")
    }

    /// Makes what lasts.
    pub(crate) fn make(&self) -> Result<(), Error> {
        make_directory(&self.lasting)?;
        make_directory(&self.log())
    }

    /// Makes what a start needs but the files that tell the address.
    pub(crate) fn make_passing(&self, hostname: &str, mode: NetworkMode, has_stdin: bool) -> Result<(), Error> {
        make_directory(&self.passing)?;
        write(&self.hostname(), &contents::hostname(hostname))?;
        write(&self.resolv_conf(), &resolv_conf(mode)?)?;
        if has_stdin {
            stdin::make_fifo(&self.stdin())?;
        }
        Ok(())
    }

    /// Writes the file that tells the container's own address.
    pub(crate) fn write_hosts(&self, hostname: &str, address: Option<IpAddr>) -> Result<(), Error> {
        write(&self.hosts(), &contents::hosts(hostname, address, &[]))
    }

    /// Removes all of it; what is gone is no error.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_tree(&self.passing)?;
        remove_tree(&self.lasting)
    }
}

/// Makes the directory of all that lasts, and asks the file system to place what lies in it far from each other (`T` of
/// chattr(1)): ext4 looks for the inode of a new file in the group of its directory, and an inode that was freed within the
/// last minutes costs it much. One that knows no such wish goes on as before.
pub(crate) fn make_lasting_place(root: &Path) -> Result<(), Error> {
    let place = root.join("containers");
    make_directory(&place)?;
    let asked = fs::File::open(&place).and_then(|place| {
        let flags = ioctl_getflags(&place)? | IFlags::TOPDIR;
        Ok(ioctl_setflags(&place, flags)?)
    });
    if let Err(error) = asked {
        tracing::debug!(place = %place.display(), %error, "spread directories");
    }
    Ok(())
}

/// Makes a directory for root alone, and those above it; one that is there stays.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    match builder.create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // The directories above are missing once in the engine's life: the usual case is one call.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            builder.recursive(true).create(path).map_err(|error| Error::file("make directory", path, error))
        }
        Err(error) => Err(Error::file("make directory", path, error)),
    }
}

/// Removes a directory and what is in it; one that is gone is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("remove directory", path, error)),
    }
}

/// Writes over the file where it stands: a running container has it mounted.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let open = || fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
    let outcome = open().and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    outcome.map_err(|error| Error::file("write file", path, error))
}

/// The host's file, as a container of that network mode needs it. A host without one has no name servers.
fn resolv_conf(mode: NetworkMode) -> Result<String, Error> {
    let host = read_bounded(RESOLV_CONF)?;
    if mode == NetworkMode::Host {
        return Ok(host);
    }
    let host = match contents::names_resolved_stub(&host) {
        true => read_bounded(contents::RESOLVED_FILE)?,
        false => host,
    };
    Ok(contents::resolv_conf(&host, &contents::Dns::default()))
}

fn read_bounded(path: &str) -> Result<String, Error> {
    use io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(RESOLV_CONF_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::file("read file", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    #[test]
    fn files_are_made_and_go() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = Files::new(root.path(), state.path(), "abc");
        make_lasting_place(root.path()).unwrap();
        files.make().unwrap();
        for _ in 0..2 {
            files.make_passing("box", NetworkMode::Bridge, true).unwrap();
            files.write_hosts("box", Some("10.0.0.2".parse().unwrap())).unwrap();
        }
        assert!(fs::read_to_string(files.hosts()).unwrap().contains("10.0.0.2\tbox"));
        assert_eq!(fs::read_to_string(files.hostname()).unwrap(), "box\n");
        assert!(fs::metadata(files.stdin()).unwrap().file_type().is_fifo());
        assert_eq!(fs::metadata(files.log()).unwrap().permissions().mode() & 0o777, 0o700);
        files.remove().unwrap();
        files.remove().unwrap();
        assert_eq!(fs::read_dir(root.path().join("containers")).unwrap().count(), 0);
    }
}
