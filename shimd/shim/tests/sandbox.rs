//! The sandbox service, as a supervisor uses it.

#![expect(dead_code, reason = "the harness is shared with the tests of tasks")]

mod harness;

use std::time::Duration;

use harness::{Shim, Stage, within};
use proto_shim::process::Status;
use proto_shim::sandbox::*;
use proto_shim::service::{SANDBOX, TASK_V3};
use proto_shim::task::*;
use strata_fault::GrpcCode;

const POD: &str = "pod";

fn pod() -> String {
    POD.to_owned()
}

/// A shim with a sandbox that was started; it is told to call the sandbox service.
async fn sandbox(stage: &Stage) -> Shim {
    let mut shim = stage.start().await;
    shim.service = SANDBOX;
    let request = CreateSandboxRequest { sandbox_id: pod(), ..Default::default() };
    shim.call::<_, CreateSandboxResponse>("CreateSandbox", request.clone()).await;
    assert_eq!(shim.fault("CreateSandbox", request).await.grpc, GrpcCode::AlreadyExists);
    assert_eq!(status(&shim).await.state, "SANDBOX_NOTREADY");
    let started: StartSandboxResponse = shim.call("StartSandbox", StartSandboxRequest { sandbox_id: pod() }).await;
    assert_eq!((started.pid, started.created_at.is_some()), (0, true));
    shim
}

async fn status(shim: &Shim) -> SandboxStatusResponse {
    shim.call("SandboxStatus", SandboxStatusRequest { sandbox_id: pod(), verbose: true }).await
}

async fn stop(shim: &Shim, timeout_secs: u32) {
    let request = StopSandboxRequest { sandbox_id: pod(), timeout_secs };
    shim.call::<_, StopSandboxResponse>("StopSandbox", request).await;
}

async fn shut_down(shim: Shim) {
    let request = ShutdownSandboxRequest { sandbox_id: pod() };
    shim.call::<_, ShutdownSandboxResponse>("ShutdownSandbox", request).await;
    within(shim.client.closed()).await;
}

/// Starts the stage's container in the shim.
async fn run(shim: &mut Shim, stage: &Stage) {
    shim.service = TASK_V3;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    shim.service = SANDBOX;
}

async fn delete(shim: &mut Shim) -> u32 {
    shim.service = TASK_V3;
    assert_eq!(shim.state("").await.status(), Status::Stopped);
    let status = shim.delete("").await.exit_status;
    // The task service's own goodbye does not end a shim that has a sandbox.
    shim.call::<_, ()>("Shutdown", ShutdownRequest { id: shim.id.clone(), now: false }).await;
    shim.service = SANDBOX;
    status
}

#[tokio::test]
async fn a_sandbox_without_containers() {
    let Some(stage) = Stage::new("empty-pod").await else { return };
    stage.configure(&["true"], |_| {});
    let shim = sandbox(&stage).await;
    let ready = status(&shim).await;
    assert_eq!((ready.state.as_str(), ready.sandbox_id.as_str(), ready.exited_at), ("SANDBOX_READY", POD, None));
    assert_eq!(ready.info["shimPid"], shim.pid.to_string());
    let platform: PlatformResponse = shim.call("Platform", PlatformRequest { sandbox_id: pod() }).await;
    assert_eq!(platform.platform.unwrap().os, "linux");
    shim.call::<_, PingResponse>("PingSandbox", PingRequest { sandbox_id: pod() }).await;
    let metrics: SandboxMetricsResponse =
        shim.call("SandboxMetrics", SandboxMetricsRequest { sandbox_id: pod() }).await;
    assert_eq!(metrics.metrics.unwrap().id, POD);
    let other = shim.fault("PingSandbox", PingRequest { sandbox_id: "other".to_owned() }).await;
    assert_eq!(other.grpc, GrpcCode::NotFound);
    let again = shim.fault("StartSandbox", StartSandboxRequest { sandbox_id: pod() }).await;
    assert_eq!(again.grpc, GrpcCode::FailedPrecondition);
    // Who waits is told when it stops; and so is who asks afterwards.
    let wait = || shim.call::<_, WaitSandboxResponse>("WaitSandbox", WaitSandboxRequest { sandbox_id: pod() });
    let (waited, ()) = tokio::join!(wait(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stop(&shim, 10).await;
    });
    assert_eq!((waited.exit_status, waited.exited_at), (0, wait().await.exited_at));
    assert_eq!(status(&shim).await.exited_at, waited.exited_at);
    shut_down(shim).await;
    stage.assert_clean();
}

#[tokio::test]
async fn stopping_asks_and_then_kills() {
    let Some(stage) = Stage::new("pod").await else { return };
    // It is deaf to the request.
    stage.configure(&["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], |_| {});
    let mut shim = sandbox(&stage).await;
    run(&mut shim, &stage).await;
    let full = shim.fault("ShutdownSandbox", ShutdownSandboxRequest { sandbox_id: pod() }).await;
    assert_eq!(full.grpc, GrpcCode::FailedPrecondition);
    let begun = std::time::Instant::now();
    stop(&shim, 1).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was not asked first");
    shim.service = TASK_V3;
    let late = shim.fault("Create", CreateTaskRequest { id: "late".to_owned(), ..Default::default() }).await;
    assert_eq!(late.grpc, GrpcCode::FailedPrecondition);
    assert_eq!(delete(&mut shim).await, 137);
    shut_down(shim).await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_paused_container_is_killed_too() {
    let Some(stage) = Stage::new("paused-pod").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let mut shim = sandbox(&stage).await;
    run(&mut shim, &stage).await;
    shim.service = TASK_V3;
    shim.call::<_, ()>("Pause", PauseRequest { id: shim.id.clone() }).await;
    shim.service = SANDBOX;
    stop(&shim, 0).await;
    assert_eq!(delete(&mut shim).await, 137);
    shut_down(shim).await;
    stage.assert_clean();
}

#[tokio::test]
async fn what_was_never_restored_holds_no_stop_up() {
    let Some(stage) = Stage::new("unrestored-pod").await else { return };
    stage.configure(&["true"], |_| {});
    let mut shim = sandbox(&stage).await;
    shim.service = TASK_V3;
    let mut create = stage.create_request("", "");
    create.checkpoint = stage.text("images");
    assert_eq!(shim.create(create).await, 0, "it has no process yet");
    shim.service = SANDBOX;
    stop(&shim, 0).await;
    shim.service = TASK_V3;
    // What cannot be made any more cannot be started, either.
    let late = shim.fault("Start", StartRequest { id: shim.id.clone(), exec_id: String::new() }).await;
    assert_eq!(late.grpc, GrpcCode::FailedPrecondition);
    assert!(late.message.contains(&format!("sandbox {POD} is stopped")), "{late:?}");
    shim.delete("").await;
    shim.service = SANDBOX;
    shut_down(shim).await;
    stage.assert_clean();
}

/// The runtime, but that as long as `deaf` is there it fails to kill; `kills` tells how often it was to.
const DEAF: &str = "#!/bin/sh
case \" $* \" in *' kill '*) echo kill >>DIR/kills; [ ! -e DIR/deaf ] || exit 1 ;; esac
exec REAL \"$@\"
";

#[tokio::test]
async fn what_does_not_die_is_killed_again_after_a_pause() {
    let Some(mut stage) = Stage::new("deaf-pod").await else { return };
    stage.wrap_runtime(DEAF);
    stage.configure(&["sleep", "1000"], |_| {});
    let mut shim = sandbox(&stage).await;
    run(&mut shim, &stage).await;
    shim.service = TASK_V3;
    shim.call::<_, ()>("Pause", PauseRequest { id: shim.id.clone() }).await;
    shim.service = SANDBOX;
    std::fs::write(stage.path("deaf"), "").unwrap();
    let kills = || std::fs::read_to_string(stage.path("kills")).unwrap_or_default().lines().count();
    let begun = std::time::Instant::now();
    let hears_again = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let most = 2 + begun.elapsed().as_secs() as usize;
        assert!((2..=most).contains(&kills()), "{} kills in {:?}", kills(), begun.elapsed());
        std::fs::remove_file(stage.path("deaf")).unwrap();
    };
    tokio::join!(stop(&shim, 0), hears_again);
    assert_eq!(delete(&mut shim).await, 137);
    shut_down(shim).await;
    stage.assert_clean();
}

/// Stands for the runtime that is called where no other is named: it tells that it was.
const TELLING: &str = "#!/bin/sh\necho \"$*\" >>DIR/calls\n";

#[tokio::test]
async fn cleaning_a_sandbox_up_touches_no_container_of_its_name() {
    let Some(mut stage) = Stage::new("named-pod").await else { return };
    stage.configure(&["true"], |_| {});
    stage.wrap_runtime(TELLING);
    let shim = sandbox(&stage).await;
    let pid = rustix::process::Pid::from_raw(shim.pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    within(shim.client.closed()).await;
    let command = stage.command_of(&stage.id, "bundle", "delete");
    // The runtime beside the shim goes before all others.
    // Not by this process: a program that it writes could not be executed while a neighbour's child still has the file.
    let copied = std::process::Command::new("cp").arg(command.get_program()).arg(stage.path("shim")).status();
    assert!(copied.unwrap().success());
    let clean_up = || {
        let mut beside = std::process::Command::new(stage.path("shim"));
        let output = beside.args(command.get_args()).current_dir(stage.path("bundle")).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        std::fs::read_to_string(stage.path("calls")).unwrap_or_default()
    };
    assert_eq!(clean_up(), "");
    // Of a bundle in which a container was begun it is told.
    std::fs::write(stage.path("bundle/options.json"), "").unwrap();
    assert!(clean_up().contains(&format!("delete --force {}", stage.id)));
    stage.assert_clean();
}
