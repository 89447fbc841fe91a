//! A layer made of what a snapshot holds beyond its parents.
//!
//! With overlayfs that is the upper directory, as it is: its whiteouts become `.wh.` files again. So what is asked for
//! must be one layer on top of the other side: any two of our own snapshots of which one stands on the other.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::tar::write::ArchiveWriter;
use super::tar::{Entry, Kind, Time};
use crate::error::{Error, Result};
use crate::name::Digest;
use crate::snapshot::Mount;

/// Bytes of a file read at once.
const READ_LEN: usize = 128 << 10;
/// overlayfs's own attributes describe its layers, not the files.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";
const XATTR_MAX: usize = 64 << 10;

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

/// The directory whose contents are the difference between `left` and `right`.
pub(crate) fn upper(left: &[Mount], right: &[Mount]) -> Result<PathBuf> {
    let (below, above) = (layers(left)?, layers(right)?);
    match above.as_slice() {
        [upper, lower @ ..] if lower == below.as_slice() => Ok(upper.into()),
        // A first layer is compared with an empty directory.
        [upper] if below.len() == 1 && is_empty(&below[0])? => Ok(upper.into()),
        _ => Err(Error::Unimplemented {
            what: "compare snapshots of which one is not a layer on top of the other".to_owned(),
        }),
    }
}

/// Directories that mounts show, the nearest first.
fn layers(mounts: &[Mount]) -> Result<Vec<String>> {
    let [mount] = mounts else {
        return Err(Error::invalid("mounts to compare", "there must be exactly one on each side"));
    };
    let option = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
    match mount.kind.as_str() {
        "bind" => Ok(vec![mount.source.clone()]),
        "overlay" => {
            let lower = option("lowerdir").unwrap_or_default().split(':').filter(|path| !path.is_empty());
            Ok(option("upperdir").into_iter().chain(lower).map(str::to_owned).collect())
        }
        other => Err(Error::Unimplemented { what: format!("compare mounts of type {other:?}") }),
    }
}

fn is_empty(path: &str) -> Result<bool> {
    let mut entries = std::fs::read_dir(path).map_err(|error| Error::io(format!("list {path}"), error))?;
    Ok(entries.next().is_none())
}

/// Writes the layer in `directory` to `out`, packed; gives the digest of the plain archive.
pub(crate) fn pack<W: Write>(directory: &Path, packing: Packing, out: W) -> Result<Digest> {
    let failed = |error| unwrapped("write a layer", error);
    match packing {
        Packing::Plain => archive(directory, out).map(|(digest, _)| digest),
        Packing::Gzip => {
            let encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            let (digest, encoder) = archive(directory, encoder)?;
            encoder.finish().map_err(failed)?;
            Ok(digest)
        }
        Packing::Zstd => {
            let encoder = zstd::stream::write::Encoder::new(out, 0).map_err(failed)?;
            let (digest, encoder) = archive(directory, encoder)?;
            encoder.finish().map_err(failed)?;
            Ok(digest)
        }
    }
}

fn archive<W: Write>(directory: &Path, out: W) -> Result<(Digest, W)> {
    let root = File::open(directory)
        .map(OwnedFd::from)
        .map_err(|error| Error::io(format!("open {}", directory.display()), error))?;
    let hashing = Hashing { out, hasher: Sha256::new() };
    let mut packer = Packer { writer: ArchiveWriter::new(hashing), links: HashMap::new() };
    packer.walk(root)?;
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

struct Packer<W> {
    writer: ArchiveWriter<W>,
    /// The first path of each file that has several.
    links: HashMap<u64, Vec<u8>>,
}

/// A directory that is being gone through, in order of names.
struct Level {
    handle: OwnedFd,
    path: Vec<u8>,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn open(handle: OwnedFd, path: Vec<u8>) -> Result<Level> {
        let names = names(&handle).map_err(|error| failed("list", &path, error))?;
        Ok(Level { handle, path, names: names.into_iter() })
    }

    fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [self.path.as_slice(), b"/", name].concat() }
    }
}

/// Sorted: the same files make the same layer.
fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

impl<W: Write> Packer<W> {
    fn walk(&mut self, root: OwnedFd) -> Result<()> {
        let mut levels = vec![Level::open(root, Vec::new())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = level.join(name.as_bytes());
            let stat = rustix::fs::statat(&level.handle, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed("look at", &path, error))?;
            let handle = level.handle.as_fd();
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let directory = self.directory(handle, &name, &path, &stat)?;
                levels.push(Level::open(directory, path)?);
            } else {
                self.other(handle, &name, &path, &stat)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &OsString, path: &[u8], stat: &Stat) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
        let (xattrs, is_opaque) = xattrs(directory.as_fd(), path)?;
        let entry = Entry { path: [path, b"/"].concat(), xattrs, ..base(Kind::Directory, path, stat) };
        self.write(&entry, &mut io::empty())?;
        if is_opaque {
            let mark = Entry { path: [path, b"/.wh..wh..opq"].concat(), ..base(Kind::File, path, stat) };
            self.write(&Entry { size: 0, ..mark }, &mut io::empty())?;
        }
        Ok(directory)
    }

    fn other(&mut self, parent: BorrowedFd<'_>, name: &OsString, path: &[u8], stat: &Stat) -> Result<()> {
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
        self.write(&entry, &mut io::empty())
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &OsString, path: &[u8], stat: &Stat) -> Result<()> {
        let mut entry = Entry { size: stat.st_size as u64, ..base(Kind::File, path, stat) };
        if self.is_written_already(&mut entry, path, stat) {
            return self.write(&entry, &mut io::empty());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
        entry.xattrs = xattrs(file.as_fd(), path)?.0;
        self.write(&entry, &mut File::from(file))
    }

    fn whiteout(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => path.split_at(slash + 1),
            None => (&[][..], path),
        };
        let entry = Entry { path: [parent, b".wh.", name].concat(), mode: 0, ..base(Kind::File, path, stat) };
        self.write(&Entry { size: 0, ..entry }, &mut io::empty())
    }

    /// The second and further paths of a file become links to the first.
    fn is_written_already(&mut self, entry: &mut Entry, path: &[u8], stat: &Stat) -> bool {
        if stat.st_nlink < 2 {
            return false;
        }
        if let Some(first) = self.links.get(&stat.st_ino) {
            entry.kind = Kind::HardLink;
            entry.link.clone_from(first);
            entry.size = 0;
            return true;
        }
        self.links.insert(stat.st_ino, path.to_vec());
        false
    }

    fn write(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<()> {
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

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes of a file, without overlayfs's own; and whether those say that it is opaque.
fn xattrs(file: BorrowedFd<'_>, path: &[u8]) -> Result<(Xattrs, bool)> {
    // By its name in /proc: the handle may be one that opens nothing.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    read_xattrs(&name).map_err(|error| failed("read the attributes of", path, error))
}

fn read_xattrs(name: &str) -> rustix::io::Result<(Xattrs, bool)> {
    let mut list = vec![0; XATTR_MAX];
    let length = match rustix::fs::listxattr(name, &mut list) {
        Err(Errno::OPNOTSUPP) => return Ok((Vec::new(), false)),
        outcome => outcome?,
    };
    let mut found = Vec::new();
    let mut is_opaque = false;
    let mut value = vec![0; if length > 0 { XATTR_MAX } else { 0 }];
    for key in list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        let length = rustix::fs::getxattr(name, std::ffi::OsStr::from_bytes(key), &mut value)?;
        if key.starts_with(OVERLAY_XATTRS) {
            is_opaque |= key == b"trusted.overlay.opaque" && value[..length] == *b"y";
        } else {
            found.push((key.to_vec(), value[..length].to_vec()));
        }
    }
    Ok((found, is_opaque))
}

fn failed(attempted: &str, path: &[u8], error: Errno) -> Error {
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
        assert_eq!(upper(&view("/b:/a"), &active).unwrap(), PathBuf::from("/u"));
        assert_eq!(upper(&[mount("bind", "/a", "ro")], &view("/b:/a")).unwrap(), PathBuf::from("/b"));
        assert!(upper(&view("/c:/a"), &active).is_err());
        assert!(upper(&[], &active).is_err());
        let empty = tempfile::tempdir().unwrap();
        let nothing = vec![mount("bind", empty.path().to_str().unwrap(), "ro")];
        assert_eq!(upper(&nothing, &[mount("bind", "/a", "ro")]).unwrap(), PathBuf::from("/a"));
    }

    #[test]
    fn files_become_entries() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/f"), "data").unwrap();
        std::fs::hard_link(at("d/f"), at("g")).unwrap();
        std::os::unix::fs::symlink("d/f", at("s")).unwrap();
        let mut bytes = Vec::new();
        let digest = pack(directory.path(), Packing::Plain, &mut bytes).unwrap();
        assert_eq!(digest, Digest::from_sha256(&Sha256::digest(&bytes)));
        let mut archive = Archive::new(io::Cursor::new(bytes));
        let mut seen = Vec::new();
        while let Some(entry) = archive.next_entry().unwrap() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            seen.push((text(&entry.path), entry.kind, text(&entry.link), entry.size));
        }
        let entry = |path: &str, kind, link: &str, size| (path.to_owned(), kind, link.to_owned(), size);
        let expected = [
            entry("d/", Kind::Directory, "", 0),
            entry("d/f", Kind::File, "", 4),
            entry("g", Kind::HardLink, "d/f", 0),
            entry("s", Kind::Symlink, "d/f", 0),
        ];
        assert_eq!(seen, expected);
    }
}
