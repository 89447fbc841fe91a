//! A layer made of what a snapshot holds beyond its parents.
//!
//! With overlayfs that is the upper directory, as it is: its whiteouts become `.wh.` files again. Two whole directories
//! are compared, file by file, and so are two overlays of which none stands on the other.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::compare::{Comparison, Found, Step};
use super::shown::Shown;
use super::tar::write::ArchiveWriter;
use super::tar::{Entry, Kind, Time};
use crate::error::{Error, Result};
use crate::name::Digest;
use crate::snapshot::Mount;
use crate::xattr::{self, Xattrs};

/// Bytes of a file read at once.
const READ_LEN: usize = 128 << 10;
/// overlayfs's own attributes describe its layers, not the files.
pub(super) const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// What a media type asks for; an empty one for gzip, as in containerd.
    pub(crate) fn of(media_type: &str) -> Result<(Packing, &str)> {
        const DEFAULT: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
        Ok(match media_type {
            "" => (Packing::Gzip, DEFAULT),
            DEFAULT | "application/vnd.docker.image.rootfs.diff.tar.gzip" => (Packing::Gzip, media_type),
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                (Packing::Plain, media_type)
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" => (Packing::Zstd, media_type),
            other => return Err(Error::Unimplemented { what: format!("a layer of media type {other:?}") }),
        })
    }
}

/// What a layer is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) now: Shown,
    /// What of `now` was there before; nothing of it becomes part of the layer unless it has changed.
    pub(crate) before: Before,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    /// What is gone becomes a whiteout.
    All(Shown),
    /// It lies beneath: `now` is overlayfs's upper directory, which has the whiteouts. What was copied up into it, and
    /// has not changed, is in it as well.
    Below(Shown),
}

impl Changes {
    /// All that is in `directory`.
    pub(crate) fn all(directory: PathBuf) -> Changes {
        Changes { now: Shown::directory(directory), before: Before::Nothing }
    }

    /// What makes `right` of `left`. No mounts are an empty directory: BuildKit has none below a first layer.
    pub(crate) fn between(left: &[Mount], right: &[Mount]) -> Result<Changes> {
        let (below, above) = (Shown::by(left)?, Shown::by(right)?);
        match (below.layers(), above.layers()) {
            // A first layer is compared with an empty directory.
            ([], [upper]) => Ok(Changes::all(upper.clone())),
            ([below], [upper]) if is_empty(below)? => Ok(Changes::all(upper.clone())),
            (layers, [upper, lower @ ..]) if lower == layers => {
                Ok(Changes { now: Shown::directory(upper.clone()), before: Before::Below(below) })
            }
            _ => Ok(Changes { now: above, before: Before::All(below) }),
        }
    }

    fn compare(&self) -> Result<Comparison> {
        let now = self.now.open()?;
        match &self.before {
            Before::Nothing => Comparison::of(now, None),
            Before::All(before) => Comparison::of(now, Some(before.open()?)),
            // Where an older kernel cannot show so many layers, what was copied up becomes part of the layer.
            Before::Below(below) => match below.open() {
                Ok(below) => Comparison::of_upper(now, below),
                Err(_) => Comparison::of(now, None),
            },
        }
    }

    /// The name of the ingest where nobody gave one: an attempt that was cut off has the same.
    pub(crate) fn name(&self) -> String {
        format!("diff-{}", Digest::from_sha256(&Sha256::digest(format!("{self:?}"))))
    }
}

fn is_empty(path: &Path) -> Result<bool> {
    let failed = |error| Error::io(format!("list {}", path.display()), error);
    let mut entries = std::fs::read_dir(path).map_err(failed)?;
    Ok(entries.next().is_none())
}

/// Writes the layer of `changes` to `out`, packed; gives the digest of the plain archive.
pub(crate) fn pack<W: Write>(changes: &Changes, packing: Packing, out: W) -> Result<Digest> {
    let failed = |error| unwrapped("write a layer", error);
    match packing {
        Packing::Plain => archive(changes, out).map(|(digest, _)| digest),
        Packing::Gzip => {
            let encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            let (digest, encoder) = archive(changes, encoder)?;
            encoder.finish().map_err(failed)?;
            Ok(digest)
        }
        Packing::Zstd => {
            let encoder = zstd::stream::write::Encoder::new(out, 0).map_err(failed)?;
            let (digest, encoder) = archive(changes, encoder)?;
            encoder.finish().map_err(failed)?;
            Ok(digest)
        }
    }
}

fn archive<W: Write>(changes: &Changes, out: W) -> Result<(Digest, W)> {
    let walk = changes.compare()?;
    let hashing = Hashing { out, hasher: Sha256::new() };
    let mut packer = Packer {
        writer: ArchiveWriter::new(hashing),
        is_whole: walk.has_no_before(),
        links: HashMap::new(),
        unchanged: HashMap::new(),
        parents: Vec::new(),
    };
    packer.walk(walk)?;
    let Hashing { out, hasher } = packer.writer.finish().map_err(|error| unwrapped("write a layer", error))?;
    Ok((Digest::from_sha256(&hasher.finalize()), out))
}

struct Hashing<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.out.write(data)?;
        self.hasher.update(&data[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Which file it is. Its device, too: something else may be mounted in the tree.
type FileId = (u64, u64);

fn id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

struct Packer<W> {
    writer: ArchiveWriter<W>,
    /// Nothing was there before: each directory is part of the layer.
    is_whole: bool,
    /// The first path of each file that has several.
    links: HashMap<FileId, Vec<u8>>,
    /// Paths of files that have not changed, but may turn out to be a changed one's under another name.
    unchanged: HashMap<FileId, Vec<Entry>>,
    /// Directories on the way to what is looked at, which are written if anything beneath is.
    parents: Vec<Entry>,
}

impl<W: Write> Packer<W> {
    fn walk(&mut self, mut walk: Comparison) -> Result<()> {
        while let Some(step) = walk.next()? {
            match step {
                Step::Found(name, found) => self.found(&mut walk, &name, &found)?,
                Step::Left(path) => self.leave(&path),
            }
        }
        Ok(())
    }

    fn found(&mut self, walk: &mut Comparison, name: &OsStr, found: &Found) -> Result<()> {
        match (&found.now, &found.before) {
            (Some(now), _) if FileType::from_raw_mode(now.st_mode) == FileType::Directory => {
                self.directory(walk, name, found, now)
            }
            (Some(now), _) if walk.is_unchanged(name, found)? => self.same(&found.path, now),
            (Some(now), _) => match walk.here() {
                Some(parent) => self.other(parent, name, &found.path, now),
                None => Ok(()),
            },
            (None, Some(before)) => self.whiteout(&found.path, before),
            // It went while the directory was looked at.
            (None, None) => Ok(()),
        }
    }

    fn directory(&mut self, walk: &mut Comparison, name: &OsStr, found: &Found, stat: &Stat) -> Result<()> {
        let path = &found.path;
        let is_part = self.is_whole || !walk.is_unchanged(name, found)?;
        walk.enter(name, found)?;
        let (xattrs, is_opaque) = walk.here().map(|inner| xattrs(inner, path)).transpose()?.unwrap_or_default();
        if is_opaque {
            walk.hide_below();
        }
        let entry = Entry { path: [path, b"/".as_slice()].concat(), xattrs, ..base(Kind::Directory, path, stat) };
        if is_part {
            self.write(&entry, &mut io::empty())?;
        } else {
            self.parents.push(entry);
        }
        if is_opaque {
            let mark = Entry { path: [path, b"/.wh..wh..opq".as_slice()].concat(), ..base(Kind::File, path, stat) };
            self.write(&Entry { size: 0, ..mark }, &mut io::empty())?;
        }
        Ok(())
    }

    /// A directory is done. If nothing beneath was written, nor is it.
    fn leave(&mut self, path: &[u8]) {
        if self.parents.last().is_some_and(|parent| parent.path.strip_suffix(b"/") == Some(path)) {
            self.parents.pop();
        }
    }

    /// What has not changed is no part of the layer, unless it is another name of what has.
    fn same(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        if stat.st_nlink < 2 {
            return Ok(());
        }
        let entry = base(Kind::HardLink, path, stat);
        match self.links.get(&id(stat)) {
            Some(first) => {
                let link = first.clone();
                self.write(&Entry { link, ..entry }, &mut io::empty())
            }
            None => {
                self.unchanged.entry(id(stat)).or_default().push(entry);
                Ok(())
            }
        }
    }

    fn other(&mut self, parent: BorrowedFd<'_>, name: &OsStr, path: &[u8], stat: &Stat) -> Result<()> {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.file(parent, name, path, stat),
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice if stat.st_rdev == 0 => return self.whiteout(path, stat),
            FileType::CharacterDevice => Kind::CharDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            FileType::Fifo => Kind::Fifo,
            // A socket means nothing without the process that made it.
            _ => return Ok(()),
        };
        let mut entry = base(kind, path, stat);
        if entry.kind == Kind::Symlink {
            let target = rustix::fs::readlinkat(parent, name, Vec::new());
            entry.link = target.map_err(|error| failed("read the link", path, error))?.into_bytes();
        }
        if self.is_written_already(&mut entry, path, stat) {
            return self.write(&entry, &mut io::empty());
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle =
            rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
        entry.xattrs = xattrs(handle.as_fd(), path)?.0;
        self.write(&entry, &mut io::empty())?;
        self.earlier_names(path, stat)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &OsStr, path: &[u8], stat: &Stat) -> Result<()> {
        let mut entry = Entry { size: stat.st_size as u64, ..base(Kind::File, path, stat) };
        if self.is_written_already(&mut entry, path, stat) {
            return self.write(&entry, &mut io::empty());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
        entry.xattrs = xattrs(file.as_fd(), path)?.0;
        self.write(&entry, &mut File::from(file))?;
        self.earlier_names(path, stat)
    }

    fn whiteout(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => path.split_at(slash + 1),
            None => (&[][..], path),
        };
        let entry = Entry { path: [parent, b".wh.", name].concat(), mode: 0, ..base(Kind::File, path, stat) };
        self.write(&Entry { size: 0, ..entry }, &mut io::empty())
    }

    /// The names that come before a file's first changed one.
    fn earlier_names(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        for entry in self.unchanged.remove(&id(stat)).unwrap_or_default() {
            self.write(&Entry { link: path.to_vec(), ..entry }, &mut io::empty())?;
        }
        Ok(())
    }

    /// The second and further paths of a file become links to the first.
    fn is_written_already(&mut self, entry: &mut Entry, path: &[u8], stat: &Stat) -> bool {
        if stat.st_nlink < 2 {
            return false;
        }
        if let Some(first) = self.links.get(&id(stat)) {
            entry.kind = Kind::HardLink;
            entry.link.clone_from(first);
            entry.size = 0;
            return true;
        }
        self.links.insert(id(stat), path.to_vec());
        false
    }

    fn write(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        for parent in std::mem::take(&mut self.parents) {
            self.write(&parent, &mut io::empty())?;
        }
        let mut write = || -> io::Result<()> {
            self.writer.begin(entry)?;
            let mut buffer = vec![0; READ_LEN.min(entry.size as usize)];
            let mut left = entry.size;
            while left > 0 {
                let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let count = data.read(&mut buffer[..most])?;
                // A file that shrinks while it is read is filled up: its header has gone out already.
                let chunk = if count == 0 {
                    buffer[..most].fill(0);
                    &buffer[..most]
                } else {
                    &buffer[..count]
                };
                self.writer.data(chunk)?;
                left -= chunk.len() as u64;
            }
            self.writer.end(entry.size)
        };
        write().map_err(|error| unwrapped(&format!("pack {}", entry.shown()), error))
    }
}

fn base(kind: Kind, path: &[u8], stat: &Stat) -> Entry {
    Entry {
        path: path.to_vec(),
        link: Vec::new(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        // Whole seconds, as containerd writes them.
        modified: Time { seconds: stat.st_mtime, nanoseconds: 0 },
        size: 0,
        extents: None,
        xattrs: Vec::new(),
    }
}

/// The attributes of a file, without overlayfs's own; and whether those say that it is opaque.
fn xattrs(file: BorrowedFd<'_>, path: &[u8]) -> Result<(Xattrs, bool)> {
    let all = xattr::all(file).map_err(|error| failed("read the attributes of", path, error))?;
    let (marks, own): (Xattrs, Xattrs) = all.into_iter().partition(|(name, _)| name.starts_with(OVERLAY_XATTRS));
    let is_opaque = marks.iter().any(|(name, value)| name == b"trusted.overlay.opaque" && value == b"y");
    Ok((own, is_opaque))
}

pub(super) fn failed(attempted: &str, path: &[u8], error: Errno) -> Error {
    Error::io(format!("{attempted} {:?} of a snapshot", String::from_utf8_lossy(path)), error)
}

/// An error of ours that came through a writer, or one of the system.
fn unwrapped(attempted: &str, error: io::Error) -> Error {
    match error.downcast::<super::stream::Failure>() {
        Ok(failure) => failure.into_error(),
        Err(error) => Error::io(attempted, error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::diff::tar::Archive;

    fn mount(kind: &str, source: &str, options: &str) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.split(',').map(str::to_owned).collect(),
        }
    }

    #[test]
    fn one_layer_on_top_of_another() {
        let view = |lower: &str| vec![mount("overlay", "overlay", &format!("lowerdir={lower}"))];
        let active = vec![mount("overlay", "overlay", "workdir=/w,upperdir=/u,lowerdir=/b:/a")];
        let bind = |source: &str| vec![mount("bind", source, "ro")];
        let all = |path: &str| Changes::all(path.into());
        let above = |upper: &str, lower: &[Mount]| Changes {
            now: Shown::directory(upper.into()),
            before: Before::Below(Shown::by(lower).unwrap()),
        };
        assert_eq!(Changes::between(&view("/b:/a"), &active).unwrap(), above("/u", &view("/b:/a")));
        assert_eq!(Changes::between(&bind("/a"), &view("/b:/a")).unwrap(), above("/b", &bind("/a")));
        assert_eq!(Changes::between(&[], &bind("/a")).unwrap(), all("/a"));
        let two = [mount("bind", "/a", "ro"), mount("bind", "/b", "ro")];
        assert!(Changes::between(&two, &active).is_err());
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Changes::between(&bind(empty.path().to_str().unwrap()), &bind("/a")).unwrap(), all("/a"));
        assert_eq!(Changes::between(&bind("/usr"), &bind("/b")).unwrap(), between("/usr", "/b"));
    }

    fn between(before: impl Into<PathBuf>, now: impl Into<PathBuf>) -> Changes {
        Changes { now: Shown::directory(now.into()), before: Before::All(Shown::directory(before.into())) }
    }

    #[test]
    fn stacks_of_which_none_stands_on_the_other_are_compared_as_they_show() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (layer, file) in [("base", "a"), ("base", "b"), ("left", "l"), ("right", "r")] {
            std::fs::create_dir_all(at(layer)).unwrap();
            std::fs::write(at(layer).join(file), file).unwrap();
        }
        // The right one has removed `a`.
        let whiteout = at("right").join("a");
        let made = rustix::fs::mknodat(rustix::fs::CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0);
        if made.is_err() {
            return eprintln!("skipped: no whiteout can be made here");
        }
        let show = |upper: &str| {
            let (upper, base) = (at(upper), at("base"));
            [mount("overlay", "overlay", &format!("upperdir={},lowerdir={}", upper.display(), base.display()))]
        };
        let compare = |left: &[Mount], right: &[Mount]| packed(&Changes::between(left, right).unwrap());
        let of = |name: &str, size| listed(name, Kind::File, "", size);
        assert_eq!(compare(&show("left"), &show("right")), [of(".wh.a", 0), of(".wh.l", 0), of("r", 1)]);
        assert_eq!(compare(&show("right"), &show("right")), []);
        assert_eq!(compare(&[], &show("right")), [of("b", 1), of("r", 1)]);
        assert_eq!(compare(&show("right"), &[]), [of(".wh.b", 0), of(".wh.r", 0)]);
        assert_eq!(compare(&[], &[]), []);
    }

    #[test]
    fn what_was_copied_up_and_has_not_changed_is_no_part() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for path in ["lower/d", "lower/gone", "upper", "work", "merged"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        for file in ["lower/d/same", "lower/d/written", "lower/gone/kept"] {
            std::fs::write(at(file), "old").unwrap();
        }
        let data = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", directory.path().display());
        let Some(mounted) = Mounted::of("overlay", at("merged"), &data) else { return };
        let copy_up = |path: &str| drop(File::options().append(true).open(at(path)).unwrap());
        copy_up("merged/d/same");
        std::fs::write(at("merged/d/written"), "new").unwrap();
        copy_up("merged/gone/kept");
        assert!(at("upper/d/same").exists() && at("upper/gone/kept").exists());
        let layer = |path: &str| mount("bind", at(path).to_str().unwrap(), "ro");
        let active = [mount("overlay", "overlay", &data)];
        let changes = Changes::between(&[layer("lower")], &active).unwrap();
        let expected = [listed("d/", Kind::Directory, "", 0), listed("d/written", Kind::File, "", 3)];
        assert_eq!(packed(&changes), expected);
        // Beneath a directory that was made anew nothing shows of what was there.
        std::fs::remove_dir_all(at("merged/gone")).unwrap();
        std::fs::create_dir(at("merged/gone")).unwrap();
        std::fs::write(at("merged/gone/kept"), "old").unwrap();
        let lower = std::fs::metadata(at("lower/gone/kept")).unwrap().modified().unwrap();
        File::options().write(true).open(at("merged/gone/kept")).unwrap().set_modified(lower).unwrap();
        let made = [
            listed("gone/", Kind::Directory, "", 0),
            listed("gone/.wh..wh..opq", Kind::File, "", 0),
            listed("gone/kept", Kind::File, "", 3),
        ];
        assert_eq!(packed(&changes), [&expected[..], &made].concat());
        drop(mounted);
    }

    /// What a layer holds: path, kind, link, size.
    type Listed = (String, Kind, String, u64);

    fn listed(path: &str, kind: Kind, link: &str, size: u64) -> Listed {
        (path.to_owned(), kind, link.to_owned(), size)
    }

    fn packed(changes: &Changes) -> Vec<Listed> {
        let mut bytes = Vec::new();
        let digest = pack(changes, Packing::Plain, &mut bytes).unwrap();
        assert_eq!(digest, Digest::from_sha256(&Sha256::digest(&bytes)));
        let mut archive = Archive::new(io::Cursor::new(bytes));
        let mut seen = Vec::new();
        while let Some(entry) = archive.next_entry().unwrap() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            seen.push((text(&entry.path), entry.kind, text(&entry.link), entry.size));
        }
        seen
    }

    #[test]
    fn what_has_changed_becomes_entries() {
        let (before, now) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let changes = between(before.path(), now.path());
        let was = |path: &str| before.path().join(path);
        for directory in ["a", "dir", "gone/inner", "still/inner", "to-file"] {
            std::fs::create_dir_all(was(directory)).unwrap();
        }
        for file in ["a/same", "a/written", "gone/inner/f", "link-1", "still/inner/f", "to-dir", "to-file/f"] {
            std::fs::write(was(file), "old").unwrap();
        }
        std::fs::hard_link(was("link-1"), was("a/link-0")).unwrap();
        let open = |path: &std::path::Path| OwnedFd::from(File::open(path).unwrap());
        crate::tree::copy::copy(open(before.path()), open(now.path())).unwrap();
        assert!(packed(&changes).is_empty());
        let is = |path: &str| now.path().join(path);
        std::fs::write(is("a/written"), "new").unwrap();
        std::fs::remove_dir_all(is("gone")).unwrap();
        std::fs::remove_file(is("to-dir")).unwrap();
        std::fs::create_dir(is("to-dir")).unwrap();
        std::fs::remove_dir_all(is("to-file")).unwrap();
        std::fs::write(is("to-file"), "new").unwrap();
        std::fs::hard_link(is("link-1"), is("link-2")).unwrap();
        std::fs::remove_file(is("still/inner/f")).unwrap();
        let expected = [
            listed("a/", Kind::Directory, "", 0),
            listed("a/written", Kind::File, "", 3),
            listed(".wh.gone", Kind::File, "", 0),
            listed("link-2", Kind::File, "", 3),
            listed("a/link-0", Kind::HardLink, "link-2", 0),
            listed("link-1", Kind::HardLink, "link-2", 0),
            listed("still/", Kind::Directory, "", 0),
            listed("still/inner/", Kind::Directory, "", 0),
            listed("still/inner/.wh.f", Kind::File, "", 0),
            listed("to-dir/", Kind::Directory, "", 0),
            listed("to-file", Kind::File, "", 3),
        ];
        assert_eq!(packed(&changes), expected);
    }

    /// Counts now and then how many descriptors lead beneath a directory.
    struct Counting<'a> {
        beneath: &'a std::path::Path,
        writes: usize,
        most: usize,
    }

    impl Write for Counting<'_> {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.writes += 1;
            if !self.writes.is_multiple_of(200) {
                return Ok(data.len());
            }
            let links = std::fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.path().read_link().ok());
            self.most = self.most.max(links.filter(|link| link.starts_with(self.beneath)).count());
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn deep_directories_take_few_descriptors() {
        let (before, now) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let changes = between(before.path(), now.path());
        let deep = vec!["d"; 1000].join("/");
        for place in [&before, &now] {
            std::fs::create_dir_all(place.path().join(&deep)).unwrap();
        }
        // What comes after the deepest is found again on the way up.
        let names = [deep.as_str(), &deep[..deep.len() / 2], "d"].map(|path| format!("{path}/last"));
        for name in &names {
            std::fs::write(now.path().join(name), "new").unwrap();
        }
        let files: Vec<_> = packed(&changes).into_iter().filter(|entry| entry.1 == Kind::File).collect();
        assert_eq!(files, names.map(|name| listed(&name, Kind::File, "", 3)));
        let mut out = Counting { beneath: now.path(), writes: 0, most: 0 };
        pack(&changes, Packing::Plain, &mut out).unwrap();
        assert!((2..100).contains(&out.most), "{}", out.most);
    }

    /// Something mounted, until the end of a test.
    struct Mounted(PathBuf);

    impl Mounted {
        fn at(path: PathBuf) -> Option<Mounted> {
            Mounted::of("tmpfs", path, "")
        }

        fn of(kind: &str, path: PathBuf, data: &str) -> Option<Mounted> {
            let data = std::ffi::CString::new(data).unwrap();
            let none = rustix::mount::MountFlags::empty();
            let mounted = rustix::mount::mount("test", &path, kind, none, data.as_c_str());
            let mounted = mounted.inspect_err(|error| eprintln!("skipped: nothing can be mounted here: {error}"));
            mounted.ok().map(|()| Mounted(path))
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[test]
    fn what_is_mounted_in_a_tree_is_part_of_the_layer() {
        let now = tempfile::tempdir().unwrap();
        for directory in ["a", "b"] {
            std::fs::create_dir(now.path().join(directory)).unwrap();
        }
        let mounted = ["a", "b"].map(|name| Mounted::at(now.path().join(name)));
        if mounted.iter().any(Option::is_none) {
            return;
        }
        // The same inodes in both, found after a way down that is longer than directories are kept open.
        let deep = vec!["d"; 30].join("/");
        let file = |name: &str| listed(name, Kind::File, "", 4);
        for name in ["a", "b"] {
            std::fs::create_dir_all(now.path().join(name).join(&deep)).unwrap();
            std::fs::write(now.path().join(name).join("f"), "data").unwrap();
            std::fs::hard_link(now.path().join(name).join("f"), now.path().join(name).join("g")).unwrap();
        }
        let files = packed(&Changes::all(now.path().to_owned()));
        let files: Vec<_> = files.into_iter().filter(|entry| entry.1 != Kind::Directory).collect();
        let link = |name: &str, to: &str| listed(name, Kind::HardLink, to, 0);
        assert_eq!(files, [file("a/f"), link("a/g", "a/f"), file("b/f"), link("b/g", "b/f")]);
    }

    #[test]
    fn a_time_that_was_set_back_hides_no_change() {
        let (before, now) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let changes = between(before.path(), now.path());
        for (place, data) in [(&before, "old"), (&now, "new")] {
            let file = File::create(place.path().join("f")).unwrap();
            (&file).write_all(data.as_bytes()).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(7)).unwrap();
        }
        assert_eq!(packed(&changes), [listed("f", Kind::File, "", 3)]);
    }

    #[test]
    fn files_become_entries() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/f"), "data").unwrap();
        std::fs::hard_link(at("d/f"), at("g")).unwrap();
        std::os::unix::fs::symlink("d/f", at("s")).unwrap();
        let expected = [
            listed("d/", Kind::Directory, "", 0),
            listed("d/f", Kind::File, "", 4),
            listed("g", Kind::HardLink, "d/f", 0),
            listed("s", Kind::Symlink, "d/f", 0),
        ];
        assert_eq!(packed(&Changes::all(directory.path().to_owned())), expected);
    }
}
