//! A shimd in which things are done, step by step, and what must be true of it at any time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto_containerd::any;
use proto_containerd::process::Status as ProcessStatus;
use proto_containerd::services::containers::DeleteContainerRequest;
use proto_containerd::services::content::ListContentRequest;
use proto_containerd::services::images::{DeleteImageRequest, ListImagesRequest};
use proto_containerd::services::snapshots::{
    CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use proto_containerd::services::tasks::{
    CreateTaskRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
};
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::types::Mount;
use proto_containerd::types::transfer::{ImageStore, OciRegistry, UnpackConfiguration};
use tonic::{Code, Status};

use crate::rig::registry::{Image, Registry};
use crate::rig::{self, Lab, SNAPSHOTTER};

/// Within this after a restart everything is as the records say, not counting the time in which processes waited for
/// others' to leave the processor.
const SETTLE: Duration = Duration::from_secs(2);
const TERM: u32 = 15;
/// How the container's program ends when it is told to.
pub(crate) const CODE: u32 = 7;
const SCRIPT: &str = "trap 'exit 7' TERM; : > /ready; while :; do sleep 0.02; done";
const IMAGE: &str = "crash";
/// The snapshotter whose snapshots are whole copies, and what is copied.
const NATIVE: &str = "native";
const ORIGINAL: [(&str, &str); 3] = [("first", "1"), ("d/second", "2"), ("d/empty", "")];

/// What goes on while somebody is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Start,
    Exec,
    Kill,
    Delete,
    Remove,
    Snapshot,
    /// A snapshot of the snapshotter `native` is prepared and committed.
    Copy,
    Pull,
    Collect,
}

pub(crate) struct World {
    pub(crate) lab: Lab,
    registry: Registry,
    image: Image,
}

impl World {
    pub(crate) async fn new(step: Step) -> World {
        // What is pulled shall be held by its image alone.
        let is_of_images = matches!(step, Step::Pull | Step::Collect);
        let lab = if is_of_images { Lab::start().await } else { Lab::start_with_lease().await };
        lab.busybox("busybox").await;
        let registry = Registry::start();
        let image = registry.add(IMAGE, &[200 << 10, 100 << 10]);
        let world = World { lab, registry, image };
        if step == Step::Copy {
            world.make_original().await;
        }
        world
    }

    /// What is copied.
    async fn make_original(&self) {
        let mounts = self.prepare_snapshot(NATIVE, "original", "").await.unwrap();
        let directory = Path::new(&mounts[0].source);
        std::fs::create_dir(directory.join("d")).unwrap();
        for (name, data) in ORIGINAL {
            std::fs::write(directory.join(name), data).unwrap();
        }
        self.commit_snapshot(NATIVE, "original", "original-done").await.unwrap();
    }

    /// Makes what the step needs.
    pub(crate) async fn prepare(&self, step: Step, id: &str) {
        if step == Step::Collect {
            return self.pull().await.unwrap();
        }
        if matches!(step, Step::Pull | Step::Snapshot | Step::Copy) {
            return;
        }
        let upper = self.record(id).await;
        if step == Step::Create {
            return;
        }
        self.create(id).await.unwrap();
        if step == Step::Start {
            return;
        }
        self.start(id).await.unwrap();
        rig::eventually("the program is ready", || upper.join("ready").exists()).await;
        if matches!(step, Step::Delete | Step::Remove) {
            self.kill(id).await.unwrap();
            assert_eq!(self.wait(id).await.unwrap(), CODE);
        }
        if step == Step::Remove {
            assert_eq!(self.delete(id).await.unwrap(), CODE);
        }
    }

    /// Does it; gives the exit code, where it sees one.
    pub(crate) async fn act(&self, step: Step, id: &str) -> Result<Option<u32>, Status> {
        match step {
            Step::Create => self.create(id).await.map(|()| None),
            Step::Start => self.start(id).await.map(|()| None),
            Step::Exec => self.exec(id).await.map(Some),
            Step::Kill => {
                self.kill(id).await?;
                self.wait(id).await.map(Some)
            }
            Step::Delete => self.delete(id).await.map(Some),
            Step::Remove => self.remove(id).await.map(|()| None),
            Step::Snapshot => self.snapshot(id).await.map(|()| None),
            Step::Copy => self.copy(id).await.map(|()| None),
            Step::Pull => self.pull().await.map(|()| None),
            Step::Collect => self.collect().await.map(|()| None),
        }
    }

    /// A container's record and its snapshot; gives the upper directory.
    async fn record(&self, id: &str) -> PathBuf {
        let mounts = self.lab.container(id, "busybox", &["/bin/sh", "-c", SCRIPT]).await;
        let options = mounts.iter().flat_map(|mount| &mount.options);
        options.filter_map(|option| option.strip_prefix("upperdir=")).next().expect("an upper directory").into()
    }

    async fn create(&self, id: &str) -> Result<(), Status> {
        let rootfs = self.mounts(SNAPSHOTTER, id).await?;
        let request = CreateTaskRequest { container_id: id.to_owned(), rootfs, ..Default::default() };
        self.lab.tasks().await.create(request).await.map(drop)
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        self.lab.tasks().await.start(request).await.map(drop)
    }

    async fn exec(&self, id: &str) -> Result<u32, Status> {
        let mut tasks = self.lab.tasks().await;
        let (container_id, exec_id) = (id.to_owned(), "e".to_owned());
        let request = ExecProcessRequest {
            container_id: container_id.clone(),
            exec_id: exec_id.clone(),
            spec: Some(rig::process_any(&["/bin/sh", "-c", "exit 4"])),
            ..Default::default()
        };
        tasks.exec(request).await?;
        tasks.start(StartRequest { container_id: container_id.clone(), exec_id: exec_id.clone() }).await?;
        Ok(tasks.wait(WaitRequest { container_id, exec_id }).await?.into_inner().exit_status)
    }

    pub(crate) async fn kill(&self, id: &str) -> Result<(), Status> {
        let request = KillRequest { container_id: id.to_owned(), signal: TERM, ..Default::default() };
        self.lab.tasks().await.kill(request).await.map(drop)
    }

    pub(crate) async fn wait(&self, id: &str) -> Result<u32, Status> {
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        Ok(self.lab.tasks().await.wait(request).await?.into_inner().exit_status)
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<u32, Status> {
        let request = DeleteTaskRequest { container_id: id.to_owned() };
        Ok(self.lab.tasks().await.delete(request).await?.into_inner().exit_status)
    }

    /// The record and the snapshot.
    async fn remove(&self, id: &str) -> Result<(), Status> {
        self.lab.containers().await.delete(DeleteContainerRequest { id: id.to_owned() }).await?;
        self.remove_snapshot(SNAPSHOTTER, id).await
    }

    async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        self.lab.snapshots().await.remove(request).await.map(drop)
    }

    /// A layer is unpacked over another, and committed.
    async fn snapshot(&self, id: &str) -> Result<(), Status> {
        let layer = rig::gzip(&rig::layer(&[("etc/file", id.as_bytes()), ("etc/other", b"x")]));
        self.lab.write(id, &layer, std::collections::HashMap::new()).await?;
        let mounts = self.prepare_snapshot(SNAPSHOTTER, id, "busybox").await?;
        self.lab.apply(&rig::digest(&layer), layer.len(), mounts).await?;
        self.commit_snapshot(SNAPSHOTTER, id, &format!("{id}-done")).await
    }

    async fn copy(&self, id: &str) -> Result<(), Status> {
        self.prepare_snapshot(NATIVE, id, "original-done").await?;
        self.commit_snapshot(NATIVE, id, &format!("{id}-done")).await
    }

    /// A copy that is listed, or one of it, is the whole original.
    async fn assert_a_copy_is_whole(&self, id: &str, point: &str) {
        let (done, again) = (format!("{id}-done"), format!("{id}-again"));
        let names = self.snapshots(NATIVE).await;
        let mounts = if names.contains(&done) {
            self.prepare_snapshot(NATIVE, &again, &done).await
        } else if names.iter().any(|name| name == id) {
            self.mounts(NATIVE, id).await
        } else {
            return;
        };
        let mounts = mounts.unwrap_or_else(|status| panic!("{point}: {status:?}"));
        for (name, data) in ORIGINAL {
            let seen = std::fs::read_to_string(Path::new(&mounts[0].source).join(name));
            assert_eq!(seen.unwrap(), data, "{point}: {name}");
        }
        self.remove_snapshot(NATIVE, if names.contains(&done) { &again } else { id }).await.unwrap();
    }

    async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        Ok(self.lab.snapshots().await.mounts(request).await?.into_inner().mounts)
    }

    async fn prepare_snapshot(&self, snapshotter: &str, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        Ok(self.lab.snapshots().await.prepare(request).await?.into_inner().mounts)
    }

    async fn commit_snapshot(&self, snapshotter: &str, key: &str, name: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        };
        self.lab.snapshots().await.commit(request).await.map(drop)
    }

    async fn pull(&self) -> Result<(), Status> {
        let name = self.registry.name(IMAGE);
        let unpack = UnpackConfiguration { snapshotter: SNAPSHOTTER.to_owned(), platform: None };
        let request = TransferRequest {
            source: Some(any(&OciRegistry { reference: name.clone(), resolver: None })),
            destination: Some(any(&ImageStore { name, unpacks: vec![unpack], ..Default::default() })),
            options: None,
        };
        self.lab.transfer().await.transfer(request).await.map(drop)
    }

    /// The image goes with all that it held.
    pub(crate) async fn collect(&self) -> Result<(), Status> {
        let request = DeleteImageRequest { name: self.registry.name(IMAGE), sync: true, target: None };
        self.lab.images().await.delete(request).await.map(drop)
    }

    /// A pull that was broken off by a kill has its lease still, so that the next one finds what it had fetched.
    async fn end_leases(&self) {
        use proto_containerd::services::leases::{DeleteRequest, ListRequest};
        let mut leases = self.lab.leases().await;
        for lease in leases.list(ListRequest::default()).await.unwrap().into_inner().leases {
            leases.delete(DeleteRequest { id: lease.id, sync: false }).await.unwrap();
        }
    }

    /// What a task is doing; none: there is none.
    pub(crate) async fn task(&self, id: &str) -> Option<(ProcessStatus, u32)> {
        let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        match self.lab.tasks().await.get(request).await {
            Ok(answer) => answer.into_inner().process.map(|process| (process.status(), process.pid)),
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{id}: {status:?}"),
        }
    }
}

/// How long so far there was a process that could have run and had no processor; nothing where the kernel does not
/// count.
fn waited_for_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let total = text.lines().next().and_then(|some| some.rsplit_once("total=")?.1.parse().ok());
    Duration::from_micros(total.unwrap_or_default())
}

/// Whether there is a process, and not only its end.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn entries(path: &Path) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

fn cgroup_exists(name: &str) -> bool {
    let mut hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let name = name.trim_start_matches('/');
    Path::new("/sys/fs/cgroup").join(name).exists() || hierarchies.any(|entry| entry.path().join(name).exists())
}

impl World {
    /// Within two seconds the store says what the kernel does.
    pub(crate) async fn assert_true(&self, id: &str, point: &str) {
        let (began, waited) = (Instant::now(), waited_for_processor());
        loop {
            let lies = self.lies(id).await;
            if lies.is_empty() {
                return;
            }
            let waited = waited_for_processor() - waited;
            assert!(
                began.elapsed() < SETTLE + waited,
                "{point}: after {:?}, {waited:?} idle, {lies:?}",
                began.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where records and kernel differ.
    async fn lies(&self, id: &str) -> Vec<String> {
        let mut lies = self.lies_about_task(id).await;
        lies.extend(self.lies_about_disk().await);
        lies
    }

    async fn lies_about_task(&self, id: &str) -> Vec<String> {
        let lab = &self.lab;
        let task = self.task(id).await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let bundle = lab.path("run/shimd/io.containerd.runtime.v2.task/default").join(id);
        let (shim, cgroup) = (lab.find_shim(id).is_some(), cgroup_exists(&lab.cgroup(id)));
        let there = [
            ("a bundle", bundle.exists()),
            ("a shim", shim),
            ("a cgroup", cgroup),
            ("a mount", mounts.contains(bundle.to_str().unwrap())),
            ("a runtime's state", lab.path("runc/default").join(id).exists()),
            ("a socket", entries(&lab.path("run/shimd/s")) != 0),
        ];
        match task {
            None => there.iter().filter(|(_, is)| *is).map(|(what, _)| format!("{what} of no task")).collect(),
            Some((ProcessStatus::Stopped, pid)) if pid != 0 && lives(pid) => {
                vec![format!("{pid} is stopped and lives")]
            }
            Some((ProcessStatus::Stopped, _)) => Vec::new(),
            Some((status, pid)) if lives(pid) && shim && cgroup && bundle.exists() => {
                let is_known = matches!(status, ProcessStatus::Created | ProcessStatus::Running);
                if is_known { Vec::new() } else { vec![format!("{status:?}")] }
            }
            Some((status, pid)) => vec![format!("{status:?} with {pid} lives {} and {there:?}", lives(pid))],
        }
    }

    /// Directories that are no snapshot's, blobs that are not listed.
    async fn lies_about_disk(&self) -> Vec<String> {
        let lib = |name: &str| entries(&self.lab.path("lib").join(name));
        let pairs = [
            ("snapshots", lib("snapshots"), self.snapshots(SNAPSHOTTER).await.len()),
            ("copies", lib("native"), self.snapshots(NATIVE).await.len()),
            ("blobs", lib("content/blobs/sha256"), self.blobs().await.len()),
            ("provisional", lib("provisional"), 0),
            ("trash", lib("trash") + entries(&self.lab.path("run/shimd/trash")), 0),
        ];
        let differ = pairs.iter().filter(|(_, there, listed)| there != listed);
        differ.map(|(what, there, listed)| format!("{what}: {there} there, {listed} listed")).collect()
    }

    async fn snapshots(&self, snapshotter: &str) -> Vec<String> {
        let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), filters: Vec::new() };
        let mut stream = self.lab.snapshots().await.list(request).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(answer) = stream.message().await.unwrap() {
            names.extend(answer.info.into_iter().map(|info| info.name));
        }
        names
    }

    async fn blobs(&self) -> Vec<String> {
        let mut stream = self.lab.content().await.list(ListContentRequest::default()).await.unwrap().into_inner();
        let mut digests = Vec::new();
        while let Some(answer) = stream.message().await.unwrap() {
            digests.extend(answer.info.into_iter().map(|info| info.digest));
        }
        digests
    }

    async fn images(&self) -> usize {
        self.lab.images().await.list(ListImagesRequest::default()).await.unwrap().into_inner().images.len()
    }

    /// shimd tells what there is.
    pub(crate) async fn assert_answers(&self) {
        let lists = async { (self.images().await, self.snapshots(SNAPSHOTTER).await, self.blobs().await) };
        let within = tokio::time::timeout(SETTLE, lists);
        within.await.expect("the lists");
    }

    /// Removes whatever the step left, which must be possible.
    pub(crate) async fn clear(&self, step: Step, id: &str, point: &str) {
        let may_be_gone = |done: Result<(), Status>| match done {
            Err(status) if status.code() != Code::NotFound => panic!("{point}: {status:?}"),
            _ => {}
        };
        match step {
            Step::Pull | Step::Collect => {
                self.assert_a_pull_is_whole(point).await;
                self.end_leases().await;
                self.collect().await.unwrap_or_else(|status| panic!("{point}: {status:?}"));
                assert_eq!(self.snapshots(SNAPSHOTTER).await, ["busybox"], "{point}");
            }
            Step::Snapshot | Step::Copy => {
                let snapshotter = if step == Step::Copy { NATIVE } else { SNAPSHOTTER };
                self.assert_a_copy_is_whole(id, point).await;
                may_be_gone(self.remove_snapshot(snapshotter, &format!("{id}-done")).await);
                may_be_gone(self.remove_snapshot(snapshotter, id).await);
            }
            _ => {
                let request = DeleteContainerRequest { id: id.to_owned() };
                may_be_gone(self.lab.containers().await.delete(request).await.map(drop));
                may_be_gone(self.remove_snapshot(SNAPSHOTTER, id).await);
            }
        }
        self.assert_true(id, point).await;
        assert!(self.task(id).await.is_none(), "{point}");
    }

    /// An image that is listed is whole, and one that is not is pulled.
    async fn assert_a_pull_is_whole(&self, point: &str) {
        if self.images().await == 0 {
            self.pull().await.unwrap_or_else(|status| panic!("{point}: {status:?}"));
        }
        for layer in &self.image.layers {
            let blob = self.lab.path("lib/content/blobs/sha256").join(layer.trim_start_matches("sha256:"));
            assert_eq!(rig::digest(&std::fs::read(blob).unwrap()), *layer, "{point}");
        }
    }
}
