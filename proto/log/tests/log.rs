//! Writers and readers on real directories.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use strata_log::{Error, Hold, Limits, Next, Reader, Start, State, Stream, Target, Watcher, Writer};

const SMALL: Limits = Limits { segment_bytes: 4096, keep_bytes: 16384 };

const SMALL_SEGMENTS_KEPT: Limits = Limits { segment_bytes: 8192, keep_bytes: 1 << 20 };

struct Log {
    _temporary: tempfile::TempDir,
    target: Target,
}

impl Log {
    fn new(limits: Limits) -> Log {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("log");
        Log { _temporary: temporary, target: Target { directory, limits } }
    }

    fn path(&self) -> &Path {
        &self.target.directory
    }

    fn writer(&self) -> Writer {
        Writer::open(&self.target, 1).unwrap()
    }

    fn reader(&self, start: Start) -> Reader {
        Reader::open(self.path(), start).unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some());
        paths.sort();
        paths
    }
}

fn out(writer: &mut Writer, text: &str) {
    writer.append(Stream::Stdout, 1, text.as_bytes()).unwrap();
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    text: Vec<u8>,
    ends: usize,
    lost: u64,
}

/// All that is there.
fn drain(reader: &mut Reader) -> Seen {
    let mut seen = Seen::default();
    loop {
        match reader.next().unwrap() {
            Next::Records(batch) => batch.for_each(|record| seen.text.extend_from_slice(record.payload)),
            Next::End { .. } => seen.ends += 1,
            Next::Lost { bytes } => seen.lost += bytes,
            Next::Pending => return seen,
        }
    }
}

fn text(reader: &mut Reader) -> String {
    String::from_utf8(drain(reader).text).unwrap()
}

#[test]
fn bytes_streams_and_times_come_back() {
    let log = Log::new(Limits::default());
    let mut writer = log.writer();
    writer.append(Stream::Stdout, 10, b"\0\xff\n").unwrap();
    writer.append(Stream::Stderr, 20, b"oops").unwrap();
    writer.append(Stream::Stdout, 25, b"").unwrap();
    writer.finish(30).unwrap();
    let mut reader = log.reader(Start::Oldest);
    let Next::Records(batch) = reader.next().unwrap() else { panic!("no records") };
    let records: Vec<_> = batch.map(|record| (record.stream, record.time_ns, record.payload.to_vec())).collect();
    assert_eq!(records, [(Stream::Stdout, 10, b"\0\xff\n".to_vec()), (Stream::Stderr, 20, b"oops".to_vec())]);
    assert!(matches!(reader.next().unwrap(), Next::End { time_ns: 30 }));
    assert!(matches!(reader.next().unwrap(), Next::Pending));
    assert_eq!(reader.state(), Some(State::Ended));
    assert_eq!(writer.position(), 7);
}

#[test]
fn a_reader_may_come_before_the_writer() {
    let log = Log::new(Limits::default());
    fs::create_dir(log.path()).unwrap();
    let mut reader = Reader::open_pinned(log.path(), Start::Oldest).unwrap();
    assert!(matches!(reader.next().unwrap(), Next::Pending));
    let mut writer = log.writer();
    out(&mut writer, "hello");
    assert_eq!(text(&mut reader), "hello");
}

#[test]
fn offsets_stay_when_segments_change() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    let mut offsets = Vec::new();
    for number in 0..200 {
        out(&mut writer, &format!("line {number}\n"));
        offsets.push((writer.offset(), number + 1));
    }
    assert!(log.segments().len() > 1);
    for (offset, next) in offsets {
        let mut reader = log.reader(Start::Offset(offset));
        let expected = if next == 200 { String::new() } else { format!("line {next}\n") };
        let seen = text(&mut reader);
        assert!(seen.starts_with(&expected), "{offset}: {seen:.20}");
        assert_eq!(seen.lines().count(), 200 - next);
    }
}

#[test]
fn a_records_next_is_where_to_go_on() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    (0..300).for_each(|number| out(&mut writer, &format!("{number}\n")));
    let mut seen = String::new();
    let mut offset = 0;
    // One record of each batch, then the reader "dies".
    while let Next::Records(mut batch) = log.reader(Start::Offset(offset)).next().unwrap() {
        let record = batch.next().unwrap();
        seen.push_str(std::str::from_utf8(record.payload).unwrap());
        offset = record.next;
    }
    assert_eq!(seen, (0..300).map(|number| format!("{number}\n")).collect::<String>());
}

#[test]
fn an_offset_inside_a_record_is_refused() {
    let log = Log::new(Limits::default());
    out(&mut log.writer(), "hello");
    for offset in [1, 41, 1 << 40] {
        let error = Reader::open(log.path(), Start::Offset(offset)).unwrap_err();
        assert!(matches!(error, Error::NoRecord { .. }), "{error}");
    }
}

#[test]
fn the_oldest_segments_go_and_the_loss_is_told_exactly() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    let mut reader = log.reader(Start::Oldest);
    out(&mut writer, "first\n");
    assert_eq!(text(&mut reader), "first\n");
    (0..10_000).for_each(|number| out(&mut writer, &format!("{number:06}\n")));
    let bytes: u64 = log.segments().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes <= SMALL.keep_bytes + SMALL.segment_bytes, "{bytes}");
    let seen = drain(&mut reader);
    assert!(seen.lost > 0);
    assert_eq!(seen.lost + seen.text.len() as u64, 70_000);
    assert!(seen.text.ends_with(b"009999\n"));
    // Whoever begins at an offset that is gone learns of it too.
    assert!(drain(&mut log.reader(Start::Offset(0))).lost > 0);
}

#[test]
fn a_pinned_reader_loses_nothing_and_then_holds_the_writer_back() {
    let log = Log::new(Limits { segment_bytes: 4 << 20, keep_bytes: 4 << 20 });
    let mut writer = log.writer();
    let mut reader = Reader::open_pinned(log.path(), Start::Oldest).unwrap();
    let block = vec![b'x'; 1 << 20];
    let mut written = 0;
    let held = loop {
        match writer.append(Stream::Stdout, 1, &block) {
            Ok(()) => written += block.len(),
            Err(held) => break held,
        }
    };
    assert_eq!((held.taken, held.hold), (0, Hold::Reader));
    assert!((64 << 20..=72 << 20).contains(&written), "{written}");
    assert_eq!(log.reader(Start::Newest).state(), Some(State::HeldByReader));
    let seen = drain(&mut reader);
    assert_eq!((seen.text.len(), seen.lost), (written, 0));
    writer.append(Stream::Stdout, 1, &block).unwrap();
    assert_eq!(reader.state(), Some(State::HeldByReader), "the old segment's state stays; the last one's counts");
    assert_eq!(drain(&mut reader).text.len(), block.len());
    assert_eq!(reader.state(), Some(State::Writing));
}

#[test]
fn the_pin_of_a_dead_reader_ends_with_it() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    let reader = Reader::open_pinned(log.path(), Start::Oldest).unwrap();
    let pins = log.path().join("pins");
    let pin = fs::read_dir(&pins).unwrap().next().unwrap().unwrap().path();
    (0..2000).for_each(|_| out(&mut writer, "0123456789012345678901234567890123456789\n"));
    assert!(log.segments()[0].ends_with("0000000000000000.seg"));
    // What the kernel does at a reader's death: the lock goes, the file stays.
    drop(reader);
    fs::write(&pin, 0u64.to_le_bytes()).unwrap();
    (0..200).for_each(|_| out(&mut writer, "0123456789012345678901234567890123456789\n"));
    assert!(!log.segments()[0].ends_with("0000000000000000.seg"));
    assert!(!pin.exists());
}

#[test]
fn a_torn_record_is_cut_off_and_the_log_goes_on() {
    let log = Log::new(Limits::default());
    let mut writer = log.writer();
    out(&mut writer, "whole\n");
    let end = writer.offset();
    out(&mut writer, "torn\n");
    drop(writer);
    for keep in [1, 10, 24, 28] {
        let path = &log.segments()[0];
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(end + keep).unwrap();
        let mut reader = log.reader(Start::Oldest);
        assert_eq!(text(&mut reader), "whole\n");
        let mut writer = log.writer();
        assert_eq!((writer.offset(), writer.position()), (end, 6));
        out(&mut writer, "again\n");
        assert_eq!(text(&mut reader), "again\n");
    }
}

#[test]
fn a_damaged_record_hides_what_follows_in_its_segment_only() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    (0..500).for_each(|number| out(&mut writer, &format!("{number:04}\n")));
    let first = fs::OpenOptions::new().write(true).open(&log.segments()[0]).unwrap();
    first.write_all_at(b"X", 40 + 29 * 10 + 25).unwrap();
    let seen = drain(&mut log.reader(Start::Oldest));
    assert_eq!(&seen.text[..50], (0..10).map(|number| format!("{number:04}\n")).collect::<String>().as_bytes());
    assert_eq!(seen.text.len() as u64 + seen.lost, 2500);
}

#[test]
fn a_second_run_goes_on_behind_the_end_of_the_first() {
    let log = Log::new(Limits::default());
    let mut writer = log.writer();
    out(&mut writer, "one\n");
    writer.finish(2).unwrap();
    drop(writer);
    let mut writer = log.writer();
    assert_eq!(log.reader(Start::Newest).state(), Some(State::Writing));
    out(&mut writer, "two\n");
    writer.finish(3).unwrap();
    let seen = drain(&mut log.reader(Start::Oldest));
    assert_eq!((seen.text.as_slice(), seen.ends), (b"one\ntwo\n".as_slice(), 2));
}

/// A file system of 256 KiB that goes with the value; `None` without root.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path) -> Option<Disk> {
        fs::create_dir(at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Disk(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "unmount {}", self.0.display());
    }
}

#[test]
fn a_full_disk_holds_back_and_loses_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(&temporary.path().join("disk")) else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let target = Target { directory: disk.0.join("log"), limits: SMALL_SEGMENTS_KEPT };
    let mut writer = Writer::open(&target, 1).unwrap();
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 100 << 10]).unwrap();
    let mut written = Vec::new();
    let block: Vec<u8> = (0..3000u32).map(|number| number as u8).collect();
    let held = loop {
        match writer.append(Stream::Stdout, 1, &block) {
            Ok(()) => written.extend_from_slice(&block),
            Err(held) => break held,
        }
    };
    assert_eq!((held.taken, held.hold), (0, Hold::Space));
    assert_eq!(writer.append(Stream::Stdout, 1, &block), Err(held));
    let mut reader = Reader::open(&target.directory, Start::Newest).unwrap();
    assert_eq!(reader.state(), Some(State::HeldBySpace));
    assert_eq!(drain(&mut reader).text, b"");
    fs::remove_file(&ballast).unwrap();
    writer.append(Stream::Stdout, 1, &block).unwrap();
    written.extend_from_slice(&block);
    writer.finish(2).unwrap();
    assert_eq!(drain(&mut reader).text, block);
    assert_eq!(reader.state(), Some(State::Ended));
    let seen = drain(&mut Reader::open(&target.directory, Start::Oldest).unwrap());
    assert_eq!((seen.text == written, seen.ends, seen.lost), (true, 1, 0));
}

#[test]
fn one_writer_at_a_time() {
    let log = Log::new(Limits::default());
    let _writer = log.writer();
    assert!(matches!(Writer::open(&log.target, 1), Err(Error::Busy { .. })));
}

#[test]
fn a_segment_of_somebody_else_is_refused() {
    let log = Log::new(Limits::default());
    fs::create_dir(log.path()).unwrap();
    fs::write(log.path().join("0000000000000000.seg"), [b'x'; 100]).unwrap();
    assert!(matches!(Writer::open(&log.target, 1), Err(Error::Foreign { .. })));
}

#[test]
fn the_last_lines() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    (0..1000).for_each(|number| out(&mut writer, &format!("a{number}\nb{number}\n")));
    let all: Vec<String> = (0..1000).flat_map(|number| [format!("a{number}\n"), format!("b{number}\n")]).collect();
    for wanted in [0, 1, 2, 3, 99, 300] {
        assert_eq!(text(&mut log.reader(Start::Lines(wanted))), all[2000 - wanted as usize..].concat(), "{wanted}");
    }
    out(&mut writer, "open");
    assert_eq!(text(&mut log.reader(Start::Lines(2))), "b999\nopen");
    assert_eq!(text(&mut log.reader(Start::Lines(0))), "");
    let everything = text(&mut log.reader(Start::Lines(1 << 40)));
    assert_eq!(everything, text(&mut log.reader(Start::Oldest)));
}

#[test]
fn since_a_time() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    (0..1000u64).for_each(|time| writer.append(Stream::Stdout, time, format!("{time}\n").as_bytes()).unwrap());
    for time in [1000, 999, 950, 700] {
        let expected: String = (time..1000).map(|time| format!("{time}\n")).collect();
        assert_eq!(text(&mut log.reader(Start::Time(time))), expected);
    }
}

#[test]
fn a_watcher_wakes_for_what_is_written_and_not_for_pins() {
    let log = Log::new(SMALL);
    let mut writer = log.writer();
    let watcher = Watcher::new().unwrap();
    let id = watcher.watch(log.path()).unwrap();
    assert_eq!(watcher.watch(log.path()).unwrap(), id);
    let mut reader = Reader::open_pinned(log.path(), Start::Oldest).unwrap();
    watcher.drain().unwrap();
    assert_eq!(text(&mut reader), "");
    assert!(watcher.drain().unwrap().is_empty());
    for _ in 0..300 {
        out(&mut writer, "some words\n");
        assert!(watcher.drain().unwrap().contains(&id));
        assert_eq!(text(&mut reader), "some words\n");
        assert!(watcher.drain().unwrap().is_empty());
    }
    watcher.unwatch(id);
    out(&mut writer, "x");
    watcher.wait(Some(Duration::from_secs(5))).unwrap();
    watcher.unwatch(id);
    watcher.drain().unwrap();
    out(&mut writer, "y");
    assert!(watcher.drain().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is appended, in whatever pieces, with crashes in between that tear the last record: what comes out is
    /// what went in, but for the torn records.
    #[test]
    fn what_goes_in_comes_out(
        runs in proptest::collection::vec(
            (proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..600), 0..12), any::<prop::sample::Index>()),
            1..5,
        ),
    ) {
        let log = Log::new(Limits { segment_bytes: 2048, keep_bytes: 1 << 20 });
        let mut expected = Vec::new();
        for (pieces, cut) in runs {
            let mut writer = log.writer();
            for piece in &pieces {
                writer.append(Stream::Stderr, 1, piece).unwrap();
                expected.extend_from_slice(piece);
            }
            let end = writer.offset();
            drop(writer);
            if let Some(last) = pieces.last() {
                let path = log.segments().pop().unwrap();
                let len = fs::metadata(&path).unwrap().len();
                let torn = cut.index(last.len() + 24) as u64;
                fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - torn).unwrap();
                if torn > 0 {
                    expected.truncate(expected.len() - last.len());
                    prop_assert!(log.writer().offset() < end);
                }
            }
        }
        prop_assert_eq!(drain(&mut log.reader(Start::Oldest)).text, expected);
    }
}
