//! create, start, stop, kill, rm, wait: the states of a container.

use std::time::{Duration, Instant};

use integration::flow;

#[test]
fn created_started_ended_removed() {
    flow(|s| {
        let id = s.text(&["create", "--name", "steps", s.busybox(), "sh", "-c", "sleep 1; exit 3"]);
        assert_eq!(id.len(), 64);
        assert_eq!(s.inspect("steps", "{{.State.Status}}"), "created");
        assert_eq!(s.text(&["start", "steps"]), "steps");
        assert_eq!(s.inspect("steps", "{{.State.Status}} {{.State.Running}}"), "running true");
        assert_eq!(s.text(&["wait", "steps"]), "3");
        assert_eq!(s.inspect("steps", "{{.State.Status}} {{.State.ExitCode}}"), "exited 3");
        assert_eq!(s.text(&["rm", "steps"]), "steps");
        s.run(&["inspect", "steps"]).code(1);
    });
}

#[test]
fn an_ended_container_starts_again_with_its_files() {
    flow(|s| {
        let script = "test -e /mark && exit 5; touch /mark; exit 4";
        let id = s.text(&["create", s.busybox(), "sh", "-c", script]);
        for code in ["4", "5"] {
            s.run(&["start", &id]).ok();
            assert_eq!(s.text(&["wait", &id]), code);
        }
    });
}

#[test]
fn start_attached_gives_output_and_exit_code() {
    flow(|s| {
        let id = s.text(&["create", s.busybox(), "sh", "-c", "echo out; echo err >&2; exit 9"]);
        let out = s.run(&["start", "-a", &id]).code(9);
        assert_eq!((out.text().as_str(), out.errors().as_str()), ("out", "err\n"));
        let id = s.text(&["create", "-i", s.busybox(), "cat"]);
        let out = s.call(&["start", "-ai", &id]).input(b"fed").output().ok();
        assert_eq!(out.text(), "fed");
    });
}

#[test]
fn stop_sends_the_stop_signal_and_then_kills() {
    flow(|s| {
        let polite =
            s.detached(&[s.busybox(), "sh", "-c", "trap 'exit 21' TERM; echo up; while :; do sleep 0.1; done"]);
        integration::wait::until_true("the trap stands", || s.text(&["logs", &polite]) == "up");
        assert_eq!(s.text(&["stop", &polite]), polite);
        assert_eq!(s.inspect(&polite, "{{.State.ExitCode}}"), "21");

        let stubborn = s.detached(&[&s.image("stubborn")]);
        integration::wait::until_true("the trap stands", || s.text(&["logs", &stubborn]) == "ready");
        let start = Instant::now();
        s.run(&["stop", "-t", "1", &stubborn]).ok();
        let took = start.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(6)).contains(&took), "{took:?}");
        assert_eq!(s.inspect(&stubborn, "{{.State.ExitCode}}"), "137");
    });
}

#[test]
fn a_stop_signal_of_the_callers() {
    flow(|s| {
        let script = "trap 'exit 22' USR1; echo up; while :; do sleep 0.1; done";
        let id = s.detached(&["--stop-signal", "SIGUSR1", s.busybox(), "sh", "-c", script]);
        integration::wait::until_true("the trap stands", || s.text(&["logs", &id]) == "up");
        s.run(&["stop", &id]).ok();
        assert_eq!(s.inspect(&id, "{{.State.ExitCode}}"), "22");
    });
}

#[test]
fn stopping_what_has_ended_is_no_error() {
    flow(|s| {
        s.run(&["run", "--name", "over", s.busybox(), "true"]).ok();
        s.run(&["stop", "over"]).ok();
        s.run(&["stop", "no-such-container"]).code(1);
    });
}

#[test]
fn kill_needs_a_running_container_and_a_known_signal() {
    flow(|s| {
        s.run(&["run", "--name", "over", s.busybox(), "true"]).ok();
        s.run(&["kill", "over"]).code(1);
        let id = s.detached(&[s.busybox(), "sh", "-c", "trap 'exit 23' USR2; echo up; while :; do sleep 0.1; done"]);
        integration::wait::until_true("the trap stands", || s.text(&["logs", &id]) == "up");
        s.run(&["kill", "-s", "NOSUCH", &id]).code(1);
        s.run(&["kill", "-s", "USR2", &id]).ok();
        assert_eq!(s.text(&["wait", &id]), "23");
    });
}

#[test]
fn a_running_container_is_removed_by_force_alone() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "100"]);
        let out = s.run(&["rm", &id]).code(1);
        assert!(out.errors().contains("running"), "{}", out.errors());
        s.run(&["rm", "-f", &id]).ok();
        assert_eq!(s.text(&["ps", "-aq"]), "");
    });
}

#[test]
fn several_at_once_and_one_that_is_not_there() {
    flow(|s| {
        let one = s.detached(&["--name", "one", s.busybox(), "sleep", "100"]);
        let two = s.detached(&["--name", "two", s.busybox(), "sleep", "100"]);
        let out = s.run(&["rm", "-f", "one", "nowhere", &two]);
        assert!(out.text().contains("one") && out.text().contains(&two), "{}", out.text());
        s.run(&["inspect", &one]).code(1);
        s.run(&["inspect", "two"]).code(1);
    });
}

#[test]
fn a_unique_prefix_names_a_container() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "100"]);
        assert_eq!(s.inspect(&id[..6], "{{.Id}}"), id);
        s.run(&["rm", "-f", &id[..12]]).ok();
    });
}

#[test]
fn wait_waits() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sh", "-c", "sleep 0.5; exit 6"]);
        let waiting = s.call(&["wait", &id]).start();
        assert_eq!(waiting.end().ok().text(), "6");
    });
}

#[test]
fn signals_to_a_client_without_a_terminal_go_to_the_program() {
    flow(|s| {
        let script = "trap 'echo caught; exit 24' TERM; echo up; while :; do sleep 0.1; done";
        let running = s.call(&["run", "--rm", s.busybox(), "sh", "-c", script]).start();
        running.expect("up");
        running.signal(nix::sys::signal::Signal::SIGTERM);
        let out = running.end().code(24);
        assert_eq!(out.text(), "up\ncaught");
    });
}

#[test]
fn a_restart_policy_starts_it_again() {
    flow(|s| {
        let id = s.detached(&["--restart", "on-failure:2", s.busybox(), "sh", "-c", "echo again; exit 1"]);
        integration::wait::until_true("three attempts", || s.text(&["logs", &id]).lines().count() == 3);
        integration::wait::until_true("it gives up", || s.inspect(&id, "{{.State.Status}}") == "exited");
        assert_eq!(s.inspect(&id, "{{.RestartCount}}"), "2");
    });
}

#[test]
fn many_started_at_once_all_run() {
    flow(|s| {
        let running: Vec<_> = (0..8)
            .map(|n| s.call(&["run", "--rm", s.busybox(), "sh", "-c", &format!("echo {n}; exit {n}")]).start())
            .collect();
        for (n, running) in running.into_iter().enumerate() {
            assert_eq!(running.end().code(n as i32).text(), n.to_string());
        }
    });
}
