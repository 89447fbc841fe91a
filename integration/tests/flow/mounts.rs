//! `-v`, `--mount`, `--tmpfs`, `--read-only`.

use std::fs;

use integration::{Stack, flow};

/// A directory of the host with one file.
fn shared(s: &Stack) -> String {
    let directory = s.site().path("tmp/shared");
    fs::create_dir_all(&directory).expect("a directory");
    fs::write(directory.join("file"), "of the host\n").expect("a file");
    directory.display().to_string()
}

#[test]
fn a_directory_of_the_host() {
    flow(|s| {
        let directory = shared(s);
        let script = "cat /data/file; echo back > /data/answer";
        assert_eq!(
            s.text(&["run", "--rm", "-v", &format!("{directory}:/data"), s.busybox(), "sh", "-c", script]),
            "of the host"
        );
        assert_eq!(fs::read_to_string(format!("{directory}/answer")).expect("the answer"), "back\n");
    });
}

#[test]
fn a_file_of_the_host() {
    flow(|s| {
        let volume = format!("{}/file:/etc/one-file:ro", shared(s));
        assert_eq!(s.text(&["run", "--rm", "-v", &volume, s.busybox(), "cat", "/etc/one-file"]), "of the host");
    });
}

#[test]
fn read_only_is_read_only() {
    flow(|s| {
        let directory = shared(s);
        let volume = format!("{directory}:/data:ro");
        let mount = format!("type=bind,source={directory},target=/data,readonly");
        for arguments in [["-v", &volume], ["--mount", &mount]] {
            let out = s.run(&["run", "--rm", arguments[0], arguments[1], s.busybox(), "touch", "/data/new"]).code(1);
            assert!(out.errors().contains("Read-only"), "{}", out.errors());
        }
        assert!(!fs::exists(format!("{directory}/new")).expect("the directory"));
    });
}

#[test]
fn a_missing_source_is_made_by_v_and_refused_by_mount() {
    flow(|s| {
        let missing = s.site().path("tmp/missing").display().to_string();
        let mount = format!("type=bind,source={missing},target=/data");
        let out = s.run(&["run", "--rm", "--mount", &mount, s.busybox(), "true"]).code(125);
        assert!(out.errors().contains(&missing), "{}", out.errors());
        assert!(!fs::exists(&missing).expect("the directory"));
        s.run(&["run", "--rm", "-v", &format!("{missing}:/data"), s.busybox(), "touch", "/data/made"]).ok();
        assert!(fs::exists(format!("{missing}/made")).expect("the file"));
    });
}

#[test]
fn a_relative_target_is_refused() {
    flow(|s| {
        let directory = shared(s);
        s.run(&["run", "--rm", "-v", &format!("{directory}:data"), s.busybox(), "true"]).code(125);
        s.run(&["run", "--rm", "-v", &format!("{directory}:/data:nosuchmode"), s.busybox(), "true"]).code(125);
        s.run(&["run", "--rm", "--mount", "type=bind,target=/data", s.busybox(), "true"]).code(125);
        s.run(&["run", "--rm", "--mount", "type=nosuch,target=/data", s.busybox(), "true"]).code(125);
    });
}

#[test]
fn a_tmpfs() {
    flow(|s| {
        let script = "grep ' /scratch ' /proc/mounts | cut -d' ' -f3; stat -c %a /scratch; df -k /scratch | tail -1 | awk '{print $2}'";
        let mount = "type=tmpfs,target=/scratch,tmpfs-size=1m,tmpfs-mode=700";
        assert_eq!(s.text(&["run", "--rm", "--mount", mount, s.busybox(), "sh", "-c", script]), "tmpfs\n700\n1024");
    });
}

#[test]
fn a_read_only_root() {
    flow(|s| {
        let out = s.run(&["run", "--rm", "--read-only", s.busybox(), "touch", "/new"]).code(1);
        assert!(out.errors().contains("Read-only"), "{}", out.errors());
        let volume = format!("{}:/data", shared(s));
        s.run(&["run", "--rm", "--read-only", "-v", &volume, s.busybox(), "touch", "/data/new"]).ok();
        s.run(&["run", "--rm", "--read-only", s.busybox(), "sh", "-c", "echo > /dev/shm/x"]).ok();
    });
}

#[test]
fn what_inspect_says_of_mounts() {
    flow(|s| {
        let directory = shared(s);
        let id = s.detached(&["-v", &format!("{directory}:/data:ro"), s.busybox(), "sleep", "100"]);
        let format = "{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}} {{.RW}}{{end}}";
        assert_eq!(s.inspect(&id, format), format!("bind {directory} /data false"));
    });
}

#[test]
fn a_target_that_is_a_symlink_stays_inside() {
    flow(|s| {
        let directory = shared(s);
        let name = "linked";
        s.run(&["run", "--name", name, s.busybox(), "ln", "-s", "/../../../../../../tmp", "/escape"]).ok();
        let volume = format!("{directory}:/bin/../tmp/inside");
        assert_eq!(s.text(&["run", "--rm", "-v", &volume, s.busybox(), "cat", "/tmp/inside/file"]), "of the host");
    });
}

#[test]
fn the_hosts_mounts_do_not_show() {
    flow(|s| {
        let root = s.site().root().display().to_string();
        let text = s.text(&["run", "--rm", s.busybox(), "cat", "/proc/mounts"]);
        let places: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        assert!(places.iter().all(|place| !place.contains(&root)), "{places:?}");
        for expected in [
            "/",
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/dev/shm",
            "/sys",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
        ] {
            assert!(places.contains(&expected), "no {expected} in {places:?}");
        }
    });
}
