//! What a program writes and reads: pipes in the foreground, `logs`, `attach`.

use integration::{Output, flow, wait};

/// Every byte value, many times, so that nothing that treats bytes as text or lines goes unnoticed.
fn every_byte(length: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * 167 + n / 251) % 256) as u8).collect()
}

#[test]
fn binary_data_passes_through_stdin_and_stdout() {
    flow(|s| {
        let data = every_byte(3_000_001);
        let out = s.call(&["run", "--rm", "-i", s.busybox(), "cat"]).input(&data).output().ok();
        assert_eq!(out.stdout.len(), data.len());
        assert!(out.stdout == data, "the bytes differ");
        assert_eq!(out.errors(), "");
    });
}

#[test]
fn without_i_the_input_is_empty() {
    flow(|s| {
        let out = s.call(&["run", "--rm", s.busybox(), "cat"]).input(b"not for you").output().ok();
        assert_eq!(out.text(), "");
    });
}

#[test]
fn the_end_of_the_input_reaches_the_program() {
    flow(|s| {
        let mut running =
            s.call(&["run", "--rm", "-i", s.busybox(), "sh", "-c", "cat; echo ended"]).start_with_open_input();
        running.write(b"first ");
        running.expect("first");
        running.write(b"second ");
        running.close_input();
        assert_eq!(running.end().ok().text(), "first second ended");
    });
}

#[test]
fn output_without_a_line_end_arrives() {
    flow(|s| {
        assert_eq!(s.run(&["run", "--rm", s.busybox(), "printf", "no newline"]).ok().stdout, b"no newline");
    });
}

#[test]
fn a_client_that_goes_away_does_not_end_the_container() {
    flow(|s| {
        let script = "while :; do echo x; sleep 0.1; done";
        let running = s.call(&["run", "--name", "alone", s.busybox(), "sh", "-c", script]).start();
        running.expect("x");
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.end();
        assert_eq!(s.inspect("alone", "{{.State.Running}}"), "true");
    });
}

fn speaker(s: &integration::Stack) -> String {
    let id = s.detached(&[s.busybox(), "sh", "-c", "echo one; echo two >&2; echo three; printf four"]);
    assert_eq!(s.text(&["wait", &id]), "0");
    id
}

#[test]
fn logs_show_both_streams_in_their_places() {
    flow(|s| {
        let id = speaker(s);
        let Output { stdout, stderr, .. } = s.run(&["logs", &id]).ok();
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"one\nthree\nfour"[..], &b"two\n"[..]));
    });
}

#[test]
fn the_tail_of_a_log() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sh", "-c", "for n in 1 2 3 4 5; do echo $n; done"]);
        s.run(&["wait", &id]).ok();
        assert_eq!(s.text(&["logs", "--tail", "2", &id]), "4\n5");
        assert_eq!(s.text(&["logs", "--tail", "0", &id]), "");
        assert_eq!(s.text(&["logs", "--tail", "all", &id]), "1\n2\n3\n4\n5");
        assert_eq!(s.text(&["logs", "-n", "1", &id]), "5");
    });
}

#[test]
fn times_of_a_log() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sh", "-c", "echo early; sleep 2.2; echo late"]);
        s.run(&["wait", &id]).ok();
        let stamped = s.text(&["logs", "-t", &id]);
        let (time, word) = stamped.lines().next().and_then(|line| line.split_once(' ')).expect("a time and a word");
        assert_eq!(word, "early");
        // 2006-01-02T15:04:05.123456789Z
        assert_eq!((time.len(), &time[10..11], &time[29..]), (30, "T", "Z"), "{time}");
        let second = stamped.lines().nth(1).and_then(|line| line.split_once(' ')).expect("a second line").0.to_owned();
        assert_eq!(s.text(&["logs", "--since", &second, &id]), "late");
        assert_eq!(s.text(&["logs", "--until", &second[..19], &id]), "early");
        assert_eq!(s.text(&["logs", "--since", "10m", &id]), "early\nlate");
        assert_eq!(s.text(&["logs", "--since", "0.5s", &id]).lines().filter(|line| *line == "early").count(), 0);
    });
}

#[test]
fn following_a_log_ends_with_the_container() {
    flow(|s| {
        let id = s.detached(&[s.busybox(), "sh", "-c", "for n in 1 2 3 4; do echo $n; sleep 0.3; done"]);
        assert_eq!(s.text(&["logs", "-f", &id]), "1\n2\n3\n4");
    });
}

#[test]
fn following_the_tail_shows_what_comes() {
    flow(|s| {
        let id = s.detached(&["-i", s.busybox(), "sh", "-c", "echo old1; echo old2; sleep 1; echo new"]);
        wait::until_true("the first lines", || s.text(&["logs", &id]) == "old1\nold2");
        assert_eq!(s.text(&["logs", "-f", "--tail", "1", &id]), "old2\nnew");
    });
}

#[test]
fn logs_of_a_container_that_is_not_there() {
    flow(|s| {
        s.run(&["logs", "nowhere"]).code(1);
    });
}

#[test]
fn attach_shows_what_comes_and_gives_the_exit_code() {
    flow(|s| {
        let script = "echo before; while read line; do echo got $line; test $line = end && sleep 0.3 && exit 8; done";
        let id = s.detached(&["-i", s.busybox(), "sh", "-c", script]);
        wait::until_true("it runs", || s.text(&["logs", &id]) == "before");
        let mut attached = s.call(&["attach", &id]).start_with_open_input();
        attached.write(b"hello\n");
        attached.expect("got hello");
        attached.write(b"end\n");
        let out = attached.end().code(8);
        assert_eq!(out.text(), "got hello\ngot end");
    });
}

#[test]
fn two_who_attach_see_the_same() {
    flow(|s| {
        let id = s.detached(&["-i", s.busybox(), "sh", "-c", "read line; echo $line; echo done"]);
        let one = s.call(&["attach", "--no-stdin", &id]).start();
        let mut two = s.call(&["attach", &id]).start_with_open_input();
        std::thread::sleep(std::time::Duration::from_millis(700));
        two.write(b"shared\n");
        assert_eq!(one.end().ok().text(), "shared\ndone");
        assert_eq!(two.end().ok().text(), "shared\ndone");
    });
}

#[test]
fn attaching_to_what_does_not_run_is_an_error() {
    flow(|s| {
        s.run(&["run", "--name", "over", s.busybox(), "true"]).ok();
        s.run(&["attach", "over"]).code(1);
    });
}

#[test]
fn a_megabyte_on_both_streams_at_once() {
    flow(|s| {
        let script =
            "dd if=/dev/zero bs=1000 count=1000 2>/dev/null & dd if=/dev/zero bs=1000 count=1000 >&2 2>/dev/null; wait";
        let out = s.run(&["run", "--rm", s.busybox(), "sh", "-c", script]).ok();
        assert_eq!((out.stdout.len(), out.stderr.len()), (1_000_000, 1_000_000));
    });
}
