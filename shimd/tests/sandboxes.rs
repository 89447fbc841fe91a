//! Sandboxes: held by a shim, found again, removed. Under our own shim: containerd's has no sandbox service.

mod rig;

use std::time::Duration;

use proto_containerd::process::Status as ProcessStatus;
use proto_containerd::services::containers::DeleteContainerRequest;
use proto_containerd::services::sandbox::*;
use proto_containerd::services::tasks::{
    CreateTaskRequest, DeleteTaskRequest, GetRequest, StartRequest, WaitRequest, WaitResponse,
};
use proto_containerd::types;
use rig::Lab;
use tonic::{Code, Status};

const POD: &str = "pod";
const SANDBOXER: &str = "shim";
const STOCK_SHIM: &str = "/usr/bin/containerd-shim-runc-v2";
const SANDBOX_SHIM: &str = "io.containerd.strata.v1";

/// A request about the sandbox of these tests: with these fields and no others, or with others that are empty.
macro_rules! named {
    ($request:ident { $($field:ident: $value:expr),* }) => {
        $request { sandbox_id: POD.to_owned(), sandboxer: SANDBOXER.to_owned(), $($field: $value),* }
    };
    ($request:ident { $($field:ident: $value:expr,)* .. }) => {
        $request { $($field: $value,)* sandbox_id: POD.to_owned(), sandboxer: SANDBOXER.to_owned(), ..Default::default() }
    };
}

/// Under whom our shim is tested.
#[derive(Clone, Copy, PartialEq)]
enum Under {
    Shimd,
    /// containerd 2.x, which proves the test.
    Containerd,
}

async fn lab(under: Under) -> Option<Lab> {
    rig::insist_on_ours();
    if !rig::can_run_containers() {
        return None;
    }
    let lab = match under {
        Under::Shimd => Lab::start_with_lease().await,
        Under::Containerd => Lab::start_theirs_with_lease().await?,
    };
    lab.busybox("busybox").await;
    Some(lab)
}

macro_rules! under_both {
    ($($name:ident)*) => {
        mod under_containerd { $(#[tokio::test] async fn $name() { super::$name(super::Under::Containerd).await })* }
        mod under_shimd { $(#[tokio::test] async fn $name() { super::$name(super::Under::Shimd).await })* }
    };
}

under_both! { a_pod_lives_and_ends a_pod_is_found_again_after_each_call }

fn record(lab: &Lab, runtime: &str) -> types::Sandbox {
    types::Sandbox {
        sandbox_id: POD.to_owned(),
        runtime: Some(types::sandbox::Runtime { name: runtime.to_owned(), options: Some(lab.runtime_options()) }),
        sandboxer: SANDBOXER.to_owned(),
        ..Default::default()
    }
}

async fn create(lab: &Lab) -> Result<(), Status> {
    let sandbox = Some(record(lab, SANDBOX_SHIM));
    lab.controller().await.create(named!(ControllerCreateRequest { sandbox: sandbox, .. })).await.map(drop)
}

async fn start(lab: &Lab) -> Result<ControllerStartResponse, Status> {
    let started = lab.controller().await.start(named!(ControllerStartRequest {})).await;
    started.map(tonic::Response::into_inner)
}

async fn state(lab: &Lab) -> String {
    let status = lab.controller().await.status(named!(ControllerStatusRequest { .. })).await;
    status.unwrap().into_inner().state
}

async fn stop(lab: &Lab) {
    lab.controller().await.stop(named!(ControllerStopRequest { timeout_secs: 0 })).await.unwrap();
}

async fn shut_down(lab: &Lab) -> Result<(), Status> {
    lab.controller().await.shutdown(named!(ControllerShutdownRequest {})).await.map(drop)
}

/// The record, then the sandbox, as containerd's client does it.
async fn pod(lab: &Lab) -> ControllerStartResponse {
    let request = StoreCreateRequest { sandbox: Some(record(lab, SANDBOX_SHIM)) };
    lab.sandboxes().await.create(request).await.unwrap();
    create(lab).await.unwrap();
    start(lab).await.unwrap()
}

/// A container of the sandbox that sleeps; gives its pid.
async fn sleeper(lab: &Lab, id: &str) -> u32 {
    let rootfs = lab.container_in(POD, id, "busybox", &["/bin/sleep", "1000"]).await;
    let mut tasks = lab.tasks().await;
    let request = CreateTaskRequest { container_id: id.to_owned(), rootfs, ..Default::default() };
    tasks.create(request).await.unwrap();
    let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
    tasks.start(request).await.unwrap().into_inner().pid
}

async fn task(lab: &Lab, id: &str) -> Result<ProcessStatus, Status> {
    let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
    Ok(lab.tasks().await.get(request).await?.into_inner().process.unwrap().status())
}

async fn wait(lab: &Lab, id: &str) -> WaitResponse {
    let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
    tokio::time::timeout(rig::PATIENCE, lab.tasks().await.wait(request)).await.unwrap().unwrap().into_inner()
}

async fn delete(lab: &Lab, id: &str) {
    lab.tasks().await.delete(DeleteTaskRequest { container_id: id.to_owned() }).await.unwrap();
    lab.containers().await.delete(DeleteContainerRequest { id: id.to_owned() }).await.unwrap();
}

async fn a_pod_lives_and_ends(under: Under) {
    let Some(lab) = lab(under).await else { return };
    let started = pod(&lab).await;
    // containerd 2.1 leaves both out.
    if under == Under::Shimd {
        assert!(started.address.starts_with("ttrpc+unix:///") && started.version == 3, "{started:?}");
    }
    assert_eq!(state(&lab).await, "SANDBOX_READY");
    assert_eq!(create(&lab).await.unwrap_err().code(), Code::AlreadyExists);
    for id in ["one", "two"] {
        sleeper(&lab, id).await;
        assert_eq!(task(&lab, id).await.unwrap(), ProcessStatus::Running);
        assert_eq!(lab.find_shim(id), None, "it has a shim of its own");
    }
    // A container goes alone, and its id is free at once.
    let begun = std::time::Instant::now();
    let kill = proto_containerd::services::tasks::KillRequest {
        container_id: "two".to_owned(),
        signal: 9,
        ..Default::default()
    };
    lab.tasks().await.kill(kill).await.unwrap();
    assert_eq!(wait(&lab, "two").await.exit_status, 137);
    let request = DeleteTaskRequest { container_id: "two".to_owned() };
    lab.tasks().await.delete(request).await.unwrap();
    let request = CreateTaskRequest { container_id: "two".to_owned(), ..Default::default() };
    assert!(lab.tasks().await.create(request).await.is_err(), "it has no root file system");
    assert!(begun.elapsed() < Duration::from_millis(900), "a shim that stays was waited for");
    assert_eq!(shut_down(&lab).await.unwrap_err().code(), Code::FailedPrecondition);
    let mut controller = lab.controller().await;
    let waited = tokio::spawn(async move { controller.wait(named!(ControllerWaitRequest {})).await });
    stop(&lab).await;
    assert_eq!(waited.await.unwrap().unwrap().into_inner().exit_status, 0);
    assert_eq!(wait(&lab, "one").await.exit_status, 137);
    assert_eq!(state(&lab).await, "SANDBOX_NOTREADY");
    delete(&lab, "one").await;
    shut_down(&lab).await.unwrap();
    assert_eq!(state(&lab).await, "");
    assert_eq!(shut_down(&lab).await.unwrap_err().code(), Code::NotFound);
    stop(&lab).await;
    lab.assert_nothing_left().await;
}

async fn a_pod_is_found_again_after_each_call(under: Under) {
    let Some(mut lab) = lab(under).await else { return };
    lab.kill();
    lab.up().await;
    lab.sandboxes().await.create(StoreCreateRequest { sandbox: Some(record(&lab, SANDBOX_SHIM)) }).await.unwrap();
    create(&lab).await.unwrap();
    lab.kill();
    lab.up().await;
    assert_eq!(state(&lab).await, "SANDBOX_NOTREADY");
    start(&lab).await.unwrap();
    lab.kill();
    lab.up().await;
    assert_eq!(state(&lab).await, "SANDBOX_READY");
    sleeper(&lab, "one").await;
    lab.kill();
    lab.up().await;
    assert_eq!(task(&lab, "one").await.unwrap(), ProcessStatus::Running);
    sleeper(&lab, "two").await;
    stop(&lab).await;
    // A start of containerd drops tasks that have ended.
    if under == Under::Shimd {
        lab.kill();
        lab.up().await;
    }
    assert_eq!(state(&lab).await, "SANDBOX_NOTREADY");
    for id in ["one", "two"] {
        assert_eq!(wait(&lab, id).await.exit_status, 137);
        delete(&lab, id).await;
    }
    shut_down(&lab).await.unwrap();
    lab.kill();
    lab.up().await;
    assert_eq!(state(&lab).await, "");
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_a_pod_or_nothing() {
    let Some(mut lab) = lab(Under::Shimd).await else { return };
    for round in 0..12u64 {
        let mut controller = lab.controller().await;
        let sandbox = Some(record(&lab, SANDBOX_SHIM));
        let creating = tokio::spawn(async move {
            controller.create(named!(ControllerCreateRequest { sandbox: sandbox, .. })).await?;
            controller.start(named!(ControllerStartRequest {})).await?;
            controller.shutdown(named!(ControllerShutdownRequest {})).await
        });
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        lab.kill();
        // Whether it came through or not.
        let _ = creating.await;
        lab.up().await;
        if !state(&lab).await.is_empty() {
            shut_down(&lab).await.unwrap();
        }
        // What is cleaned up is waited for: the id is free.
        create(&lab).await.unwrap();
        shut_down(&lab).await.unwrap();
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_shim_that_dies_takes_its_pod_along() {
    let Some(lab) = lab(Under::Shimd).await else { return };
    pod(&lab).await;
    let pids = [sleeper(&lab, "one").await, sleeper(&lab, "two").await];
    rustix::process::kill_process(lab.shim_pid(POD), rustix::process::Signal::KILL).unwrap();
    for id in ["one", "two"] {
        wait(&lab, id).await;
        delete(&lab, id).await;
    }
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
    let gone = async {
        while !state(&lab).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, gone).await.expect("the sandbox goes with its shim");
    // Its record is still there: it can be made again.
    create(&lab).await.unwrap();
    shut_down(&lab).await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn what_cannot_be_is_named() {
    let Some(lab) = lab(Under::Shimd).await else { return };
    let mut controller = lab.controller().await;
    let mut refused = async |request: ControllerCreateRequest| controller.create(request).await.unwrap_err();
    let mut request = named!(ControllerCreateRequest { sandbox: Some(record(&lab, "io.containerd.nope.v1")), .. });
    let absent = refused(request.clone()).await;
    assert!(absent.message().contains("\"containerd-shim-nope-v1\" is not installed"), "{absent:?}");
    request.sandboxer = "podsandbox".to_owned();
    assert_eq!(refused(request.clone()).await.code(), Code::NotFound);
    request.sandboxer = String::new();
    assert_eq!(refused(request).await.code(), Code::InvalidArgument);
    // Without a record and without one in the request there is nothing to make.
    assert_eq!(refused(named!(ControllerCreateRequest { .. })).await.code(), Code::NotFound);
    assert_eq!(start(&lab).await.unwrap_err().code(), Code::NotFound);
    let platform = lab.controller().await.platform(named!(ControllerPlatformRequest {})).await;
    assert_eq!(platform.unwrap_err().code(), Code::NotFound);
    // A container of a sandbox that is not there is refused; of one that is only a name, it is not.
    lab.sandboxes().await.create(StoreCreateRequest { sandbox: Some(record(&lab, SANDBOX_SHIM)) }).await.unwrap();
    let rootfs = lab.container_in(POD, "one", "busybox", &["/bin/true"]).await;
    let request = CreateTaskRequest { container_id: "one".to_owned(), rootfs, ..Default::default() };
    assert_eq!(lab.tasks().await.create(request).await.unwrap_err().code(), Code::NotFound);
    let rootfs = lab.container_in("a-name", "two", "busybox", &["/bin/true"]).await;
    let request = CreateTaskRequest { container_id: "two".to_owned(), rootfs, ..Default::default() };
    lab.tasks().await.create(request).await.unwrap();
    assert!(lab.find_shim("two").is_some());
    delete(&lab, "two").await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_shim_without_the_service_goes_again() {
    let Some(lab) = lab(Under::Shimd).await else { return };
    if !std::path::Path::new(STOCK_SHIM).exists() {
        return eprintln!("skipped: this test needs {STOCK_SHIM}");
    }
    let stock = types::Sandbox { spec: Some(lab.spec(POD, &["/bin/true"])), ..record(&lab, "io.containerd.runc.v2") };
    let refused = lab.controller().await.create(named!(ControllerCreateRequest { sandbox: Some(stock), .. })).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    assert_eq!(state(&lab).await, "");
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_container_of_another_runtime_is_not_put_into_the_sandboxs_shim() {
    let Some(lab) = lab(Under::Shimd).await else { return };
    if !std::path::Path::new(STOCK_SHIM).exists() {
        return eprintln!("skipped: this test needs {STOCK_SHIM}");
    }
    pod(&lab).await;
    let rootfs = lab.container_in(POD, "one", "busybox", &["/bin/true"]).await;
    let request = |runtime_path: &str| CreateTaskRequest {
        container_id: "one".to_owned(),
        rootfs: rootfs.clone(),
        runtime_path: runtime_path.to_owned(),
        ..Default::default()
    };
    let refused = lab.tasks().await.create(request(STOCK_SHIM)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("its sandbox is held by"), "{refused:?}");
    // Named another way it is the same one.
    let own = rig::ours().unwrap().join("containerd-shim-strata-v1").display().to_string();
    lab.tasks().await.create(request(&own)).await.unwrap();
    delete(&lab, "one").await;
    shut_down(&lab).await.unwrap();
    lab.assert_nothing_left().await;
}
