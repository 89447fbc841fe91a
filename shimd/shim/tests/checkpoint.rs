//! Checkpoints through the task service. CRIU does not run everywhere: the runtime here is a wrapper that does without.

#![expect(dead_code, reason = "the harness is shared with the tests of tasks")]

mod harness;

use harness::Stage;
use proto_shim::events::TaskCheckpointed;
use proto_shim::process::Status;
use proto_shim::runc::CheckpointOptions;
use proto_shim::task::*;
use strata_fault::GrpcCode;

const WRAPPER: &str = include_str!("harness/without-criu.sh");

async fn stage(id: &str) -> Option<Stage> {
    let mut stage = Stage::new(id).await?;
    stage.wrap_runtime(WRAPPER);
    Some(stage)
}

fn request(stage: &Stage, options: CheckpointOptions) -> CheckpointTaskRequest {
    let options = Some(proto_shim::any(&options));
    CheckpointTaskRequest { id: stage.id.clone(), path: stage.text("images"), options }
}

#[tokio::test]
async fn a_container_is_saved_and_goes_on() {
    let Some(stage) = stage("save").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    // It does not run yet.
    let early = shim.fault("Checkpoint", request(&stage, CheckpointOptions::default())).await;
    assert_eq!(early.grpc, GrpcCode::FailedPrecondition);
    shim.start("").await;
    let options = CheckpointOptions {
        open_tcp: true,
        external_unix_sockets: true,
        terminal: true,
        file_locks: true,
        empty_namespaces: vec!["network".to_owned()],
        cgroups_mode: "soft".to_owned(),
        ..CheckpointOptions::default()
    };
    shim.call::<_, ()>("Checkpoint", request(&stage, options)).await;
    let calls = std::fs::read_to_string(stage.path("calls")).unwrap();
    let images = stage.text("images");
    for words in [
        "--leave-running --tcp-established --ext-unix-sk --shell-job --file-locks",
        "--empty-ns network",
        "--manage-cgroups-mode soft",
        &format!("--image-path {images}"),
    ] {
        assert!(calls.contains(words), "no {words:?} in {calls}");
    }
    assert!(!stage.path("bundle/criu-work").exists());
    assert_eq!(shim.state("").await.status(), Status::Running);
    stage.events.wait_for("checkpointed").await;
    let told: Vec<TaskCheckpointed> = stage.events.of("/tasks/checkpointed");
    assert_eq!((told[0].container_id.as_str(), told[0].checkpoint.as_str()), (stage.id.as_str(), images.as_str()));
    // And now it ends with it.
    let ending = CheckpointOptions { exit: true, ..CheckpointOptions::default() };
    shim.call::<_, ()>("Checkpoint", request(&stage, ending)).await;
    assert_eq!(shim.wait("").await, 137);
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_container_is_made_of_a_checkpoint() {
    let Some(stage) = stage("restore").await else { return };
    stage.configure(&["sh", "-c", "echo restored; exit 9"], |_| {});
    let shim = stage.start().await;
    std::fs::create_dir(stage.path("images")).unwrap();
    let mut create = stage.create_request(&stage.log_uri(), &stage.log_uri());
    create.checkpoint = stage.text("images");
    assert_eq!(shim.create(create).await, 0);
    assert_eq!((shim.state("").await.status(), shim.state("").await.pid), (Status::Created, 0));
    // Without images there is nothing to restore; that can be mended, and tried again.
    shim.fault("Start", StartRequest { id: stage.id.clone(), exec_id: String::new() }).await;
    assert_eq!(shim.state("").await.status(), Status::Created);
    std::fs::write(stage.path("images/pages"), "saved").unwrap();
    let pid = shim.start("").await;
    assert_ne!(pid, 0);
    assert_eq!(shim.wait("").await, 9);
    assert_eq!(shim.delete("").await.pid, pid);
    shim.shutdown().await;
    assert_eq!(stage.events.topics(), ["create", "start", "exit", "delete"]);
    stage.assert_clean();
}

#[tokio::test]
async fn one_that_was_never_restored_is_deleted() {
    let Some(stage) = stage("unrestored").await else { return };
    stage.configure(&["true"], |_| {});
    let shim = stage.start().await;
    let mut create = stage.create_request("", "");
    create.checkpoint = stage.text("images");
    shim.create(create).await;
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn one_that_was_restored_and_cannot_be_watched_ends() {
    let Some(stage) = stage("unwatched").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    std::fs::create_dir(stage.path("images")).unwrap();
    std::fs::write(stage.path("images/pages"), "saved").unwrap();
    std::fs::write(stage.path("lose-pid"), "").unwrap();
    let mut create = stage.create_request("", "");
    create.checkpoint = stage.text("images");
    shim.create(create).await;
    let start = || StartRequest { id: stage.id.clone(), exec_id: String::new() };
    let fault = shim.fault("Start", start()).await;
    assert!(fault.message.contains("init.pid"), "{fault:?}");
    // It is over with it: it is not started a second time beside what runs already.
    assert_eq!(shim.fault("Start", start()).await.grpc, GrpcCode::FailedPrecondition);
    assert_eq!((shim.state("").await.status(), shim.wait("").await), (Status::Stopped, 137));
    let pid: u32 = std::fs::read_to_string(stage.path("lost")).unwrap().trim().parse().unwrap();
    harness::within(async {
        while std::path::Path::new(&format!("/proc/{pid}/root/bin")).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn two_cannot_save_one_container_at_once() {
    let Some(stage) = stage("twice").await else { return };
    stage.configure(&["sleep", "1000"], |_| {});
    let shim = stage.start().await;
    shim.create(stage.create_request("", "")).await;
    shim.start("").await;
    std::fs::write(stage.path("hold"), "").unwrap();
    let first = shim.call::<_, ()>("Checkpoint", request(&stage, CheckpointOptions::default()));
    let second = async {
        while !stage.path("calls").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let refused = shim.fault("Checkpoint", request(&stage, CheckpointOptions::default())).await;
        assert_eq!(refused.grpc, GrpcCode::FailedPrecondition);
        assert!(refused.message.contains("being saved"), "{refused:?}");
        std::fs::remove_file(stage.path("hold")).unwrap();
    };
    tokio::join!(first, harness::within(second));
    shim.call::<_, ()>("Checkpoint", request(&stage, CheckpointOptions::default())).await;
    shim.kill("", 9).await;
    shim.wait("").await;
    shim.delete("").await;
    shim.shutdown().await;
    stage.assert_clean();
}

#[tokio::test]
async fn the_parent_of_a_checkpoint_is_not_left_out_silently() {
    let Some(stage) = stage("parent").await else { return };
    stage.configure(&["true"], |_| {});
    let shim = stage.start().await;
    let mut create = stage.create_request("", "");
    (create.checkpoint, create.parent_checkpoint) = (stage.text("images"), "sha256:parent".to_owned());
    let refused = shim.fault("Create", create).await;
    assert_eq!(refused.grpc, GrpcCode::Unimplemented);
    assert!(refused.message.contains("parent"), "{refused:?}");
    shim.shutdown().await;
    stage.assert_clean();
}
