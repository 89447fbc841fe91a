//! Published attacks on supervisors and shims, replayed on shimd and ours (docs/security.md). What each test looks with is
//! first seen to find something.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::{Supervised, supervisor, wait};

/// Our shim, under whatever supervisor.
const OURS: &str = "io.containerd.strata.v1";

fn sleeper(s: &Supervised, name: &str) {
    s.run(&["run", "-d", "--runtime", OURS, s.busybox(), name, "sleep", "600"]).ok();
}

fn remove(s: &Supervised, name: &str) {
    s.run(&["tasks", "kill", "-s", "KILL", name]).ok();
    s.wait_for_status(name, "STOPPED");
    s.run(&["tasks", "delete", name]);
    s.run(&["containers", "delete", name]).ok();
}

/// Names of sockets in this network namespace that no file stands for.
fn abstract_sockets() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/unix").expect("sockets");
    text.lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|name| name.starts_with('@'))
        .map(str::to_owned)
        .collect()
}

/// CVE-2020-15257: a container with the host's network reaches the shim by an abstract socket.
#[test]
fn no_socket_is_abstract_and_each_file_is_roots_alone() {
    supervisor(|s| {
        let bait = UnixListener::bind_addr(&SocketAddr::from_abstract_name("bait").expect("a name")).expect("a socket");
        assert_eq!(abstract_sockets(), ["@bait"]);
        drop(bait);
        sleeper(s, "with-sockets");
        assert!(abstract_sockets().is_empty(), "{:?}", abstract_sockets());
        let sockets = sockets_below(&s.path("run"));
        assert!(!s.is_ours() || sockets.len() >= 3, "{sockets:?}");
        for socket in sockets.iter().filter(|_| s.is_ours()) {
            let mode = fs::metadata(socket).expect("a socket").permissions().mode() & 0o777;
            assert!(mode & 0o077 == 0, "{} {mode:o}", socket.display());
        }
        remove(s, "with-sockets");
    });
}

fn sockets_below(directory: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(sockets_below(&entry.path()));
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
    found
}

/// CVE-2021-41103, CVE-2024-25621: a local user passes through the supervisor's directories to set-id programs of layers.
#[test]
fn a_local_user_sees_nothing_of_the_layers() {
    supervisor(|s| {
        if !s.is_ours() {
            return integration::skip("it looks into the directories of shimd");
        }
        let root = s.path("lib/shimd").display().to_string();
        let look =
            format!("setpriv --reuid 1000 --regid 1000 --clear-groups find {root} -perm -4000 -o -name meta.redb");
        let sees = |s: &Supervised| !s.shell(&look).output().text().is_empty();
        let set = |mode| fs::set_permissions(&root, fs::Permissions::from_mode(mode)).expect("a mode");
        assert!(!sees(s));
        set(0o755);
        assert!(sees(s), "the look finds what is open");
        // A start closes what an older version, or somebody, had left open.
        s.kill_and_restart();
        assert!(!sees(s));
    });
}

fn shim_of(s: &Supervised, name: &str) -> i32 {
    let text = s.text(&["tasks", "ls"]);
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("a task");
    let pid = row.split_whitespace().nth(1).expect("a pid");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
    parent.trim().parse().expect("a pid")
}

/// Of a process that lives.
fn resident_kib(pid: i32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is no zombie");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

/// The bytes that a process has written.
fn written(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix("wchar:")).expect("a count");
    line.trim().parse().expect("a number")
}

/// The process of a container's exec that has a name.
fn process_named(parent: i32, name: &str) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name))
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// CVE-2022-1708, CVE-2022-31030: output that nobody reads fills the memory of who stands between.
#[test]
fn output_that_nobody_reads_fills_no_memory() {
    supervisor(|s| {
        sleeper(s, "loud");
        let (shim, daemon) = (shim_of(s, "loud"), s.daemon().pid());
        let before = (resident_kib(shim), resident_kib(daemon));
        let ctr = s.ctr(&["tasks", "exec", "--exec-id", "e", "loud", "yes"]).into_command();
        let words: Vec<String> =
            std::iter::once(ctr.get_program()).chain(ctr.get_args()).map(|word| word.display().to_string()).collect();
        // The reader takes one line and then nothing more.
        let reading = s.shell(&format!("{} | (read one; echo got $one; exec sleep 6)", words.join(" "))).start();
        reading.expect("got y");
        // It has written what the pipes and the FIFO hold, and is held back since.
        let yes = wait::until("the program runs", || process_named(shim, "yes"));
        let mut last = 0;
        wait::until_true("the program is held back", || {
            std::thread::sleep(Duration::from_millis(500));
            let (now, before) = (written(yes), last);
            last = now;
            now == before
        });
        assert!((64 << 10..64 << 20).contains(&last), "it has written {last} bytes");
        let after = (resident_kib(shim), resident_kib(daemon));
        assert!(after.0 < before.0 + (4 << 10) && after.1 < before.1 + (16 << 10), "{before:?} {after:?}");
        // The look sees memory that is taken.
        let taken = vec![1u8; 32 << 20];
        let own = i32::try_from(std::process::id()).expect("a pid");
        let with = resident_kib(own);
        drop(taken);
        assert!(with > resident_kib(own) + (16 << 10), "memory that was taken is not seen");
        // What stands between still answers.
        assert_eq!(s.run(&["tasks", "exec", "--exec-id", "f", "loud", "echo", "here"]).ok().text(), "here");
        reading.end();
        remove(s, "loud");
    });
}

/// CVE-2022-23471, CVE-2025-64329: each attach or resize that ends badly leaves something in memory.
#[test]
fn clients_that_go_leave_nothing_behind() {
    supervisor(|s| {
        sleeper(s, "visited");
        let (shim, daemon) = (shim_of(s, "visited"), s.daemon().pid());
        let visit = |s: &Supervised, count: usize| {
            for number in 0..count {
                let id = format!("e{number}");
                let running =
                    s.ctr(&["tasks", "exec", "--exec-id", &id, "visited", "sh", "-c", "echo in; sleep 600"]).start();
                running.expect("in");
                running.signal(nix::sys::signal::Signal::SIGKILL);
                s.run(&["tasks", "kill", "--exec-id", &id, "-s", "KILL", "visited"]);
                s.run(&["tasks", "delete", "--exec-id", &id, "visited"]);
            }
        };
        let count = |s: &Supervised| {
            visit(s, 1);
            (descriptors(shim), descriptors(daemon))
        };
        let before = count(s);
        let open = s.ctr(&["tasks", "exec", "--exec-id", "seen", "visited", "sh", "-c", "echo in; sleep 600"]).start();
        open.expect("in");
        assert!(descriptors(shim) > before.0, "one that is there is seen");
        s.run(&["tasks", "kill", "--exec-id", "seen", "-s", "KILL", "visited"]);
        drop(open.end());
        visit(s, 20);
        wait::until_true("the descriptors are as before", || {
            let after = (descriptors(shim), descriptors(daemon));
            // One more where the shim took the root file system off the mount table meanwhile.
            after.0 <= before.0 + 1 && after.1 <= before.1 + 2
        });
        remove(s, "visited");
    });
}

/// CVE-2019-14891: memory that runs out in the container kills what watches it.
#[test]
fn the_shim_does_not_share_the_containers_memory() {
    supervisor(|s| {
        let limit = (32 << 20).to_string();
        s.run(&["run", "-d", "--runtime", OURS, "--memory-limit", &limit, s.busybox(), "hog", "sleep", "600"]).ok();
        let shim = shim_of(s, "hog");
        let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups");
        let text = s.text(&["tasks", "ls"]);
        let pid = text.lines().find(|line| line.starts_with("hog")).and_then(|line| line.split_whitespace().nth(1));
        let pid = pid.and_then(|pid| pid.parse().ok()).expect("a pid");
        assert!(cgroups(pid).contains("/hog"), "the look finds the container's own");
        assert!(!cgroups(shim).contains("/hog"), "{}", cgroups(shim));
        let out = s.run(&["tasks", "exec", "--exec-id", "e", "hog", "sh", "-c", "tail -c 200m /dev/zero"]);
        assert_ne!(out.code, 0, "memory ran out");
        assert!(Path::new(&format!("/proc/{shim}")).exists());
        assert_eq!(s.task_status("hog").as_deref(), Some("RUNNING"));
        remove(s, "hog");
    });
}

/// What an image may say of itself that supervisors take for their own word: that its container is to be restarted, and
/// with which program for its output.
fn hostile_labels(canary: &str) -> serde_json::Value {
    serde_json::json!({
        "containerd.io/restart.status": "running",
        "containerd.io/restart.policy": "always",
        "containerd.io/restart.explicitly-stopped": "false",
        "containerd.io/restart.loguri": format!("binary://{canary}"),
        "containerd.io/restart.logpath": format!("{canary}.log"),
        "io.cri-containerd.kind": "sandbox",
        "nerdctl/log-uri": format!("binary://{canary}"),
        "strata.log": format!("binary://{canary}"),
    })
}

/// CVE-2026-53488: labels of an image become those of a container, and a supervisor runs what they name.
#[test]
fn labels_of_an_image_are_nobodys_orders() {
    supervisor(|s| {
        let (canary, ran) = (s.path("tmp/canary").display().to_string(), s.path("tmp/canary-ran"));
        let script =
            format!("#!/bin/sh\n: >{}\nexec 5>&-\ncat <&4 >/dev/null &\nexec cat <&3 >/dev/null\n", ran.display());
        fs::write(&canary, script).expect("a program");
        fs::set_permissions(&canary, fs::Permissions::from_mode(0o755)).expect("a mode");
        let registry = s.registry();
        let layout = integration::programs::images().join("busybox");
        registry.add_labelled(&layout, "hostile", &hostile_labels(&canary)).expect("an image with labels");
        let image = format!("{}/hostile:latest", registry.host());
        s.run(&["images", "pull", "--plain-http", &image]).ok();
        // The program is one that would be run: a client that names it has it run.
        let uri = format!("binary://{canary}");
        s.run(&["run", "-d", "--runtime", OURS, "--log-uri", &uri, s.busybox(), "asked", "true"]).ok();
        wait::until_true("the canary runs", || ran.exists());
        s.wait_for_status("asked", "STOPPED");
        remove_stopped(s, "asked");
        fs::remove_file(&ran).expect("it ran");
        s.run(&["run", "-d", "--runtime", OURS, &image, "victim", "true"]).ok();
        s.wait_for_status("victim", "STOPPED");
        let record = s.text(&["containers", "info", "victim"]);
        assert!(
            record.contains("containerd.io/restart.loguri"),
            "ctr gave the container the labels of its image: {record}"
        );
        // What watches containers looks at a start, and every ten seconds.
        s.kill_and_restart();
        std::thread::sleep(Duration::from_secs(if s.is_ours() { 3 } else { 15 }));
        assert!(!ran.exists(), "what a label names was run");
        assert_eq!(s.task_status("victim").as_deref(), Some("STOPPED"));
        remove_stopped(s, "victim");
        s.run(&["images", "rm", &image]).ok();
    });
}

fn remove_stopped(s: &Supervised, name: &str) {
    s.run(&["tasks", "delete", name]);
    s.run(&["containers", "delete", name]).ok();
}
