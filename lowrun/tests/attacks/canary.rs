//! What an attack aims at: a directory of the host that must look the same afterwards.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::stage::Stage;

/// A directory with the files `file` and `ptmx` and the empty directory `dir`.
pub(crate) struct Canary {
    path: PathBuf,
    before: Vec<String>,
}

impl Canary {
    pub(crate) fn new(stage: &Stage) -> Canary {
        Canary::at(stage.dir.path().join("canary"))
    }

    pub(crate) fn at(path: PathBuf) -> Canary {
        lay_out(&path);
        let before = snapshot(&path);
        Canary { path, before }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.path.join("file")
    }

    pub(crate) fn is_hit(&self) -> bool {
        snapshot(&self.path) != self.before
    }

    /// The attack has worked, as it must where nothing protects; puts everything back.
    #[track_caller]
    pub(crate) fn falls(&self) {
        assert!(self.is_hit(), "an attack that does nothing proves nothing");
        std::fs::remove_dir_all(&self.path).unwrap();
        lay_out(&self.path);
        self.is_untouched();
    }

    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!(snapshot(&self.path), self.before);
    }
}

fn lay_out(path: &Path) {
    std::fs::create_dir_all(path.join("dir")).unwrap();
    for name in ["file", "ptmx"] {
        std::fs::write(path.join(name), "host\n").unwrap();
    }
}

/// Path, kind and mode, owner and content of all that is there.
fn snapshot(path: &Path) -> Vec<String> {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let content = if metadata.is_file() { std::fs::read_to_string(path).unwrap() } else { String::new() };
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    let mut lines = vec![format!("{} {mode:o} {uid}:{gid} {content:?}", path.display())];
    if metadata.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        let mut below: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        below.sort();
        lines.extend(below.iter().flat_map(|path| snapshot(path)));
    }
    lines
}
