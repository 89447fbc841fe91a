//! Seam 2, wide: what each command of `ctr` answers. Every row is true of containerd (`SUBJECT=theirs`): of Debian's for
//! Debian's `ctr`, of 2.x for the `ctr` of 2.x, which moves images by the transfer service.
//!
//! `docs/conformance-containerd.md` shows the commands side by side.

use std::process::{Command, Stdio};

use integration::registry::Registry;
use integration::skip::{obstacle, skip};
use integration::{Supervised, newer_supervisor, programs, supervisor, wait};

/// A line for `ctr`, the code that it ends with, and parts of what it says.
type Row<'a> = (&'a str, i32, &'a [&'a str]);

/// Runs the rows one after the other. `BUSYBOX` stands for the image, `TMP` for a directory, `REG` for a registry.
fn table(s: &Supervised, registry: Option<&Registry>, rows: &[Row<'_>]) {
    let directory = s.path("tmp").display().to_string();
    let host = registry.map(Registry::host).unwrap_or_default();
    for (line, code, parts) in rows {
        let line = line.replace("BUSYBOX", s.busybox()).replace("TMP", &directory).replace("REG", &host);
        let out = s.run(&words(&line));
        let said = format!("{}\n{}", out.text(), out.errors());
        assert_eq!(out.code, *code, "ctr {line}: {said}");
        for part in *parts {
            let part = part.replace("REG", &host);
            assert!(said.contains(&part), "ctr {line}: no {part:?} in {said}");
        }
    }
}

/// The words of a line; single quotes hold some together.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 { words.push(part) } else { words.extend(part.split_whitespace()) }
    }
    words
}

fn filled_registry(s: &Supervised) -> Registry {
    let registry = s.registry();
    registry.add(&programs::images().join("busybox"), "busybox", "latest").expect("fill the registry");
    registry
}

#[test]
fn images() {
    supervisor(|s| {
        std::fs::create_dir(s.path("tmp/m")).expect("a place to mount at");
        table(
            s,
            None,
            &[
                ("images ls -q", 0, &["example.org/busybox:latest"]),
                ("images check", 0, &["complete", "true"]),
                ("images tag BUSYBOX example.org/other:1", 0, &["example.org/other:1"]),
                ("images tag BUSYBOX example.org/other:1", 1, &["already exists"]),
                ("images tag --force BUSYBOX example.org/other:1", 0, &[]),
                ("images label example.org/other:1 k=v", 0, &["k=v"]),
                ("images ls name==example.org/other:1", 0, &["k=v"]),
                ("images label --replace-all example.org/other:1 z=y", 0, &["z=y"]),
                ("images rm --sync example.org/other:1", 0, &["example.org/other:1"]),
                ("images rm example.org/other:1", 0, &["not found"]),
                ("images export TMP/out.tar BUSYBOX", 0, &[]),
                ("images export TMP/none.tar example.org/none:1", 1, &["not found"]),
                ("images import --base-name example.org/again TMP/out.tar", 0, &[]),
                ("images mount BUSYBOX TMP/m", 0, &["/tmp/m"]),
                ("images unmount --rm TMP/m", 0, &["/tmp/m"]),
                ("images mount --rw BUSYBOX TMP/m", 0, &["/tmp/m"]),
                ("images unmount --rm TMP/m", 0, &["/tmp/m"]),
                ("images convert --uncompress --oci BUSYBOX example.org/plain:1", 0, &["sha256:"]),
                ("images ls name==example.org/plain:1", 0, &["application/vnd.oci.image.manifest.v1+json"]),
                ("images convert --platform linux/amd64 --oci BUSYBOX example.org/one:1", 0, &["sha256:"]),
            ],
        );
    });
}

#[test]
fn images_and_content_of_a_registry() {
    supervisor(|s| {
        let registry = filled_registry(s);
        table(
            s,
            Some(&registry),
            &[
                ("images pull --plain-http REG/busybox:latest", 0, &["done"]),
                ("images pull --plain-http --label x=y REG/busybox:latest", 0, &["done"]),
                ("images ls labels.x==y", 0, &["REG/busybox:latest"]),
                ("images pull --plain-http REG/none:latest", 1, &["not found"]),
                ("images pull --plain-http --all-platforms REG/busybox:latest", 0, &["done"]),
                ("images tag REG/busybox:latest REG/pushed:v1", 0, &[]),
                ("images push --plain-http REG/pushed:v1", 0, &["done"]),
                ("images rm --sync REG/pushed:v1", 0, &[]),
                ("images pull --plain-http REG/pushed:v1", 0, &["done"]),
                ("content fetch --plain-http REG/pushed:v1", 0, &["sha256:"]),
                ("content fetch-object --plain-http REG/pushed:v1", 0, &["layers"]),
                ("content ls", 0, &["containerd.io/distribution.source.localhost="]),
            ],
        );
    });
}

#[test]
fn content() {
    const DIGEST: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    supervisor(|s| {
        let ingest = ["content", "ingest", "--expected-size", "6", "--expected-digest", DIGEST, "ref1"];
        s.ctr(&ingest).input(b"hello\n").output().ok();
        // A collection that comes along takes nothing that was written a moment ago. (containerd's does.)
        if s.is_ours() {
            s.run(&["images", "tag", s.busybox(), "example.org/short:1"]).ok();
            s.run(&["images", "rm", "example.org/short:1"]).ok();
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        assert_eq!(s.text(&["content", "get", DIGEST]), "hello");
        s.run(&["content", "label", DIGEST, "k=v"]).ok();
        assert!(s.text(&["content", "ls", "labels.k==v"]).contains(DIGEST));
        let wrong = s.ctr(&ingest).input(b"hullo\n").output();
        assert!(wrong.code == 1 || s.text(&["content", "get", DIGEST]) == "hello", "{}", wrong.errors());
        let other = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be04";
        let wrong = ["content", "ingest", "--expected-size", "6", "--expected-digest", other, "ref2"];
        let wrong = s.ctr(&wrong).input(b"hullo\n").output().code(1);
        assert!(wrong.errors().contains("failed precondition"), "{}", wrong.errors());
        let long = s.ctr(&["content", "ingest", "--expected-size", "7", "ref3"]).input(b"hello\n").output().code(1);
        assert!(long.errors().contains("failed"), "{}", long.errors());
        assert!(s.text(&["content", "active"]).contains("ref3"));
        s.run(&["content", "rm", DIGEST]).ok();
        assert!(s.run(&["content", "get", DIGEST]).code(1).errors().contains("not found"));
    });
}

#[test]
fn snapshots() {
    supervisor(|s| {
        let layer = &first_committed(&s.text(&["snapshots", "ls"]));
        s.run(&["snapshots", "prepare", "active", layer]).ok();
        // Nothing holds a view: it is there as long as nobody collects.
        s.run(&["snapshots", "view", "view", layer]).ok();
        table(
            s,
            None,
            &[
                ("snapshots ls", 0, &["Active", "Committed"]),
                ("snapshots tree", 0, &["active", "\\_"]),
                ("snapshots prepare active", 1, &["already exists"]),
                ("snapshots prepare other none", 1, &["not found"]),
                ("snapshots prepare other active", 1, &["not committed", "invalid argument"]),
                ("snapshots mounts TMP active", 0, &["mount -t overlay overlay", "upperdir=", "lowerdir="]),
                ("snapshots mounts TMP none", 1, &["not found"]),
                ("snapshots usage active", 0, &["active"]),
                ("snapshots commit done active", 0, &[]),
                ("snapshots commit done2 none", 1, &["not found"]),
                ("snapshots label done a=b", 0, &["a=b"]),
                ("snapshots info done", 0, &["\"Kind\": \"Committed\"", "\"a\": \"b\""]),
                ("snapshots info none", 1, &["not found"]),
                ("snapshots --snapshotter none ls", 1, &["invalid argument"]),
                ("snapshots rm done", 0, &[]),
                ("snapshots rm done", 1, &["not found"]),
            ],
        );
        assert!(s.run(&["snapshots", "rm", layer]).code == 0 || !s.text(&["snapshots", "ls"]).is_empty());
    });
}

#[test]
fn native_snapshots() {
    supervisor(|s| {
        let native = |arguments: &[&str]| s.text(&[&["snapshots", "--snapshotter", "native"], arguments].concat());
        table(
            s,
            None,
            &[
                ("snapshots --snapshotter native ls", 0, &["KEY"]),
                (
                    "run --snapshotter native BUSYBOX native sh -c 'echo >/new; rm /etc/passwd; echo over >>/etc/group'",
                    0,
                    &[],
                ),
                ("tasks rm native", 1, &["not found"]),
                ("snapshots --snapshotter native tree", 0, &["native", "\\_"]),
                ("snapshots --snapshotter native mounts TMP native", 0, &["mount -t bind", "-o rbind,rw"]),
                ("snapshots --snapshotter native usage native", 0, &["native", "MiB"]),
                ("snapshots info native", 1, &["not found"]),
            ],
        );
        let layer = first_committed(&native(&["ls"]));
        native(&["prepare", "active", &layer]);
        native(&["view", "view", &layer]);
        table(
            s,
            None,
            &[
                ("snapshots --snapshotter native mounts TMP view", 0, &["mount -t bind", "-o rbind,ro"]),
                ("snapshots --snapshotter native prepare active", 1, &["already exists"]),
                ("snapshots --snapshotter native prepare other none", 1, &["not found"]),
                ("snapshots --snapshotter native prepare other active", 1, &["not committed", "invalid argument"]),
                ("snapshots --snapshotter native commit done active", 0, &[]),
                ("snapshots --snapshotter native label done a=b", 0, &["a=b"]),
                ("snapshots --snapshotter native info done", 0, &["\"Kind\": \"Committed\"", "\"a\": \"b\""]),
                ("snapshots --snapshotter native rm done", 0, &[]),
                ("snapshots --snapshotter native rm done", 1, &["not found"]),
            ],
        );
        let plain = "application/vnd.oci.image.layer.v1.tar";
        let diff = s.run(&["snapshots", "--snapshotter", "native", "diff", "--media-type", plain, "native"]).ok();
        let names = names_of(&diff.stdout);
        assert_eq!(names, ["etc/", "etc/.wh.passwd", "etc/group", "new"]);
        s.run(&["images", "rm", "--sync", s.busybox()]).ok();
        assert!(native(&["ls"]).contains("native"), "a container holds what it stands on");
        s.run(&["containers", "rm", "native"]).ok();
        s.run(&["images", "rm", "--sync", "example.org/none:1"]);
        wait::until("native snapshots are collected", || (native(&["ls"]).lines().count() == 1).then_some(()));
    });
}

/// The first committed snapshot of a list.
fn first_committed(listed: &str) -> String {
    let layer = listed.lines().find(|line| line.trim_end().ends_with("Committed")).expect("a layer");
    layer.split_whitespace().next().expect("its name").to_owned()
}

/// What an archive holds, sorted.
fn names_of(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> = entries.map(|entry| entry.path().expect("a path").display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn changes_of_a_snapshot_are_a_layer() {
    supervisor(|s| {
        s.run(&["run", s.busybox(), "changed", "sh", "-c", "echo x > /new; rm /etc/passwd"]).ok();
        let out =
            s.run(&["snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "changed"]).ok();
        let names = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(names.contains("new") && names.contains("etc/.wh.passwd"), "{} bytes", names.len());
        s.run(&["tasks", "rm", "changed"]);
    });
}

#[test]
fn any_two_snapshots_have_a_difference() {
    supervisor(|s| {
        s.run(&["run", s.busybox(), "left", "sh", "-c", "echo x > /left; rm /etc/group"]).ok();
        s.run(&["run", s.busybox(), "right", "sh", "-c", "echo x > /right; rm /etc/passwd"]).ok();
        let plain = "application/vnd.oci.image.layer.v1.tar";
        let diff = s.run(&["snapshots", "diff", "--media-type", plain, "left", "right"]).ok();
        assert_eq!(names_of(&diff.stdout), [".wh.left", "etc/", "etc/.wh.passwd", "etc/group", "right"]);
        for name in ["left", "right"] {
            s.run(&["tasks", "rm", name]);
        }
    });
}

#[test]
fn namespaces_and_leases() {
    supervisor(|s| {
        let other = format!("{}-x", s.namespace());
        s.run(&["namespaces", "create", &other, "a=b"]).ok();
        assert!(s.text(&["namespaces", "ls"]).contains("a=b"));
        s.run(&["namespaces", "label", &other, "c=d", "a="]).ok();
        let listed = s.text(&["namespaces", "ls"]);
        assert!(listed.contains("c=d") && !listed.contains("a=b"), "{listed}");
        s.run(&["namespaces", "create", &other]).code(1);
        s.run(&["namespaces", "rm", &other]).ok();
        table(
            s,
            None,
            &[
                ("leases create --id l1 a=b", 0, &["l1"]),
                ("leases ls", 0, &["l1", "a=b"]),
                ("leases create --id l1", 1, &["already exists"]),
                ("leases create --id l2 --expires 1h", 0, &["l2"]),
                ("leases ls id==l2", 0, &["containerd.io/gc.expire="]),
                ("leases rm l2", 0, &["l2"]),
                ("leases rm --sync l1", 0, &["l1"]),
                ("plugins ls", 0, &["io.containerd.snapshotter.v1", "overlayfs", "healthcheck", "ok"]),
                ("plugins ls -d id==overlayfs", 0, &["Exports:", "root"]),
            ],
        );
    });
}

#[test]
fn containers_and_tasks() {
    supervisor(|s| {
        table(
            s,
            None,
            &[
                ("containers create BUSYBOX c1 sleep 1000", 0, &[]),
                ("containers create BUSYBOX c1 sleep 1000", 1, &["already exists"]),
                ("containers ls", 0, &["c1", "example.org/busybox:latest"]),
                ("containers info c1", 0, &["\"ID\": \"c1\"", "\"Snapshotter\": \"overlayfs\""]),
                ("containers info --spec c1", 0, &["ociVersion"]),
                ("containers info none", 1, &["not found"]),
                ("containers label c1 k=v", 0, &["k=v"]),
                ("containers ls -q labels.k==v", 0, &["c1"]),
                ("containers rm none", 1, &["not found"]),
                ("tasks start none", 1, &["not found"]),
                ("tasks start -d c1", 0, &[]),
                ("tasks start -d c1", 1, &["already exists"]),
                ("containers rm c1", 1, &["non stopped"]),
                ("tasks rm c1", 1, &["must be stopped"]),
                ("tasks ls", 0, &["c1", "RUNNING"]),
                ("tasks exec --exec-id e1 c1 echo inside", 0, &[]),
                ("tasks exec --exec-id e2 c1 /none", 1, &["/none"]),
                ("tasks exec --exec-id e3 --user 33:44 --cwd /etc c1 sh -c 'id -u; id -g; pwd'", 0, &[]),
                ("tasks exec --exec-id e4 --log-uri file://TMP/e4.log c1 echo logged", 0, &[]),
                ("tasks metrics c1", 0, &["ID", "c1"]),
                ("tasks metrics --format json c1", 0, &["\"memory\""]),
                ("tasks metrics none", 1, &["not found"]),
                ("tasks pause c1", 0, &[]),
                ("tasks ls", 0, &["PAUSED"]),
                ("tasks resume c1", 0, &[]),
                ("tasks kill -a -s KILL c1", 0, &[]),
            ],
        );
        s.wait_for_status("c1", "STOPPED");
        table(s, None, &[("tasks kill -s KILL c1", 1, &["not found"]), ("tasks rm none", 1, &["not found"])]);
        s.assert_deleted_with("c1", 137);
        table(
            s,
            None,
            &[
                ("tasks start -d c1", 0, &[]),
                ("containers checkpoint --image --rw c1 example.org/check:1", 0, &[]),
                ("images ls -q", 0, &["example.org/check:1"]),
                ("tasks rm -f c1", 0, &[]),
                ("containers rm c1", 0, &[]),
            ],
        );
        assert_eq!(std::fs::read_to_string(s.path("tmp/e4.log")).expect("the log"), "logged\n");
    });
}

#[test]
fn an_attached_terminal_less_task_gives_its_output_and_code() {
    supervisor(|s| {
        s.run(&["run", "-d", s.busybox(), "late", "sh", "-c", "sleep 3; echo attached; exit 3"]).ok();
        let out = s.run(&["tasks", "attach", "late"]).code(3);
        assert_eq!(out.text(), "attached");
        s.run(&["containers", "rm", "late"]);
    });
}

#[test]
fn flags_of_run() {
    supervisor(|s| {
        std::fs::write(s.path("tmp/env"), "X=9\n").expect("a file");
        let root = s.path("tmp/root/bin");
        std::fs::create_dir_all(&root).expect("a directory");
        std::fs::copy(programs::peer("busybox").expect("busybox"), root.join("busybox")).expect("a program");
        table(
            s,
            None,
            &[
                ("run --rm --env A=1 --env B=2 BUSYBOX a sh -c 'echo $A$B'", 0, &["12"]),
                ("run --rm --env-file TMP/env BUSYBOX a sh -c 'echo $X'", 0, &["9"]),
                ("run --rm --cwd /etc BUSYBOX a pwd", 0, &["/etc"]),
                ("run --rm --seccomp BUSYBOX a grep Seccomp: /proc/self/status", 0, &["2"]),
                ("run --rm --net-host BUSYBOX a ls /sys/class/net", 0, &["lo"]),
                ("run --rm --read-only BUSYBOX a touch /x", 1, &["Read-only file system"]),
                ("run --rm --cap-drop CAP_CHOWN BUSYBOX a grep CapEff /proc/self/status", 0, &["00000000a80425fa"]),
                ("run --rm --allow-new-privs BUSYBOX a grep NoNew /proc/self/status", 0, &["0"]),
                ("run --rm --null-io BUSYBOX a echo x", 0, &[]),
                ("run --rm --pid-file TMP/pid BUSYBOX a true", 0, &[]),
                ("run --rm --rootfs TMP/root a /bin/busybox echo rootfs", 0, &["rootfs"]),
                ("run --rm --no-pivot BUSYBOX a echo unpivoted", 0, &["unpivoted"]),
                (
                    "run --rm --uidmap 0:100000:1000 --gidmap 0:100000:1000 BUSYBOX a cat /proc/self/uid_map",
                    0,
                    &["100000"],
                ),
                ("run --rm --remap-labels --uidmap 0:100000:1000 --gidmap 0:100000:1000 BUSYBOX a id -u", 0, &["0"]),
                ("run --rm --memory-limit 33554432 BUSYBOX a true", 0, &[]),
                ("run --rm --cpus 0.5 BUSYBOX a true", 0, &[]),
                ("run --rm --runtime io.containerd.none.v1 BUSYBOX a true", 1, &["containerd-shim-none-v1"]),
                ("run --rm example.org/none:1 a true", 1, &["not found"]),
                ("containers ls -q", 0, &[]),
            ],
        );
        assert_eq!(s.text(&["containers", "ls", "-q"]), "");
    });
}

/// Nothing is copied: the layers are mounted as somebody else's, and what is written belongs to who is root in the container.
/// shimd mounts them itself for a shim that is too old to know how; containerd hands that one what it cannot mount.
#[test]
fn ids_are_mapped_without_a_copy() {
    const MAPPED: &str = "--remap-labels --uidmap 0:100000:1000 --gidmap 0:200000:1000";
    const SHOW: &str = "'stat -c %u:%g /bin/busybox; echo x >/new; stat -c %u:%g /new'";
    newer_supervisor(|s| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
        let version: Vec<u32> = release.split('.').map_while(|number| number.parse().ok()).collect();
        if version < vec![5, 19] {
            return skip("overlayfs takes mapped layers from Linux 5.19 on");
        }
        let listed =
            |s: &Supervised| s.text(&["snapshots", "ls"]).lines().filter(|line| line.contains("Committed")).count();
        let layers = listed(s);
        let newer =
            programs::newer_peer("containerd-shim-runc-v2").expect("it comes with its ctr").display().to_string();
        let mut shims = vec!["io.containerd.strata.v1", &newer];
        if s.is_ours() {
            shims.push("/usr/bin/containerd-shim-runc-v2");
        }
        for (name, shim) in ["a", "b", "c"].into_iter().zip(shims) {
            let line = format!("run --runtime {shim} {MAPPED} BUSYBOX {name} sh -c {SHOW}");
            table(s, None, &[(line.as_str(), 0, &["0:0\n0:0"])]);
            let mounts = s.text(&["snapshots", "mounts", "/none", name]);
            assert!(mounts.contains("uidmap=0:100000:1000,gidmap=0:200000:1000"), "{mounts}");
            let upper = mounts.split(',').find_map(|option| option.strip_prefix("upperdir=")).expect("its files");
            let written = std::fs::metadata(format!("{upper}/new")).expect("the file");
            let owner = std::os::unix::fs::MetadataExt::uid(&written);
            assert_eq!((owner, listed(s)), (100_000, layers), "{shim}");
            s.run(&["containers", "rm", name]).ok();
        }
    });
}

#[test]
fn programs_are_installed_from_an_image() {
    supervisor(|s| {
        let busybox = |place: &str| s.path(place).join("bin/busybox").exists();
        table(s, None, &[("plugins ls id==opt", 0, &["io.containerd.internal.v1", "ok"])]);
        s.run(&["install", s.busybox()]).ok();
        std::fs::create_dir(s.path("tmp/other")).expect("another place");
        assert!(busybox("opt"), "it is where the daemon says");
        table(
            s,
            None,
            &[
                ("install BUSYBOX", 1, &["cannot replace"]),
                ("install --replace BUSYBOX", 0, &[]),
                ("install --path TMP/other BUSYBOX", 0, &[]),
            ],
        );
        assert!(busybox("tmp/other"));
        // A shim that lies there is found.
        let shim = s.path("opt/bin/containerd-shim-installed-v1");
        std::fs::write(&shim, "#!/bin/sh\necho it was found >&2\nexit 1\n").expect("a program");
        std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
        table(s, None, &[("run --rm --runtime io.containerd.installed.v1 BUSYBOX a true", 1, &["it was found"])]);
    });
}

#[test]
fn newer_ctr_moves_images_by_the_transfer_service() {
    newer_supervisor(|s| {
        let registry = filled_registry(s);
        let archive = s.path("tmp/busybox.tar");
        assert!(archive.exists());
        table(
            s,
            Some(&registry),
            &[
                ("images import --base-name example.org/moved TMP/busybox.tar", 0, &[]),
                ("images ls -q", 0, &["example.org/moved:latest"]),
                ("images check name==example.org/moved:latest", 0, &["complete", "true"]),
                ("images import --no-unpack --digests --base-name example.org/dig TMP/busybox.tar", 0, &[]),
                ("images ls -q", 0, &["example.org/dig:latest"]),
                ("images tag BUSYBOX example.org/other:1", 0, &["example.org/other:1"]),
                ("images export TMP/out.tar BUSYBOX example.org/moved:latest", 0, &[]),
                ("images import --base-name example.org/moved TMP/out.tar", 0, &[]),
                ("images export --skip-manifest-json TMP/plain.tar BUSYBOX", 0, &[]),
                ("images export TMP/none.tar example.org/none:1", 1, &["not found"]),
                ("images pull --plain-http REG/busybox:latest", 0, &["REG/busybox:latest"]),
                ("images check name==REG/busybox:latest", 0, &["complete", "true"]),
                ("images pull --plain-http REG/none:latest", 1, &["none"]),
                ("images tag REG/busybox:latest REG/pushed:v1", 0, &[]),
                ("images push --plain-http REG/pushed:v1", 0, &["REG/pushed:v1"]),
                ("images rm --sync REG/pushed:v1", 0, &[]),
                ("images pull --plain-http REG/pushed:v1", 0, &["REG/pushed:v1"]),
                ("images pull --local --plain-http REG/busybox:latest", 0, &["done"]),
                ("run --rm REG/pushed:v1 moved echo it runs", 0, &["it runs"]),
                ("run --rm --user 33 --hostname here BUSYBOX named sh -c 'id -u; hostname'", 0, &["33\nhere"]),
                ("sandboxes ls", 0, &["RUNTIME"]),
            ],
        );
        std::fs::write(s.path("tmp/bad.tar"), "no archive").expect("a file");
        s.run(&["images", "import", &s.path("tmp/bad.tar").display().to_string()]).code(1);
        assert_archive(s, "out.tar", true);
        assert_archive(s, "plain.tar", false);
    });
}

/// The `ctr` of 2.1 makes a sandbox of our shim and then forgets the name of its controller: it is recorded, and cannot be
/// started. Who is to be put into it is refused, and no shim is left.
#[test]
fn newer_ctr_makes_sandboxes() {
    newer_supervisor(|s| {
        std::fs::write(s.path("tmp/pod.json"), r#"{"ociVersion":"1.2.0","annotations":{}}"#).expect("a file");
        table(
            s,
            None,
            &[
                ("sandboxes run --runtime io.containerd.strata.v1 TMP/pod.json pod", 1, &["failed to start", "name"]),
                ("sandboxes run --runtime io.containerd.strata.v1 TMP/pod.json pod", 1, &["already exists"]),
                ("sandboxes ls", 0, &["pod", "io.containerd.strata.v1"]),
                ("containers create --runtime io.containerd.strata.v1 --sandbox pod BUSYBOX in sleep 1000", 0, &[]),
                ("tasks start -d in", 1, &["pod", "not found"]),
                ("containers rm in", 0, &[]),
            ],
        );
        wait::until_true("no shim is left", || shim(s, "pod").is_none() && shim(s, "in").is_none());
    });
}

#[test]
fn the_registry_helper_is_nobody() {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    let mut helper = Command::new(programs::ours().join("shimd-registry"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("start the helper");
    let status = || std::fs::read_to_string(format!("/proc/{}/status", helper.id())).expect("its status");
    wait::until_true("it has given up its privileges", || status().contains("NoNewPrivs:\t1"));
    let status = status();
    let has = |line: &str| assert!(status.lines().any(|one| one.trim_end() == line), "no {line:?} in {status}");
    has("Uid:\t65534\t65534\t65534\t65534");
    has("Gid:\t65534\t65534\t65534\t65534");
    has("Groups:");
    has("CapEff:\t0000000000000000");
    has("CapPrm:\t0000000000000000");
    // Its input ends, and so does it.
    drop(helper.stdin.take());
    assert!(helper.wait().expect("its end").success());
}

/// The shim that this supervisor started for that id.
fn shim(s: &Supervised, id: &str) -> Option<nix::unistd::Pid> {
    let site = s.path("").display().to_string();
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("containerd-shim") && line.contains(&site) && line.contains(&format!("\0-id\0{id}\0"))
    });
    pid.map(nix::unistd::Pid::from_raw)
}

/// The archive is an image layout, and one of Docker's if so wanted.
fn assert_archive(s: &Supervised, name: &str, of_docker: bool) {
    let file = std::fs::File::open(s.path("tmp").join(name)).expect("the archive");
    let mut archive = tar::Archive::new(file);
    let names: Vec<String> = archive
        .entries()
        .expect("entries")
        .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
        .collect();
    for wanted in ["index.json", "oci-layout"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    assert_eq!(names.iter().any(|name| name == "manifest.json"), of_docker, "{names:?}");
    assert!(names.iter().filter(|name| name.starts_with("blobs/sha256/")).count() >= 4, "{names:?}");
}
