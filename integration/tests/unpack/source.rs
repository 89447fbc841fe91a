//! What is packed: a tree with one of everything, small archives by hand, and broken ones.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags};

/// Makes a tree of what `form` can say; without what containerd does not keep where it is not for ours: sparse files,
/// and times before 1970.
pub(crate) fn make(root: &Path, form: &str, seed: u64, is_for_ours: bool) {
    let has_long_names = matches!(form, "gnu" | "oldgnu" | "posix");
    fs::create_dir_all(root.join("directory/inner")).expect("a directory");
    for number in 0..6u64 {
        let path = root.join(format!("directory/file{number}"));
        let content = vec![b'a' + (seed + number) as u8; (number * number * 3_000) as usize];
        fs::write(&path, content).expect("a file");
        chown(&path, Some(1000 + number as u32), Some(50)).expect("an owner");
        // After the owner: a change of that takes these bits away.
        let mode = [0o4755, 0o2755, 0o1600, 0o000, 0o777, 0o6711][number as usize];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    fs::hard_link(root.join("directory/file1"), root.join("second name")).expect("a hard link");
    fs::hard_link(root.join("directory/file1"), root.join("directory/inner/third")).expect("a hard link");
    symlink("../directory/file2", root.join("directory/link")).expect("a link");
    symlink("/nowhere/at all", root.join("dangling")).expect("a link");
    fs::write(root.join("empty"), "").expect("a file");
    fs::write(root.join("näme with ünicode"), "x").expect("a file");
    if form != "v7" {
        make_nodes(root);
    }
    if has_long_names {
        make_long(root);
    }
    if is_for_ours && matches!(form, "gnu" | "posix") {
        make_sparse(&root.join("sparse"));
    }
    if form == "posix" {
        make_attributes(root);
    }
    set_times(root, is_for_ours && !matches!(form, "ustar" | "v7"), seed);
}

fn make_nodes(root: &Path) {
    mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640)).expect("a FIFO");
    let device = |name: &str, kind, major, minor| {
        mknod(&root.join(name), kind, Mode::from_bits_truncate(0o660), makedev(major, minor)).expect("a device");
    };
    device("character", SFlag::S_IFCHR, 1, 3);
    device("block", SFlag::S_IFBLK, 7, 200);
    // tar leaves sockets out.
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).expect("a socket"));
}

fn make_long(root: &Path) {
    let deep = (0..4).fold(root.to_path_buf(), |path, _| path.join("l".repeat(90)));
    fs::create_dir_all(&deep).expect("a deep directory");
    fs::write(deep.join("n".repeat(200)), "deep").expect("a file");
    symlink("t".repeat(300), deep.join("long link")).expect("a link");
    let path = root.join("large owner");
    fs::write(&path, "x").expect("a file");
    chown(&path, Some(3_000_000_000), Some(4_000_000)).expect("an owner");
}

fn make_sparse(path: &Path) {
    let file = fs::File::create(path).expect("a file");
    file.set_len(8 << 20).expect("a hole");
    for offset in [0, 1 << 20, 5 << 20] {
        file.write_all_at(&[7; 5000], offset).expect("data");
    }
}

fn make_attributes(root: &Path) {
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty()).expect("an attribute");
    };
    set("empty", "user.text", b"value");
    set("empty", "user.binary", &[0, 255, b'=', b'\n']);
    set("directory", "user.of a directory", b"x");
    // CAP_NET_RAW, as the kernel keeps it.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set("directory/file4", "security.capability", &capability);
}

/// Times before and after 1970 where the form has them, with nanoseconds; directories after what is in them.
fn set_times(root: &Path, has_old_times: bool, seed: u64) {
    let mut paths = vec![root.to_path_buf()];
    let mut at = 0;
    while at < paths.len() {
        if fs::symlink_metadata(&paths[at]).expect("it is there").is_dir() {
            paths.extend(fs::read_dir(&paths[at]).expect("a directory").flatten().map(|entry| entry.path()));
        }
        at += 1;
    }
    for (index, path) in paths.iter().enumerate().rev() {
        let base = if index % 5 == 1 && has_old_times { -86_400 } else { 1_500_000_000 };
        let time = Timespec { tv_sec: base + (index as i64) * 1000 + seed as i64, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
    }
}

/// An archive of plain files.
pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).expect("an archive in memory");
    }
    builder.into_inner().expect("an archive in memory")
}

/// Layers that are none, with what they are said to be.
pub(crate) fn broken(good: &[u8]) -> Vec<(String, Vec<u8>, &'static str)> {
    let large: Vec<u8> = archive(&[("large", &"0123456789abcdef".repeat(100_000))]);
    let mut broken = Vec::new();
    for packing in ["", "+gzip", "+zstd"] {
        let packed = crate::pack(&large, packing);
        let half = packed.len() / 2;
        let mut flipped = packed.clone();
        flipped[half] ^= 0x55;
        broken.push((format!("cut off{packing}"), packed[..half].to_vec(), packing));
        broken.push((format!("flipped{packing}"), flipped, packing));
        broken.push((format!("garbage{packing}"), b"this is no archive. ".repeat(500), packing));
        broken.push((format!("another layer{packing}"), crate::pack(&large, packing), packing));
    }
    // A file of a tebibyte, of which the archive has nothing; in the header, and in a PAX record.
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").expect("a short path");
    header.set_mode(0o644);
    header.set_size(1 << 40);
    header.set_cksum();
    broken.push(("huge".to_owned(), [header.as_bytes(), good].concat(), ""));
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("size", &b"1099511627776"[..])]).expect("an archive in memory");
    let mut pax = builder.into_inner().expect("an archive in memory");
    pax.truncate(1024);
    header.set_size(0);
    header.set_cksum();
    pax.write_all(&[header.as_bytes(), good].concat()).expect("memory");
    broken.push(("huge by PAX".to_owned(), pax, ""));
    // A whole tebibyte of zeros, well compressed, would be: here the first gigabyte of one, behind a size that lies.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).expect("zstd");
    header.set_size(1 << 40);
    header.set_cksum();
    bomb.write_all(header.as_bytes()).expect("memory");
    (0..256).for_each(|_| bomb.write_all(&[0; 1 << 20]).expect("memory"));
    broken.push(("bomb".to_owned(), bomb.finish().expect("memory"), "+zstd"));
    broken
}
