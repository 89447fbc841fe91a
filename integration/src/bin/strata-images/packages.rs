//! Debian packages as files: downloaded by apt, taken apart by dpkg-deb, never installed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layer::{Entry, Kind};

/// A folder of downloaded packages.
pub(crate) struct Packages {
    folder: PathBuf,
}

impl Packages {
    pub(crate) fn new(folder: &Path) -> Packages {
        Packages { folder: folder.to_path_buf() }
    }

    /// All that the package `name` would install.
    pub(crate) fn files(&self, name: &str) -> Result<Vec<Entry>, String> {
        let package = self.downloaded(name)?;
        let output = run(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&package))?;
        entries(&output).map_err(|error| format!("read {}: {error}", package.display()))
    }

    /// The names that the static busybox answers to.
    pub(crate) fn busybox_applets(&self) -> Result<Vec<String>, String> {
        let files = self.files("busybox-static")?;
        let program = files.iter().find(|entry| entry.path.ends_with("bin/busybox")).ok_or("no busybox")?;
        let copy = self.folder.join("busybox");
        fs::write(&copy, &program.data).map_err(|error| format!("write {}: {error}", copy.display()))?;
        run(Command::new("chmod").arg("755").arg(&copy))?;
        let list = run(Command::new(&copy).arg("--list"))?;
        Ok(String::from_utf8_lossy(&list).lines().map(str::to_owned).collect())
    }

    fn downloaded(&self, name: &str) -> Result<PathBuf, String> {
        if let Some(package) = self.cached(name) {
            return Ok(package);
        }
        fs::create_dir_all(&self.folder).map_err(|error| format!("create {}: {error}", self.folder.display()))?;
        self.download(name).or_else(|_| {
            // The lists are those of another day: what they name may be gone from the mirror.
            run(Command::new("apt-get").args(["-qq", "update"]))?;
            self.download(name)
        })?;
        self.cached(name).ok_or_else(|| format!("apt-get downloaded no {name}"))
    }

    /// Downloads the newest version that a mirror has. By the bare name apt would want the version that is installed, which
    /// no mirror need have any more.
    fn download(&self, name: &str) -> Result<(), String> {
        let versions = run(Command::new("apt-cache").args(["madison", name]))?;
        let versions = String::from_utf8_lossy(&versions);
        let newest = versions.lines().find_map(|line| line.split('|').nth(1)).ok_or(format!("no mirror has {name}"))?;
        let wanted = format!("{name}={}", newest.trim());
        run(Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", &wanted])
            .current_dir(&self.folder))
        .map(drop)
    }

    fn cached(&self, name: &str) -> Option<PathBuf> {
        let prefix = format!("{name}_");
        let entries = fs::read_dir(&self.folder).ok()?;
        entries
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
    }
}

/// Runs a program to its end and returns what it wrote.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|error| format!("run {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

fn entries(archive: &[u8]) -> std::io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = name(&entry.path()?);
        if path.is_empty() {
            continue;
        }
        let target = entry.link_name()?.map(|target| target.to_string_lossy().into_owned());
        let kind = match (entry.header().entry_type(), target) {
            (tar::EntryType::Directory, _) => Kind::Directory,
            (tar::EntryType::Symlink, Some(target)) => Kind::Symlink(target),
            (tar::EntryType::Link, Some(target)) => Kind::Hardlink(name(Path::new(&target))),
            _ => Kind::File,
        };
        let header = entry.header().clone();
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        found.push(Entry { path, kind, mode: header.mode()?, uid: header.uid()?, gid: header.gid()?, data });
    }
    Ok(found)
}

/// `./usr/bin/` as `usr/bin`.
fn name(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches("./").trim_matches('/').to_owned()
}
