//! Daemons that are killed, and what is known afterwards.

use std::time::Duration;

use proto_engine as wire;
use tokio_stream::StreamExt;

use strata_fault::code;

use crate::harness::{Ran, Stack, above_both, detached, fault, foreground, spec};

fn numbered(count: usize) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

async fn restart_engine(stack: &mut Stack) {
    stack.start_engine();
    stack.until_answering().await;
}

above_both! {
    async fn containers_go_on_without_the_engine(stack: &mut Stack) {
        stack.detached("long", "for i in $(seq 1 60); do echo $i; sleep 0.02; done; exit 5").await;
        stack.detached("gap", "sleep 0.3; exit 9").await;
        let mut open = detached("gone", &["sh", "-c", "sleep 0.3"]);
        spec(&mut open).auto_remove = true;
        stack.run(open).await.unwrap();
        stack.kill_engine();
        tokio::time::sleep(Duration::from_millis(700)).await;
        restart_engine(stack).await;
        assert_eq!(stack.wait("gap").await.code, 9, "the exit code that fell into the gap");
        assert_eq!(stack.wait("long").await.code, 5);
        let logs = stack.logs(wire::LogsRequest { container: "long".to_owned(), ..Default::default() }).await;
        assert_eq!(logs, numbered(60), "no line is missing");
        let names: Vec<String> = stack.list().await.into_iter().map(|container| container.name).collect();
        assert!(!names.contains(&"gone".to_owned()), "what was to be removed at its end is removed");
    }

    async fn a_foreground_reader_goes_on_after_a_restart(stack: &mut Stack) {
        let mut open = foreground(&["sh", "-c", "for i in $(seq 1 60); do echo $i; sleep 0.02; done; read line; echo $line; exit 4"]);
        let spec = spec(&mut open);
        spec.name = "fore".to_owned();
        spec.open_stdin = true;
        spec.auto_remove = false;
        let requests = [wire::run_request::Kind::Open(open)].map(|kind| wire::RunRequest { kind: Some(kind) });
        let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
        let mut stream = stack.containers().run(requests).await.unwrap().into_inner();
        let mut ran = Ran::default();
        while ran.text().lines().count() < 10 {
            ran.take(stream.message().await.unwrap().unwrap().kind.unwrap());
        }
        stack.kill_engine();
        while let Ok(Some(event)) = stream.message().await {
            ran.take(event.kind.unwrap());
        }
        restart_engine(stack).await;
        let open = wire::AttachOpen { container: "fore".to_owned(), offset: ran.next, ..Default::default() };
        let requests = [
            wire::attach_request::Kind::Open(open),
            wire::attach_request::Kind::Input(wire::Input {
                kind: Some(wire::input::Kind::Stdin(b"typed\n".to_vec())),
            }),
        ];
        let requests = requests.map(|kind| wire::AttachRequest { kind: Some(kind) });
        let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
        let mut stream = stack.containers().attach(requests).await.unwrap().into_inner();
        while let Some(event) = stream.message().await.unwrap() {
            match event.kind.unwrap() {
                wire::attach_event::Kind::Output(output) => ran.output(&output),
                wire::attach_event::Kind::Exited(exit) => ran.exit = Some(exit),
                wire::attach_event::Kind::Opened(_) => {}
            }
        }
        assert_eq!(ran.text(), numbered(60) + "typed\n");
        assert_eq!(ran.code(), 4);
    }

    async fn the_supervisor_comes_back(stack: &mut Stack) {
        stack.detached("long", "sleep 1; exit 6").await;
        stack.kill_supervisor();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stack.start_supervisor();
        assert_eq!(stack.wait("long").await.code, 6);
        assert_eq!(stack.shell("exit 0").await.code(), 0, "and the next run works");
    }

    async fn an_engine_killed_anywhere_leaves_nothing_half_made(stack: &mut Stack) {
        for round in 0..10u64 {
            let client = stack.containers();
            let mut open = foreground(&["sh", "-c", "sleep 0.05"]);
            let spec = spec(&mut open);
            spec.name = format!("round{round}");
            spec.network = Some(wire::Network::default());
            let run = tokio::spawn(async move {
                let mut client = client;
                let requests = [wire::run_request::Kind::Open(open)].map(|kind| wire::RunRequest { kind: Some(kind) });
                let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
                if let Ok(stream) = client.run(requests).await {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(_)) = stream.message().await {}
                }
            });
            // Swept over the whole of a run.
            tokio::time::sleep(Duration::from_millis(3 + round * 14)).await;
            stack.kill_engine();
            run.await.unwrap();
            restart_engine(stack).await;
            for container in stack.list().await {
                // It may be going by itself.
                let removed = stack.remove(&container.id).await;
                assert!(removed.is_ok() || fault(&removed.unwrap_err()).code == code::CONTAINER_NOT_FOUND);
            }
            assert_eq!(stack.shell("exit 0").await.code(), 0, "round {round}");
        }
        stack.clean().await;
    }

    async fn always_means_after_a_restart_of_the_engine_too(stack: &mut Stack) {
        let mut open = detached("always", &["sh", "-c", "sleep 1000"]);
        let spec = spec(&mut open);
        spec.auto_remove = false;
        spec.restart = Some(wire::RestartPolicy { kind: wire::restart_policy::Kind::Always.into(), max_retries: 0 });
        stack.run(open).await.unwrap();
        let first = stack.state("always").await.pid;
        stack.kill_engine();
        restart_engine(stack).await;
        assert_eq!(stack.state("always").await.pid, first, "it was not touched");
        let stopped = wire::StopRequest { container: "always".to_owned(), timeout_s: Some(0), signal: "KILL".to_owned() };
        stack.containers().stop(stopped).await.unwrap();
        assert_eq!(stack.state("always").await.status(), wire::state::Status::Exited, "a stop stills the policy");
        stack.kill_engine();
        restart_engine(stack).await;
        let started = std::time::Instant::now();
        while stack.state("always").await.status() != wire::state::Status::Running {
            assert!(started.elapsed() < Duration::from_secs(20), "it is started with the engine");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
