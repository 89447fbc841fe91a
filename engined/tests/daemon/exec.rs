//! More programs in a running container.

use proto_engine as wire;
use strata_fault::code;
use tokio_stream::StreamExt;
use tonic::Status;

use crate::harness::{Ran, Stack, above_both, fault};

fn open(container: &str, command: &[&str]) -> wire::ExecOpen {
    wire::ExecOpen {
        container: container.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..Default::default()
    }
}

async fn exec(stack: &Stack, open: wire::ExecOpen, input: &[&[u8]]) -> Result<Ran, Status> {
    let mut kinds = vec![wire::exec_request::Kind::Open(open)];
    for part in input {
        let kind = Some(wire::input::Kind::Stdin(part.to_vec()));
        kinds.push(wire::exec_request::Kind::Input(wire::Input { kind }));
    }
    if !input.is_empty() {
        let kind = Some(wire::input::Kind::CloseStdin(true));
        kinds.push(wire::exec_request::Kind::Input(wire::Input { kind }));
    }
    let requests: Vec<_> = kinds.into_iter().map(|kind| wire::ExecRequest { kind: Some(kind) }).collect();
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut stream = stack.containers().exec(requests).await?.into_inner();
    let mut ran = Ran::default();
    while let Some(event) = stream.message().await? {
        match event.kind.unwrap() {
            wire::exec_event::Kind::Started(started) => ran.id = started.exec_id,
            wire::exec_event::Kind::Output(output) => ran.output(&output),
            wire::exec_event::Kind::Exited(exit) => ran.exit = Some(exit),
            wire::exec_event::Kind::Spans(spans) => ran.spans = spans,
        }
    }
    Ok(ran)
}

above_both! {
    async fn a_program_with_output_and_code(stack: &mut Stack) {
        stack.detached("host", "sleep 1000").await;
        let ran = exec(stack, open("host", &["sh", "-c", "echo out; echo err >&2; exit 9"]), &[]).await.unwrap();
        assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice(), ran.code()), (&b"out\n"[..], &b"err\n"[..], 9));
        stack.clean_execs().await;
    }

    async fn environment_user_and_directory(stack: &mut Stack) {
        stack.detached("host", "sleep 1000").await;
        let asked = wire::ExecOpen {
            env: vec!["A=1".to_owned()],
            user: "web".to_owned(),
            working_dir: "/tmp".to_owned(),
            ..open("host", &["sh", "-c", "id -u; pwd; echo $A $HOME"])
        };
        assert_eq!(exec(stack, asked, &[]).await.unwrap().text(), "101\n/tmp\n1 /srv\n");
        let unknown = wire::ExecOpen { user: "nobody".to_owned(), ..open("host", &["true"]) };
        assert_eq!(fault(&exec(stack, unknown, &[]).await.unwrap_err()).code, code::USER_UNKNOWN);
    }

    async fn input_and_much_output(stack: &mut Stack) {
        stack.detached("host", "sleep 1000").await;
        let asked = wire::ExecOpen { open_stdin: true, ..open("host", &["cat"]) };
        let part = vec![b'x'; 50_000];
        let ran = exec(stack, asked, &[&part, &part, &part]).await.unwrap();
        assert_eq!((ran.stdout.len(), ran.code()), (150_000, 0));
        let ran = exec(stack, open("host", &["seq", "1", "200000"]), &[]).await.unwrap();
        assert_eq!(ran.text().lines().last(), Some("200000"));
    }

    async fn what_cannot_be_executed(stack: &mut Stack) {
        stack.detached("host", "sleep 1000").await;
        for (command, expected) in
            [("nope", code::COMMAND_NOT_FOUND), ("/etc/plain", code::COMMAND_NOT_EXECUTABLE)]
        {
            let refused = exec(stack, open("host", &[command]), &[]).await.unwrap_err();
            assert_eq!(fault(&refused).code, expected, "{command}: {refused:?}");
        }
        stack.clean_execs().await;
        stack.remove("host").await.unwrap();
        let refused = exec(stack, open("host", &["true"]), &[]).await.unwrap_err();
        assert_eq!(fault(&refused).code, code::CONTAINER_NOT_FOUND);
    }

    async fn detached_it_goes_on_alone(stack: &mut Stack) {
        stack.detached("host", "sleep 1000").await;
        let asked = wire::ExecOpen { detach: true, ..open("host", &["sh", "-c", "sleep 0.2; touch /tmp/made"]) };
        let ran = exec(stack, asked, &[]).await.unwrap();
        assert!(!ran.id.is_empty() && ran.exit.is_none());
        for _ in 0..100 {
            let seen = exec(stack, open("host", &["ls", "/tmp"]), &[]).await.unwrap();
            if seen.text().contains("made") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the detached program did nothing");
    }
}

impl Stack {
    /// Nothing of execs is left.
    async fn clean_execs(&self) {
        let path = self.path("run/engined/execs");
        self.settled("execs", || std::fs::read_dir(&path).map_or(0, Iterator::count) == 0).await;
    }
}
