//! The benchmark's images: layers of many files of reproducible text.

use crate::layer::Layer;
use crate::layout::{Config, Image};

/// How much there is of it.
pub(crate) struct Filling {
    layers: u64,
    /// In each layer.
    files: u64,
    /// Of 16 words, so many are drawn from a vocabulary (they compress well) and the rest are random digits.
    vocabulary: u64,
}

/// About 180 MB as gzip and 600 MB unpacked.
pub(crate) const LAYERS: Filling = Filling { layers: 5, files: 1_500, vocabulary: 11 };
/// About 209 MB as gzip and 607 MB unpacked.
pub(crate) const GZIP_LAYERS: Filling = Filling { layers: 5, files: 1_517, vocabulary: 10 };
/// 1 GB unpacked.
pub(crate) const ZSTD_LAYER: Filling = Filling { layers: 1, files: 12_500, vocabulary: 11 };

/// Bytes.
const FILE_SIZE: usize = 80_000;

const VOCABULARY: [&str; 16] = [
    "layer",
    "content",
    "snapshot",
    "container",
    "namespace",
    "the quick brown fox",
    "configuration",
    "return value",
    "static const",
    "#include <stdio.h>",
    "    if (error != 0)",
    "}\n\n",
    "digest",
    "descriptor",
    "reference",
    "\t\tbreak;\n",
];

/// The image.
pub(crate) fn image(filling: &Filling) -> Image {
    let layers = (0..filling.layers).map(|number| layer(filling, number)).collect();
    Image { layers, config: Config { command: vec!["none".to_owned()], ..Config::default() } }
}

fn layer(filling: &Filling, number: u64) -> Layer {
    let mut layer = Layer::default();
    layer.directory("data", 0o755);
    layer.directory(&format!("data/{number}"), 0o755);
    for file in 0..filling.files {
        let mut random = Random(number * filling.files + file + 1);
        layer.file(&format!("data/{number}/{file:05}.txt"), 0o644, text(&mut random, filling.vocabulary));
    }
    layer
}

fn text(random: &mut Random, vocabulary: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(FILE_SIZE + 32);
    while text.len() < FILE_SIZE {
        let draw = random.next();
        if draw % 16 < vocabulary {
            text.extend_from_slice(VOCABULARY[(draw >> 8) as usize % VOCABULARY.len()].as_bytes());
        } else {
            text.extend_from_slice(format!("{:016x}", random.next()).as_bytes());
        }
        text.push(b' ');
    }
    text.truncate(FILE_SIZE);
    text
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
