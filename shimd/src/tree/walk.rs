//! The way through a tree, or through several side by side, name by name, with few descriptors and without recursion.
//!
//! The deepest directories on the way are open, and the top. Those between were closed when the way led down from them,
//! and are opened by their path when it leads back up. So whoever moves a directory away meanwhile may end a walk. What
//! is deeper than a path can be long is not entered: it could not be named in a layer, and nobody could open it.
//!
//! Names are read as they are wanted. Of a directory that is closed the rest of them is held, and all where they shall
//! come in order, up to [`HELD_MAX`] and [`SORTED_MAX`]: a container can make more of them than there is memory. What
//! has more is refused with `ENOMEM`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{Dir, Mode, ResolveFlags};
use rustix::io::Errno;

use super::OPEN_DIRECTORY;
use super::names::Names;

/// Directories that are open at once on each side, beside the top.
const OPEN_MAX: usize = 16;
/// Bytes of a path, with the one that ends it.
const PATH_MAX: usize = 4096;
/// Bytes of names that are held of all directories which are closed.
const HELD_MAX: usize = 128 << 20;
/// Bytes of names that are held where they come in order: of all directories on the way.
const SORTED_MAX: usize = 512 << 20;

/// A way through trees, of which each is a side.
pub(crate) struct Walk<const SIDES: usize> {
    manner: Manner,
    /// Bytes of names that may still be held.
    room: usize,
    /// The top first.
    levels: Vec<Level<SIDES>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Names as they come on the first side, which has all.
    AsTheyCome,
    /// The names of all sides, in order, also of what is mounted in the trees.
    InOrder,
    /// The names of the first side alone, in the same way.
    FirstInOrder,
}

/// A directory on the way, on each side where there is one.
type Directories<const SIDES: usize> = [Option<OwnedFd>; SIDES];

struct Level<const SIDES: usize> {
    /// From the top.
    path: Vec<u8>,
    is_on: [bool; SIDES],
    /// None while too many others are open.
    directories: Option<Directories<SIDES>>,
    rest: Rest,
}

/// Names that are still to come.
enum Rest {
    Read(Dir),
    Held(Names),
}

impl<const SIDES: usize> Walk<SIDES> {
    /// Begins at the top; names come as they are on the first side, and on any other side there is nothing that is not
    /// on the first. Nothing that is mounted in the trees is entered.
    pub(crate) fn from(top: Directories<SIDES>) -> rustix::io::Result<Walk<SIDES>> {
        Walk { manner: Manner::AsTheyCome, room: HELD_MAX, levels: Vec::new() }.begun(top)
    }

    /// Begins at the top; the same names come in the same order, each once, if it is on any side. What is mounted in a
    /// tree is taken for a part of it. (containerd fails there, where it binds a snapshot to look at it.)
    pub(crate) fn in_order(top: Directories<SIDES>) -> rustix::io::Result<Walk<SIDES>> {
        Walk { manner: Manner::InOrder, room: SORTED_MAX, levels: Vec::new() }.begun(top)
    }

    /// The same with the names of the first side alone.
    pub(crate) fn first_in_order(top: Directories<SIDES>) -> rustix::io::Result<Walk<SIDES>> {
        Walk { manner: Manner::FirstInOrder, room: SORTED_MAX, levels: Vec::new() }.begun(top)
    }

    fn begun(mut self, top: Directories<SIDES>) -> rustix::io::Result<Walk<SIDES>> {
        self.push(top, Vec::new())?;
        Ok(self)
    }

    /// Whether it has left the top.
    pub(crate) fn is_over(&self) -> bool {
        self.levels.is_empty()
    }

    /// The next name that is in the directory where the walk is; `None` when all have come.
    pub(crate) fn next(&mut self) -> rustix::io::Result<Option<OsString>> {
        if self.levels.last().is_some_and(|level| level.directories.is_none()) {
            self.open_again()?;
        }
        match self.levels.last_mut().map(|level| &mut level.rest) {
            None => Ok(None),
            Some(Rest::Held(names)) => Ok(names.next()),
            Some(Rest::Read(directory)) => Ok(read(directory)?.map(OsString::from_vec)),
        }
    }

    /// The directory where the walk is, on one side; `None` where that has none.
    pub(crate) fn here(&self, side: usize) -> Option<BorrowedFd<'_>> {
        let directories = self.levels.last()?.directories.as_ref()?;
        directories[side].as_ref().map(AsFd::as_fd)
    }

    /// The path of `name` from the top.
    pub(crate) fn path_of(&self, name: &OsStr) -> Vec<u8> {
        match self.levels.last().map(|level| level.path.as_slice()) {
            None | Some(b"") => name.as_bytes().to_vec(),
            Some(path) => [path, b"/", name.as_bytes()].concat(),
        }
    }

    /// Goes down to `name` on those sides, and so on no other that is there.
    pub(crate) fn enter(&mut self, name: &OsStr, sides: [bool; SIDES]) -> rustix::io::Result<()> {
        let path = self.path_of(name);
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut directories = [const { None }; SIDES];
        for side in (0..SIDES).filter(|side| sides[*side]) {
            directories[side] = self.here(side).map(|directory| self.open(directory, name)).transpose()?;
        }
        self.push(directories, path)?;
        match self.levels.len().checked_sub(OPEN_MAX + 1) {
            None | Some(0) => Ok(()),
            Some(far) => self.close(far),
        }
    }

    /// Takes the directory where the walk is, and so all beneath, for one that is not on that side.
    pub(crate) fn forget(&mut self, side: usize) {
        let Some(level) = self.levels.last_mut() else { return };
        level.is_on[side] = false;
        if let Some(directories) = &mut level.directories {
            directories[side] = None;
        }
    }

    /// Goes back up, and gives the path of what it leaves.
    pub(crate) fn leave(&mut self) -> Option<Vec<u8>> {
        let level = self.levels.pop()?;
        if let Rest::Held(names) = &level.rest {
            self.room += names.cost();
        }
        Some(level.path)
    }

    fn push(&mut self, directories: Directories<SIDES>, path: Vec<u8>) -> rustix::io::Result<()> {
        let rest = match self.manner {
            Manner::AsTheyCome => match directories.iter().flatten().next() {
                Some(first) => Rest::Read(Dir::read_from(first)?),
                None => Rest::Held(Names::default()),
            },
            Manner::InOrder | Manner::FirstInOrder => {
                let sides = if self.manner == Manner::InOrder { SIDES } else { 1 };
                let mut names = Names::default();
                for directory in directories.iter().take(sides).flatten() {
                    hold(&mut Dir::read_from(directory)?, &mut names, &mut self.room)?;
                }
                names.sort();
                Rest::Held(names)
            }
        };
        let is_on = directories.each_ref().map(Option::is_some);
        self.levels.push(Level { path, is_on, directories: Some(directories), rest });
        Ok(())
    }

    fn close(&mut self, far: usize) -> rustix::io::Result<()> {
        let level = &mut self.levels[far];
        level.directories = None;
        if let Rest::Read(directory) = &mut level.rest {
            let mut names = Names::default();
            hold(directory, &mut names, &mut self.room)?;
            level.rest = Rest::Held(names);
        }
        Ok(())
    }

    fn open_again(&mut self) -> rustix::io::Result<()> {
        let (Some(last), Some(top)) = (self.levels.last(), self.levels.first()) else { return Ok(()) };
        let mut directories = [const { None }; SIDES];
        for side in (0..SIDES).filter(|side| last.is_on[*side]) {
            let top = top.directories.as_ref().and_then(|top| top[side].as_ref());
            let path = OsStr::from_bytes(&last.path);
            directories[side] = top.map(|top| self.open(top.as_fd(), path)).transpose()?;
        }
        if let Some(last) = self.levels.last_mut() {
            last.directories = Some(directories);
        }
        Ok(())
    }

    fn open(&self, directory: BorrowedFd<'_>, path: &OsStr) -> rustix::io::Result<OwnedFd> {
        match self.manner {
            Manner::AsTheyCome => open(directory, path),
            Manner::InOrder | Manner::FirstInOrder => open_by(directory, path, BENEATH),
        }
    }
}

/// The next name in a directory; one that was removed has none.
fn read(directory: &mut Dir) -> rustix::io::Result<Option<Vec<u8>>> {
    for entry in directory {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn hold(directory: &mut Dir, names: &mut Names, room: &mut usize) -> rustix::io::Result<()> {
    while let Some(name) = read(directory)? {
        *room = room.checked_sub(Names::cost_of(&name)).ok_or(Errno::NOMEM)?;
        if !names.add(&name) {
            return Err(Errno::NOMEM);
        }
    }
    Ok(())
}

/// Over no link.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens what lies beneath a directory: over no link, and never into something that is mounted there, which is not this
/// tree's.
pub(super) fn open(directory: BorrowedFd<'_>, path: &OsStr) -> rustix::io::Result<OwnedFd> {
    open_by(directory, path, BENEATH | ResolveFlags::NO_XDEV)
}

fn open_by(directory: BorrowedFd<'_>, path: &OsStr, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(directory, path, OPEN_DIRECTORY, Mode::empty(), resolve) {
            // Something was renamed meanwhile and the kernel could not be sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::path::Path;

    const NAMES: usize = 100;

    /// Directories in directories, each with as many files.
    fn wide(depth: usize) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut at = directory.path().to_owned();
        for _ in 0..depth {
            for number in 0..NAMES {
                File::create(at.join(format!("{number}"))).unwrap();
            }
            at.push("d");
            fs::create_dir(&at).unwrap();
        }
        directory
    }

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn count(mut walk: Walk<1>) -> rustix::io::Result<usize> {
        let mut count = 0;
        while !walk.is_over() {
            match walk.next()? {
                Some(name) if name == "d" => walk.enter(&name, [true])?,
                Some(_) => count += 1,
                None => drop(walk.leave()),
            }
        }
        Ok(count)
    }

    /// Goes down without asking for all names before.
    fn go_down(mut walk: Walk<1>, depth: usize) -> rustix::io::Result<()> {
        for _ in 0..depth {
            walk.next()?;
            walk.enter(OsStr::new("d"), [true])?;
        }
        Ok(())
    }

    fn walk(top: &Path, room: usize, manner: Manner) -> rustix::io::Result<Walk<1>> {
        Walk { manner, room, levels: Vec::new() }.begun([Some(open(top))])
    }

    #[test]
    fn of_open_directories_no_names_are_held() {
        let tree = wide(OPEN_MAX);
        assert_eq!(count(walk(tree.path(), 0, Manner::AsTheyCome).unwrap()), Ok(OPEN_MAX * NAMES));
        assert_eq!(walk(tree.path(), 200, Manner::InOrder).err(), Some(Errno::NOMEM));
    }

    #[test]
    fn names_beyond_the_bound_are_refused() {
        let depth = OPEN_MAX + 10;
        let tree = wide(depth);
        let all = depth * (NAMES + 1) * Names::cost_of(b"10");
        for manner in [Manner::AsTheyCome, Manner::InOrder] {
            assert_eq!(count(walk(tree.path(), all, manner).unwrap()), Ok(depth * NAMES));
            let one = NAMES * Names::cost_of(b"10");
            assert_eq!(walk(tree.path(), one, manner).and_then(|walk| go_down(walk, depth)), Err(Errno::NOMEM));
        }
        // What was held of a directory that is left is held no more.
        let mut all = walk(tree.path(), all, Manner::InOrder).unwrap();
        let before = all.room;
        all.enter(OsStr::new("d"), [true]).unwrap();
        assert!(all.room < before);
        all.leave();
        assert_eq!(all.room, before);
    }
}
