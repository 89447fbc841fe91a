//! Seam 4: an OCI bundle and runc's command line. Each test is true of Debian's runc (`SUBJECT=theirs`).

use std::fs;

use integration::runtime::Runtime;
use integration::{runtime, skip, wait};
use serde_json::{Value, json};

fn started(r: &Runtime, name: &str, arguments: &[&str]) -> String {
    let bundle = r.bundle(name, arguments);
    let id = r.id(name);
    r.run(&["create", "--bundle", &bundle.text(), &id]).ok();
    r.run(&["start", &id]).ok();
    id
}

fn status(r: &Runtime, id: &str) -> String {
    r.state(id)["status"].as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_until_stopped(r: &Runtime, id: &str) {
    wait::until_true("the container stops", || status(r, id) == "stopped");
}

#[test]
fn run_gives_output_input_and_exit_code() {
    runtime(|r| {
        let bundle = r.bundle("run", &["sh", "-c", "cat; echo err >&2; exit 9"]);
        let out = r.call(&["run", "--bundle", &bundle.text(), &r.id("run")]).input(b"in\xff").output().code(9);
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"in\xff"[..], &b"err\n"[..]));
    });
}

#[test]
fn create_start_kill_delete() {
    runtime(|r| {
        let bundle = r.bundle("life", &["sleep", "1000"]);
        let (id, pid_file) = (r.id("life"), r.path("tmp/pid").display().to_string());
        r.run(&["create", "--bundle", &bundle.text(), "--pid-file", &pid_file, &id]).ok();
        let state = r.state(&id);
        assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!(id)));
        assert_eq!(state["bundle"], json!(bundle.text()));
        assert!(state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")));
        assert_eq!(fs::read_to_string(&pid_file).expect("the pid file"), state["pid"].to_string());
        r.run(&["start", &id]).ok();
        assert_eq!(status(r, &id), "running");
        r.run(&["kill", &id, "KILL"]).ok();
        wait_until_stopped(r, &id);
        r.run(&["delete", &id]).ok();
        assert_ne!(r.run(&["state", &id]).code, 0);
    });
}

#[test]
fn the_program_waits_for_start() {
    runtime(|r| {
        let bundle = r.bundle("waits", &["sh", "-c", "touch /ran; sleep 1000"]);
        let id = r.id("waits");
        r.run(&["create", "--bundle", &bundle.text(), &id]).ok();
        let mark = format!("{}/rootfs/ran", bundle.text());
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!fs::exists(&mark).expect("the rootfs"));
        r.run(&["start", &id]).ok();
        wait::until_true("the program ran", || fs::exists(&mark).expect("the rootfs"));
        r.run(&["delete", "--force", &id]).ok();
    });
}

#[test]
fn exec_runs_one_more_program() {
    runtime(|r| {
        let id = started(r, "exec", &["sleep", "1000"]);
        let out = r.call(&["exec", &id, "sh", "-c", "cat; exit 4"]).input(b"fed").output().code(4);
        assert_eq!(out.text(), "fed");
        let script = "echo $A $(pwd) $(id -u):$(id -g)";
        let out = r.run(&["exec", "--env", "A=1", "--cwd", "/tmp", "--user", "33:44", &id, "sh", "-c", script]).ok();
        assert_eq!(out.text(), "1 /tmp 33:44");
        let pid_file = r.path("tmp/exec-pid").display().to_string();
        r.run(&["exec", "--detach", "--pid-file", &pid_file, &id, "sh", "-c", "echo x > /detached; sleep 1000"]).ok();
        wait::until_true("the detached program ran", || r.run(&["exec", &id, "cat", "/detached"]).code == 0);
        assert!(fs::read_to_string(&pid_file).expect("the pid file").parse::<i32>().is_ok());
        r.run(&["delete", "--force", &id]).ok();
    });
}

#[test]
fn exec_by_a_process_file() {
    runtime(|r| {
        let id = started(r, "process", &["sleep", "1000"]);
        let file = r.path("tmp/process.json").display().to_string();
        let process = json!({"args": ["sh", "-c", "echo $B $(pwd)"], "cwd": "/etc", "env": ["B=2", "PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        fs::write(&file, process.to_string()).expect("write the process");
        assert_eq!(r.run(&["exec", "--process", &file, &id]).ok().text(), "2 /etc");
        r.run(&["delete", "--force", &id]).ok();
    });
}

#[test]
fn list_shows_what_there_is() {
    runtime(|r| {
        let (one, two) = (started(r, "one", &["sleep", "1000"]), started(r, "two", &["true"]));
        wait_until_stopped(r, &two);
        let text = r.run(&["list", "--format", "json"]).ok().text();
        let list: Vec<Value> = serde_json::from_str(&text).expect("a list");
        let states: Vec<(String, String)> = list
            .iter()
            .map(|one| {
                (
                    one["id"].as_str().unwrap_or_default().to_owned(),
                    one["status"].as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect();
        assert!(
            states.contains(&(one.clone(), "running".to_owned()))
                && states.contains(&(two.clone(), "stopped".to_owned())),
            "{text}"
        );
        let quiet = r.run(&["list", "--quiet"]).ok().text();
        assert!(quiet.lines().any(|line| line == one), "{quiet}");
        let table = r.run(&["list"]).ok().text();
        let heading: Vec<&str> = table.lines().next().expect("a heading").split_whitespace().collect();
        assert_eq!(heading, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
        for id in [one, two] {
            r.run(&["delete", "--force", &id]).ok();
        }
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    runtime(|r| {
        assert_ne!(r.run(&["state", &r.id("nowhere")]).code, 0);
        assert_ne!(r.run(&["delete", &r.id("nowhere")]).code, 0);
        r.run(&["delete", "--force", &r.id("nowhere")]).ok();
        let id = started(r, "busy", &["sleep", "1000"]);
        assert_ne!(r.run(&["delete", &id]).code, 0, "a running container is not deleted without force");
        assert_ne!(r.run(&["start", &id]).code, 0, "a running container is not started");
        let bundle = r.bundle("again", &["true"]);
        assert_ne!(r.run(&["create", "--bundle", &bundle.text(), &id]).code, 0, "an id is given once");
        r.run(&["delete", "--force", &id]).ok();
        for wrong in ["", "a/b", "../x", "a b"] {
            assert_ne!(r.run(&["create", "--bundle", &bundle.text(), wrong]).code, 0, "the id {wrong:?}");
        }
    });
}

#[test]
fn bad_bundles_are_refused_and_leave_nothing() {
    runtime(|r| {
        let bundle = r.bundle("bad", &["true"]);
        let id = r.id("bad");
        let create = || r.run(&["create", "--bundle", &bundle.text(), &id]);
        bundle.edit(|config| config["process"]["args"] = json!(["/no/such/program"]));
        let out = create();
        assert!(out.code != 0 && out.errors().contains("/no/such/program"), "{}", out.errors());
        bundle.edit(|config| config["process"]["args"] = json!(["/etc/passwd"]));
        assert_ne!(create().code, 0);
        bundle.edit(|config| config["root"]["path"] = json!("nowhere"));
        assert_ne!(create().code, 0);
        bundle.write("{ not json");
        assert_ne!(create().code, 0);
        fs::remove_file(format!("{}/config.json", bundle.text())).expect("remove config.json");
        assert_ne!(create().code, 0);
        assert_eq!(r.run(&["list", "--quiet"]).ok().text(), "");
    });
}

#[test]
fn an_error_is_the_last_line_of_the_json_log() {
    runtime(|r| {
        let bundle = r.bundle("log", &["/no/such/program"]);
        let log = r.path("tmp/log.json").display().to_string();
        let mut command = r.command();
        command.args(["--log", &log, "--log-format", "json", "create", "--bundle", &bundle.text(), &r.id("log")]);
        assert_ne!(integration::Call::new(command).output().code, 0);
        let text = fs::read_to_string(&log).expect("the log");
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["level"], "error");
        assert!(last["msg"].as_str().is_some_and(|msg| msg.contains("/no/such/program")), "{last}");
        assert!(last["time"].is_string());
        if r.is_ours() {
            assert_eq!((&last["layer"], &last["code"]), (&json!("runtime"), &json!("COMMAND_NOT_FOUND")), "{last}");
        }
    });
}

#[test]
fn limits_reach_the_cgroup() {
    runtime(|r| {
        let v1 = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max";
        let script = format!("{v1} 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max");
        let bundle = r.bundle("limits", &["sh", "-c", &script]);
        bundle.edit(|config| {
            config["linux"]["resources"] = json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 50}})
        });
        assert_eq!(r.run(&["run", "--bundle", &bundle.text(), &r.id("limits")]).ok().text(), "33554432\n50");
    });
}

#[test]
fn the_default_spec_is_confined() {
    runtime(|r| {
        let script = "id -u; hostname; awk '/^(CapEff|NoNewPrivs):/ {print $2}' /proc/self/status; ulimit -n; \
                      cat /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic || echo refused; ls /sys/class/net; echo $TERM; ps | wc -l";
        let bundle = r.bundle("confined", &["sh", "-c", script]);
        let text = r.run(&["run", "--bundle", &bundle.text(), &r.id("confined")]).ok().text();
        let lines: Vec<&str> = text.lines().collect();
        let hostname = if r.is_ours() { lines[1] } else { "runc" };
        assert_eq!(lines[..8], ["0", hostname, "0000000020000420", "1", "1024", "0", "refused", "lo"], "{text}");
        assert_eq!(lines[8], "xterm");
    });
}

#[test]
fn a_console_socket_gets_the_terminal() {
    runtime(|r| {
        let bundle = r.bundle("console", &["sh", "-c", "tty; stty size; sleep 1000"]);
        bundle.edit(|config| {
            config["process"]["terminal"] = json!(true);
            config["process"]["consoleSize"] = json!({"height": 33, "width": 101});
        });
        let (id, path) = (r.id("console"), r.path("tmp/console.sock"));
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("the console socket");
        r.run(&["create", "--bundle", &bundle.text(), "--console-socket", &path.display().to_string(), &id]).ok();
        let (peer, _) = listener.accept().expect("the runtime connects");
        let mut master = integration::terminal::receive_master(&peer);
        r.run(&["start", &id]).ok();
        let mut seen = Vec::new();
        let mut buffer = [0; 256];
        while !String::from_utf8_lossy(&seen).contains("33 101") {
            let count = std::io::Read::read(&mut master, &mut buffer).expect("read the terminal");
            assert!(count > 0, "the terminal ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..count]);
        }
        assert!(String::from_utf8_lossy(&seen).starts_with("/dev/pts/0\r\n"));
        r.run(&["delete", "--force", &id]).ok();
    });
}

#[test]
fn hooks_get_the_state() {
    runtime(|r| {
        let bundle = r.bundle("hooks", &["true"]);
        let seen = r.path("tmp/hook-state").display().to_string();
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {seen}")]}]);
        bundle.edit(|config| config["hooks"] = json!({"poststop": hook}));
        let id = r.id("hooks");
        r.run(&["run", "--bundle", &bundle.text(), &id]).ok();
        let state: Value = serde_json::from_str(&fs::read_to_string(&seen).expect("the hook ran")).expect("a state");
        assert_eq!((&state["id"], &state["status"]), (&json!(id), &json!("stopped")));
    });
}

#[test]
fn killing_a_runtime_in_the_middle_leaves_what_delete_removes() {
    runtime(|r| {
        if !r.is_ours() {
            return skip("runc leaves its cgroups in such a case");
        }
        let bundle = r.bundle("cut", &["sleep", "1000"]);
        for delay_ms in [1, 2, 4, 6, 8, 12, 16, 24] {
            let id = r.id(&format!("cut{delay_ms}"));
            let running = r.call(&["create", "--bundle", &bundle.text(), &id]).start();
            std::thread::sleep(std::time::Duration::from_millis(delay_ms));
            running.signal(nix::sys::signal::Signal::SIGKILL);
            running.end();
            r.run(&["delete", "--force", &id]).ok();
            assert_ne!(r.run(&["state", &id]).code, 0);
        }
    });
}
