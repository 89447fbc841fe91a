//! Many running containers: what their shims and the daemon take, and how long the daemon needs to know them again.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use integration::process::Process;
use nix::sys::stat::Mode;
use proto_containerd::services::tasks::{DeleteProcessRequest, ExecProcessRequest, ListTasksRequest};
use proto_containerd::services::tasks::{StartRequest, WaitRequest};
use serde_json::json;
use tokio::task::JoinHandle;

use super::api::{Api, Wish};
use super::served::Served;
use crate::measure::{ms, pss_kib};

/// How long everything is left alone before memory is read.
const IDLE: Duration = Duration::from_secs(10);
/// Containers that are started or removed at the same time.
const AT_ONCE: usize = 4;
/// 10 MB of output, and then nothing more.
const ARGUMENTS: [&str; 3] = ["sh", "-c", "yes | head -c 10000000; exec sleep 1000000"];
const OUTPUT: u64 = 10_000_000;

/// The containers that run.
#[derive(Default)]
pub(super) struct Crowd(Vec<Member>);

/// A container whose client is there.
struct Member {
    id: String,
    /// The client's ends of its stdout and stderr, which stay open as long as it runs.
    _output: [File; 2],
}

/// KiB of a shim, on the average of so many, each with a running container that had an exec and 10 MB of output.
pub(super) fn shims_pss(served: &mut Served<'_>, count: usize) -> f64 {
    let more: Vec<String> = (served.crowd.0.len()..count).map(|_| served.next_name()).collect();
    let (api, directory) = (&served.api, served.supervised.path("tmp"));
    let begun = futures_util::stream::iter(more).map(|id| begin(api, id, &directory)).buffer_unordered(AT_ONCE);
    served.crowd.0.extend(served.runtime.block_on(begun.collect::<Vec<_>>()));
    std::thread::sleep(IDLE);
    let namespace = served.supervised.namespace();
    let shims = integration::process::all().into_iter().filter(|process| is_shim(process, namespace));
    let figures: Vec<u64> = shims.filter_map(|process| pss_kib(process.pid as u32)).collect();
    assert_eq!(figures.len(), count, "not each container has a shim");
    figures.iter().sum::<u64>() as f64 / count as f64
}

pub(super) fn is_shim(process: &Process, namespace: &str) -> bool {
    process.command.contains("containerd-shim-") && process.command.contains(&format!("-namespace {namespace} "))
}

async fn begin(api: &Api, id: String, directory: &Path) -> Member {
    let (stdout, out) = fifo(directory.join(format!("{id}.out")), OUTPUT);
    let (stderr, err) = fifo(directory.join(format!("{id}.err")), 0);
    let rootfs = api.container(&id, Wish { arguments: &ARGUMENTS, input: None }).await;
    api.start(&id, rootfs, [&stdout, &stderr]).await;
    exec_true(api, &id).await;
    // A shim may open them more than once.
    for name in [stdout, stderr] {
        std::fs::remove_file(name).expect("remove a FIFO's name");
    }
    Member { id, _output: [out.await.expect("read stdout"), err.await.expect("read stderr")] }
}

/// Makes a FIFO, and reads so many bytes from it when the shim opens it.
fn fifo(path: PathBuf, length: u64) -> (String, JoinHandle<File>) {
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("make a FIFO");
    let name = path.to_str().expect("its path").to_owned();
    (name, tokio::task::spawn_blocking(move || read_output(&path, length)))
}

fn read_output(fifo: &Path, length: u64) -> File {
    let mut file = File::open(fifo).expect("open a FIFO");
    let count = std::io::copy(&mut Read::by_ref(&mut file).take(length), &mut std::io::sink()).expect("read a FIFO");
    assert_eq!(count, length, "the output ended early");
    file
}

async fn exec_true(api: &Api, id: &str) {
    let process = json!({"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    let value = serde_json::to_vec(&process).expect("JSON is written");
    let spec = prost_types::Any { type_url: proto_containerd::json_type::PROCESS.to_owned(), value };
    let (container_id, exec_id) = (id.to_owned(), "exec".to_owned());
    let exec = ExecProcessRequest {
        container_id: container_id.clone(),
        exec_id: exec_id.clone(),
        spec: Some(spec),
        ..ExecProcessRequest::default()
    };
    let mut tasks = api.tasks();
    tasks.exec(exec).await.expect("exec");
    let start = StartRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
    tasks.start(start).await.expect("start an exec");
    let wait = WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
    let status = tasks.wait(wait).await.expect("wait for an exec").into_inner().exit_status;
    assert_eq!(status, 0, "the exec failed");
    tasks.delete_process(DeleteProcessRequest { container_id, exec_id }).await.expect("delete an exec");
}

/// KiB of the daemon, left alone.
pub(super) fn daemon_pss(served: &mut Served<'_>) -> f64 {
    std::thread::sleep(IDLE);
    let pid = served.supervised.daemon().pid();
    pss_kib(pid as u32).expect("the daemon's memory") as f64
}

/// Milliseconds from the start of a daemon, after a SIGKILL, until it lists all the containers that run.
pub(super) fn restart(served: &mut Served<'_>) -> f64 {
    served.supervised.daemon().kill();
    let began = Instant::now();
    served.supervised.restart();
    let (api, socket) = (&served.api, &served.socket);
    let (running, api) = served.runtime.block_on(async {
        let api = api.again(socket).await;
        let answer = api.tasks().list(ListTasksRequest::default()).await;
        (answer.expect("list the tasks").into_inner().tasks.len(), api)
    });
    let wall = ms(began.elapsed());
    served.api = api;
    assert_eq!(running, served.crowd.0.len(), "not all containers are known again");
    wall
}

/// Milliseconds until all that run are gone.
pub(super) fn disperse(served: &mut Served<'_>) -> f64 {
    let members = std::mem::take(&mut served.crowd.0);
    let api = &served.api;
    let began = Instant::now();
    served.runtime.block_on(async {
        let ends = futures_util::stream::iter(&members);
        ends.for_each_concurrent(AT_ONCE, |member| api.kill_and_remove(&member.id)).await;
    });
    ms(began.elapsed())
}
