//! A tree of files in words: all that an archive can say of each.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Paths (lossy, `.` for the root), and what is there.
pub(crate) type Tree = BTreeMap<String, String>;

pub(crate) fn look(root: &Path) -> Tree {
    let mut found = vec![root.to_path_buf()];
    let mut at = 0;
    while at < found.len() {
        if fs::symlink_metadata(&found[at]).expect("it is there").is_dir() {
            let mut entries: Vec<_> = fs::read_dir(&found[at]).expect("a directory").flatten().collect();
            entries.sort_by_key(fs::DirEntry::file_name);
            found.extend(entries.into_iter().map(|entry| entry.path()));
        }
        at += 1;
    }
    found.sort();
    let mut links = HashMap::new();
    let mut tree = Tree::new();
    for path in found {
        let name = path.strip_prefix(root).expect("it is below").to_string_lossy().into_owned();
        let name = if name.is_empty() { ".".to_owned() } else { name };
        let words = describe(&path, &name, &mut links);
        tree.insert(name, words);
    }
    tree
}

fn describe(path: &Path, name: &str, links: &mut HashMap<u64, String>) -> String {
    let data = fs::symlink_metadata(path).expect("it is there");
    let mut words =
        format!("{:o} {}:{} {}.{:09}", data.mode(), data.uid(), data.gid(), data.mtime(), data.mtime_nsec());
    if data.is_file() {
        let first = links.entry(data.ino()).or_insert_with(|| name.to_owned());
        words += &format!(" {} {} bytes {}", first, data.len(), crate::digest(&fs::read(path).expect("a file")));
        let is_sparse = data.len() > 1 << 20 && data.blocks() * 512 < data.len() / 4;
        words += if is_sparse { " sparse" } else { "" };
    } else if data.is_symlink() {
        words += &format!(" -> {:?}", fs::read_link(path).expect("a link"));
    } else if !data.is_dir() {
        words += &format!(" device {:x}", data.rdev());
    }
    for (name, value) in attributes(path) {
        words += &format!(" {name}={value}");
    }
    words
}

/// Extended attributes, but for those that a file system has of its own.
fn attributes(path: &Path) -> Vec<(String, String)> {
    let mut list = vec![0; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut list[..]) else { return Vec::new() };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0; 4096];
        let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value[..]) else { continue };
        found.push((name.to_string_lossy().into_owned(), format!("{:02x?}", &value[..length])));
    }
    found.sort();
    found
}
