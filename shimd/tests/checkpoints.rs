//! Checkpoints of tasks, under our own shim. CRIU does not run everywhere: the runtime here is a wrapper that does
//! without.

mod rig;

use std::os::unix::fs::PermissionsExt;

use prost::Message;
use prost_types::Any;
use proto_containerd::services::content::{ListContentRequest, ReadContentRequest};
use proto_containerd::services::tasks::{
    CheckpointTaskRequest, CreateTaskRequest, DeleteTaskRequest, StartRequest, WaitRequest,
};
use proto_containerd::types::Descriptor;
use proto_shim::runc::{CheckpointOptions, Options};
use rig::Lab;
use tonic::{Code, Status};

const WRAPPER: &str = include_str!("../shim/tests/harness/without-criu.sh");
const IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

async fn lab() -> Option<Lab> {
    rig::insist_on_ours();
    if !rig::can_run_containers() {
        return None;
    }
    let lab = Lab::start_with_lease().await;
    lab.busybox("busybox").await;
    let real = rig::ours().unwrap().join("lowrun");
    let text = WRAPPER.replace("DIR", &lab.path("").display().to_string()).replace("REAL", &real.display().to_string());
    std::fs::write(lab.path("lowrun"), text).unwrap();
    std::fs::set_permissions(lab.path("lowrun"), std::fs::Permissions::from_mode(0o755)).unwrap();
    Some(lab)
}

/// The wrapper as the runtime.
fn options(lab: &Lab, change: impl FnOnce(&mut Options)) -> Option<Any> {
    let mut options = Options {
        binary_name: lab.path("lowrun").display().to_string(),
        root: lab.path("runc").display().to_string(),
        ..Options::default()
    };
    change(&mut options);
    Some(proto_shim::any(&options))
}

async fn create(lab: &Lab, id: &str, checkpoint: Option<Descriptor>, options: Option<Any>) -> Result<u32, Status> {
    let rootfs = lab.container(id, "busybox", &["/bin/sleep", "1000"]).await;
    let request = CreateTaskRequest { container_id: id.to_owned(), rootfs, checkpoint, options, ..Default::default() };
    Ok(lab.tasks().await.create(request).await?.into_inner().pid)
}

async fn start(lab: &Lab, id: &str) -> u32 {
    let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
    lab.tasks().await.start(request).await.unwrap().into_inner().pid
}

async fn save(lab: &Lab, id: &str, options: CheckpointOptions) -> Vec<Descriptor> {
    let options = Some(proto_shim::any(&options));
    let request = CheckpointTaskRequest { container_id: id.to_owned(), options, ..Default::default() };
    lab.tasks().await.checkpoint(request).await.unwrap().into_inner().descriptors
}

async fn end(lab: &Lab, id: &str) {
    let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
    tokio::time::timeout(rig::PATIENCE, lab.tasks().await.wait(request)).await.unwrap().unwrap();
    lab.tasks().await.delete(DeleteTaskRequest { container_id: id.to_owned() }).await.unwrap();
}

async fn blob(lab: &Lab, digest: &str) -> Vec<u8> {
    let request = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
    let mut stream = lab.content().await.read(request).await.unwrap().into_inner();
    let mut data = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        data.extend_from_slice(&part.data);
    }
    data
}

#[tokio::test]
async fn a_task_is_saved_and_another_made_of_it() {
    let Some(mut lab) = lab().await else { return };
    create(&lab, "one", None, options(&lab, |_| {})).await.unwrap();
    start(&lab, "one").await;
    let saved = save(&lab, "one", CheckpointOptions { exit: true, ..Default::default() }).await;
    assert_eq!(saved.iter().map(|part| part.media_type.as_str()).collect::<Vec<_>>(), [IMAGES, CONFIG]);
    end(&lab, "one").await;
    let mut archive = tar::Archive::new(std::io::Cursor::new(blob(&lab, &saved[0].digest).await));
    let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert!(names.iter().any(|name| name.ends_with("pages")), "{names:?}");
    let spec = Any::decode(blob(&lab, &saved[1].digest).await.as_slice()).unwrap();
    assert!(String::from_utf8(spec.value).unwrap().contains("/bin/sleep"));
    assert_eq!(std::fs::read_dir(lab.path("lib/checkpoints")).unwrap().count(), 0);
    // The copy has no process until it is started, also for a shimd that was killed meanwhile.
    assert_eq!(create(&lab, "two", Some(saved[0].clone()), options(&lab, |_| {})).await.unwrap(), 0);
    lab.kill();
    lab.up().await;
    assert_ne!(start(&lab, "two").await, 0);
    save(&lab, "two", CheckpointOptions { exit: true, ..Default::default() }).await;
    end(&lab, "two").await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn images_in_a_directory_of_the_clients() {
    let Some(lab) = lab().await else { return };
    let images = lab.path("images").display().to_string();
    create(&lab, "one", None, options(&lab, |_| {})).await.unwrap();
    start(&lab, "one").await;
    let wanted = CheckpointOptions { exit: true, image_path: images.clone(), ..Default::default() };
    assert_eq!(save(&lab, "one", wanted).await, []);
    end(&lab, "one").await;
    let from = options(&lab, |options| options.criu_image_path.clone_from(&images));
    assert_eq!(create(&lab, "two", None, from).await.unwrap(), 0);
    start(&lab, "two").await;
    save(&lab, "two", CheckpointOptions { exit: true, image_path: images, ..Default::default() }).await;
    end(&lab, "two").await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_saved_is_kept_whole_also_where_the_client_goes_away() {
    let Some(lab) = lab().await else { return };
    create(&lab, "one", None, options(&lab, |_| {})).await.unwrap();
    start(&lab, "one").await;
    let blobs = async || {
        let mut stream = lab.content().await.list(ListContentRequest::default()).await.unwrap().into_inner();
        let mut count = 0;
        while let Some(part) = stream.message().await.unwrap() {
            count += part.info.len();
        }
        count
    };
    let before = blobs().await;
    std::fs::write(lab.path("hold"), "").unwrap();
    let mut tasks = lab.tasks().await;
    let request = CheckpointTaskRequest { container_id: "one".to_owned(), ..Default::default() };
    let client = tokio::spawn(async move { tasks.checkpoint(request).await });
    rig::eventually("the runtime saves", || lab.path("calls").exists()).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    std::fs::remove_file(lab.path("hold")).unwrap();
    rig::eventually("the images were kept", || std::fs::read_dir(lab.path("lib/checkpoints")).unwrap().count() == 0)
        .await;
    assert_eq!(blobs().await, before + 2, "the images and the spec");
    save(&lab, "one", CheckpointOptions { exit: true, ..Default::default() }).await;
    end(&lab, "one").await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_no_checkpoint_is_refused() {
    let Some(lab) = lab().await else { return };
    let descriptor = |media_type: &str| Descriptor {
        media_type: media_type.to_owned(),
        digest: rig::digest(b"none"),
        size: 4,
        ..Default::default()
    };
    let refused = create(&lab, "one", Some(descriptor("text/plain")), options(&lab, |_| {})).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let parent = CheckpointTaskRequest {
        container_id: "three".to_owned(),
        parent_checkpoint: rig::digest(b"none"),
        ..Default::default()
    };
    create(&lab, "three", None, options(&lab, |_| {})).await.unwrap();
    start(&lab, "three").await;
    let refused = lab.tasks().await.checkpoint(parent).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    save(&lab, "three", CheckpointOptions { exit: true, ..Default::default() }).await;
    end(&lab, "three").await;
    let absent = create(&lab, "two", Some(descriptor(IMAGES)), options(&lab, |_| {})).await;
    assert_eq!(absent.unwrap_err().code(), Code::NotFound);
    lab.assert_nothing_left().await;
}
