//! `-t`: a terminal of the container's own, shown in ours.

use integration::flow;

#[test]
fn a_shell_in_a_terminal() {
    flow(|s| {
        let mut terminal = s.terminal(&["run", "--rm", "-it", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        terminal.send("tty; echo $((6 * 7)); echo TERM=$TERM\n");
        terminal.expect("/dev/pts/0");
        terminal.expect("42");
        terminal.expect("TERM=xterm");
        terminal.send("exit 5\n");
        assert_eq!(terminal.end(), 5);
        assert!(terminal.is_cooked(), "the terminal is as it was");
    });
}

#[test]
fn the_size_is_ours_and_follows() {
    flow(|s| {
        let mut terminal = s.terminal(&["run", "--rm", "-it", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        terminal.send("stty size\n");
        terminal.expect("24 80");
        terminal.resize(40, 132);
        std::thread::sleep(std::time::Duration::from_millis(500));
        terminal.send("stty size\n");
        terminal.expect("40 132");
        terminal.send("exit\n");
        terminal.end();
    });
}

#[test]
fn control_c_reaches_the_program() {
    flow(|s| {
        let mut terminal = s.terminal(&["run", "--rm", "-it", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        terminal.send("sleep 1000\n");
        terminal.expect("sleep 1000");
        std::thread::sleep(std::time::Duration::from_millis(500));
        terminal.send("\u{3}");
        terminal.expect("/ # ");
        terminal.send("exit 6\n");
        assert_eq!(terminal.end(), 6);
    });
}

#[test]
fn the_detach_keys_leave_it_running() {
    flow(|s| {
        let mut terminal = s.terminal(&["run", "-it", "--name", "left", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        terminal.send("\u{10}\u{11}");
        assert_eq!(terminal.end(), 0);
        assert_eq!(s.inspect("left", "{{.State.Running}}"), "true");
        let mut again = s.terminal(&["attach", "left"]);
        again.send("echo back $((40 + 2))\n");
        again.expect("back 42");
        again.send("exit 4\n");
        assert_eq!(again.end(), 4);
    });
}

#[test]
fn detach_keys_of_the_callers() {
    flow(|s| {
        let mut terminal =
            s.terminal(&["run", "-it", "--name", "left", "--detach-keys", "ctrl-x,q", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        terminal.send("\u{10}\u{11}echo still here\n");
        terminal.expect("still here");
        terminal.send("\u{18}q");
        assert_eq!(terminal.end(), 0);
        assert_eq!(s.inspect("left", "{{.State.Running}}"), "true");
    });
}

#[test]
fn exec_in_a_terminal() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "1000"]);
        let mut terminal = s.terminal(&["exec", "-it", &id, "sh"]);
        terminal.expect("/ # ");
        terminal.send("stty size; echo $((6 * 7))\n");
        terminal.expect("24 80");
        terminal.expect("42");
        terminal.send("exit 9\n");
        assert_eq!(terminal.end(), 9);
        assert!(terminal.is_cooked(), "the terminal is as it was");
    });
}

#[test]
fn a_terminal_without_one_of_ours_is_refused() {
    flow(|s| {
        let out = s.call(&["run", "--rm", "-it", s.busybox(), "true"]).input(b"").output();
        assert_ne!(out.code, 0);
        assert!(
            out.errors().to_lowercase().contains("not a tty") || out.errors().contains("not a terminal"),
            "{}",
            out.errors()
        );
    });
}

#[test]
fn a_detached_terminal_and_its_log() {
    flow(|s| {
        let id = s.detached(&["-t", s.busybox(), "sh", "-c", "test -t 1 && echo terminal; echo err >&2"]);
        s.run(&["wait", &id]).ok();
        // A terminal ends lines with CR LF and has one stream.
        let out = s.run(&["logs", &id]).ok();
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"terminal\r\nerr\r\n"[..], &b""[..]));
    });
}

#[test]
fn a_client_that_dies_leaves_the_terminal_container_running() {
    flow(|s| {
        let mut terminal = s.terminal(&["run", "-it", "--name", "orphan", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        drop(terminal);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(s.inspect("orphan", "{{.State.Running}}"), "true");
    });
}
