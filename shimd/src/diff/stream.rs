//! A layer's bytes on their way: compressed from a source, decompressed on one thread, read on another.
//!
//! ```text
//!   source (blob file, or bytes as they arrive) → [decompress] → chunks → [read: digest, archive, files]
//! ```
//! Inflating is the slowest step, so it has a thread to itself; the digest of the plain bytes (the diff id) is taken by
//! the reading thread. Chunks go back to be filled again. What is in memory is bounded by [`CHUNK`] times [`CHUNKS`].

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::name::Digest;

/// Bytes of a chunk, and chunks on their way.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 4;
/// Compressed bytes read at once.
const SOURCE_BUFFER: usize = 128 << 10;

/// An error of ours inside an `io::Error`, so that it gets through `Read`.
#[derive(Debug)]
pub(crate) struct Failure(Error);

impl Failure {
    pub(crate) fn wrap(error: Error) -> io::Error {
        io::Error::other(Failure(error))
    }

    pub(crate) fn into_error(self) -> Error {
        self.0
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Plain,
    Gzip,
    Zstd,
}

impl Format {
    /// By the first bytes: media types lie.
    fn of(start: &[u8]) -> Format {
        match start {
            [0x1f, 0x8b, ..] => Format::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Format::Zstd,
            // A skippable frame may come first.
            [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Format::Zstd,
            _ => Format::Plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Plain => "plain",
            Format::Gzip => "gzip",
            Format::Zstd => "zstd",
        }
    }
}

/// The ends of a pipe of chunks.
pub(crate) fn pipe() -> (Filler, Chunks) {
    let (full_sender, full) = sync_channel(CHUNKS);
    let (empty_sender, empty) = sync_channel(CHUNKS + 2);
    let chunks = Chunks {
        full,
        empty: empty_sender,
        current: Vec::new(),
        at: 0,
        digest: Sha256::new(),
        length: 0,
        has_ended: false,
    };
    (Filler { full: full_sender, empty }, chunks)
}

/// The end that is filled with decompressed bytes.
pub(crate) struct Filler {
    full: SyncSender<Result<Vec<u8>, Error>>,
    empty: Receiver<Vec<u8>>,
}

impl Filler {
    /// Decompresses `source` to its end. Failures go to the reader; a reader that went away ends it.
    pub(crate) fn run(self, source: impl Read) {
        if let Err(error) = self.fill(source) {
            // Nobody reads any more: then nobody needs the error.
            let _ = self.full.send(Err(error));
        }
    }

    fn fill(&self, source: impl Read) -> Result<(), Error> {
        let mut source = BufReader::with_capacity(SOURCE_BUFFER, source);
        let format = Format::of(source.fill_buf().map_err(|error| failed(Format::Plain, error))?);
        match format {
            Format::Plain => self.pump(source, format),
            Format::Gzip => self.pump(flate2::bufread::MultiGzDecoder::new(source), format),
            Format::Zstd => {
                let decoder =
                    zstd::stream::read::Decoder::with_buffer(source).map_err(|error| failed(format, error))?;
                self.pump(decoder, format)
            }
        }
    }

    fn pump(&self, mut plain: impl Read, format: Format) -> Result<(), Error> {
        loop {
            let mut chunk = self.empty.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
            chunk.resize(CHUNK, 0);
            let length = read_full(&mut plain, &mut chunk).map_err(|error| failed(format, error))?;
            chunk.truncate(length);
            // An empty chunk tells the reader that the end is whole, not torn.
            if self.full.send(Ok(chunk)).is_err() || length == 0 {
                return Ok(());
            }
        }
    }
}

fn failed(format: Format, error: io::Error) -> Error {
    match error.downcast::<Failure>() {
        Ok(failure) => failure.into_error(),
        Err(source) if format == Format::Plain => Error::io("read the layer", source),
        Err(source) => Error::Decompress { format: format.name(), source },
    }
}

fn read_full(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The end that is read; it takes the digest of all that passes.
pub(crate) struct Chunks {
    full: Receiver<Result<Vec<u8>, Error>>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    digest: Sha256,
    length: u64,
    has_ended: bool,
}

impl Chunks {
    /// Digest and length of everything that was received.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest::from_sha256(&self.digest.finalize()), self.length)
    }

    fn receive(&mut self) -> io::Result<()> {
        let used = std::mem::take(&mut self.current);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.empty.try_send(used) {
            // The filler is done or has enough: the chunk is freed.
        }
        self.at = 0;
        let chunk = match self.full.recv() {
            Ok(chunk) => chunk.map_err(Failure::wrap)?,
            Err(_) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        };
        self.has_ended = chunk.is_empty();
        self.digest.update(&chunk);
        self.length += chunk.len() as u64;
        self.current = chunk;
        Ok(())
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.has_ended {
            self.receive()?;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn through(compressed: Vec<u8>) -> Result<(Vec<u8>, Digest), Error> {
        let (filler, mut chunks) = pipe();
        let thread = std::thread::spawn(move || filler.run(io::Cursor::new(compressed)));
        let mut plain = Vec::new();
        let outcome = chunks.read_to_end(&mut plain);
        thread.join().unwrap();
        match outcome {
            Ok(_) => Ok((plain, chunks.finish().0)),
            Err(error) => Err(error.downcast::<Failure>().unwrap().into_error()),
        }
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_format_is_read() {
        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let expected = Digest::from_sha256(&Sha256::digest(&data));
        let two_members = [gzip(&data[..1000]), gzip(&data[1000..])].concat();
        for compressed in [data.clone(), gzip(&data), two_members, zstd::encode_all(data.as_slice(), 1).unwrap()] {
            let (plain, digest) = through(compressed).unwrap();
            assert!(plain == data);
            assert_eq!(digest, expected);
        }
        assert!(through(Vec::new()).unwrap().0.is_empty());
    }

    #[test]
    fn broken_streams_are_errors() {
        let data = vec![7; 100_000];
        let mut truncated = gzip(&data);
        truncated.truncate(truncated.len() - 9);
        let mut wrong_sum = gzip(&data);
        *wrong_sum.last_mut().unwrap() ^= 1;
        let garbage_behind = [gzip(&data), b"garbage".to_vec()].concat();
        let mut zstd = zstd::encode_all(data.as_slice(), 1).unwrap();
        zstd.truncate(zstd.len() - 3);
        for broken in [truncated, wrong_sum, garbage_behind, zstd] {
            assert!(matches!(through(broken), Err(Error::Decompress { .. })));
        }
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_filler() {
        let (filler, chunks) = pipe();
        let thread = std::thread::spawn(move || filler.run(io::repeat(0)));
        drop(chunks);
        thread.join().unwrap();
    }
}
