//! Archives made by GNU tar's format writer of the `tar` crate and by hand.

use std::io::Cursor;

use super::*;

fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut archive = Archive::new(Cursor::new(bytes));
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn header(path: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut block = [0u8; BLOCK];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block.to_vec()
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    out.resize(data.len().next_multiple_of(BLOCK), 0);
    out
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let long = format!("{}/file", "d".repeat(150));
    let mut file = ::tar::Header::new_gnu();
    file.set_size(5);
    file.set_mode(0o4755);
    file.set_uid(1000);
    file.set_mtime(12);
    builder.append_data(&mut file, &long, b"hello".as_slice()).unwrap();
    builder.append_pax_extensions([("SCHILY.xattr.user.a", b"b".as_slice()), ("mtime", b"5.25".as_slice())]).unwrap();
    let mut link = ::tar::Header::new_ustar();
    link.set_entry_type(::tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "link", "../target").unwrap();
    let bytes = builder.into_inner().unwrap();
    let entries = entries(&bytes).unwrap();
    assert_eq!(entries[0].path, long.as_bytes());
    assert_eq!((entries[0].mode, entries[0].uid, entries[0].size), (0o4755, 1000, 5));
    assert_eq!((entries[1].kind.clone(), entries[1].link.as_slice()), (Kind::Symlink, b"../target".as_slice()));
    assert_eq!(entries[1].modified, Time { seconds: 5, nanoseconds: 250_000_000 });
    assert_eq!(entries[1].xattrs, [(b"user.a".to_vec(), b"b".to_vec())]);
}

#[test]
fn the_pax_size_wins() {
    // The header says nothing is stored; a reader that believed it would take the data for headers.
    let pax = b"12 size=512\n";
    let smuggled = header("smuggled", b'0', 0);
    let bytes = [header("p", b'x', pax.len() as u64), padded(pax), header("outer", b'0', 0), smuggled].concat();
    let entries = entries(&bytes).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].path.as_slice(), entries[0].size), (b"outer".as_slice(), 512));
}

#[test]
fn hostile_archives_are_refused() {
    let symlink_with_data = [header("s", b'2', 512), vec![0; 512]].concat();
    let mut bad_sum = header("f", b'0', 0);
    bad_sum[148] = b'7';
    let huge_pax = header("p", b'x', 1 << 32);
    let lone_zero = [vec![0; 512], header("f", b'0', 0)].concat();
    let dangling_pax = [header("p", b'x', 6), padded(b"6 a=b\n")].concat();
    let truncated = header("f", b'0', 4096);
    let unknown = header("f", b'Z', 0);
    let nameless = header("", b'0', 0);
    for bytes in [symlink_with_data, bad_sum, huge_pax, lone_zero, dangling_pax, truncated, unknown, nameless] {
        let mut archive = Archive::new(Cursor::new(&bytes));
        let outcome = (|| {
            while archive.next_entry()?.is_some() {}
            Ok::<_, Error>(())
        })();
        assert!(outcome.is_err(), "{:?}", &bytes[..100]);
    }
}

#[test]
fn ends_are_as_writers_leave_them() {
    let file = header("f", b'0', 0);
    for end in [Vec::new(), vec![0; 512], vec![0; 1024], [vec![0; 1024], b"junk".to_vec()].concat()] {
        assert_eq!(entries(&[file.clone(), end].concat()).unwrap().len(), 1);
    }
}

#[test]
fn sparse_form_1_0() {
    let records =
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=real\n28 GNU.sparse.realsize=1000\n";
    let map = padded(b"1\n990\n10\n");
    let bytes = [
        header("p", b'x', records.len() as u64),
        padded(records),
        header("GNUSparseFile.0/real", b'0', 512 + 10),
        map,
        padded(b"0123456789"),
    ]
    .concat();
    let mut archive = Archive::new(Cursor::new(bytes));
    let entry = archive.next_entry().unwrap().unwrap();
    assert_eq!((entry.path.as_slice(), entry.size), (b"real".as_slice(), 1000));
    assert_eq!(entry.extents, Some(vec![Extent { offset: 990, length: 10 }]));
    assert_eq!(archive.data().unwrap(), b"0123456789");
    assert!(archive.next_entry().unwrap().is_none());
}

#[test]
fn a_long_name_that_is_cut_behind_a_slash_is_no_directory() {
    let long = format!("{}/file", "d".repeat(99));
    let cut = &long[..100];
    assert!(cut.ends_with('/'));
    let mut bytes = header("././@LongLink", b'L', long.len() as u64 + 1);
    bytes.extend(padded(format!("{long}\0").as_bytes()));
    bytes.extend(header(cut, b'0', 5));
    bytes.extend(padded(b"hello"));
    bytes.extend(header("old/", 0, 0));
    bytes.extend([0; 2 * BLOCK]);
    let entries = entries(&bytes).unwrap();
    assert_eq!((entries[0].kind.clone(), entries[0].size), (Kind::File, 5));
    assert_eq!(entries[0].path, long.as_bytes());
    assert_eq!(entries[1].kind, Kind::Directory);
}
