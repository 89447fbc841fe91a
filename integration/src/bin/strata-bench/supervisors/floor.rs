//! What a pull cannot be quicker than: the download alone, decompression and hashing alone, writing alone; each over all
//! processors, by the libraries that shimd is made with. And what they need of the processors together: no order of the three
//! is quicker than that.

use std::fs::File;
use std::io::{Read, Write, copy, sink};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use proto_containerd::types::Descriptor;
use sha2::{Digest, Sha256};

use super::layers::{blob_path, decoder, layers_of};
use super::served::Served;
use crate::measure::{ms, own_time};

type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// What a part of a pull costs by itself.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) wall_ms: f64,
    /// User and system time of this process: the registry's and the kernel's own threads' is not in it.
    processor_ms: f64,
}

impl Part {
    fn of(work: impl FnOnce()) -> Part {
        let (before, began) = (own_time(), Instant::now());
        work();
        Part { wall_ms: ms(began.elapsed()), processor_ms: ms(own_time() - before) }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Milliseconds that the three parts take where all processors are busy all the time.
pub(super) fn busy(served: &mut Served<'_>, image: &str) -> f64 {
    let parts = [download(served, image), digest(served, image), write(served, image)];
    parts.iter().map(|part| part.processor_ms).sum::<f64>() / processors() as f64
}

/// Does `jobs` in their order by as many threads as there are processors.
fn over_the_processors(jobs: Vec<Job<'_>>) {
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..processors() {
            scope.spawn(|| std::iter::from_fn(next).for_each(|job| job()));
        }
    });
}

/// Fetching all layers at once, to nowhere.
pub(super) fn download(served: &mut Served<'_>, image: &str) -> Part {
    let name = served.layers.name(served.supervised, image);
    let host = name.split('/').next().expect("a host").replace("localhost", "127.0.0.1");
    let layers = layers_of(image);
    Part::of(|| {
        std::thread::scope(|scope| {
            for layer in &layers {
                scope.spawn(|| fetch(&host, image, layer));
            }
        });
    })
}

fn fetch(host: &str, image: &str, layer: &Descriptor) {
    let mut connection = TcpStream::connect(host).expect("connect to the registry");
    let digest = &layer.digest;
    write!(connection, "GET /v2/{image}/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        .expect("ask the registry");
    let count = copy(&mut connection, &mut sink()).expect("read from the registry");
    assert!(count > layer.size as u64, "the registry sent {count} bytes of {digest}");
}

/// A layer in memory.
struct Layer {
    media_type: String,
    blob: Vec<u8>,
    archive: Vec<u8>,
}

fn load(image: &str) -> Vec<Layer> {
    let load = |layer: Descriptor| {
        let blob = std::fs::read(blob_path(image, &layer.digest)).expect("read a layer");
        let mut archive = Vec::new();
        decoder(&layer.media_type, &blob).read_to_end(&mut archive).expect("decompress a layer");
        Layer { media_type: layer.media_type, blob, archive }
    };
    layers_of(image).into_iter().map(load).collect()
}

/// Decompressing all layers, and hashing them compressed and decompressed.
pub(super) fn digest(_: &mut Served<'_>, image: &str) -> Part {
    let layers = load(image);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    // The longest come first, so that no processor waits for another's.
    for layer in &layers {
        jobs.push(Box::new(|| {
            copy(&mut decoder(&layer.media_type, &layer.blob), &mut sink()).expect("decompress a layer");
        }));
    }
    for layer in &layers {
        jobs.push(Box::new(|| hash(&layer.archive)));
    }
    for layer in &layers {
        jobs.push(Box::new(|| hash(&layer.blob)));
    }
    Part::of(|| over_the_processors(jobs))
}

fn hash(data: &[u8]) {
    // Not left out, though nobody looks at it.
    std::hint::black_box(Sha256::digest(data));
}

/// Writing the blobs, synced as they must be before they are visible, and the files of the layers.
pub(super) fn write(served: &mut Served<'_>, image: &str) -> Part {
    let place = fresh_directory(&served.supervised.path("tmp/floor"), &served.next_name());
    let layers = load(image);
    let files: Vec<(PathBuf, &[u8])> = layers.iter().flat_map(|layer| files_of(&place, &layer.archive)).collect();
    for directory in files.iter().filter_map(|(path, _)| path.parent()) {
        std::fs::create_dir_all(directory).expect("make a directory");
    }
    let write = |(path, data): &(PathBuf, &[u8])| std::fs::write(path, data).expect("write a file");
    let jobs = files.iter().map(|file| Box::new(move || write(file)) as Job<'_>).collect();
    let part = Part::of(|| {
        std::thread::scope(|scope| {
            // They wait for the disk while the files are written.
            for (number, layer) in layers.iter().enumerate() {
                let path = place.join(format!("blob-{number}"));
                scope.spawn(move || write_synced(&path, &layer.blob));
            }
            over_the_processors(jobs);
        });
    });
    std::fs::remove_dir_all(&place).expect("remove the files");
    part
}

/// A directory far from others, as shimd's snapshots are: ext4 passes over each inode that was freed a short time ago.
fn fresh_directory(top: &Path, name: &str) -> PathBuf {
    std::fs::create_dir_all(top).expect("make a directory");
    // Other file systems know no such mark, and need none.
    let _ = Command::new("chattr").arg("+T").arg(top).stderr(Stdio::null()).status();
    top.join(name)
}

fn write_synced(path: &Path, data: &[u8]) {
    let mut file = File::create(path).expect("create a blob");
    file.write_all(data).and_then(|()| file.sync_data()).expect("write a blob");
}

/// The files of an archive below `place`, with their data.
fn files_of<'a>(place: &Path, archive: &'a [u8]) -> Vec<(PathBuf, &'a [u8])> {
    let mut entries = tar::Archive::new(archive);
    let entries = entries.entries().expect("read an archive").map(|entry| entry.expect("an entry"));
    let files = entries.filter(|entry| entry.header().entry_type().is_file());
    files
        .map(|entry| {
            let begin = entry.raw_file_position() as usize;
            let path = place.join(entry.path().expect("a path"));
            (path, &archive[begin..begin + entry.size() as usize])
        })
        .collect()
}
