//! The place of the test: the supervisor with its root on a disk of its own, asked by `ctr`, and a registry that stands
//! elsewhere and never loses power.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use integration::daemon::Daemon;
use integration::lab::Lab;
use integration::registry::{Access, Registry};
use integration::stack::ours::{start_shimd, start_shimd_without_syncs};
use integration::stack::theirs::start_containerd_with;
use integration::{Call, Output, programs};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::image::{Layer, Tree, write_layout};
use crate::story::CONTAINER;

/// Whom the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Shimd,
    /// shimd whose syncs do nothing: what the test must find out.
    WeakShimd,
    Containerd,
}

/// How the snapshots are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snapshotter {
    /// Each is what it has beyond its parents.
    Overlayfs,
    /// Each is a whole copy.
    Native,
}

impl Snapshotter {
    /// As clients call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::Native => "native",
        }
    }
}

pub(crate) struct Bench {
    lab: Lab,
    victim: Victim,
    pub(crate) snapshotter: Snapshotter,
    registry: Registry,
    daemon: Option<Daemon>,
    /// What must be seen in the snapshot of each chain id, and of others by their names.
    pub(crate) trees: BTreeMap<String, Tree>,
    boots: u32,
}

impl Bench {
    pub(crate) fn set_up(victim: Victim, snapshotter: Snapshotter) -> Bench {
        let lab = Lab::enter();
        let registry =
            Registry::start(lab.site(), "registry", Access::Anyone).unwrap_or_else(|error| panic!("{error}"));
        let mut bench = Bench { lab, victim, snapshotter, registry, daemon: None, trees: BTreeMap::new(), boots: 0 };
        bench.publish();
        bench.tell_boot_id();
        bench
    }

    /// Three images: the second one shares the first layer with the first.
    fn publish(&mut self) {
        let base = Layer::new("base", 1, 40);
        let middle = Layer::new("middle", 2, 25).without("base/f3");
        let top = Layer::new("top", 3, 25).without("middle/large");
        let other = Layer::new("other", 4, 30).without("base/large").zstd();
        let alone = Layer::new("alone", 5, 60);
        for (name, layers) in [("a", vec![&base, &middle, &top]), ("b", vec![&base, &other]), ("d", vec![&alone])] {
            let layout = self.path(&format!("tmp/{name}"));
            let chain = write_layout(&layers, &layout);
            self.registry.add(&layout, name, "latest").unwrap_or_else(|error| panic!("{error}"));
            if name == "a" {
                let mut work = chain.last().expect("layers").1.clone();
                work.insert("written".to_owned(), format!("file 644 {}", crate::image::digest(b"by hand\n")));
                work.remove("top/f1");
                self.trees.insert("done".to_owned(), work);
                self.trees.insert("top of a".to_owned(), Tree::from([(chain[2].0.clone(), String::new())]));
                self.trees.insert(CONTAINER.to_owned(), chain[2].1.clone());
            }
            self.trees.extend(chain);
        }
    }

    /// The snapshot of all of image `a`.
    pub(crate) fn top_of_a(&self) -> &str {
        self.trees["top of a"].keys().next().expect("it was published")
    }

    /// The name of an image of the registry.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.registry.host())
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.lab.site().path(relative)
    }

    fn name(&self) -> &'static str {
        if self.victim == Victim::Containerd { "containerd" } else { "shimd" }
    }

    /// Where the supervisor keeps what must last.
    fn root(&self) -> PathBuf {
        self.path(&format!("lib/{}", self.name()))
    }

    /// Mounts the disk in `file`; the loop device goes with the mount.
    pub(crate) fn mount_disk(&self, file: &Path) -> Result<(), String> {
        fs::create_dir_all(self.root()).expect("a mount point");
        // A commit each second instead of each five: more different states in the same time.
        let out = self.host("mount", &["-t", "ext4", "-o", "loop,commit=1", path(file), path(&self.root())]);
        if out.code == 0 { Ok(()) } else { Err(out.errors()) }
    }

    pub(crate) fn unmount_disk(&self) {
        umount2(&self.root(), MntFlags::empty()).unwrap_or_else(|error| panic!("unmount the disk: {error}"));
    }

    /// A program of the machine, in the lab.
    pub(crate) fn host(&self, program: &str, arguments: &[&str]) -> Output {
        let program = programs::peer(program).unwrap_or_else(|| panic!("{program} is not installed"));
        Call::new(self.lab.site().command(&program)).args(arguments).output()
    }

    /// Starts the supervisor.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        let site = self.lab.site();
        let path = format!("{}:/usr/bin:/usr/sbin:/bin:/sbin", programs::ours().display());
        self.daemon = Some(match self.victim {
            Victim::Shimd => start_shimd(site, &programs::ours())?,
            Victim::WeakShimd => start_shimd_without_syncs(site, &programs::ours())?,
            Victim::Containerd => start_containerd_with(site, &[("PATH", &path)])?,
        });
        Ok(())
    }

    /// The power fails for its processes, and for what does not lie on the disk.
    pub(crate) fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
        for name in [self.name().to_owned(), format!("{}.sock", self.name()), format!("{}.sock.ttrpc", self.name())] {
            let path = self.path("run").join(name);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }

    /// From now on this is another boot of the machine.
    pub(crate) fn boot(&mut self) {
        self.boots += 1;
        self.write_boot_id();
    }

    /// Puts a file of ours in the place where the kernel tells its boot.
    fn tell_boot_id(&self) {
        self.write_boot_id();
        let none: Option<&str> = None;
        let file = self.path("etc/boot-id");
        mount(Some(&file), "/proc/sys/kernel/random/boot_id", none, MsFlags::MS_BIND, none).expect("tell another boot");
    }

    fn write_boot_id(&self) {
        let id = format!("00000000-0000-4000-8000-{:012}\n", self.boots);
        fs::write(self.path("etc/boot-id"), id).expect("write the boot's id");
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> Output {
        let site = self.lab.site();
        let mut command = site.command(&programs::peer("ctr").expect("it was looked for"));
        command.arg("--address").arg(site.path(&format!("run/{}.sock", self.name())));
        Call::new(command).args(arguments).output()
    }

    /// Pulls an image of the registry and unpacks it.
    pub(crate) fn pull(&self, name: &str) -> Output {
        self.ctr(&["images", "pull", "--snapshotter", self.snapshotter.name(), "--plain-http", &self.image(name)])
    }

    /// `ctr snapshots` of the snapshotter that is looked at.
    pub(crate) fn snapshots(&self, arguments: &[&str]) -> Output {
        self.ctr(&[&["snapshots", "--snapshotter", self.snapshotter.name()], arguments].concat())
    }

    pub(crate) fn log_tail(&self) -> String {
        self.daemon.as_ref().map(|daemon| daemon.log_tail(8)).unwrap_or_default()
    }

    /// Ends everything and takes it away.
    pub(crate) fn remove(mut self) {
        self.stop();
        self.registry.stop();
        let _ = umount2("/proc/sys/kernel/random/boot_id", MntFlags::MNT_DETACH);
        self.lab.remove();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the lab's paths are text")
}
