//! `run`, `exec`, `attach`, `start -a` in the foreground without a terminal, and detached.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use proto_engine::{
    ContainerDetail, ContainerSpec, ContainerSummary, PullProgress, State, pull_progress::Phase, state::Status,
};

use crate::fake::{Fake, ID};
use crate::support::{Ended, run, run_with_input, strata};

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn output_and_exit_code_are_the_programs() {
    let fake = Fake::start();
    run(&fake, "run --rm echo hello world").is(0, "hello world\n", "");
}

#[test]
fn streams_stay_apart() {
    let fake = Fake::start();
    run(&fake, "run both").is(3, "to stdout\n", "to stderr\n");
}

#[test]
fn exit_codes_come_through() {
    for code in [0, 1, 7, 125, 126, 127, 137, 255] {
        let fake = Fake::start();
        run(&fake, &format!("run exit {code}")).is(code, "", "");
    }
}

#[test]
fn only_attached_streams_are_shown() {
    let fake = Fake::start();
    run(&fake, "run -a stderr both").is(3, "", "to stderr\n");
}

#[test]
fn binary_output_is_exact_in_a_pipe_and_in_a_file() {
    const LENGTH: usize = 5_000_000;
    let fake = Fake::start();
    assert!(run(&fake, &format!("run flood {LENGTH}")).bytes == pattern(LENGTH));

    let fake = Fake::start();
    let path = fake.folder().join("out");
    let file = std::fs::File::create(&path).unwrap();
    let status = strata(&fake).args(["run", "flood", &LENGTH.to_string()]).stdout(file).status().unwrap();
    assert!(status.success());
    assert!(std::fs::read(path).unwrap() == pattern(LENGTH));
}

#[test]
fn input_goes_in_and_comes_back_exact() {
    let fake = Fake::start();
    let input = pattern(1_000_000);
    let ended = run_with_input(&fake, "run -i --rm cat", &input);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.bytes == input);
    let spec = fake.shared().run.clone().unwrap().spec.unwrap();
    assert!(spec.open_stdin && spec.stdin_once && spec.auto_remove);
}

#[test]
fn input_from_a_file_and_from_nowhere() {
    let fake = Fake::start();
    let path = fake.folder().join("in");
    std::fs::write(&path, pattern(300_000)).unwrap();
    let output = strata(&fake).args(["run", "-i", "cat"]).stdin(std::fs::File::open(path).unwrap()).output().unwrap();
    assert!(output.stdout == pattern(300_000));

    let fake = Fake::start();
    run(&fake, "run -i cat").is(0, "", "");
}

#[test]
fn a_detached_run_prints_the_id() {
    let fake = Fake::start();
    let cid = fake.folder().join("cid");
    run(&fake, &format!("run -d -i --cidfile {} sleep", cid.display())).is(0, &format!("{ID}\n"), "");
    assert_eq!(std::fs::read_to_string(&cid).unwrap(), ID);
    let open = fake.shared().run.clone().unwrap();
    assert!(open.detach && !open.spec.unwrap().stdin_once);
    let again = run(&fake, &format!("run --cidfile {} echo", cid.display()));
    assert_eq!(again.code, 125);
    assert!(again.err.contains("exists already"), "{}", again.err);
}

#[test]
fn signals_go_to_the_program() {
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let fake = Fake::start();
        let mut child = strata(&fake).args(["run", "sleep"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "asleep\n");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let kills: Vec<_> = fake.shared().requests.iter().filter(|(name, _)| *name == "kill").cloned().collect();
        assert_eq!(kills.len(), 1);
    }
}

#[test]
fn without_proxying_a_signal_ends_the_client_alone() {
    let fake = Fake::start();
    let mut child = strata(&fake).args(["run", "--sig-proxy=false", "sleep"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut out).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    assert!(fake.shared().requests.iter().all(|(name, _)| *name != "kill"));
}

#[test]
fn a_reader_that_goes_ends_the_client_like_any_program() {
    use std::os::unix::process::ExitStatusExt;
    let fake = Fake::start();
    let mut child = strata(&fake).args(["run", "flood", "20000000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(13));
}

#[test]
fn a_pull_is_told_line_by_line_without_a_terminal() {
    let fake = Fake::start();
    let layer = |phase: Phase, current| PullProgress {
        digest: format!("sha256:{}", "ab".repeat(32)),
        phase: phase.into(),
        current,
        total: 100,
        image: String::new(),
    };
    let begin = PullProgress {
        image: "docker.io/library/echo:latest".to_owned(),
        phase: Phase::Resolving.into(),
        ..Default::default()
    };
    fake.shared().pull = vec![
        begin,
        layer(Phase::Waiting, 0),
        layer(Phase::Downloading, 10),
        layer(Phase::Downloading, 90),
        layer(Phase::Extracting, 50),
        layer(Phase::Done, 100),
    ];
    run(&fake, "run echo hi").is(
        0,
        "hi\n",
        "Unable to find image 'echo:latest' locally\nlatest: Pulling from library/echo\nabababababab: Waiting\n\
         abababababab: Extracting\nabababababab: Pull complete\n",
    );
    let fake_quiet = Fake::start();
    fake_quiet.shared().pull = fake.shared().pull.clone();
    run(&fake_quiet, "run -q echo hi").is(0, "hi\n", "");
}

#[test]
fn why_it_ended_is_said_when_the_code_does_not() {
    let fake = Fake::start();
    run(&fake, "run oom").is(137, "", "strata: kernel: watch: the memory limit of 64 MiB was reached\n");
}

#[test]
fn create_pulls_a_missing_image_first() {
    let fake = Fake::start();
    let ended = run(&fake, "create --name x notlocal sh");
    ended.is(0, &format!("{ID}\n"), "Unable to find image 'notlocal:latest' locally\nWARNING: a warning\n");
    let names: Vec<_> = fake.shared().requests.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["create", "pull", "create"]);
}

#[test]
fn exec_runs_one_more_program() {
    let fake = Fake::start();
    run(&fake, "exec -e A=1 -w /w -u me web both").is(3, "to stdout\n", "to stderr\n");
    let (_, open) = fake.shared().requests.iter().find(|(name, _)| *name == "exec open").cloned().unwrap();
    assert!(
        open.contains("env: [\"A=1\"]") && open.contains("working_dir: \"/w\"") && open.contains("user: \"me\""),
        "{open}"
    );
    run(&fake, "exec -d web sleep").is(0, "", "");
    let missing = run(&fake, "exec web nope");
    missing.is(127, "", "strata: runtime: start: run \"nope\"\n  cause: ENOENT\n");
    assert_eq!(run(&fake, "exec web").code, 1);
}

#[test]
fn exec_reads_input() {
    let fake = Fake::start();
    let ended = run_with_input(&fake, "exec -i web cat", b"through\0\xff");
    assert_eq!(ended.bytes, b"through\0\xff");
}

fn detail(status: Status) -> ContainerDetail {
    ContainerDetail {
        summary: Some(ContainerSummary {
            id: ID.to_owned(),
            state: Some(State { status: status.into(), ..State::default() }),
            ..ContainerSummary::default()
        }),
        spec: Some(ContainerSpec { open_stdin: true, ..ContainerSpec::default() }),
        ..ContainerDetail::default()
    }
}

#[test]
fn start_attached_shows_only_the_new_run() {
    let fake = Fake::start();
    run(&fake, "run echo old").is(0, "old\n", "");
    fake.shared().details.insert("web".to_owned(), detail(Status::Exited));
    run(&fake, "start -a web").is(5, "started again\n", "");
    run(&fake, "start web other").is(0, "web\nother\n", "");
    let partly = run(&fake, "start web gone");
    assert_eq!((partly.code, partly.out.as_str()), (1, "web\n"));
    assert!(partly.err.ends_with("failed to start containers: gone\n"), "{}", partly.err);
}

#[test]
fn attach_wants_a_running_container() {
    let fake = Fake::start();
    fake.shared().details.insert("web".to_owned(), detail(Status::Exited));
    let ended = run(&fake, "attach web");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("cannot attach to a stopped container, start it first"), "{}", ended.err);

    run(&fake, "run echo before").is(0, "before\n", "");
    fake.shared().details.insert("web".to_owned(), detail(Status::Running));
    let ended = Ended::of(strata(&fake).args(["attach", "--no-stdin", "web"]).output().unwrap());
    ended.is(0, "", "");
    let attachment = fake.shared().attachments.last().cloned().unwrap();
    assert!(attachment.no_stdin && !attachment.from_start && attachment.offset == 0);
}
