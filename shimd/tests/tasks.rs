//! Tasks: started, found again, buried. Under containerd's own shim and runc, or, with `STRATA_BIN` naming their
//! directory, under ours.

mod rig;

use std::time::Duration;

use proto_containerd::events;
use proto_containerd::process::Status as ProcessStatus;
use proto_containerd::services::containers::DeleteContainerRequest;
use proto_containerd::services::events::SubscribeRequest;
use proto_containerd::services::tasks::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest,
    ListPidsRequest, ListTasksRequest, StartRequest, WaitRequest, WaitResponse,
};
use rig::Lab;
use strata_fault::{Fault, Layer, code};
use strata_trace::{SPANS_TRAILER, Spans, TRACEPARENT, TraceParent};
use tonic::{Code, Status};

const KILL: u32 = 9;

/// Creates and starts a task; gives its pid.
async fn run(lab: &Lab, id: &str, arguments: &[&str]) -> Result<u32, Status> {
    let rootfs = lab.container(id, "busybox", arguments).await;
    let mut tasks = lab.tasks().await;
    let request = CreateTaskRequest { container_id: id.to_owned(), rootfs, ..Default::default() };
    let created = tasks.create(request).await?.into_inner();
    let started = tasks.start(StartRequest { container_id: id.to_owned(), exec_id: String::new() }).await?;
    assert_eq!(started.into_inner().pid, created.pid);
    Ok(created.pid)
}

async fn wait(lab: &Lab, id: &str) -> tonic::Response<WaitResponse> {
    let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
    tokio::time::timeout(rig::PATIENCE, lab.tasks().await.wait(request)).await.unwrap().unwrap()
}

async fn kill(lab: &Lab, id: &str) -> Result<(), Status> {
    let request = KillRequest { container_id: id.to_owned(), signal: KILL, all: true, ..Default::default() };
    lab.tasks().await.kill(request).await.map(drop)
}

async fn status(lab: &Lab, id: &str) -> Result<ProcessStatus, Status> {
    let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
    Ok(lab.tasks().await.get(request).await?.into_inner().process.unwrap().status())
}

async fn delete(lab: &Lab, id: &str) -> Result<u32, Status> {
    let request = DeleteTaskRequest { container_id: id.to_owned() };
    let exit = lab.tasks().await.delete(request).await?.into_inner().exit_status;
    lab.containers().await.delete(DeleteContainerRequest { id: id.to_owned() }).await?;
    Ok(exit)
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test]
async fn a_container_lives_and_ends() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let mut events = lab
        .events()
        .await
        .subscribe(SubscribeRequest { filters: vec!["topic~=/tasks/,event.container_id==c".to_owned()] })
        .await
        .unwrap()
        .into_inner();
    let pid = run(&lab, "c", &["/bin/sh", "-c", "sleep 0.3; exit 7"]).await.unwrap();
    assert!(is_running(pid));
    assert_eq!(status(&lab, "c").await.unwrap(), ProcessStatus::Running);
    assert_eq!(delete(&lab, "c").await.unwrap_err().code(), Code::FailedPrecondition);
    let request = DeleteContainerRequest { id: "c".to_owned() };
    assert_eq!(lab.containers().await.delete(request).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(wait(&lab, "c").await.into_inner().exit_status, 7);
    assert_eq!(status(&lab, "c").await.unwrap(), ProcessStatus::Stopped);
    assert_eq!(delete(&lab, "c").await.unwrap(), 7);
    assert_eq!(status(&lab, "c").await.unwrap_err().code(), Code::NotFound);
    let mut topics = Vec::new();
    while topics.last().map(String::as_str) != Some("/tasks/delete") {
        let envelope = events.message().await.unwrap().unwrap();
        if let Ok(Some(exit)) = proto_containerd::from_any::<events::TaskExit>(&envelope.event.unwrap()) {
            assert_eq!((exit.exit_status, exit.pid), (7, pid));
        }
        topics.push(envelope.topic);
    }
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn an_exec_beside_the_first_process() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    run(&lab, "c", &["/bin/sleep", "100"]).await.unwrap();
    let mut tasks = lab.tasks().await;
    let exec = |exec_id: &str, arguments: &[&str]| ExecProcessRequest {
        container_id: "c".to_owned(),
        exec_id: exec_id.to_owned(),
        spec: Some(rig::process_any(arguments)),
        ..Default::default()
    };
    tasks.exec(exec("e", &["/bin/sh", "-c", "exit 4"])).await.unwrap();
    assert_eq!(tasks.exec(exec("e", &["/bin/true"])).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(tasks.exec(exec("../e", &["/bin/true"])).await.unwrap_err().code(), Code::InvalidArgument);
    let waiting = WaitRequest { container_id: "c".to_owned(), exec_id: "e".to_owned() };
    tasks.start(StartRequest { container_id: "c".to_owned(), exec_id: "e".to_owned() }).await.unwrap();
    assert_eq!(tasks.wait(waiting).await.unwrap().into_inner().exit_status, 4);
    let request = DeleteProcessRequest { container_id: "c".to_owned(), exec_id: "e".to_owned() };
    assert_eq!(tasks.delete_process(request).await.unwrap().into_inner().exit_status, 4);
    let pids = tasks.list_pids(ListPidsRequest { container_id: "c".to_owned() }).await.unwrap().into_inner();
    assert_eq!(pids.processes.len(), 1);
    kill(&lab, "c").await.unwrap();
    assert_eq!(wait(&lab, "c").await.into_inner().exit_status, 137);
    delete(&lab, "c").await.unwrap();
}

#[tokio::test]
async fn containers_go_on_while_shimd_is_killed() {
    if !rig::can_run_containers() {
        return;
    }
    let mut lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let pid = run(&lab, "stays", &["/bin/sleep", "100"]).await.unwrap();
    run(&lab, "ends", &["/bin/sh", "-c", "sleep 0.5; exit 5"]).await.unwrap();
    lab.kill();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(is_running(pid));
    lab.up().await;
    assert_eq!(wait(&lab, "ends").await.into_inner().exit_status, 5);
    assert_eq!(delete(&lab, "ends").await.unwrap(), 5);
    assert_eq!(status(&lab, "stays").await.unwrap(), ProcessStatus::Running);
    lab.stop();
    assert!(is_running(pid));
    lab.up().await;
    let listed = lab.tasks().await.list(ListTasksRequest::default()).await.unwrap().into_inner().tasks;
    assert_eq!(listed.iter().map(|task| (task.id.as_str(), task.pid)).collect::<Vec<_>>(), [("stays", pid)]);
    kill(&lab, "stays").await.unwrap();
    assert_eq!(wait(&lab, "stays").await.into_inner().exit_status, 137);
    delete(&lab, "stays").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_shim_that_dies_takes_its_container_along() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let pid = run(&lab, "c", &["/bin/sleep", "100"]).await.unwrap();
    let other = run(&lab, "other", &["/bin/sleep", "100"]).await.unwrap();
    let waiting = {
        let mut tasks = lab.tasks().await;
        let request = WaitRequest { container_id: "c".to_owned(), exec_id: String::new() };
        tokio::spawn(async move { tasks.wait(request).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let shim = lab.shim_pid("c");
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let answer = tokio::time::timeout(rig::PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    let fault = answer.metadata().get_bin("strata-fault-bin").unwrap().to_bytes().unwrap();
    let fault = Fault::from_status_bytes(&fault).unwrap().unwrap();
    assert_eq!((fault.layer, fault.code.as_str()), (Layer::Shim, code::SHIM_DIED));
    assert_eq!(answer.into_inner().exit_status, 137);
    assert!(!is_running(pid));
    assert!(is_running(other));
    assert_eq!(status(&lab, "c").await.unwrap(), ProcessStatus::Stopped);
    assert_eq!(delete(&lab, "c").await.unwrap(), 137);
    kill(&lab, "other").await.unwrap();
    wait(&lab, "other").await;
    delete(&lab, "other").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn what_died_with_shimd_is_cleaned_up_at_the_next_start() {
    if !rig::can_run_containers() {
        return;
    }
    let mut lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let pid = run(&lab, "c", &["/bin/sleep", "100"]).await.unwrap();
    let shim = lab.shim_pid("c");
    lab.kill();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    lab.up().await;
    rig::eventually("its process is killed", || !is_running(pid)).await;
    lab.assert_nothing_left().await;
    rig::eventually("its id is free", || !lab.path("run/shimd/io.containerd.runtime.v2.task/default/c").exists()).await;
    lab.containers().await.delete(DeleteContainerRequest { id: "c".to_owned() }).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let status = run(&lab, "c", &["/bin/nothing"]).await.unwrap_err();
    let fault = Fault::from_grpc(&status, Layer::Engine, "");
    // runc says only that it failed; ours, that the kernel did not find the file.
    assert!(matches!(fault.layer, Layer::Runtime | Layer::Kernel), "{status:?}");
    assert_eq!(fault.code, code::COMMAND_NOT_FOUND);
    lab.assert_nothing_left().await;
    lab.containers().await.delete(DeleteContainerRequest { id: "c".to_owned() }).await.unwrap();
}

#[tokio::test]
async fn a_runtime_that_is_not_installed() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    lab.container("c", "busybox", &["/bin/true"]).await;
    let request = CreateTaskRequest {
        container_id: "c".to_owned(),
        runtime_path: "io.containerd.nothing.v9".to_owned(),
        ..Default::default()
    };
    let status = lab.tasks().await.create(request).await.unwrap_err();
    let fault = Fault::from_grpc(&status, Layer::Engine, "");
    assert_eq!(fault.code, "SHIM_START_FAILED");
    assert!(fault.message.contains("containerd-shim-nothing-v9"), "{}", fault.message);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_traced_create_hands_its_spans_back() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let rootfs = lab.container("c", "busybox", &["/bin/true"]).await;
    let message = CreateTaskRequest { container_id: "c".to_owned(), rootfs, ..Default::default() };
    let mut request = tonic::Request::new(message);
    let parent = TraceParent::sampled(1, 2).to_string();
    request.metadata_mut().insert(TRACEPARENT, parent.parse().unwrap());
    let answer = lab.tasks().await.create(request).await.unwrap();
    let bytes = answer.metadata().get_bin(SPANS_TRAILER).unwrap().to_bytes().unwrap();
    let spans = prost::Message::decode(bytes).map(|spans: Spans| spans.spans).unwrap();
    let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.layer.as_str())).collect();
    // Our own shim and runtime hand theirs up, too; whatever was inside ended before.
    assert_eq!((names[0], names[names.len() - 1]), (("shim", "shim"), ("create", "supervisor")));
    assert!(spans.iter().all(|span| span.duration_ns > 0));
    assert_eq!(rig::ours().is_some(), names.len() > 2, "{names:?}");
    let untraced = lab.tasks().await.get(GetRequest { container_id: "c".to_owned(), exec_id: String::new() }).await;
    assert!(untraced.unwrap().metadata().get_bin(SPANS_TRAILER).is_none());
    kill(&lab, "c").await.unwrap();
    wait(&lab, "c").await;
    delete(&lab, "c").await.unwrap();
}

#[tokio::test]
async fn a_shim_that_is_stopped_stops_nobody_else() {
    if !rig::can_run_containers() {
        return;
    }
    let mut lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    run(&lab, "stopped", &["/bin/sleep", "100"]).await.unwrap();
    let other = run(&lab, "other", &["/bin/sleep", "100"]).await.unwrap();
    let shim = lab.shim_pid("stopped");
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
    let hanging = {
        let mut tasks = lab.tasks().await;
        let request = GetRequest { container_id: "stopped".to_owned(), exec_id: String::new() };
        tokio::spawn(async move { tasks.get(request).await })
    };
    for _ in 0..2 {
        let began = std::time::Instant::now();
        assert_eq!(status(&lab, "other").await.unwrap(), ProcessStatus::Running);
        assert!(began.elapsed() < Duration::from_millis(500));
        let listed = lab.tasks().await.list(ListTasksRequest::default()).await.unwrap().into_inner().tasks;
        let listed: Vec<_> = listed.iter().map(|task| (task.id.as_str(), task.status())).collect();
        assert_eq!(listed, [("other", ProcessStatus::Running), ("stopped", ProcessStatus::Unknown)]);
        assert!(began.elapsed() < Duration::from_secs(3));
        // The second time, shimd itself has to find it in that state.
        lab.kill();
        lab.up().await;
    }
    assert!(is_running(other));
    rustix::process::kill_process(shim, rustix::process::Signal::CONT).unwrap();
    assert!(hanging.await.unwrap().is_err());
    assert_eq!(status(&lab, "stopped").await.unwrap(), ProcessStatus::Running);
    for id in ["stopped", "other"] {
        kill(&lab, id).await.unwrap();
        assert_eq!(wait(&lab, id).await.into_inner().exit_status, 137);
        delete(&lab, id).await.unwrap();
    }
    lab.assert_nothing_left().await;
}

/// Whatever there is of a container is removed, as a client would after it has lost its supervisor.
async fn remove(lab: &Lab, id: &str) {
    if status(lab, id).await.is_ok() {
        // It may never have been started; then there is nothing to kill, and deleting does it.
        let _ = kill(lab, id).await;
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        let _ = tokio::time::timeout(Duration::from_secs(5), lab.tasks().await.wait(request)).await;
        lab.tasks().await.delete(DeleteTaskRequest { container_id: id.to_owned() }).await.unwrap();
    }
    rig::eventually("the id is free", || {
        !lab.path("run/shimd/io.containerd.runtime.v2.task/default").join(id).exists()
    })
    .await;
    lab.containers().await.delete(DeleteContainerRequest { id: id.to_owned() }).await.unwrap();
}

#[tokio::test]
async fn a_kill_at_any_moment_of_a_run_leaves_nothing() {
    if !rig::can_run_containers() {
        return;
    }
    let mut lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    for round in 0..16u64 {
        let id = format!("c{round}");
        let rootfs = lab.container(&id, "busybox", &["/bin/sleep", "100"]).await;
        let mut tasks = lab.tasks().await;
        let running = {
            let id = id.clone();
            tokio::spawn(async move {
                let request = CreateTaskRequest { container_id: id.clone(), rootfs, ..Default::default() };
                tasks.create(request).await?;
                tasks.start(StartRequest { container_id: id, exec_id: String::new() }).await
            })
        };
        tokio::time::sleep(Duration::from_millis(round * 5)).await;
        lab.kill();
        // Whether it came through or not.
        let _ = running.await;
        lab.up().await;
        remove(&lab, &id).await;
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_half_made_task() {
    if !rig::can_run_containers() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    for round in 0..8u64 {
        let id = format!("c{round}");
        let rootfs = lab.container(&id, "busybox", &["/bin/sleep", "100"]).await;
        let request = CreateTaskRequest { container_id: id.clone(), rootfs, ..Default::default() };
        let patience = Duration::from_millis(round * 6);
        let _ = tokio::time::timeout(patience, lab.tasks().await.create(request)).await;
        // It is finished, whoever waits: the task is there or, if the request never arrived, not.
        tokio::time::sleep(Duration::from_millis(400)).await;
        remove(&lab, &id).await;
    }
    lab.assert_nothing_left().await;
}
