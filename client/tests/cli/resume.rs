//! A connection that breaks in the middle: nothing is lost, nothing is doubled, and it is said once.

use std::process::{Child, Stdio};
use std::time::Duration;

use proto_engine::{ContainerDetail, ContainerSummary, Event, State, state::Status};

use crate::fake::{Fake, ID};
use crate::support::{Ended, run, strata};

const LOST: &str = "strata: the connection to engined is lost; the container goes on, connecting again\n";
const LENGTH: usize = 3_000_000;

fn spawn(fake: &Fake, arguments: &[&str]) -> Child {
    strata(fake).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> Ended {
    Ended::of(child.wait_with_output().unwrap())
}

fn pattern() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}

#[test]
fn output_goes_on_where_it_stopped() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(10);
    let child = spawn(&fake, &["run", "--rm", "flood", &LENGTH.to_string()]);
    fake.wait_for_break();
    fake.die();
    std::thread::sleep(Duration::from_millis(200));
    fake.live();
    let ended = ended(child);
    assert_eq!((ended.code, ended.err.as_str()), (0, LOST));
    assert!(ended.bytes == pattern(), "{} bytes of {LENGTH}", ended.bytes.len());
    let attachments = fake.shared().attachments.clone();
    assert_eq!(attachments.len(), 1);
    assert_eq!((attachments[0].container.as_str(), attachments[0].from_start), (ID, false));
}

#[test]
fn two_breaks_are_told_once() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(5);
    let child = spawn(&fake, &["run", "flood", &LENGTH.to_string()]);
    fake.wait_for_break();
    fake.die();
    fake.shared().break_after = Some(40);
    fake.live();
    fake.wait_for_break();
    fake.die();
    fake.live();
    let ended = ended(child);
    assert_eq!((ended.code, ended.err.as_str()), (0, LOST));
    assert!(ended.bytes == pattern());
}

/// A container that was recorded and not started when engined died.
fn created() -> ContainerDetail {
    let state = Some(State { status: Status::Created.into(), ..State::default() });
    let summary = ContainerSummary { id: ID.to_owned(), state, ..ContainerSummary::default() };
    ContainerDetail { summary: Some(summary), ..ContainerDetail::default() }
}

#[test]
fn a_start_that_was_cut_off_is_made_up_for() {
    for (arguments, code, out) in
        [(&["run", "echo"][..], 5, "started again\n".to_owned()), (&["run", "-d", "echo"], 0, format!("{ID}\n"))]
    {
        let mut fake = Fake::start();
        fake.shared().break_before_start = true;
        fake.shared().details.insert(ID.to_owned(), created());
        let child = spawn(&fake, arguments);
        fake.wait_for_break();
        fake.die();
        fake.live();
        let ended = ended(child);
        assert_eq!((ended.code, ended.out), (code, out), "{}", ended.err);
        assert!(fake.shared().requests.iter().any(|(name, _)| *name == "start"));
    }
}

#[test]
fn events_go_on_and_none_is_told_twice() {
    let mut fake = Fake::start();
    let event = |action: &str, nanos| Event {
        r#type: "container".to_owned(),
        action: action.to_owned(),
        at: Some(prost_types::Timestamp { seconds: 1, nanos }),
        ..Event::default()
    };
    fake.shared().events = vec![event("create", 1), event("start", 2)];
    fake.shared().hold_events = true;
    let child = spawn(&fake, &["events", "--format", "{{.Action}}"]);
    fake.wait_for_break();
    std::thread::sleep(Duration::from_millis(100));
    fake.die();
    fake.shared().events = vec![event("start", 2), event("die", 2), event("destroy", 3)];
    fake.live();
    ended(child).is(0, "create\nstart\ndie\ndestroy\n", "");
    let (_, request) = fake.shared().requests.last().cloned().unwrap();
    assert!(request.contains("nanos: 2"), "{request}");
}

#[test]
fn an_engine_that_stays_away_is_given_up() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(1);
    let mut command = strata(&fake);
    command.env("STRATA_RECONNECT_TIMEOUT", "1").args(["run", "flood", "100000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fake.wait_for_break();
    fake.die();
    let ended = ended(child);
    assert_eq!(ended.code, 125);
    let said = "strata: client: watch: lost the connection to engined and could not restore it in 1 s\n  cause: connect to engined at ";
    assert!(ended.err.starts_with(&format!("{LOST}{said}")), "{}", ended.err);
}

#[test]
fn a_break_before_there_is_a_container_is_an_error() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(1);
    let child = spawn(&fake, &["exec", "web", "flood", "100000"]);
    fake.wait_for_break();
    fake.die();
    let ended = ended(child);
    assert_eq!(ended.code, 125);
    assert!(
        ended.err.starts_with("strata: client: exec: the connection to engined ended during exec\n"),
        "{}",
        ended.err
    );
}

#[test]
fn while_engined_is_away_the_client_can_be_ended() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(1);
    let child = spawn(&fake, &["run", "flood", "100000"]);
    fake.wait_for_break();
    fake.die();
    std::thread::sleep(Duration::from_millis(100));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let ended = ended(child);
    assert_eq!((ended.code, ended.err.as_str()), (130, LOST));
}

#[test]
fn signals_reach_the_program_after_a_restart() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(1);
    let child = spawn(&fake, &["run", "sleep"]);
    fake.wait_for_break();
    fake.die();
    fake.live();
    fake.wait_until(|shared| shared.attachments.len() == 1);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    fake.wait_until(|shared| shared.requests.iter().any(|(name, _)| *name == "kill"));
    drop(fake);
    let mut child = child;
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn wait_outlives_a_restart() {
    let mut fake = Fake::start();
    fake.die();
    let child = spawn(&fake, &["wait", "web"]);
    let ended = ended(child);
    // It was never there: no patience for the first connection.
    assert_eq!(ended.code, 1);
    fake.live();
    run(&fake, "wait web abcd").is(0, "3\n4\n", "");
}
