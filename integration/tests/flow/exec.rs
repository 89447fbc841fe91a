//! `exec`: one more program in a running container.

use integration::{Stack, flow};

fn sleeper(s: &Stack) -> String {
    s.detached(&[s.busybox(), "sleep", "1000"])
}

#[test]
fn output_and_exit_code() {
    flow(|s| {
        let id = sleeper(s);
        let out = s.run(&["exec", &id, "sh", "-c", "echo out; echo err >&2; exit 11"]).code(11);
        assert_eq!((out.text().as_str(), out.errors().as_str()), ("out", "err\n"));
    });
}

#[test]
fn what_cannot_run_is_126_or_127() {
    flow(|s| {
        let id = sleeper(s);
        // Docker 20.10 says 126 for a program that is not there, later ones 127.
        let missing = s.run(&["exec", &id, "no-such-program"]).code;
        assert!(missing == 127 || missing == 126, "{missing}");
        s.run(&["exec", &id, "/etc/passwd"]).code(126);
    });
}

#[test]
fn a_container_that_does_not_run() {
    flow(|s| {
        s.run(&["run", "--name", "over", s.busybox(), "true"]).ok();
        s.run(&["exec", "over", "true"]).code(1);
        s.run(&["exec", "nowhere", "true"]).code(1);
    });
}

#[test]
fn its_own_environment_directory_and_user() {
    flow(|s| {
        let id = s.detached(&["-e", "A=1", "-w", "/tmp", s.busybox(), "sleep", "1000"]);
        let script = "echo $A:$B:$(pwd):$(id -u)";
        assert_eq!(s.text(&["exec", &id, "sh", "-c", script]), "1::/tmp:0");
        assert_eq!(
            s.text(&["exec", "-e", "B=2", "-w", "/etc", "-u", "www-data", &id, "sh", "-c", script]),
            "1:2:/etc:33"
        );
        assert_eq!(s.text(&["exec", "-e", "A=other", &id, "sh", "-c", script]), "other::/tmp:0");
    });
}

#[test]
fn input_only_with_i() {
    flow(|s| {
        let id = sleeper(s);
        let data: Vec<u8> = (0..300_000_u32).map(|n| (n % 256) as u8).collect();
        assert!(s.call(&["exec", "-i", &id, "cat"]).input(&data).output().ok().stdout == data, "the bytes differ");
        assert_eq!(s.call(&["exec", &id, "cat"]).input(b"no").output().ok().text(), "");
    });
}

#[test]
fn detached() {
    flow(|s| {
        let id = sleeper(s);
        assert_eq!(s.text(&["exec", "-d", &id, "sh", "-c", "sleep 0.3; touch /done"]), "");
        integration::wait::until_true("the file is there", || s.run(&["exec", &id, "test", "-e", "/done"]).code == 0);
    });
}

#[test]
fn it_sees_the_containers_processes_and_files() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sh", "-c", "touch /mark; exec sleep 1000"]);
        integration::wait::until_true("the file is there", || s.run(&["exec", &id, "test", "-e", "/mark"]).code == 0);
        let text = s.text(&["exec", &id, "ps", "-o", "pid,args"]);
        assert!(text.lines().any(|line| line.trim() == "1 sleep 1000"), "{text}");
    });
}

#[test]
fn it_ends_with_the_container() {
    flow(|s| {
        let id = sleeper(s);
        let running = s.call(&["exec", &id, "sh", "-c", "echo up; sleep 1000"]).start();
        running.expect("up");
        s.run(&["kill", &id]).ok();
        running.end().code(137);
    });
}

#[test]
fn a_program_in_the_background_does_not_keep_it() {
    flow(|s| {
        let id = sleeper(s);
        s.run(&["exec", &id, "sh", "-c", "sleep 1000 >/dev/null 2>&1 </dev/null & echo started"]).ok();
        assert!(s.text(&["exec", &id, "ps", "-o", "args"]).matches("sleep 1000").count() >= 2);
    });
}

#[test]
fn many_one_after_another() {
    flow(|s| {
        let id = sleeper(s);
        for n in 0..12 {
            assert_eq!(s.text(&["exec", &id, "echo", &n.to_string()]), n.to_string());
        }
    });
}
