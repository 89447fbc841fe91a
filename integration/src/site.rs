//! The place of one stack on a machine: a directory that holds all its state, and a name that what it makes elsewhere
//! (cgroups, links, nftables) carries.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sys;

/// The directories and the name.
#[derive(Clone, Debug)]
pub struct Site {
    root: PathBuf,
    instance: String,
    is_lasting: bool,
}

impl Site {
    /// A site below `root`, with its directories made. `instance` is at most eight letters and digits: the bridge is
    /// called `strata-<instance>`, and a link's name ends at 15 bytes.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn new(root: &Path, instance: &str) -> Result<Site, String> {
        let site = Site { root: root.to_path_buf(), instance: instance.to_owned(), is_lasting: false };
        for directory in ["etc", "run", "lib", "log", "tmp", "home"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(|error| format!("create {}: {error}", path.display()))?;
        }
        Ok(site)
    }

    /// The same site, whose daemons go on when the harness ends.
    #[must_use]
    pub fn lasting(self) -> Site {
        Site { is_lasting: true, ..self }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// A path below the site's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A command that sees nothing of the caller's environment but this site's directories.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.path("home")).env("TMPDIR", self.path("tmp")).env("TERM", "xterm");
        command.current_dir(self.path("tmp"));
        command
    }

    /// [`Site::command`] for a daemon: when the harness is killed, the kernel kills the daemon, unless the site is lasting.
    pub fn daemon(&self, program: &Path) -> Command {
        let mut command = self.command(program);
        if self.is_lasting {
            // A Ctrl-C in the terminal of the harness is not meant for it.
            command.process_group(0);
        } else {
            sys::die_with_parent(&mut command);
        }
        command
    }

    /// Writes a file of the site's `etc`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.root.join("etc").join(name);
        fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
        Ok(path)
    }
}
