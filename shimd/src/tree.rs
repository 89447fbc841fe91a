//! Whole trees of files: removed, measured and copied, on handles, without following a link and without recursion (the
//! depth of a tree is an image's choice).

pub(crate) mod copy;
mod names;
pub(crate) mod walk;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::db::record::Usage;
use walk::Walk;

/// Directories that are open at once while a tree is removed. What lies deeper is first moved up: a container can make
/// directories deeper than any number of descriptors.
const DEPTH_MAX: usize = 64;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes the tree at `path`; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> rustix::io::Result<()> {
    remove_in_moves(path, u64::MAX)
}

/// The same, but `ENOTEMPTY` where so many directories have been moved up and there are more: somebody may make them as
/// quickly as they go.
pub(crate) fn remove_in_moves(path: &Path, most: u64) -> rustix::io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    match rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => remove_at_in_moves(parent.as_fd(), name, most),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what is called `name` in `directory`, with everything beneath it; if it is not there that is fine.
pub(crate) fn remove_at(directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    remove_at_in_moves(directory, name, u64::MAX)
}

fn remove_at_in_moves(directory: BorrowedFd<'_>, name: &OsStr, most: u64) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    let mut moves = Moves { made: 0, most, last: 0 };
    loop {
        let before = moves.made;
        empty(directory, name, &mut moves)?;
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // What was moved up may not have been seen. Other things somebody puts there as they go.
            Err(Errno::NOTEMPTY) if moves.made > before => {}
            Err(error) => return Err(error),
        }
    }
}

/// Of directories that are too deep.
struct Moves {
    made: u64,
    most: u64,
    /// The number in the last one's name.
    last: u64,
}

fn empty(directory: BorrowedFd<'_>, name: &OsStr, moves: &mut Moves) -> rustix::io::Result<()> {
    // Each level is one that is being emptied, with the name by which its parent knows it.
    let mut levels = vec![Level::open(directory, name)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.next() else {
            remove_emptied(&mut levels)?;
            continue;
        };
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match rustix::fs::unlinkat(level.entries.fd()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) if levels.len() < DEPTH_MAX => {
                let inner = Level::open(levels[levels.len() - 1].entries.fd()?, name)?;
                levels.push(inner);
            }
            Err(Errno::ISDIR) => move_up(&levels, name, moves)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn move_up(levels: &[Level], name: &OsStr, moves: &mut Moves) -> rustix::io::Result<()> {
    if moves.made == moves.most {
        return Err(Errno::NOTEMPTY);
    }
    moves.made += 1;
    let (top, deepest) = (levels[0].entries.fd()?, levels[levels.len() - 1].entries.fd()?);
    loop {
        moves.last += 1;
        let free = format!(".moved-{}", moves.last);
        match rustix::fs::renameat_with(deepest, name, top, free.as_str(), RenameFlags::NOREPLACE) {
            // Of an earlier pass, or by somebody who wants to be in the way.
            Err(Errno::EXIST) => {}
            outcome => return outcome,
        }
    }
}

/// The last level is empty: its parent removes it.
fn remove_emptied(levels: &mut Vec<Level>) -> rustix::io::Result<()> {
    let Some(done) = levels.pop() else { return Ok(()) };
    match levels.last() {
        Some(parent) => match rustix::fs::unlinkat(parent.entries.fd()?, &done.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            outcome => outcome,
        },
        None => Ok(()),
    }
}

struct Level {
    entries: Dir,
    name: OsString,
}

impl Level {
    fn open(directory: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Level> {
        Ok(Level { entries: Dir::new(walk::open(directory, name)?)?, name: name.to_owned() })
    }
}

/// What the tree at `path` takes on disk; a file with several links counts once.
pub(crate) fn usage(path: &Path) -> rustix::io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let top = rustix::fs::open(path, OPEN_DIRECTORY, Mode::empty())?;
    add(&rustix::fs::fstat(&top)?, &mut usage, &mut linked);
    let mut walk = Walk::from([Some(top)])?;
    while !walk.is_over() {
        let name = match walk.next() {
            // A running container may remove its files while they are counted.
            Ok(None) | Err(Errno::NOENT) => {
                walk.leave();
                continue;
            }
            name => name?.unwrap_or_default(),
        };
        match measure(&mut walk, &name, &mut usage, &mut linked) {
            // What is mounted there is not this tree's.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(usage)
}

fn measure(walk: &mut Walk<1>, name: &OsStr, usage: &mut Usage, linked: &mut HashSet<u64>) -> rustix::io::Result<()> {
    let Some(directory) = walk.here(0) else { return Ok(()) };
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    add(&stat, usage, linked);
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { walk.enter(name, [true]) } else { Ok(()) }
}

fn add(stat: &rustix::fs::Stat, usage: &mut Usage, linked: &mut HashSet<u64>) {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if is_directory || stat.st_nlink == 1 || linked.insert(stat.st_ino) {
        usage.inodes += 1;
        usage.bytes += stat.st_blocks as u64 * 512;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn deep_and_wide_trees_go() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        let mut deep = root.clone();
        for _ in 0..200 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(root.join("d/file"), "x").unwrap();
        std::os::unix::fs::symlink("/", root.join("d/link")).unwrap();
        assert_eq!(usage(&root).unwrap().inodes, 203);
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn what_is_too_deep_for_some_moves_goes_in_several_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        fs::create_dir_all(root.join(vec!["d"; 1000].join("/"))).unwrap();
        let outcomes = std::iter::repeat_with(|| remove_in_moves(&root, 4));
        let refused = outcomes.take_while(|outcome| *outcome == Err(Errno::NOTEMPTY)).count();
        assert!((2..=1000).contains(&refused), "{refused}");
        assert!(!root.exists());
    }

    #[test]
    fn names_beside_a_long_way_down_are_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (root, again) = (directory.path().join("tree"), directory.path().join("copy"));
        let mut at = root.clone();
        for _ in 0..40 {
            fs::create_dir(&at).unwrap();
            for number in 0..20 {
                fs::write(at.join(format!("{number}")), "").unwrap();
            }
            at.push("d");
        }
        fs::create_dir(&again).unwrap();
        let open = |path: &Path| fs::File::open(path).unwrap().into();
        copy::copy(open(&root), open(&again)).unwrap();
        assert_eq!([&root, &again].map(|tree| usage(tree).unwrap().inodes), [40 * 21; 2]);
    }

    #[test]
    fn what_is_too_deep_for_a_path_is_refused_but_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        fs::create_dir(&root).unwrap();
        let mut deepest = rustix::fs::open(&root, OPEN_DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..2100 {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).unwrap();
            deepest = rustix::fs::openat(&deepest, "d", OPEN_DIRECTORY, Mode::empty()).unwrap();
        }
        drop(deepest);
        assert_eq!(usage(&root), Err(Errno::NAMETOOLONG));
        remove(&root).unwrap();
        assert!(!root.exists());
    }
}
