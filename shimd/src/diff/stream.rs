//! A layer's bytes on their way: compressed from a source, decompressed on one thread, hashed on a second, read on a
//! third.
//!
//! ```text
//!   source (blob file, or bytes as they arrive) → [decompress] → chunks → [digest] → chunks → [read: archive, files]
//! ```
//! Inflating gzip is the slowest step; of zstd, hashing and writing together would be. So each has a thread to itself.
//! Chunks go back to be filled again. What is in memory is bounded by [`CHUNK`] times twice [`CHUNKS`].

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
    let (empty_sender, empty) = sync_channel(2 * CHUNKS + 2);
    let chunks =
        Chunks { full, empty: empty_sender, current: Vec::new(), at: 0, digest: None, length: 0, has_ended: false };
    (Filler { full: full_sender, empty }, chunks)
}

/// The same, with a place between them where the digest of all that passes is taken.
pub(crate) fn pipe_with_digest() -> (Filler, Digester, Chunks) {
    let (filler, chunks) = pipe();
    let (hashed_sender, hashed) = sync_channel(CHUNKS);
    let (digest_sender, digest) = sync_channel(1);
    let digester = Digester { full: chunks.full, hashed: hashed_sender, digest: digest_sender };
    (filler, digester, Chunks { full: hashed, digest: Some(digest), ..chunks })
}

type Chunk = Result<Vec<u8>, Error>;

/// Takes the digest of the chunks on their way.
pub(crate) struct Digester {
    full: Receiver<Chunk>,
    hashed: SyncSender<Chunk>,
    digest: SyncSender<Digest>,
}

impl Digester {
    /// Passes on what comes until the end, or until one of the others goes away. The digest is there before the end is.
    pub(crate) fn run(self) {
        let mut hasher = Sha256::new();
        while let Ok(chunk) = self.full.recv() {
            match &chunk {
                Ok(bytes) if bytes.is_empty() => {
                    let _ = self.digest.send(Digest::from_sha256(&hasher.finalize_reset()));
                }
                Ok(bytes) => hasher.update(bytes),
                Err(_) => {}
            }
            if self.hashed.send(chunk).is_err() {
                return;
            }
        }
    }
}

/// The end that is filled with decompressed bytes.
pub(crate) struct Filler {
    full: SyncSender<Chunk>,
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

/// The end that is read.
pub(crate) struct Chunks {
    full: Receiver<Chunk>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    /// Where the digest comes from, if one is taken.
    digest: Option<Receiver<Digest>>,
    length: u64,
    has_ended: bool,
}

impl Chunks {
    /// Digest and length of everything, which was read to its end.
    pub(crate) fn finish(self) -> Result<(Digest, u64), Error> {
        let digest = self.digest.and_then(|digest| digest.try_recv().ok());
        match digest.filter(|_| self.has_ended) {
            Some(digest) => Ok((digest, self.length)),
            None => Err(failed(Format::Plain, io::ErrorKind::UnexpectedEof.into())),
        }
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
        let (filler, digester, mut chunks) = pipe_with_digest();
        let threads = [
            std::thread::spawn(move || filler.run(io::Cursor::new(compressed))),
            std::thread::spawn(move || digester.run()),
        ];
        let mut plain = Vec::new();
        let outcome = chunks.read_to_end(&mut plain);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        match outcome {
            Ok(_) => Ok((plain, chunks.finish()?.0)),
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
    fn a_reader_that_goes_away_ends_the_others() {
        let (filler, digester, chunks) = pipe_with_digest();
        let filling = std::thread::spawn(move || filler.run(io::repeat(0)));
        let digesting = std::thread::spawn(move || digester.run());
        drop(chunks);
        filling.join().unwrap();
        digesting.join().unwrap();
    }

    #[test]
    fn there_is_no_digest_before_the_end() {
        let (filler, digester, mut chunks) = pipe_with_digest();
        let filling = std::thread::spawn(move || filler.run(io::Cursor::new(vec![1; 100])));
        let digesting = std::thread::spawn(move || digester.run());
        assert_eq!(chunks.read(&mut [0; 10]).unwrap(), 10);
        assert!(chunks.finish().is_err());
        filling.join().unwrap();
        digesting.join().unwrap();
    }
}
