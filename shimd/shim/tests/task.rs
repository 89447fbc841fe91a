//! The task service, as a supervisor uses it.

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use harness::{PATIENCE, Stage, is_zombie, within};
use proto_shim::cgroups_v1;
use proto_shim::process::Status;
use proto_shim::runc::ProcessDetails;
use proto_shim::task::*;
use serde_json::json;
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_log::{Next, Reader, Start, Stream};
use strata_ttrpc::{CallError, CallOptions, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// What a log holds: stdout, stderr, and whether it says that it is complete.
fn read_log(stage: &Stage) -> (Vec<u8>, Vec<u8>, bool) {
    let mut reader = Reader::open(&stage.path("log"), Start::Oldest).unwrap();
    let (mut out, mut err, mut is_complete) = (Vec::new(), Vec::new(), false);
    loop {
        match reader.next().unwrap() {
            Next::Records(batch) => batch.for_each(|record| match record.stream {
                Stream::Stdout => out.extend_from_slice(record.payload),
                Stream::Stderr => err.extend_from_slice(record.payload),
            }),
            Next::End { .. } => is_complete = true,
            Next::Lost { bytes } => panic!("{bytes} bytes are lost"),
            Next::Pending => return (out, err, is_complete),
        }
    }
}

/// KiB of a process that are in memory.
fn resident(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_shim_that_sleeps_has_no_code_in_memory_and_none_after_it_was_stopped() {
    let Some(stage) = Stage::new("asleep").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let awake = resident(shim.pid);
    let sleeps = async {
        while resident(shim.pid) + 300 > awake {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(sleeps).await;
    let asleep = resident(shim.pid);
    let process = rustix::process::Pid::from_raw(shim.pid as i32).unwrap();
    for signal in [rustix::process::Signal::STOP, rustix::process::Signal::CONT] {
        rustix::process::kill_process(process, signal).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(resident(shim.pid) < asleep + 100, "{} KiB, and {asleep} before", resident(shim.pid));
    shim.kill("", SIGKILL).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn a_run_from_create_to_shutdown() {
    let Some(stage) = Stage::new("run").await else { return };
    stage.configure(&["sh", "-c", "echo out; echo err >&2; exit 7"], |_| {});
    let shim = stage.start().await;
    let pid = shim.create(stage.create_request(&stage.log_uri(), &stage.log_uri())).await;
    assert_eq!(shim.state("").await.status(), Status::Created);
    let connected: ConnectResponse = shim.call("Connect", ConnectRequest { id: stage.id.clone() }).await;
    assert_eq!((connected.shim_pid, connected.task_pid), (shim.pid, pid));
    assert_eq!(shim.start("").await, pid);
    assert_eq!(shim.wait("").await, 7);
    // When the exit is told, the log is complete.
    assert_eq!(read_log(&stage), (b"out\n".to_vec(), b"err\n".to_vec(), true));
    let state = shim.state("").await;
    assert_eq!((state.status(), state.exit_status, state.pid), (Status::Stopped, 7, pid));
    // Whoever asks later is told, too.
    assert_eq!(shim.wait("").await, 7);
    let deleted = shim.delete("").await;
    assert_eq!((deleted.exit_status, deleted.pid), (7, pid));
    assert_eq!(
        shim.fault("State", StateRequest { id: stage.id.clone(), ..Default::default() }).await.grpc,
        GrpcCode::NotFound
    );
    shim.shutdown().await;
    assert_eq!(stage.events.topics(), ["create", "start", "exit", "delete"]);
    stage.assert_clean();
}

#[tokio::test]
async fn version_3_is_the_same_service() {
    let Some(stage) = Stage::new("v3").await else { return };
    stage.configure(&["true"], |_| {});
    let mut shim = stage.start().await;
    shim.service = proto_shim::service::TASK_V3;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    assert_eq!(shim.wait("").await, 0);
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn binary_input_and_output_through_fifos() {
    let Some(stage) = Stage::new("fifo").await else { return };
    stage.configure(&["cat"], |_| {});
    let shim = stage.start().await;
    let (stdout, mut output) = stage.fifo("stdout");
    let (stdin, _keep) = stage.fifo("stdin");
    let mut request = stage.create_request(&stdout, "");
    request.stdin = stdin.clone();
    shim.create(request).await;
    shim.start("").await;
    let data: Vec<u8> = (0..1_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut input = tokio::net::unix::pipe::OpenOptions::new().open_sender(&stdin).unwrap();
    let sent = data.clone();
    let sender = tokio::spawn(async move { input.write_all(&sent).await.unwrap() });
    let mut echoed = vec![0; data.len()];
    within(output.read_exact(&mut echoed)).await.unwrap();
    assert!(echoed == data);
    sender.await.unwrap();
    // The writer is gone, and the input has not ended.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(shim.state("").await.status(), Status::Running);
    shim.close_stdin("").await;
    assert_eq!(shim.wait("").await, 0);
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn execs_end_before_the_init_and_are_told_so() {
    let Some(stage) = Stage::new("exec").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let (stdout, mut output) = stage.fifo("exec-out");
    shim.exec("one", &["sh", "-c", "echo from exec; exit 5"], |request| request.stdout = stdout).await;
    let pid = shim.start("one").await;
    assert!(pid > 0);
    assert_eq!(shim.wait("one").await, 5);
    let mut text = [0; 10];
    within(output.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"from exec\n");
    assert_eq!(shim.delete("one").await.exit_status, 5);
    shim.exec("two", &["sleep", "1000"], |_| {}).await;
    let two = shim.start("two").await;
    let pids: PidsResponse = shim.call("Pids", PidsRequest { id: stage.id.clone() }).await;
    let info = pids.processes.iter().find(|process| process.pid == two).unwrap().info.as_ref().unwrap();
    assert_eq!(proto_shim::from_any::<ProcessDetails>(info).unwrap().unwrap().exec_id, "two");
    let again = ExecProcessRequest { id: stage.id.clone(), exec_id: "two".to_owned(), ..Default::default() };
    assert_eq!(shim.fault("Exec", again).await.grpc, GrpcCode::AlreadyExists);
    shim.kill("", SIGKILL).await;
    assert_eq!(shim.wait("").await, 128 + SIGKILL);
    assert_eq!(shim.wait("two").await, 128 + SIGKILL);
    shim.delete("two").await;
    shim.delete("").await;
    shim.shutdown().await;
    let exits = stage.events.exits();
    let exits: Vec<_> = exits.iter().map(|(id, status)| (id.as_str(), *status)).collect();
    assert_eq!(exits, [("one", 5), ("two", 137), (stage.id.as_str(), 137)]);
    stage.assert_clean();
}

#[tokio::test]
async fn readers_see_the_end_when_the_program_has_ended() {
    let Some(stage) = Stage::new("end").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let (stdout, mut keeps_it_open) = stage.fifo("exec-out");
    let mut reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
    shim.exec("one", &["sh", "-c", "echo last words"], |request| request.stdout = stdout).await;
    shim.start("one").await;
    let mut text = [0; 11];
    within(keeps_it_open.read_exact(&mut text)).await.unwrap();
    drop(keeps_it_open);
    // Nobody has deleted the exec, and nobody need.
    assert_eq!(within(reader.read(&mut text)).await.unwrap(), 0);
    shim.kill("", SIGKILL).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_terminal_has_a_size_and_takes_input() {
    let Some(stage) = Stage::new("tty").await else { return };
    stage.configure(&["sh", "-c", "read line; stty size; tty; echo got $line; exit 3"], |spec| {
        spec["process"]["terminal"] = json!(true);
    });
    let shim = stage.start().await;
    let (stdout, mut output) = stage.fifo("tty-out");
    let (stdin, _keep) = stage.fifo("tty-in");
    let mut request = stage.create_request(&stdout, "");
    request.stdin = stdin.clone();
    request.terminal = true;
    shim.create(request).await;
    let resize = ResizePtyRequest { id: stage.id.clone(), width: 99, height: 33, ..Default::default() };
    shim.call::<_, ()>("ResizePty", resize).await;
    shim.start("").await;
    let mut input = tokio::net::unix::pipe::OpenOptions::new().open_sender(&stdin).unwrap();
    input.write_all(b"hello\n").await.unwrap();
    assert_eq!(shim.wait("").await, 3);
    let mut text = vec![0; 1000];
    let count = within(output.read(&mut text)).await.unwrap();
    let text = String::from_utf8_lossy(&text[..count]).into_owned();
    for word in ["33 99", "/dev/", "got hello"] {
        assert!(text.contains(word), "{text:?}");
    }
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn what_cannot_be_created_leaves_nothing() {
    let Some(stage) = Stage::new("bad").await else { return };
    stage.configure(&["no-such-program"], |_| {});
    let shim = stage.start().await;
    let fault = shim.fault("Create", stage.create_request("", "")).await;
    assert_eq!(fault.code, code::COMMAND_NOT_FOUND, "{fault:?}");
    assert!(fault.step.starts_with("create"), "{fault:?}");
    stage.assert_clean();

    let mut request = stage.create_request("", "");
    request.rootfs[0].options[1] = "lowerdir=/nonexistent".to_owned();
    let fault = shim.fault("Create", request).await;
    assert_eq!(
        (fault.layer, fault.step.as_str(), fault.code.as_str()),
        (Layer::Shim, "assemble", "ROOTFS_MOUNT_FAILED")
    );
    assert!(fault.causes.iter().any(|cause| cause.contains("os error 2")), "{fault:?}");
    stage.assert_clean();

    let fault = shim.fault("Create", stage.create_request("carrier-pigeon:///x", "")).await;
    assert_eq!(fault.code, code::INVALID_ARGUMENT);
    let fault = shim.fault("Create", stage.create_request("/nonexistent/fifo", "")).await;
    assert_eq!(fault.code, "STDIO_UNAVAILABLE");
    stage.assert_clean();

    let mut request = stage.create_request("", "");
    let options = proto_shim::runc::Options { binary_name: "no-such-runtime".to_owned(), ..Default::default() };
    request.options = Some(proto_shim::any(&options));
    let fault = shim.fault("Create", request).await;
    assert_eq!(fault.code, "RUNTIME_NOT_FOUND");
    stage.assert_clean();

    // The next one works.
    stage.configure(&["true"], |_| {});
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    assert_eq!(shim.wait("").await, 0);
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn calls_out_of_order_are_refused_in_the_standard_way() {
    let Some(stage) = Stage::new("order").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    let id = || stage.id.clone();
    let start = || StartRequest { id: id(), exec_id: String::new() };
    assert_eq!(shim.fault("Start", start()).await.grpc, GrpcCode::NotFound);
    shim.create(stage.create_request("", "")).await;
    assert_eq!(shim.fault("Create", stage.create_request("", "")).await.grpc, GrpcCode::AlreadyExists);
    shim.start("").await;
    assert_eq!(shim.fault("Start", start()).await.grpc, GrpcCode::FailedPrecondition);
    let delete = DeleteRequest { id: id(), exec_id: String::new() };
    assert_eq!(shim.fault("Delete", delete).await.code, code::CONTAINER_RUNNING);
    assert_eq!(shim.fault("Nonsense", ()).await.grpc, GrpcCode::Unimplemented);
    // A shim with a container does not end.
    shim.call::<_, ()>("Shutdown", ShutdownRequest { id: id(), now: true }).await;
    shim.kill("", SIGKILL).await;
    shim.wait("").await;
    let kill = KillRequest { id: id(), signal: SIGTERM, ..Default::default() };
    assert_eq!(shim.fault("Kill", kill).await.grpc, GrpcCode::NotFound);
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted() {
    let Some(stage) = Stage::new("unstarted").await else { return };
    stage.configure(&["true"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request(&stage.log_uri(), &stage.log_uri())).await;
    shim.kill("", SIGKILL).await;
    assert_eq!(shim.wait("").await, 137);
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn events_wait_for_whoever_comes_back() {
    let Some(mut stage) = Stage::new("away").await else { return };
    stage.configure(&["true"], |_| {});
    let shim = stage.start().await;
    stage.stop_listening();
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    assert_eq!(shim.wait("").await, 0);
    assert!(stage.events.topics().is_empty());
    stage.listen();
    stage.events.wait_for("exit").await;
    shim.delete("").await;
    shim.shutdown().await;
    assert_eq!(stage.events.topics(), ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn an_exit_that_fell_into_a_gap_is_known_afterwards() {
    let Some(stage) = Stage::new("gap").await else { return };
    stage.configure(&["sh", "-c", "sleep 0.1; exit 42"], |_| {});
    let mut shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    // The supervisor dies: nobody is connected when the container ends.
    shim.client = Client::from_stream(tokio::net::UnixStream::pair().unwrap().0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let address = fs::read_to_string(stage.path("bundle/address")).unwrap();
    shim.client = Client::connect(address.strip_prefix("unix://").unwrap().as_ref()).await.unwrap();
    assert_eq!(shim.wait("").await, 42);
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn delete_cleans_up_after_a_shim_that_was_killed() {
    let Some(stage) = Stage::new("killed").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    let pid = shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    assert!(std::process::Command::new("kill").args(["-9", &shim.pid.to_string()]).status().unwrap().success());
    within(shim.client.closed()).await;
    let output = stage.delete();
    assert!(output.status.success(), "{output:?}");
    let response: DeleteResponse = prost::Message::decode(output.stdout.as_slice()).unwrap();
    assert_eq!((response.pid, response.exit_status), (pid, 137));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let begun = Instant::now();
    while fs::metadata(format!("/proc/{pid}/root")).is_ok() && !is_zombie(pid) {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!shim.socket.exists());
    stage.assert_clean();
    // Doing it again is no error.
    assert!(stage.delete().status.success());
}

#[tokio::test]
async fn an_oom_kill_is_told_before_the_exit() {
    let Some(stage) = Stage::new("oom").await else { return };
    stage.configure(&["sh", "-c", "x=0123456789; while :; do x=$x$x; done"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 8 << 20});
    });
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let status = shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
    let topics = stage.events.topics();
    let at = |topic: &str| topics.iter().position(|seen| seen == topic);
    assert!(at("oom").is_some() && at("oom") < at("exit"), "{status} {topics:?}");
    assert_eq!(status, 137);
}

#[tokio::test]
async fn spans_come_to_those_who_ask() {
    let Some(stage) = Stage::new("trace").await else { return };
    stage.configure(&["true"], |_| {});
    let mut shim = stage.start().await;
    shim.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let created = shim.traced::<_, CreateTaskResponse>("Create", stage.create_request("", "")).await;
    let spans = created.unwrap().1.expect("spans").spans;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    for name in ["rootfs", "stdio", "lowrun create"] {
        assert!(names.contains(&name), "{names:?}");
    }
    shim.traceparent = None;
    let start = StartRequest { id: stage.id.clone(), exec_id: String::new() };
    let started = shim.traced::<_, StartResponse>("Start", start).await;
    assert_eq!(started.unwrap().1, None);
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn a_container_that_waits_takes_execs_and_a_paused_one_none() {
    let Some(stage) = Stage::new("early").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.exec("early", &["sh", "-c", "exit 5"], |_| {}).await;
    shim.start("early").await;
    assert_eq!(shim.wait("early").await, 5);
    shim.delete("early").await;
    shim.start("").await;
    shim.call::<_, ()>("Pause", PauseRequest { id: stage.id.clone() }).await;
    let late = ExecProcessRequest { id: stage.id.clone(), exec_id: "late".to_owned(), ..Default::default() };
    assert_eq!(shim.fault("Exec", late).await.code, code::CONTAINER_NOT_RUNNING);
    shim.call::<_, ()>("Resume", ResumeRequest { id: stage.id.clone() }).await;
    shim.kill("", SIGKILL).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

/// containerd 2.x would show them to people.
#[tokio::test]
async fn who_asks_for_no_details_is_told_words_alone() {
    let Some(stage) = Stage::new("words").await else { return };
    stage.configure(&["/no/such/program"], |_| {});
    let shim = stage.start().await;
    let request = stage.create_request("", "");
    let told = shim.client.call::<_, ()>(shim.service, "Create", &request, &CallOptions::default()).await;
    let Err(CallError::Status(status)) = told else { panic!("{told:?}") };
    assert!(status.message().contains("/no/such/program"), "{status}");
    assert_eq!(Fault::from_status_bytes(status.as_bytes()).unwrap(), None);
    assert!(!String::from_utf8_lossy(status.as_bytes()).contains("ErrorInfo"));
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn pause_resume_update_and_stats() {
    let Some(stage) = Stage::new("freeze").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let id = || stage.id.clone();
    shim.call::<_, ()>("Pause", PauseRequest { id: id() }).await;
    assert_eq!(shim.state("").await.status(), Status::Paused);
    shim.call::<_, ()>("Resume", ResumeRequest { id: id() }).await;
    assert_eq!(shim.state("").await.status(), Status::Running);
    let resources = json!({"pids": {"limit": 77}}).to_string().into_bytes();
    let resources = prost_types::Any { type_url: proto_shim::json_type::LINUX_RESOURCES.to_owned(), value: resources };
    let update = UpdateTaskRequest { id: id(), resources: Some(resources), ..Default::default() };
    shim.call::<_, ()>("Update", update).await;
    let stats: StatsResponse = shim.call("Stats", StatsRequest { id: id() }).await;
    let stats = stats.stats.unwrap();
    if let Some(metrics) = proto_shim::from_any::<cgroups_v1::Metrics>(&stats).unwrap() {
        assert_eq!(metrics.pids.unwrap().limit, 77);
        assert!(metrics.memory.unwrap().usage.unwrap().usage > 0);
    }
    shim.kill("", SIGKILL).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_process_that_keeps_the_pipe_does_not_keep_the_exit() {
    let Some(stage) = Stage::new("orphan").await else { return };
    // Without a pid namespace the child outlives the init, until the shim has the rest killed.
    stage.configure(&["sh", "-c", "sleep 1000 & echo done; exit 9"], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let shim = stage.start().await;
    shim.create(stage.create_request(&stage.log_uri(), &stage.log_uri())).await;
    shim.start("").await;
    let begun = Instant::now();
    assert_eq!(shim.wait("").await, 9);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(read_log(&stage).0, b"done\n");
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn much_output_is_in_the_log_to_the_last_byte() {
    let Some(stage) = Stage::new("much").await else { return };
    stage.configure(&["sh", "-c", "yes 'a line of output' | head -c 100000000; echo end >&2"], |_| {});
    let shim = stage.start().await;
    let uri = format!("{}?segment_bytes=16777216&keep_bytes=1000000000", stage.log_uri());
    shim.create(stage.create_request(&uri, &uri)).await;
    let begun = Instant::now();
    shim.start("").await;
    assert_eq!(shim.wait("").await, 0);
    eprintln!("100 MB in {:?}", begun.elapsed());
    let (out, err, is_complete) = read_log(&stage);
    assert_eq!((out.len(), err.as_slice(), is_complete), (100_000_000, b"end\n".as_slice(), true));
    assert!(out.chunks(17).all(|line| b"a line of output\n".starts_with(line)));
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_holds_the_container_back_and_loses_nothing() {
    let Some(stage) = Stage::new("full").await else { return };
    stage.configure(&["sh", "-c", "yes 'a line of output' | head -c 3000000; exit 4"], |_| {});
    let disk = stage.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new("mount").args(arguments).arg(&disk).status().unwrap();
    assert!(mount(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).success());
    let uri = format!("strata-log://{}/log", disk.display());
    let shim = stage.start().await;
    shim.create(stage.create_request(&uri, &uri)).await;
    shim.start("").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(shim.state("").await.status(), Status::Running);
    let state = Reader::open(&disk.join("log"), Start::Oldest).unwrap().state();
    assert_eq!(state, Some(strata_log::State::HeldBySpace));
    assert!(mount(&["-o", "remount,size=8m"]).success());
    assert_eq!(shim.wait("").await, 4);
    let mut reader = Reader::open(&disk.join("log"), Start::Oldest).unwrap();
    let mut bytes = 0;
    while let Next::Records(batch) = reader.next().unwrap() {
        bytes += batch.map(|record| record.payload.len()).sum::<usize>();
    }
    assert_eq!(bytes, 3_000_000);
    drop(reader);
    shim.delete("").await;
    shim.shutdown().await;
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
    stage.assert_clean();
}

#[tokio::test]
async fn a_logger_takes_the_output_itself() {
    let Some(stage) = Stage::new("logger").await else { return };
    stage.configure(&["sh", "-c", "echo out; echo err >&2"], |_| {});
    let script = stage.path("logger.sh");
    let body =
        "#!/bin/sh\nexec 5>&-\nenv | grep ^CONTAINER_ >\"$2\"; cat <&3 >>\"$2\"; cat <&4 >>\"$2\"; echo bye >>\"$2\"\n";
    fs::write(&script, body).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?file={}", script.display(), stage.text("logged"));
    let shim = stage.start().await;
    shim.create(stage.create_request(&uri, &uri)).await;
    shim.start("").await;
    assert_eq!(shim.wait("").await, 0);
    let logged = fs::read_to_string(stage.path("logged")).unwrap();
    let id = format!("CONTAINER_ID={}\n", stage.id);
    for word in [id.as_str(), "CONTAINER_NAMESPACE=shim-test\n", "out\n", "err\n", "bye\n"] {
        assert!(logged.contains(word), "{logged:?}");
    }
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn a_file_is_appended_to() {
    let Some(stage) = Stage::new("file").await else { return };
    stage.configure(&["sh", "-c", "echo out; echo err >&2"], |_| {});
    let uri = format!("file://{}", stage.text("new/directory/file"));
    let shim = stage.start().await;
    shim.create(stage.create_request(&uri, &uri)).await;
    shim.start("").await;
    shim.wait("").await;
    let text = fs::read_to_string(stage.path("new/directory/file")).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n") && text.len() == 8, "{text:?}");
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn many_execs_leave_nothing_in_the_shim() {
    let Some(stage) = Stage::new("execs").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", shim.pid)).unwrap().count();
    let mut before = 0;
    for number in 0..60 {
        let exec_id = format!("exec-{number}");
        let (stdout, mut output) = stage.fifo(&exec_id);
        shim.exec(&exec_id, &["sh", "-c", "echo hello"], |request| request.stdout = stdout).await;
        shim.start(&exec_id).await;
        assert_eq!(shim.wait(&exec_id).await, 0);
        let mut text = [0; 6];
        within(output.read_exact(&mut text)).await.unwrap();
        shim.delete(&exec_id).await;
        if number == 10 {
            before = descriptors();
        }
    }
    // One more where the root file system was taken off the host's mount table meanwhile.
    assert!(descriptors() <= before + 1, "{} descriptors after {before}", descriptors());
    let files: Vec<_> = fs::read_dir(stage.path("bundle")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.iter().all(|file| !file.to_string_lossy().contains("exec")), "{files:?}");
    shim.kill("", SIGKILL).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
}

#[tokio::test]
async fn a_terminal_exec_that_cannot_start_leaves_nothing() {
    let Some(stage) = Stage::new("exec-bad").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", shim.pid)).unwrap().count();
    // By then the shim has opened what it keeps.
    stage.events.wait_for("start").await;
    let before = descriptors();
    let (stdout, _output) = stage.fifo("out");
    shim.exec("bad", &["no-such-program"], |request| {
        request.terminal = true;
        request.stdout = stdout;
    })
    .await;
    let start = StartRequest { id: stage.id.clone(), exec_id: "bad".to_owned() };
    let fault = shim.fault("Start", start).await;
    assert_eq!(fault.code, code::COMMAND_NOT_FOUND, "{fault:?}");
    shim.delete("bad").await;
    assert_eq!(descriptors(), before);
    shim.kill("", SIGKILL).await;
    assert_eq!(shim.wait("").await, 137);
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}
