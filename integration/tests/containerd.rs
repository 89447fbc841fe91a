//! Seam 2: containerd's API as Debian's `ctr` uses it. Each test is true of Debian's containerd (`SUBJECT=theirs`).

use integration::{Supervised, http, supervisor};

/// A running container with that name.
fn sleeper(s: &Supervised, id: &str) {
    s.run(&["run", "-d", s.busybox(), id, "sleep", "1000"]).ok();
    s.wait_for_status(id, "RUNNING");
}

#[test]
fn an_imported_image_is_listed() {
    supervisor(|s| {
        let text = s.text(&["images", "ls", "-q"]);
        assert_eq!(text, s.busybox());
        let text = s.text(&["images", "ls"]);
        assert!(text.contains("sha256:") && text.contains("linux/amd64"), "{text}");
    });
}

/// Python's and C++'s clients name the socket's path as the host.
#[test]
fn clients_on_the_c_library_are_answered() {
    supervisor(|s| {
        let version = http::call_grpc_as_c_does(s.socket(), "/containerd.services.version.v1.Version/Version");
        assert!(version.expect("an answer").len() > 5);
    });
}

#[test]
fn run_gives_output_and_exit_code() {
    supervisor(|s| {
        let out = s.run(&["run", "--rm", s.busybox(), "once", "sh", "-c", "echo out; echo err >&2; exit 5"]).code(5);
        assert_eq!((out.text().as_str(), out.errors().as_str()), ("out", "err\n"));
        assert_eq!(s.text(&["containers", "ls", "-q"]), "");
        assert_eq!(s.text(&["tasks", "ls", "-q"]), "");
    });
}

#[test]
fn a_bundle_names_the_shims_program() {
    supervisor(|s| {
        sleeper(s, "named");
        let state = s.path(if s.is_ours() { "run/shimd" } else { "run/containerd" });
        let bundle = state.join("io.containerd.runtime.v2.task").join(s.namespace()).join("named");
        let program = std::fs::read_to_string(bundle.join("shim-binary-path")).expect("its name");
        assert_eq!(program, "/usr/bin/containerd-shim-runc-v2");
    });
}

#[test]
fn input_reaches_the_program() {
    supervisor(|s| {
        let out = s.ctr(&["run", "--rm", s.busybox(), "input", "head", "-c", "9"]).input(b"fed to it").output().ok();
        assert_eq!(out.text(), "fed to it");
    });
}

#[test]
fn a_detached_task_is_listed_killed_and_removed() {
    supervisor(|s| {
        sleeper(s, "long");
        assert_eq!(s.text(&["containers", "ls", "-q"]), "long");
        let pids = s.text(&["tasks", "ps", "long"]);
        assert!(pids.lines().count() >= 2, "{pids}");
        s.run(&["tasks", "kill", "-s", "KILL", "long"]).ok();
        s.wait_for_status("long", "STOPPED");
        s.assert_deleted_with("long", 137);
        s.run(&["containers", "delete", "long"]).ok();
    });
}

#[test]
fn exec_in_a_task() {
    supervisor(|s| {
        sleeper(s, "host");
        let out = s.run(&["tasks", "exec", "--exec-id", "one", "host", "sh", "-c", "echo inside; exit 6"]).code(6);
        assert_eq!(out.text(), "inside");
        let out = s
            .run(&[
                "tasks",
                "exec",
                "--exec-id",
                "two",
                "--cwd",
                "/etc",
                "--user",
                "33",
                "host",
                "sh",
                "-c",
                "pwd; id -u",
            ])
            .ok();
        assert_eq!(out.text(), "/etc\n33");
    });
}

#[test]
fn a_terminal() {
    supervisor(|s| {
        let mut terminal = s.terminal(&["run", "--rm", "-t", s.busybox(), "terminal", "sh"]);
        terminal.expect("/ # ");
        terminal.send("stty size; echo $((6 * 7))\n");
        terminal.expect("24 80");
        terminal.expect("42");
        terminal.send("exit 3\n");
        assert_eq!(terminal.end(), 3);
    });
}

#[test]
fn events_in_order() {
    supervisor(|s| {
        let watching = s.ctr(&["events"]).start();
        std::thread::sleep(std::time::Duration::from_millis(500));
        s.run(&["run", "--rm", s.busybox(), "watched", "true"]).ok();
        watching.expect("/containers/delete");
        watching.expect("/tasks/delete");
        watching.signal(nix::sys::signal::Signal::SIGTERM);
        let text = watching.end().text();
        let topics: Vec<&str> =
            text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect();
        // The shim tells of a task and the daemon of a container: the two ends may change places on their ways.
        let of_task = ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
        let of_container = ["/containers/create", "/tasks/exit", "/containers/delete"];
        for life in [&of_task[..], &of_container[..]] {
            let places: Vec<_> = life.iter().map(|topic| topics.iter().position(|seen| seen == topic)).collect();
            assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{topics:?}");
        }
    });
}

#[test]
fn limits_and_mounts_and_environment() {
    supervisor(|s| {
        let directory = s.path("tmp/shared");
        std::fs::create_dir(&directory).expect("a directory");
        let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", directory.display());
        let script = "echo $A > /data/answer; cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true";
        s.run(&[
            "run",
            "--rm",
            "--env",
            "A=1",
            "--mount",
            &mount,
            "--memory-limit",
            "33554432",
            s.busybox(),
            "limited",
            "sh",
            "-c",
            script,
        ])
        .ok();
        assert_eq!(std::fs::read_to_string(directory.join("answer")).expect("the answer"), "1\n");
    });
}

#[test]
fn pause_and_resume() {
    supervisor(|s| {
        sleeper(s, "paused");
        s.run(&["tasks", "pause", "paused"]).ok();
        s.wait_for_status("paused", "PAUSED");
        s.run(&["tasks", "resume", "paused"]).ok();
        s.wait_for_status("paused", "RUNNING");
    });
}

#[test]
fn what_is_not_there() {
    supervisor(|s| {
        let out = s.run(&["run", "--rm", "example.org/nowhere:latest", "x", "true"]);
        assert!(out.code != 0 && out.errors().contains("nowhere"), "{}", out.errors());
        assert_ne!(s.run(&["tasks", "kill", "nowhere"]).code, 0);
        assert_ne!(s.run(&["containers", "info", "nowhere"]).code, 0);
        let out = s.run(&["run", "--rm", s.busybox(), "missing", "/no/such/program"]);
        assert!(out.code != 0 && out.errors().contains("/no/such/program"), "{}", out.errors());
        sleeper(s, "taken");
        assert_ne!(s.run(&["run", "-d", s.busybox(), "taken", "true"]).code, 0);
    });
}

#[test]
fn namespaces_keep_things_apart() {
    supervisor(|s| {
        sleeper(s, "here");
        let other = format!("{}-other", s.namespace());
        assert_eq!(s.text(&["--namespace", &other, "containers", "ls", "-q"]), "");
        assert_eq!(s.text(&["--namespace", &other, "images", "ls", "-q"]), "");
        let names = s.text(&["namespaces", "ls", "-q"]);
        assert!(names.lines().any(|name| name == s.namespace()), "{names}");
    });
}

#[test]
fn a_killed_daemon_finds_its_tasks_again() {
    supervisor(|s| {
        sleeper(s, "survivor");
        s.run(&["run", "-d", s.busybox(), "gap", "sh", "-c", "sleep 1; exit 42"]).ok();
        s.kill_and_restart();
        s.wait_for_status("survivor", "RUNNING");
        let out = s.run(&["tasks", "exec", "--exec-id", "after", "survivor", "echo", "alive"]).ok();
        assert_eq!(out.text(), "alive");
        s.wait_for_status("gap", "STOPPED");
        s.assert_deleted_with("gap", 42);
        s.run(&["tasks", "kill", "-s", "KILL", "survivor"]).ok();
        s.wait_for_status("survivor", "STOPPED");
    });
}
