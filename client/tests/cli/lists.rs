//! Lists, inspection, logs, events: what is shown of what engined says.

use prost_types::Timestamp;
use proto_engine::{
    ContainerDetail, ContainerSummary, Event, ImageSummary, PullProgress, State, pull_progress::Phase, state::Status,
};

use crate::fake::{Fake, ID};
use crate::support::{run, strata};

fn web() -> ContainerSummary {
    ContainerSummary {
        id: ID.to_owned(),
        name: "web".to_owned(),
        image: "nginx".to_owned(),
        command: vec!["nginx".to_owned()],
        created: Some(Timestamp { seconds: 1_000_000_000, nanos: 0 }),
        state: Some(State { status: Status::Created.into(), ..State::default() }),
        ..ContainerSummary::default()
    }
}

#[test]
fn ps_in_all_its_forms() {
    let fake = Fake::start();
    run(&fake, "ps").is(0, "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n", "");
    fake.shared().containers = vec![web()];
    let table = run(&fake, "ps -a");
    assert!(table.out.lines().nth(1).unwrap().starts_with("0123456789ab   nginx     \"nginx\"   "), "{}", table.out);
    run(&fake, "ps -q").is(0, "0123456789ab\n", "");
    run(&fake, "ps -q --no-trunc").is(0, &format!("{ID}\n"), "");
    let formatted = strata(&fake).args(["ps", "--format", "table {{.Names}}\\t{{.Status}}"]).output().unwrap();
    assert_eq!(String::from_utf8(formatted.stdout).unwrap(), "NAMES     STATUS\nweb       Created\n");
    let json: serde_json::Value = serde_json::from_str(&run(&fake, "ps --format json").out).unwrap();
    assert_eq!(
        (json["Names"].as_str(), json["CreatedAt"].as_str()),
        (Some("web"), Some("2001-09-09 01:46:40 +0000 UTC"))
    );
    let asked = run(&fake, "ps -n 2 -f status=exited -f status=created -f label=a=b");
    assert_eq!(asked.code, 0);
    let (_, request) = fake.shared().requests.last().cloned().unwrap();
    assert!(request.contains("all: true") && request.contains("limit: 2"), "{request}");
    assert!(
        request.contains("values: [\"exited\", \"created\"]") && request.contains("values: [\"a=b\"]"),
        "{request}"
    );
}

#[test]
fn images_pull_and_rmi() {
    let fake = Fake::start();
    let layer = |phase: Phase| PullProgress {
        digest: format!("sha256:{}", "cd".repeat(32)),
        phase: phase.into(),
        image: "docker.io/library/busybox:latest".to_owned(),
        ..PullProgress::default()
    };
    fake.shared().pull = vec![layer(Phase::Exists)];
    run(&fake, "pull busybox").is(
        0,
        "Using default tag: latest\nlatest: Pulling from library/busybox\ncdcdcdcdcdcd: Already exists\nDigest: sha256:00\n\
         Status: Downloaded newer image for busybox:latest\ndocker.io/library/busybox:latest\n",
        "",
    );
    run(&fake, "pull -q busybox").is(0, "docker.io/library/busybox:latest\n", "");
    fake.shared().images = vec![ImageSummary {
        id: format!("sha256:{}", "ab".repeat(32)),
        references: vec!["busybox:latest".to_owned()],
        size: 4_260_000,
        ..ImageSummary::default()
    }];
    run(&fake, "images").is(
        0,
        "REPOSITORY   TAG       IMAGE ID       CREATED   SIZE\nbusybox      latest    abababababab   N/A       4.26MB\n",
        "",
    );
    run(&fake, "images -q --no-trunc").is(0, &format!("sha256:{}\n", "ab".repeat(32)), "");
    run(&fake, "rmi busybox").is(0, "Untagged: busybox\nDeleted: sha256:11\n", "");
    let missing = run(&fake, "pull missing");
    assert_eq!(missing.code, 1);
}

#[test]
fn inspect_finds_containers_and_images() {
    let fake = Fake::start();
    fake.shared()
        .details
        .insert("web".to_owned(), ContainerDetail { summary: Some(web()), ..ContainerDetail::default() });
    fake.shared().images = vec![ImageSummary { references: vec!["busybox".to_owned()], ..ImageSummary::default() }];
    let both = run(&fake, "inspect web busybox");
    assert_eq!(both.code, 0);
    let json: serde_json::Value = serde_json::from_str(&both.out).unwrap();
    assert_eq!((json[0]["Name"].as_str(), json[1]["Config"]["Cmd"][0].as_str()), (Some("/web"), Some("sh")));
    run(&fake, "inspect -f {{.State.Status}} web").is(0, "created\n", "");
    run(&fake, "inspect nothing").is(1, "[]\n", "strata: client: parse: no such object: nothing\n");
    let partly = run(&fake, "inspect -f {{.Id}} web nothing");
    assert_eq!((partly.code, partly.out), (1, format!("{ID}\n")));
    run(&fake, "inspect --type image -f {{.Config.Cmd}} busybox").is(0, "[sh]\n", "");
    assert_eq!(run(&fake, "inspect --type image web").code, 1);
    let explained = run(&fake, "explain web");
    assert!(explained.out.starts_with("web (0123456789ab) was created and never started\n"), "{}", explained.out);
}

#[test]
fn logs_with_and_without_times() {
    let fake = Fake::start();
    run(&fake, "run both");
    run(&fake, "logs web").is(0, "to stdout\n", "to stderr\n");
    run(&fake, "logs -t web").is(
        0,
        "1970-01-01T00:00:00.000000001Z to stdout\n",
        "1970-01-01T00:00:00.000000001Z to stderr\n",
    );
    run(&fake, "logs -f --tail 5 --since 10m web");
    let (_, request) = fake.shared().requests.last().cloned().unwrap();
    assert!(
        request.contains("follow: true") && request.contains("tail: Some(5)") && request.contains("since: Some"),
        "{request}"
    );
}

#[test]
fn events_info_version() {
    let fake = Fake::start();
    fake.shared().events = vec![Event {
        r#type: "container".to_owned(),
        action: "start".to_owned(),
        id: "0123".to_owned(),
        attributes: [("name".to_owned(), "web".to_owned())].into(),
        at: Some(Timestamp { seconds: 0, nanos: 7 }),
    }];
    run(&fake, "events --since 1h").is(0, "1970-01-01T00:00:00.000000007Z container start 0123 (name=web)\n", "");
    run(&fake, "events --format {{.Action}}").is(0, "start\n", "");
    assert!(run(&fake, "events --format json").out.contains("\"timeNano\":7"));
    assert_eq!(run(&fake, "events --format {{.Nope}}").code, 1);
    assert!(run(&fake, "info").out.contains(" Containers: 3\n"));
    run(&fake, "info -f {{.MemTotal}}").is(0, "25769803776\n", "");
    assert!(run(&fake, "version").out.contains("shimd"));
    run(&fake, "version -f {{.Server.Version}}").is(0, "9.9\n", "");
}

#[test]
fn credentials_go_with_the_request() {
    let fake = Fake::start();
    let folder = fake.folder().join(".docker");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"auths": {"reg:5000": {"auth": "dTpw"}}}"#).unwrap();
    run(&fake, "pull reg:5000/app");
    let (_, request) = fake.shared().requests.last().cloned().unwrap();
    assert!(request.contains("host: \"reg:5000\", username: \"u\", password: \"p\""), "{request}");
    run(&fake, "run -d reg:5000/app");
    assert_eq!(fake.shared().run.clone().unwrap().auth.unwrap().username, "u");
    run(&fake, "run -d other");
    assert!(fake.shared().run.clone().unwrap().auth.is_none());
}

#[test]
fn a_helper_is_asked_only_when_the_image_is_not_here() {
    use std::os::unix::fs::PermissionsExt;
    let fake = Fake::start();
    let config = fake.folder().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("config.json"), r#"{"credsStore": "test"}"#).unwrap();
    let helper = fake.folder().join("docker-credential-test");
    let asked = fake.folder().join("asked");
    let script =
        format!("#!/bin/sh\ncat >> {}\necho '{{\"Username\":\"<token>\",\"Secret\":\"tok\"}}'\n", asked.display());
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", fake.folder().display(), std::env::var("PATH").unwrap());
    let call =
        || strata(&fake).env("DOCKER_CONFIG", &config).env("PATH", &path).args(["run", "-d", "quay.io/app"]).status();

    assert!(call().unwrap().success());
    assert_eq!(fake.shared().run.clone().unwrap().auth.unwrap().identity_token, "tok");
    assert_eq!(std::fs::read_to_string(&asked).unwrap(), "quay.io");

    fake.shared().images = vec![ImageSummary { references: vec!["quay.io/app".to_owned()], ..ImageSummary::default() }];
    assert!(call().unwrap().success());
    assert!(fake.shared().run.clone().unwrap().auth.is_none());
    assert_eq!(std::fs::read_to_string(&asked).unwrap(), "quay.io");
}
