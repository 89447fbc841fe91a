//! What a disk can hold after a power cut: everything up to the last flush, and of what came later some.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::recorder::Operation;

const BLOCK: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What became of the writes that no flush had made safe.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// All were in the disk's cache.
    Lost,
    /// The first ones were written.
    Cut,
    /// Some were written, in another order.
    Reordered,
    /// Some of each one's sectors were written.
    Torn,
}

impl Fault {
    pub(crate) fn any(random: &mut Random) -> Fault {
        [Fault::Lost, Fault::Cut, Fault::Reordered, Fault::Torn][random.below(4)]
    }
}

/// Numbers that look random and are the same in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// Makes images of the disk, for cuts that come later and later.
pub(crate) struct Disk<'a> {
    log: &'a [Operation],
    /// Blocks as they are after `safe` operations.
    blocks: BTreeMap<u64, Box<[u8]>>,
    safe: usize,
    size: u64,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(log: &'a [Operation], size: usize) -> Disk<'a> {
        Disk { log, blocks: BTreeMap::new(), safe: 0, size: size as u64 }
    }

    /// Writes the image of a cut after `cut` operations to `path`.
    pub(crate) fn write_image(&mut self, cut: usize, fault: Fault, random: &mut Random, path: &Path) {
        let flushed = self.log[..cut].iter().rposition(|operation| matches!(operation, Operation::Flush)).unwrap_or(0);
        for operation in &self.log[self.safe..flushed] {
            if let Operation::Write { offset, data } = operation {
                keep(&mut self.blocks, *offset, data);
            }
        }
        self.safe = flushed;
        let file = File::create(path).expect("create the image of a disk");
        file.set_len(self.size).expect("size the image of a disk");
        for (block, data) in &self.blocks {
            put(&file, block * BLOCK as u64, data);
        }
        let unsafe_writes = self.log[flushed..cut].iter().filter_map(|operation| match operation {
            Operation::Write { offset, data } => Some((*offset, &data[..])),
            Operation::Flush => None,
        });
        write_some(&file, unsafe_writes.collect(), fault, random);
    }
}

fn keep(blocks: &mut BTreeMap<u64, Box<[u8]>>, offset: u64, mut data: &[u8]) {
    let mut at = offset;
    while !data.is_empty() {
        let inside = (at % BLOCK as u64) as usize;
        let count = data.len().min(BLOCK - inside);
        let block = blocks.entry(at / BLOCK as u64).or_insert_with(|| vec![0; BLOCK].into());
        block[inside..inside + count].copy_from_slice(&data[..count]);
        data = &data[count..];
        at += count as u64;
    }
}

fn write_some(file: &File, mut writes: Vec<(u64, &[u8])>, fault: Fault, random: &mut Random) {
    match fault {
        Fault::Lost => writes.clear(),
        Fault::Cut => writes.truncate(random.below(writes.len() + 1)),
        Fault::Reordered => {
            for index in (1..writes.len()).rev() {
                writes.swap(index, random.below(index + 1));
            }
            writes.truncate(random.below(writes.len() + 1));
        }
        Fault::Torn => {
            let sectors = writes.iter().flat_map(|&(offset, data)| {
                data.chunks(SECTOR).enumerate().map(move |(index, sector)| (offset + (index * SECTOR) as u64, sector))
            });
            writes = sectors.filter(|_| random.coin()).collect();
        }
    }
    for (offset, data) in writes {
        put(file, offset, data);
    }
}

fn put(file: &File, offset: u64, data: &[u8]) {
    file.write_all_at(data, offset).expect("write the image of a disk");
}

#[test]
fn what_was_flushed_is_there_and_of_the_rest_some() {
    let write = |block: u64, byte: u8| Operation::Write { offset: block * 4096, data: vec![byte; 4096].into() };
    let log = [write(0, 1), write(1, 1), Operation::Flush, write(0, 2), write(1, 2), write(0, 3)];
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let mut random = Random(1);
    let mut seen = std::collections::HashSet::new();
    for fault in [Fault::Lost, Fault::Cut, Fault::Reordered, Fault::Torn].repeat(50) {
        let mut disk = Disk::new(&log, 8192);
        disk.write_image(log.len(), fault, &mut random, &path);
        let bytes = std::fs::read(&path).expect("the image");
        assert!(bytes.iter().all(|byte| (1..=3).contains(byte)), "what was flushed is there");
        seen.insert((bytes[0], bytes[512], bytes[4096]));
    }
    for possible in [(1, 1, 1), (2, 2, 2), (3, 3, 2), (3, 3, 1), (2, 2, 1), (1, 3, 2)] {
        assert!(seen.contains(&possible), "{possible:?} can be, and never was");
    }
}
