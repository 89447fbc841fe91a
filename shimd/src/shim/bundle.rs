//! Bundles: what a shim and a runtime find of one container, or of a sandbox, in the file system.
//!
//! ```text
//!   <state>/io.containerd.runtime.v2.task/<namespace>/<id>/
//!   <state>/io.containerd.sandbox.controller.v1.shim/<namespace>/<id>/
//!     config.json   the OCI spec, byte for byte as the client stored it
//!     rootfs/       where the shim mounts the snapshot
//!     work/         the runtime's scratch
//!     log           FIFO of the shim's own messages
//!     oom           there once the kernel has killed for memory in the container
//!     shim.json     which program, which socket: what shimd needs to find the shim again
//!     shim-binary-path    the program again, where containerd's clients read it
//!     address, …    the shim's own files
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout;
use crate::name::{Namespace, check_identifier};
use crate::shim::Endpoint;
use crate::trash::Trash;

/// Name of the FIFO that shims write their messages to.
const LOG: &str = "log";
/// Where mapped layers lie while a shim, or shimd, mounts them as one.
pub(crate) const LAYERS: &str = "layers";
/// The file that says that the kernel killed for memory.
const OOM: &str = "oom";

/// What is kept to find a shim again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShimRecord {
    pub(crate) program: PathBuf,
    /// Missing while the shim is being started.
    pub(crate) endpoint: Option<Endpoint>,
    /// The shim is the sandbox's: it was not started for this container, and does not end with it.
    #[serde(default)]
    pub(crate) is_of_sandbox: bool,
}

/// Whose bundle it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Task,
    Sandbox,
}

impl Kind {
    pub(crate) const ALL: [Kind; 2] = [Kind::Task, Kind::Sandbox];

    /// containerd's names for these directories; tools look there.
    fn directory(self) -> &'static str {
        match self {
            Kind::Task => "io.containerd.runtime.v2.task",
            Kind::Sandbox => "io.containerd.sandbox.controller.v1.shim",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Kind::Task => "container",
            Kind::Sandbox => "sandbox",
        }
    }

    /// Where all bundles of this kind are.
    pub(crate) fn place(self, state: &Path) -> PathBuf {
        state.join(self.directory())
    }
}

/// The bundle of one container or sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
}

impl Bundle {
    /// The bundle at its place; whether it exists is not looked at.
    pub(crate) fn at(state: &Path, kind: Kind, namespace: &Namespace, id: &str) -> Bundle {
        Bundle { path: kind.place(state).join(namespace.as_str()).join(id) }
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes a bundle with `spec` as its configuration.
    pub(crate) fn create(state: &Path, kind: Kind, subject: (&Namespace, &str), spec: &[u8]) -> Result<Bundle> {
        let (namespace, id) = subject;
        let bundle = Bundle::at(state, kind, namespace, id);
        let failed = |source| Error::io(format!("make the bundle of {} {id:?}", kind.noun()), source);
        match make_directory(&bundle.path, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = kind.place(state).join(namespace.as_str());
                layout::make_passage(&parent).map_err(failed)?;
                make_directory(&bundle.path, 0o700).map_err(failed)?;
            }
            outcome => outcome.map_err(failed)?,
        }
        bundle.fill(spec).map_err(failed)?;
        bundle.open_to_root_of(spec, state).map_err(failed)?;
        Ok(bundle)
    }

    fn fill(&self, spec: &[u8]) -> io::Result<()> {
        // Entered by the container's root, which a user namespace may map to somebody else.
        make_directory(&self.path.join("rootfs"), 0o711)?;
        make_directory(&self.path.join("work"), 0o700)?;
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600).open(self.path.join("config.json"))?.write_all(spec)?;
        let log = self.path.join(LOG);
        rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)?;
        Ok(())
    }

    /// Who is root in the container's user namespace must be able to pass, from the directory of all state down. Where
    /// no container has a user namespace, nobody is.
    fn open_to_root_of(&self, spec: &[u8], state: &Path) -> io::Result<()> {
        let Some(group) = mapped_root_group(spec) else { return Ok(()) };
        layout::make_passage(state)?;
        std::os::unix::fs::chown(&self.path, None, Some(group))?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o710))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Writes down which program the shim is, where containerd writes it: its client's tests read it there.
    pub(crate) fn name_program(&self, program: &Path) -> Result<()> {
        let path = self.path.join("shim-binary-path");
        std::fs::write(&path, program.as_os_str().as_encoded_bytes())
            .map_err(|source| Error::io(format!("write {}", path.display()), source))
    }

    /// Writes down how to find the shim; replaces what was written before, whole.
    pub(crate) fn record(&self, record: &ShimRecord) -> Result<()> {
        let write = || -> io::Result<()> {
            let temporary = self.path.join("shim.json.new");
            std::fs::write(&temporary, serde_json::to_vec(record)?)?;
            std::fs::rename(&temporary, self.path.join("shim.json"))
        };
        write().map_err(|source| Error::io(format!("write {}/shim.json", self.path.display()), source))
    }

    /// What was written down; `None` when nothing was, or nothing that can be read.
    pub(crate) fn recorded(&self) -> Option<ShimRecord> {
        serde_json::from_slice(&std::fs::read(self.path.join("shim.json")).ok()?).ok()
    }

    /// Where its shim listens, as it was written down, or left here by the shim.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        let record = self.recorded()?;
        record.endpoint.or_else(|| self.left_address(&record.program))
    }

    /// The address that the shim itself left here, for a shimd that was killed before it could write it down.
    fn left_address(&self, program: &Path) -> Option<Endpoint> {
        let text = std::fs::read(self.path.join("address")).ok()?;
        Endpoint::parse(&text, &program.to_string_lossy()).ok()
    }

    /// Notes that the kernel killed for memory in the container: whoever asks how it ended is told, also when nobody
    /// listened when it happened.
    pub(crate) fn note_kill_for_memory(&self) -> Result<()> {
        match File::options().create(true).append(true).mode(0o600).open(self.path.join(OOM)) {
            // The bundle is gone: nobody will ask.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => {
                opened.map(drop).map_err(|source| Error::io(format!("write {}/{OOM}", self.path.display()), source))
            }
        }
    }

    pub(crate) fn had_kill_for_memory(&self) -> bool {
        self.path.join(OOM).exists()
    }

    /// Removes the bundle; its name is free at once.
    pub(crate) fn remove(&self, trash: &Trash) -> Result<()> {
        // The shim has unmounted it, unless it died. What is still mounted must not be gone into.
        let rootfs = self.path.join("rootfs");
        loop {
            match detach(&rootfs) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => break,
                Err(error) => return Err(Error::io(format!("unmount {}", rootfs.display()), error)),
            }
        }
        strata_idmap::forget_layers(&self.path.join(LAYERS));
        trash.take(&self.path)
    }
}

/// The bundles of a kind that are there.
pub(crate) fn list(state: &Path, kind: Kind) -> Result<Vec<(Namespace, String)>> {
    let directory = kind.place(state);
    let mut found = Vec::new();
    for namespace in names(&directory)? {
        for id in names(&directory.join(&namespace))? {
            // What shimd did not make it does not touch.
            if let (Ok(namespace), Ok(())) = (Namespace::parse(&namespace), check_identifier(kind.noun(), &id)) {
                found.push((namespace, id));
            }
        }
    }
    Ok(found)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(format!("list {}", directory.display()), error);
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

/// The host's number for group 0 of the container, where a user namespace makes it another one.
fn mapped_root_group(spec: &[u8]) -> Option<u32> {
    #[derive(Default, Deserialize)]
    struct Spec {
        #[serde(default)]
        linux: Linux,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        #[serde(default)]
        gid_mappings: Vec<Mapping>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mapping {
        #[serde(rename = "containerID")]
        container: u32,
        #[serde(rename = "hostID")]
        host: u32,
    }
    // What is wrong with a spec is for the runtime to say.
    let spec: Spec = serde_json::from_slice(spec).ok()?;
    let root = spec.linux.gid_mappings.iter().find(|mapping| mapping.container == 0)?;
    (root.host != 0).then_some(root.host)
}

fn detach(path: &Path) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(mode).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_mapped_root() {
        let spec = |mappings: &str| format!(r#"{{"linux":{{"gidMappings":{mappings}}}}}"#);
        let mapped = spec(r#"[{"containerID":5,"hostID":1,"size":1},{"containerID":0,"hostID":100000,"size":9}]"#);
        assert_eq!(mapped_root_group(mapped.as_bytes()), Some(100_000));
        assert_eq!(mapped_root_group(spec(r#"[{"containerID":0,"hostID":0,"size":9}]"#).as_bytes()), None);
        for without in ["{}", "", "[]", r#"{"linux":{}}"#] {
            assert_eq!(mapped_root_group(without.as_bytes()), None, "{without}");
        }
    }
}
