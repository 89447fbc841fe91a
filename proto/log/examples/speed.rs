//! How fast records go in and come out: `cargo run --release -p strata-log --example speed DIR [RECORD_BYTES]`.

use std::path::PathBuf;
use std::time::Instant;

use strata_log::{Limits, Next, Reader, Start, Stream, Target, Writer};

const TOTAL: usize = 200 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("a directory that does not exist yet is wanted")?);
    let record: usize = arguments.next().map_or(Ok(65536), |text| text.to_string_lossy().parse())?;
    let limits = Limits { segment_bytes: 16 << 20, keep_bytes: 1 << 40 };
    let mut writer = Writer::open(&Target { directory: directory.clone(), limits }, 0)?;
    let line = b"a line of some sixty characters, as programs like to write....\n";
    let payload: Vec<u8> = line.iter().copied().cycle().take(record).collect();
    let begun = Instant::now();
    for _ in 0..TOTAL / record {
        writer.append(Stream::Stdout, 0, &payload).map_err(|held| held.hold.to_string())?;
    }
    report("write", begun);
    let begun = Instant::now();
    let mut reader = Reader::open(&directory, Start::Oldest)?;
    let mut bytes = 0;
    while let Next::Records(batch) = reader.next()? {
        bytes += batch.map(|record| record.payload.len()).sum::<usize>();
    }
    assert_eq!(bytes, TOTAL / record * record);
    report("read", begun);
    let begun = Instant::now();
    Reader::open(&directory, Start::Lines(100_000))?;
    report("last 100000 lines", begun);
    Ok(())
}

fn report(what: &str, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!("{what}: {:.1} ms, {:.0} MB/s", seconds * 1e3, TOTAL as f64 / 1e6 / seconds);
}
