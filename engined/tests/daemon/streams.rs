//! What programs write and read: foreground, logs, attach, input, terminals.

use std::time::Duration;

use proto_engine as wire;
use tokio_stream::StreamExt;

use crate::harness::{Ran, Stack, above_both, foreground, spec};

/// Bytes that hold every value, and are no text.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn input(data: &[u8]) -> Vec<wire::input::Kind> {
    let parts = data.chunks(60_000).map(|part| wire::input::Kind::Stdin(part.to_vec()));
    parts.chain([wire::input::Kind::CloseStdin(true)]).collect()
}

fn attach(container: &str, offset: u64, from_start: bool) -> wire::AttachRequest {
    let open = wire::AttachOpen { container: container.to_owned(), offset, from_start, no_stdin: false };
    wire::AttachRequest { kind: Some(wire::attach_request::Kind::Open(open)) }
}

/// Attaches and reads to the end.
async fn attached(stack: &Stack, request: wire::AttachRequest) -> Ran {
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut stream = stack.containers().attach(requests).await.unwrap().into_inner();
    let mut ran = Ran::default();
    while let Some(event) = stream.message().await.unwrap() {
        match event.kind.unwrap() {
            wire::attach_event::Kind::Opened(opened) => ran.id = opened.id,
            wire::attach_event::Kind::Output(output) => ran.output(&output),
            wire::attach_event::Kind::Exited(exit) => ran.exit = Some(exit),
        }
    }
    ran
}

fn numbered(count: usize) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

above_both! {
    async fn bytes_come_back_unchanged(stack: &mut Stack) {
        let data = bytes(700_000);
        let mut open = foreground(&["cat"]);
        spec(&mut open).open_stdin = true;
        spec(&mut open).stdin_once = true;
        let ran = stack.run_with(open, input(&data)).await.unwrap();
        assert_eq!(ran.code(), 0);
        assert!(ran.stdout == data, "{} of {} bytes", ran.stdout.len(), data.len());
    }

    async fn much_output_is_whole(stack: &mut Stack) {
        let ran = stack.shell("seq 1 300000").await;
        assert!(ran.text() == numbered(300_000), "{} bytes", ran.stdout.len());
    }

    async fn a_reader_goes_on_where_it_was(stack: &mut Stack) {
        stack.detached("writer", "for i in $(seq 1 40); do echo $i; sleep 0.03; done; exit 5").await;
        // The first reader goes away in the middle.
        let requests = tokio_stream::iter([attach("writer", 0, true)]).chain(tokio_stream::pending());
        let mut stream = stack.containers().attach(requests).await.unwrap().into_inner();
        let mut first = Ran::default();
        while first.text().lines().count() < 10 {
            if let wire::attach_event::Kind::Output(output) = stream.message().await.unwrap().unwrap().kind.unwrap() {
                first.output(&output);
            }
        }
        drop(stream);
        let second = attached(stack, attach("writer", first.next, false)).await;
        assert_eq!(first.text() + &second.text(), numbered(40));
        assert_eq!(second.code(), 5);
        // And once more when it has ended.
        let third = attached(stack, attach("writer", first.next, false)).await;
        assert_eq!((third.text(), third.code()), (second.text(), 5));
    }

    async fn logs_by_lines_streams_and_times(stack: &mut Stack) {
        stack.detached("log", "for i in 1 2 3 4 5; do echo $i; done; echo e >&2").await;
        stack.wait("log").await;
        let ask = wire::LogsRequest { container: "log".to_owned(), ..Default::default() };
        assert_eq!(stack.logs(wire::LogsRequest { stdout: true, ..ask.clone() }).await, "1\n2\n3\n4\n5\n");
        assert_eq!(stack.logs(wire::LogsRequest { stderr: true, ..ask.clone() }).await, "e\n");
        let tail = wire::LogsRequest { tail: Some(2), stdout: true, stderr: true, ..ask.clone() };
        assert_eq!(stack.logs(tail).await.lines().count(), 2);
        let future = prost_types::Timestamp { seconds: 99_999_999_999, nanos: 0 };
        assert_eq!(stack.logs(wire::LogsRequest { since: Some(future), ..ask.clone() }).await, "");
        let past = prost_types::Timestamp { seconds: 1, nanos: 0 };
        assert_eq!(stack.logs(wire::LogsRequest { until: Some(past), ..ask }).await, "");
    }

    async fn a_log_is_followed_to_the_end(stack: &mut Stack) {
        stack.detached("follow", "for i in $(seq 1 20); do echo $i; sleep 0.02; done").await;
        let follow = wire::LogsRequest { container: "follow".to_owned(), follow: true, ..Default::default() };
        assert_eq!(stack.logs(follow).await, numbered(20));
    }

    async fn a_terminal_has_its_size_and_takes_keys(stack: &mut Stack) {
        let mut open = foreground(&["sh", "-c", "stty size; read line; echo got $line; stty size; exit 6"]);
        open.size = Some(wire::WindowSize { width: 90, height: 40 });
        let spec = spec(&mut open);
        spec.tty = true;
        spec.open_stdin = true;
        let (keys, requests) = tokio::sync::mpsc::channel(4);
        let send = |kind| wire::RunRequest { kind: Some(kind) };
        keys.send(send(wire::run_request::Kind::Open(open))).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut stream = stack.containers().run(requests).await.unwrap().into_inner();
        let mut ran = Ran::default();
        let mut is_typed = false;
        while let Some(event) = stream.message().await.unwrap() {
            ran.take(event.kind.unwrap());
            if ran.text().contains("40 90") && !is_typed {
                is_typed = true;
                for kind in [
                    wire::input::Kind::Resize(wire::WindowSize { width: 70, height: 30 }),
                    wire::input::Kind::Stdin(b"hello\n".to_vec()),
                ] {
                    keys.send(send(wire::run_request::Kind::Input(wire::Input { kind: Some(kind) }))).await.unwrap();
                }
            }
        }
        assert!(ran.text().contains("got hello") && ran.text().contains("30 70"), "{}", ran.text());
        assert_eq!(ran.code(), 6);
    }

    async fn a_client_that_goes_ends_nothing_but_its_input(stack: &mut Stack) {
        let mut open = foreground(&["sh", "-c", "cat; echo end; sleep 0.2"]);
        let spec = spec(&mut open);
        spec.name = "left".to_owned();
        spec.open_stdin = true;
        spec.stdin_once = true;
        spec.auto_remove = false;
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(wire::RunRequest { kind: Some(wire::run_request::Kind::Open(open)) }).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut stream = stack.containers().run(requests).await.unwrap().into_inner();
        while let Some(event) = stream.message().await.unwrap() {
            if let Some(wire::run_event::Kind::Started(_)) = event.kind {
                break;
            }
        }
        drop((stream, sender));
        let exit = tokio::time::timeout(Duration::from_secs(20), stack.wait("left")).await.expect("its input has ended");
        assert_eq!(exit.code, 0);
        let logs = stack.logs(wire::LogsRequest { container: "left".to_owned(), ..Default::default() }).await;
        assert_eq!(logs, "end\n");
    }
}
