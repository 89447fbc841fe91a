//! What is done while the power is still there: pulls, unpacking, tags, containers, commits, conversions, removals.

use std::thread::sleep;
use std::time::Duration;

use integration::Output;

use crate::bench::Bench;
use crate::recorder::Recorder;

/// A step that was done, and how far the disk was then.
pub(crate) struct Done {
    pub(crate) position: usize,
    /// The images that there are when it is over; those of the next step may be there or not.
    pub(crate) images: Vec<String>,
}

type Action = fn(&Bench);

/// A container of image `a`, and its snapshot, to which nobody writes.
pub(crate) const CONTAINER: &str = "c1";

/// Each step with the images that it brings and takes away. `_` stands for the registry.
const STEPS: [(&[&str], &[&str], Action); 14] = [
    (&["_/a:latest"], &[], |bench| pull(bench, "a")),
    // What syncs the files of the image in the background shall not sync those of the container, too: the tag's record is
    // synced, and with it that of the container, whose own files must be safe by then.
    (&[], &[], |_| sleep(Duration::from_millis(1500))),
    (&[], &[], |bench| {
        done(bench, &["containers", "create", "--snapshotter", bench.snapshotter.name(), &bench.image("a"), CONTAINER]);
    }),
    (&["other.example/tag:1"], &[], |bench| done(bench, &["images", "tag", &bench.image("a"), "other.example/tag:1"])),
    (&["_/b:latest"], &[], |bench| pull(bench, "b")),
    (&[], &[], commit),
    (&["other.example/plain:1"], &[], |bench| {
        // Debian's containerd does not convert the layer of `b`, which is zstd.
        done(bench, &["images", "convert", "--uncompress", &bench.image("a"), "other.example/plain:1"]);
    }),
    // What is done in the background is cut, too.
    (&[], &[], |_| sleep(Duration::from_millis(2500))),
    (&[], &[], |bench| done(bench, &["containers", "rm", CONTAINER])),
    (&[], &["_/b:latest"], |bench| done(bench, &["images", "rm", "--sync", &bench.image("b")])),
    (&["_/d:latest"], &[], |bench| pull(bench, "d")),
    (&[], &["other.example/plain:1"], |bench| done(bench, &["images", "rm", "--sync", "other.example/plain:1"])),
    (&["_/b:latest"], &[], |bench| pull(bench, "b")),
    (&[], &["_/d:latest"], |bench| done(bench, &["images", "rm", &bench.image("d")])),
];

/// Does all steps.
pub(crate) fn tell(bench: &Bench, recorder: &Recorder) -> Vec<Done> {
    let mut images = Vec::<String>::new();
    let mut told = vec![Done { position: recorder.position(), images: Vec::new() }];
    let host = bench.image("x").replace("/x:latest", "");
    for (brings, takes, action) in STEPS {
        action(bench);
        let named = |name: &&str| name.replace('_', &host);
        images.retain(|image| !takes.iter().any(|taken| named(taken) == *image));
        images.extend(brings.iter().map(named));
        told.push(Done { position: recorder.position(), images: images.clone() });
    }
    sleep(Duration::from_millis(1500));
    told
}

fn done(bench: &Bench, arguments: &[&str]) {
    assert_done(bench, arguments, &bench.ctr(arguments));
}

fn assert_done(bench: &Bench, arguments: &[&str], out: &Output) {
    assert_eq!(out.code, 0, "ctr {arguments:?}: {}\n{}", out.errors(), bench.log_tail());
}

fn pull(bench: &Bench, name: &str) {
    assert_done(bench, &["images", "pull", name], &bench.pull(name));
}

/// A snapshot is prepared, written to and committed.
fn commit(bench: &Bench) {
    let place = bench.path("tmp/work");
    std::fs::create_dir_all(&place).expect("a mount point");
    let of_work = |arguments: &[&str]| assert_done(bench, arguments, &bench.snapshots(arguments));
    of_work(&["prepare", "work", bench.top_of_a()]);
    let script = bench.snapshots(&["mounts", place.to_str().expect("text"), "work"]).text();
    let change = format!("cd {0} && echo by hand > written && rm top/f1 && cd / && umount {0}", place.display());
    let out = bench.host("sh", &["-c", &format!("{script} && {change}")]);
    assert_eq!(out.code, 0, "{}", out.errors());
    of_work(&["commit", "done", "work"]);
}
