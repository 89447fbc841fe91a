//! What a container writes, through the shim into its log, to a reader that loses nothing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use strata_log::{Next, Reader, Start, Watcher};

use super::api::Wish;
use super::crowd::is_shim;
use super::served::Served;

const BYTES: usize = 2_000_000_000;
/// Lines of 40 bytes, so many that are different: they come again and again, and nobody loses a multiple of them unseen,
/// as all bytes are counted.
const LINES: usize = 8191;
/// So much has passed when memory is read for the first time.
const SETTLED: usize = 50_000_000;

/// MB/s of 2 GB of short lines, from the start of the container until a reader that pins has seen and compared the last.
/// Keeps for [`growth`] what the shim's memory has grown meanwhile.
pub(super) fn through_the_log(served: &mut Served<'_>) -> f64 {
    let id = served.next_name();
    let (input, log) = (served.supervised.path("tmp/lines"), served.supervised.path(&format!("tmp/log-{id}")));
    write_lines(&input);
    std::fs::create_dir(&log).expect("a directory for the log");
    let uri = format!("strata-log://{}", log.display());
    let wish = Wish { arguments: &["cat", "/input"], input: Some(&input) };
    let rootfs = served.runtime.block_on(served.api.container(&id, wish));
    let began = Instant::now();
    served.runtime.block_on(served.api.start(&id, rootfs, [&uri, &uri]));
    let shim = shim_of(served.supervised.namespace());
    served.growth_kib = follow(&log, shim);
    let wall = began.elapsed();
    let api = &served.api;
    served.runtime.block_on(async {
        assert_eq!(api.wait(&id).await, 0, "cat failed");
        api.delete(&id).await;
        api.remove(&id).await;
    });
    std::fs::remove_dir_all(&log).and_then(|()| std::fs::remove_file(&input)).expect("remove the lines");
    BYTES as f64 / 1e6 / wall.as_secs_f64()
}

/// KiB that the highest memory of the shim has grown between the first 50 MB and the last byte.
pub(super) fn growth(served: &mut Served<'_>) -> f64 {
    served.growth_kib
}

fn block() -> Vec<u8> {
    (0..LINES).flat_map(|number| format!("line {number:034}\n").into_bytes()).collect()
}

fn write_lines(path: &Path) {
    let block = block();
    let mut file = BufWriter::new(File::create(path).expect("create the lines"));
    let mut left = BYTES;
    while left > 0 {
        let part = left.min(block.len());
        file.write_all(&block[..part]).expect("write the lines");
        left -= part;
    }
    file.flush().expect("write the lines");
}

/// Reads the log to the end of its run and compares every byte; how much the shim has grown.
fn follow(log: &Path, shim: i32) -> f64 {
    let watcher = Watcher::new().expect("watch the log");
    watcher.watch(log).expect("watch the log");
    let mut reader = Reader::open_pinned(log, Start::Oldest).expect("open the log");
    let block = block().repeat(2);
    let (mut seen, mut early) = (0, None);
    loop {
        match reader.next().expect("read the log") {
            Next::Records(batch) => batch.for_each(|record| seen = compare(&block, seen, record.payload)),
            Next::Pending => {
                watcher.wait(None).and_then(|()| watcher.drain()).expect("wait for the log");
            }
            Next::Lost { bytes } => panic!("{bytes} bytes are lost"),
            Next::End { .. } => break,
        }
        if seen > SETTLED && early.is_none() {
            early = Some(peak_kib(shim));
        }
    }
    assert_eq!(seen, BYTES, "the output is not whole");
    peak_kib(shim) - early.expect("more than the first bytes came")
}

/// The bytes that come after so many, compared; how many there are then.
fn compare(block: &[u8], seen: usize, mut payload: &[u8]) -> usize {
    let (period, mut position) = (block.len() / 2, seen);
    while !payload.is_empty() {
        let (part, rest) = payload.split_at(payload.len().min(period));
        let at = position % period;
        assert!(part == &block[at..at + part.len()], "a byte after the first {position} is wrong");
        position += part.len();
        payload = rest;
    }
    position
}

/// The one shim that runs.
fn shim_of(namespace: &str) -> i32 {
    let mut shims = integration::process::all().into_iter().filter(|process| is_shim(process, namespace));
    shims.next().expect("a shim").pid
}

fn peak_kib(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the shim runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its highest memory");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}
