//! How long things take. Not tests but readings, and only when asked for: `cargo nextest run --release -p shimd
//! --run-ignored only --test speed --no-capture`.

mod rig;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use proto_containerd::services::containers::DeleteContainerRequest;
use proto_containerd::services::snapshots::RemoveSnapshotRequest;
use proto_containerd::services::tasks::{CreateTaskRequest, DeleteTaskRequest, StartRequest, WaitRequest};
use proto_containerd::services::version::version_client::VersionClient;
use rig::{Lab, SNAPSHOTTER, digest};
use strata_trace::{SPANS_TRAILER, Spans, TRACEPARENT, TraceParent};

const ROUNDS: usize = 50;

#[derive(Default)]
struct Readings(Vec<(String, Vec<Duration>)>);

impl Readings {
    async fn take<T>(&mut self, name: &str, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let outcome = work.await;
        self.add(name, began.elapsed());
        outcome
    }

    fn add(&mut self, name: &str, time: Duration) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, all)) => all.push(time),
            None => self.0.push((name.to_owned(), vec![time])),
        }
    }

    fn add_spans<T>(&mut self, call: &str, answer: &tonic::Response<T>) {
        let Some(bytes) = answer.metadata().get_bin(SPANS_TRAILER) else { return };
        let spans: Spans = prost::Message::decode(bytes.to_bytes().unwrap()).unwrap();
        for span in spans.spans {
            let name = format!("  {call}: {} {}", span.layer, span.name);
            self.add(&name, Duration::from_nanos(span.duration_ns));
        }
    }

    fn print(mut self) {
        for (name, all) in &mut self.0 {
            all.sort();
            println!("{name:34} median {:>10.1?}  worst {:>10.1?}", all[all.len() / 2], all[all.len() - 1]);
        }
    }
}

fn traced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(TRACEPARENT, TraceParent::sampled(1, 2).to_string().parse().unwrap());
    request
}

fn pss_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test]
#[ignore = "a reading, not a test"]
async fn a_run() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    println!("Pss at rest {} KiB", pss_kib(lab.pid()));
    lab.busybox("busybox").await;
    let mut tasks = lab.tasks().await;
    let (mut containers, mut snapshots) = (lab.containers().await, lab.snapshots().await);
    let mut version = VersionClient::new(lab.connect().await);
    let mut readings = Readings::default();
    for round in 0..ROUNDS {
        let id = format!("c{round}");
        readings.take("version", version.version(())).await.unwrap();
        // Two calls on connections of their own.
        let rootfs = readings.take("prepare + container", lab.container(&id, "busybox", &["/bin/true"])).await;
        let create = CreateTaskRequest { container_id: id.clone(), rootfs, ..Default::default() };
        let answer = readings.take("task create", tasks.create(traced(create))).await.unwrap();
        readings.add_spans("create", &answer);
        let start = StartRequest { container_id: id.clone(), exec_id: String::new() };
        let answer = readings.take("task start", tasks.start(traced(start))).await.unwrap();
        readings.add_spans("start", &answer);
        let wait = WaitRequest { container_id: id.clone(), exec_id: String::new() };
        readings.take("task wait", tasks.wait(wait)).await.unwrap();
        let delete = DeleteTaskRequest { container_id: id.clone() };
        let answer = readings.take("task delete", tasks.delete(traced(delete))).await.unwrap();
        readings.add_spans("delete", &answer);
        readings.take("container delete", containers.delete(DeleteContainerRequest { id: id.clone() })).await.unwrap();
        let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: id };
        readings.take("snapshot remove", snapshots.remove(remove)).await.unwrap();
    }
    readings.print();
    tokio::time::sleep(Duration::from_secs(12)).await;
    println!("Pss after {ROUNDS} runs {} KiB", pss_kib(lab.pid()));
}

/// A gzip layer of about 100 MB unpacked, from what this machine has.
fn real_layer(directory: &str) -> Option<(Vec<u8>, String)> {
    if !Path::new(directory).is_dir() {
        return None;
    }
    let cache = format!("/tmp/shimd-speed-{}.tar.gz", directory.replace('/', "-"));
    if !Path::new(&cache).exists() {
        let made = std::process::Command::new("tar").args(["-czf", &cache, "-C", directory, "."]).status().ok()?;
        assert!(made.success());
    }
    let blob = std::fs::read(cache).ok()?;
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(blob.as_slice()), &mut plain).ok()?;
    let diff_id = digest(&plain);
    Some((blob, diff_id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a reading, not a test"]
async fn a_pull() {
    if !rig::is_root() {
        return;
    }
    let layers: Vec<_> = ["/usr/include", "/usr/lib/gcc", "/usr/lib/python3", "/usr/share/locale", "/usr/lib/git-core"]
        .into_iter()
        .filter_map(real_layer)
        .collect();
    let bytes: usize = layers.iter().map(|(blob, _)| blob.len()).sum();
    println!("{} layers, {} MB", layers.len(), bytes / 1_000_000);
    for as_it_arrives in [true, false] {
        let lab = Lab::start_with_lease().await;
        let began = Instant::now();
        let writes = layers.iter().map(|(blob, diff_id)| {
            let mut labels = HashMap::new();
            if as_it_arrives {
                labels.insert("strata.io/unpack.diff-id".to_owned(), diff_id.clone());
            }
            let reference = digest(blob);
            let lab = &lab;
            async move { lab.write(&reference, blob, labels).await.unwrap() }
        });
        futures_util::future::join_all(writes).await;
        let written = began.elapsed();
        let mut parent = String::new();
        for (blob, diff_id) in &layers {
            let mounts = lab.prepare("tmp", &parent).await;
            assert_eq!(lab.apply(&digest(blob), blob.len(), mounts).await.unwrap(), *diff_id);
            lab.commit("tmp", diff_id).await;
            parent.clone_from(diff_id);
        }
        println!(
            "unpacked as it arrives: {as_it_arrives}: written {written:.2?}, applied {:.2?}, processor {:.2} s",
            began.elapsed(),
            processor_seconds(lab.pid())
        );
        tokio::time::sleep(Duration::from_secs(12)).await;
        println!("Pss {} KiB", pss_kib(lab.pid()));
    }
}
