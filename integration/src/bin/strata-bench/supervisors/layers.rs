//! Pulls of large images from a registry on the loopback, and unpacking alone.

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use integration::registry::Registry;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proto_containerd::any;
use proto_containerd::services::diff::ApplyRequest;
use proto_containerd::services::diff::diff_client::DiffClient;
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::services::transfer::transfer_client::TransferClient;
use proto_containerd::types::Descriptor;
use proto_containerd::types::transfer::{ImageStore, OciRegistry, UnpackConfiguration};
use serde_json::Value;

use super::api::SNAPSHOTTER;
use super::served::Served;
use crate::measure::ms;

/// Five layers.
pub(super) const GZIP: &str = "gzip-layers";
/// One layer.
pub(super) const ZSTD: &str = "zstd-layer";

/// Where the images come from; started when it is first asked.
#[derive(Default)]
pub(super) struct Source(Option<Registry>);

impl Source {
    /// The name of an image that it has.
    pub(super) fn name(&mut self, served: &integration::Supervised, image: &str) -> String {
        let registry = self.0.get_or_insert_with(|| served.registry());
        let layout = layout(image);
        registry.add(&layout, image, "latest").unwrap_or_else(|error| panic!("{error}: run 'make bench'"));
        format!("{}/{image}:latest", registry.host())
    }
}

fn layout(image: &str) -> PathBuf {
    integration::programs::images().join(image)
}

/// Milliseconds of a pull from nothing by `ctr`.
pub(super) fn pull(served: &mut Served<'_>, image: &str) -> f64 {
    let name = served.layers.name(served.supervised, image);
    let began = Instant::now();
    served.supervised.run(&["images", "pull", "--plain-http", &name]).ok();
    let wall = ms(began.elapsed());
    served.supervised.run(&["images", "rm", "--sync", &name]).ok();
    wall
}

/// Milliseconds of a pull from nothing by the transfer service.
pub(super) fn transfer(served: &mut Served<'_>, image: &str) -> f64 {
    let name = served.layers.name(served.supervised, image);
    let unpack = UnpackConfiguration { snapshotter: SNAPSHOTTER.to_owned(), platform: None };
    let request = TransferRequest {
        source: Some(any(&OciRegistry { reference: name.clone(), resolver: None })),
        destination: Some(any(&ImageStore { name: name.clone(), unpacks: vec![unpack], ..ImageStore::default() })),
        options: None,
    };
    let mut transfer = TransferClient::new(served.api.connection());
    let began = Instant::now();
    served.runtime.block_on(transfer.transfer(request)).expect("pull by transfer");
    let wall = ms(began.elapsed());
    served.supervised.run(&["images", "rm", "--sync", &name]).ok();
    wall
}

/// MB/s of archive (not compressed) that one processor unpacks, of a gzip layer that is in the store.
pub(super) fn unpack(served: &mut Served<'_>) -> f64 {
    let layer = layers_of(GZIP).remove(0);
    let blob = std::fs::read(blob_path(GZIP, &layer.digest)).expect("read a layer");
    // Under a name of its own: as a layer that is pulled, shimd would have unpacked it while it came.
    let ingest = ["content", "ingest", "--expected-digest", &layer.digest, "blob-to-unpack"];
    served.supervised.ctr(&ingest).input(&blob).output().ok();
    let digest = layer.digest.clone();
    let size = std::io::copy(&mut decoder(&layer.media_type, &blob), &mut std::io::sink()).expect("a gzip layer");
    let id = served.next_name();
    let api = served.api.clone();
    let pid = served.supervised.daemon().pid();
    let figure = served.runtime.block_on(async {
        let mounts = api.snapshot(&id, "").await;
        let request = ApplyRequest { diff: Some(layer), mounts, ..ApplyRequest::default() };
        pin(pid, true);
        let began = Instant::now();
        DiffClient::new(api.connection()).apply(request).await.expect("apply a layer");
        let wall = began.elapsed();
        pin(pid, false);
        api.remove_snapshot(&id).await;
        size as f64 / 1e6 / wall.as_secs_f64()
    });
    served.supervised.run(&["content", "rm", &digest]).ok();
    figure
}

/// What the manifest says of the layers.
pub(super) fn layers_of(image: &str) -> Vec<Descriptor> {
    let read = |path: PathBuf| -> Value {
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        serde_json::from_slice(&text).expect("JSON")
    };
    let index = read(layout(image).join("index.json"));
    let manifest = read(blob_path(image, index["manifests"][0]["digest"].as_str().expect("a digest")));
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers.map(descriptor).collect()
}

fn descriptor(layer: &Value) -> Descriptor {
    Descriptor {
        media_type: layer["mediaType"].as_str().expect("a media type").to_owned(),
        digest: layer["digest"].as_str().expect("a digest").to_owned(),
        size: layer["size"].as_i64().expect("a size"),
        ..Descriptor::default()
    }
}

pub(super) fn blob_path(image: &str, digest: &str) -> PathBuf {
    layout(image).join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

/// Decompresses a layer.
pub(super) fn decoder<'a>(media_type: &str, blob: &'a [u8]) -> Box<dyn Read + 'a> {
    if media_type.ends_with("zstd") {
        Box::new(zstd::stream::read::Decoder::with_buffer(blob).expect("a zstd layer"))
    } else {
        Box::new(flate2::bufread::GzDecoder::new(blob))
    }
}

/// Leaves all threads of a process one processor, or gives them all.
fn pin(pid: i32, is_pinned: bool) {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut set = CpuSet::new();
    for processor in 0..if is_pinned { 1 } else { all } {
        set.set(processor).expect("a processor");
    }
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon's threads").flatten() {
        let thread = thread.file_name().to_str().and_then(|name| name.parse().ok()).expect("a thread's number");
        // One that has just ended.
        let _ = sched_setaffinity(Pid::from_raw(thread), &set);
    }
}
