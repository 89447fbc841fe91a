//! Archives, honest and hostile, unpacked for real. Owners, devices and trusted attributes need root: without it the
//! tests say that they were skipped.

use std::fs;
use std::io::{self, Cursor};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ::tar::{Builder, EntryType, Header};

use super::*;

/// An archive in the making.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn add(mut self, kind: EntryType, path: &str, link: &str, mode: u32, data: &[u8]) -> Layer {
        let mut header = Header::new_gnu();
        // Written raw: the crate itself refuses hostile names.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Layer {
        self.add(EntryType::Regular, path, "", 0o644, data)
    }

    fn dir(self, path: &str) -> Layer {
        self.add(EntryType::Directory, path, "", 0o755, b"")
    }

    fn symlink(self, path: &str, link: &str) -> Layer {
        self.add(EntryType::Symlink, path, link, 0o777, b"")
    }

    fn hard_link(self, path: &str, link: &str) -> Layer {
        self.add(EntryType::Link, path, link, 0o644, b"")
    }

    fn xattr(mut self, name: &str, value: &[u8]) -> Layer {
        self.0.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)]).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A layer's root, with a directory beside it in which nothing may change.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/canary"), "alive").unwrap();
        fs::set_permissions(directory.path().join("outside"), fs::Permissions::from_mode(0o700)).unwrap();
        Place { directory }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path)
    }

    fn unpack_with(&self, layer: Vec<u8>, lower: Lower, whiteouts: Whiteouts) -> Result<Report> {
        let root = open(&self.at(""));
        // The thread's umask changes for good.
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    crate::sys::private_umask().unwrap();
                    unpack(&mut Archive::new(Cursor::new(layer)), root, lower, whiteouts)
                })
                .join()
                .unwrap()
        })
    }

    fn unpack(&self, layer: Layer) -> Result<Report> {
        self.unpack_with(layer.bytes(), Lower::Known(Vec::new()), Whiteouts::Overlay)
    }

    fn assert_outside_untouched(&self) {
        let outside = self.directory.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "alive");
        let meta = fs::metadata(&outside).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o700, own_uid()));
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// Whether the test can run; says so if not.
fn needs_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: {what} needs root");
    }
    is_root
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value[..length].to_vec())
}

#[test]
fn an_honest_layer() {
    if !needs_root("a layer with owners and devices") {
        return;
    }
    let place = Place::new();
    let mut owned = Header::new_gnu();
    owned.set_path("bin/su").unwrap();
    owned.set_mode(0o4755);
    owned.set_uid(1000);
    owned.set_gid(2000);
    owned.set_mtime(5);
    owned.set_size(3);
    owned.set_cksum();
    let mut layer = Layer::new().dir("./").dir("bin/").file("bin/sh", b"#!").hard_link("bin/ash", "bin/sh");
    layer.0.append(&owned, b"su!".as_slice()).unwrap();
    let layer = layer
        .symlink("lib", "usr/lib")
        .add(EntryType::Fifo, "fifo", "", 0o600, b"")
        .add(EntryType::Directory, "tmp", "", 0o1777, b"")
        .xattr("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .file("ping", b"x")
        .file("a/b/c", b"deep");
    let report = place.unpack(layer).unwrap();
    assert_eq!(report.implicit, Vec::<Vec<u8>>::new());
    assert!(report.has_root && !report.has_whiteouts);
    let su = fs::metadata(place.at("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 1000, 2000, 5));
    let (sh, ash) = (fs::metadata(place.at("bin/sh")).unwrap(), fs::metadata(place.at("bin/ash")).unwrap());
    assert_eq!((sh.ino(), sh.nlink(), sh.mode() & 0o7777), (ash.ino(), 2, 0o644));
    assert_eq!(fs::metadata(place.at("bin")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::read_link(place.at("lib")).unwrap(), Path::new("usr/lib"));
    assert!(fs::metadata(place.at("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(place.at("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(xattr(&place.at("ping"), "security.capability").unwrap().len(), 20);
    assert_eq!(fs::read_to_string(place.at("a/b/c")).unwrap(), "deep");
}

#[test]
fn nothing_is_written_outside() {
    let outside = "../outside";
    let absolute = |place: &Place| place.directory.path().join("outside").to_str().unwrap().to_owned();
    type Make = fn(Layer, &str, &str) -> Layer;
    let layers: [(&str, Make); 10] = [
        ("dots", |layer, _, _| layer.file("../outside/new", b"x")),
        ("dots inside", |layer, _, _| layer.file("a/../../outside/new", b"x")),
        ("link to a directory", |layer, out, _| layer.symlink("d", out).file("d/new", b"x")),
        ("absolute link to a directory", |layer, _, abs| layer.symlink("d", abs).file("d/new", b"x")),
        ("link to a file", |layer, _, abs| layer.symlink("f", &format!("{abs}/canary")).file("f", b"x")),
        ("mode through a link", |layer, _, abs| layer.symlink("d", abs).add(EntryType::Directory, "d", "", 0o777, b"")),
        ("hard link with dots", |layer, _, _| layer.hard_link("h", "../outside/canary").file("h", b"x")),
        ("hard link through a link", |layer, _, abs| {
            layer.symlink("d", abs).hard_link("h", "d/canary").file("h", b"x")
        }),
        ("chain of links", |layer, _, abs| layer.symlink("a", "b").symlink("b", abs).file("a/new", b"x")),
        ("root as a link", |layer, _, abs| layer.symlink("./", abs).file("new", b"x")),
    ];
    for (what, make) in layers {
        let place = Place::new();
        let outcome = place.unpack(make(Layer::new(), outside, &absolute(&place)));
        place.assert_outside_untouched();
        // Some are refused, and some end up inside of the root: both are right.
        drop(outcome);
        assert!(what != "dots" || !place.at("new").exists(), "{what}");
    }
}

#[test]
fn the_canary_would_notice() {
    // The same archive, unpacked by joining paths as strings, does get out: the test above is not empty.
    let place = Place::new();
    let out = place.directory.path().join("outside");
    symlink(&out, place.at("d")).unwrap();
    fs::write(place.at("d/new"), "x").unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| place.assert_outside_untouched())).is_err());
}

#[test]
fn hostile_entries_are_refused() {
    for (what, layer) in [
        ("dots", Layer::new().file("a/../b", b"")),
        ("dots in a link target", Layer::new().hard_link("a", "../../etc/passwd")),
        ("root as a link", Layer::new().symlink("/", "x")),
        ("root as a file", Layer::new().file("./.", b"")),
        ("whiteout of nothing", Layer::new().file(".wh.", b"")),
        ("whiteout of the parent", Layer::new().file("a/.wh...", b"")),
        ("hard link to nothing", Layer::new().hard_link("a", "gone")),
        ("hard link to the root", Layer::new().hard_link("a", "/")),
        ("dangling link as a directory", Layer::new().symlink("d", "gone").file("d/f", b"")),
        ("file as a directory", Layer::new().file("f", b"").file("f/x", b"")),
    ] {
        assert!(Place::new().unpack(layer).is_err(), "{what}");
    }
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let place = Place::new();
    let layer = Layer::new().dir("/etc/").symlink("e", "/etc").file("e/passwd", b"inside").file("/x", b"y");
    place.unpack(layer).unwrap();
    assert_eq!(fs::read_to_string(place.at("etc/passwd")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(place.at("x")).unwrap(), "y");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    let layer = Layer::new()
        .file("a", b"old")
        .symlink("a", "b")
        .file("a", b"new")
        .dir("d")
        .file("d/f", b"x")
        .file("d", b"now a file")
        .file("e", b"")
        .dir("e")
        .file("e/f", b"y");
    place.unpack(layer).unwrap();
    assert_eq!(fs::read_to_string(place.at("a")).unwrap(), "new");
    assert_eq!(fs::read_to_string(place.at("d")).unwrap(), "now a file");
    assert_eq!(fs::read_to_string(place.at("e/f")).unwrap(), "y");
}

#[test]
fn whiteouts_become_overlayfs_ones() {
    if !needs_root("whiteouts for overlayfs") {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
        .dir("d")
        .file("d/.wh.gone", b"")
        .file("d/.wh..wh.plnk", b"")
        .dir("o")
        .file("o/.wh..wh..opq", b"")
        .file(".wh.again", b"")
        .dir("again")
        .file("kept", b"k")
        .file(".wh.kept", b"");
    let report = place.unpack(layer).unwrap();
    assert!(report.has_whiteouts);
    let gone = fs::symlink_metadata(place.at("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(fs::read_dir(place.at("d")).unwrap().count(), 1);
    assert_eq!(xattr(&place.at("o"), OPAQUE_XATTR).unwrap(), b"y");
    // Hidden below and made anew here: nothing of the old one may shine through.
    assert_eq!(xattr(&place.at("again"), OPAQUE_XATTR).unwrap(), b"y");
    assert_eq!(fs::read_to_string(place.at("kept")).unwrap(), "k");
    // The same where no entry tells of the directory.
    let place = Place::new();
    place.unpack(Layer::new().file(".wh.again", b"").file("again/deep/new", b"n")).unwrap();
    assert_eq!(xattr(&place.at("again"), OPAQUE_XATTR).unwrap(), b"y");
    assert_eq!(fs::read_to_string(place.at("again/deep/new")).unwrap(), "n");
}

#[test]
fn whiteouts_of_a_plain_directory_remove() {
    let place = Place::new();
    fs::create_dir_all(place.at("d/e")).unwrap();
    fs::write(place.at("d/e/f"), "x").unwrap();
    let layer = Layer::new().file("d/.wh.e", b"").file(".wh.gone", b"");
    place.unpack_with(layer.bytes(), Lower::Known(Vec::new()), Whiteouts::Remove).unwrap();
    assert_eq!(fs::read_dir(place.at("d")).unwrap().count(), 0);
}

#[test]
fn overlayfs_attributes_of_an_archive_are_left_out() {
    if !needs_root("trusted attributes") {
        return;
    }
    let place = Place::new();
    let layer = Layer::new().xattr("trusted.overlay.redirect", b"/etc").dir("d").xattr("trusted.other", b"1").dir("e");
    place.unpack(layer).unwrap();
    assert_eq!(xattr(&place.at("d"), "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&place.at("e"), "trusted.other").unwrap(), b"1");
}

#[test]
fn what_only_a_parent_has() {
    let lower = Place::new();
    fs::create_dir(lower.at("d")).unwrap();
    fs::set_permissions(lower.at("d"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(lower.at("d/below"), "from below").unwrap();
    let layer = || Layer::new().file("d/new", b"x").hard_link("d/link", "d/below");
    let place = Place::new();
    let known = Lower::Known(vec![open(&lower.at(""))]);
    place.unpack_with(layer().bytes(), known, Whiteouts::Overlay).unwrap();
    assert_eq!(fs::metadata(place.at("d")).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(fs::read_to_string(place.at("d/link")).unwrap(), "from below");
    // Without the parents the layer cannot be made, and that is said.
    let early = Place::new();
    assert!(early.unpack_with(layer().bytes(), Lower::Unknown, Whiteouts::Overlay).is_err());
}

#[test]
fn sparse_files_stay_sparse() {
    let place = Place::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sparse");
    let handle = fs::File::create(&file).unwrap();
    handle.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&handle, b"end", (1 << 30) - 3).unwrap();
    for format in ["gnu", "posix"] {
        let output = std::process::Command::new("tar")
            .args(["--sparse", "--format", format, "-C", directory.path().to_str().unwrap(), "-cf", "-", "sparse"])
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(output.stdout.len() < 1 << 20, "tar did not notice the hole");
        place.unpack_with(output.stdout, Lower::Known(Vec::new()), Whiteouts::Overlay).unwrap();
        let made = fs::metadata(place.at("sparse")).unwrap();
        assert_eq!(made.len(), 1 << 30);
        assert!(made.blocks() < 1000, "{} blocks", made.blocks());
        let mut end = [0; 3];
        let handle = fs::File::open(place.at("sparse")).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&handle, &mut end, (1 << 30) - 3).unwrap();
        assert_eq!(&end, b"end");
    }
}

/// Swaps the directory `d` for a link to the outside and back, as fast as it goes, while `work` is done.
fn while_swapped(place: &Place, work: impl FnOnce()) {
    fs::create_dir_all(place.at("d")).unwrap();
    let link = place.directory.path().join("link");
    let _ = symlink(place.directory.path().join("outside"), &link);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (cwd, exchange) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
            while !is_over.load(ordering) {
                // What is unpacked may be just replacing it.
                let _ = rustix::fs::renameat_with(cwd, place.at("d"), cwd, &link, exchange);
            }
        });
        work();
        is_over.store(true, ordering);
    });
}

#[test]
fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    let naive = Place::new();
    while_swapped(&naive, || {
        let outside = naive.directory.path().join("outside");
        let got_out = |number: u32| {
            let _ = fs::write(naive.at(&format!("d/new{number}")), "x");
            fs::read_dir(&outside).unwrap().count() > 1
        };
        assert!((0..200_000).any(got_out), "a joined path gets out");
    });
    // More directories than are kept open, so that each file's is resolved again.
    let layer = || {
        (0..200).fold(Layer::new(), |layer, number| {
            let others = (0..17).fold(layer, |layer, other| layer.file(&format!("other{other}/f{number}"), b""));
            others.file(&format!("d/new{number}"), b"x")
        })
    };
    for _ in 0..10 {
        let place = Place::new();
        while_swapped(&place, || drop(place.unpack(layer())));
        place.assert_outside_untouched();
    }
}

#[test]
fn directories_that_no_entry_describes_may_be_as_deep_as_paths() {
    let place = Place::new();
    let path = format!("{}f", "d/".repeat(1900));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    builder.append_data(&mut header, &path, b"data".as_slice()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let root = place.at("");
    // As small as that of the thread that unpacks what arrives.
    let unpacked = std::thread::Builder::new().stack_size(512 << 10).spawn(move || {
        let root = std::fs::File::open(root).unwrap().into();
        unpack(&mut Archive::new(Cursor::new(bytes)), root, Lower::Known(Vec::new()), Whiteouts::Overlay).map(drop)
    });
    unpacked.unwrap().join().unwrap().unwrap();
    assert_eq!(fs::read(place.at(&path)).unwrap(), b"data");
}

#[test]
fn directories_that_no_entry_describes_are_told_where_nothing_below_is_known() {
    let place = Place::new();
    let layer = || Layer::new().file("a/b/c", b"deep");
    let report = place.unpack_with(layer().bytes(), Lower::Unknown, Whiteouts::Overlay).unwrap();
    assert_eq!(report.implicit, [b"a".to_vec(), b"a/b".to_vec()]);
}

#[test]
fn few_entries_do_not_fill_memory_with_directories() {
    let layer = || {
        let mut builder = Builder::new(Vec::new());
        for number in 0..5 {
            let mut header = Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("{number}/{}f", "d/".repeat(1900)), io::empty()).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let refused = Place::new().unpack_with(layer(), Lower::Unknown, Whiteouts::Overlay).unwrap_err();
    assert!(refused.to_string().contains("directories"), "{refused}");
    let report = Place::new().unpack_with(layer(), Lower::Known(Vec::new()), Whiteouts::Overlay).unwrap();
    assert!(report.implicit.is_empty());
}
