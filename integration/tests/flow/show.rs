//! ps, inspect, events, info, version.

use integration::{flow, skip};
use serde_json::Value;

#[test]
fn the_list_of_containers() {
    flow(|s| {
        s.detached(&["--name", "running", s.busybox(), "sleep", "100"]);
        s.run(&["run", "--name", "over", s.busybox(), "sh", "-c", "exit 2"]).code(2);
        let text = s.text(&["ps"]);
        let mut lines = text.lines();
        let heading: Vec<&str> =
            lines.next().expect("a heading").split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(heading, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
        let row = lines.next().expect("a row");
        assert!(
            row.contains(s.busybox())
                && row.contains("\"sleep 100\"")
                && row.contains("Up ")
                && row.ends_with("running"),
            "{row}"
        );
        assert_eq!(lines.next(), None);
        let all = s.text(&["ps", "-a"]);
        assert!(all.contains("Exited (2)"), "{all}");
        assert_eq!(all.lines().count(), 3);
    });
}

#[test]
fn ids_formats_and_filters() {
    flow(|s| {
        let one = s.detached(&["--name", "one", s.busybox(), "sleep", "100"]);
        let two = s.detached(&["--name", "two", s.busybox(), "sleep", "100"]);
        assert_eq!(s.text(&["ps", "-q"]), format!("{}\n{}", &two[..12], &one[..12]));
        assert_eq!(s.text(&["ps", "-q", "--no-trunc", "--filter", "name=one"]), one);
        assert_eq!(s.text(&["ps", "-lq", "--no-trunc"]), two);
        assert_eq!(s.text(&["ps", "-n", "1", "--format", "{{.Names}} {{.State}}"]), "two running");
        assert_eq!(s.text(&["ps", "--filter", "status=exited", "-q"]), "");
        assert_eq!(s.text(&["ps", "--filter", &format!("ancestor={}", s.busybox()), "-q"]).lines().count(), 2);
        let line = s.text(&["ps", "--filter", "name=one", "--format", "{{json .}}"]);
        let json: Value = serde_json::from_str(&line).expect("a line of JSON");
        assert_eq!((json["Names"].as_str(), json["Image"].as_str()), (Some("one"), Some(s.busybox())));
        s.run(&["ps", "--filter", "nosuch=filter"]).code(1);
    });
}

#[test]
fn what_inspect_says_of_a_container() {
    flow(|s| {
        let id =
            s.detached(&["--name", "looked-at", "-e", "A=1", "-w", "/tmp", "-u", "1000", s.busybox(), "sleep", "100"]);
        let json: Value = serde_json::from_str(&s.text(&["inspect", "looked-at"])).expect("JSON");
        let one = &json[0];
        assert_eq!(one["Id"], id);
        assert_eq!(one["Name"], "/looked-at");
        assert_eq!((&one["Path"], &one["Args"][0]), (&"sleep".into(), &"100".into()));
        assert_eq!(one["State"]["Running"], true);
        assert!(
            one["State"]["Pid"].as_i64().is_some_and(|pid| std::fs::exists(format!("/proc/{pid}")).unwrap_or(false))
        );
        assert_eq!((&one["Config"]["User"], &one["Config"]["WorkingDir"]), (&"1000".into(), &"/tmp".into()));
        assert!(one["Config"]["Env"].as_array().is_some_and(|env| env.contains(&"A=1".into())));
        assert_eq!(one["Config"]["Image"], s.busybox());
        assert_eq!(one["HostConfig"]["AutoRemove"], false);
        assert!(one["NetworkSettings"]["IPAddress"].as_str().is_some_and(|address| address.contains('.')));
        assert!(one["Created"].as_str().is_some_and(|time| time.ends_with('Z')));
        s.run(&["inspect", "nowhere"]).code(1);
    });
}

#[test]
fn formats_of_inspect() {
    flow(|s| {
        let id = s.detached(&["--name", "formatted", s.busybox(), "sleep", "100"]);
        assert_eq!(s.text(&["inspect", "-f", "{{.Name}} {{json .Config.Cmd}}", &id]), "/formatted [\"sleep\",\"100\"]");
        assert_eq!(s.text(&["inspect", "-f", "{{range .Config.Cmd}}<{{.}}>{{end}}", &id]), "<sleep><100>");
        s.run(&["inspect", "-f", "{{.Nosuch.Field}}", &id]).code(1);
        s.run(&["inspect", "-f", "{{", &id]);
    });
}

#[test]
fn events_tell_a_containers_life() {
    flow(|s| {
        let before = seconds().to_string();
        s.run(&["run", "--rm", "--name", "watched", s.busybox(), "true"]).ok();
        let until = (seconds() + 1).to_string();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let filter = ["--filter", "container=watched", "--format", "{{.Action}}"];
        let mut arguments = vec!["events", "--since", &before, "--until", &until];
        arguments.extend(filter);
        let text = s.text(&arguments);
        let life: Vec<&str> =
            text.lines().filter(|action| ["create", "start", "die", "destroy"].contains(action)).collect();
        assert_eq!(life, ["create", "start", "die", "destroy"], "{text}");
    });
}

#[test]
fn events_come_as_they_happen() {
    flow(|s| {
        let watching = s.call(&["events", "--format", "{{json .}}"]).start();
        std::thread::sleep(std::time::Duration::from_millis(500));
        s.run(&["run", "--rm", "--name", "live", s.busybox(), "sh", "-c", "exit 5"]).code(5);
        watching.expect("\"destroy\"");
        watching.signal(nix::sys::signal::Signal::SIGINT);
        let out = watching.end();
        let die = out
            .text()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            .find(|event| event["Action"] == "die");
        let die = die.expect("a die event");
        assert_eq!((&die["Type"], &die["Actor"]["Attributes"]["exitCode"]), (&"container".into(), &"5".into()));
        assert_eq!(die["Actor"]["Attributes"]["name"], "live");
    });
}

#[test]
fn version_and_info() {
    flow(|s| {
        let text = s.text(&["version"]);
        assert!(text.contains("Client") && text.contains("Server"), "{text}");
        s.detached(&[s.busybox(), "sleep", "100"]);
        let text = s.text(&["info"]);
        assert!(text.contains("Containers: 1") && text.contains("Running: 1") && text.contains("Images: 1"), "{text}");
    });
}

#[test]
fn json_for_programs() {
    flow(|s| {
        if !s.is_ours() {
            return skip("Docker 20.10 does not know --format json");
        }
        s.detached(&["--name", "told", s.busybox(), "sleep", "100"]);
        let json = |arguments: &[&str]| -> Value {
            let text = s.text(arguments);
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
        };
        assert_eq!(json(&["ps", "--format", "json"])["Names"], "told");
        assert_eq!(json(&["images", "--format", "json"])["Repository"], s.busybox());
        assert_eq!(json(&["inspect", "--format", "json", "told"])[0]["Name"], "/told");
        assert!(json(&["info", "--format", "json"]).is_object());
        assert!(json(&["version", "--format", "json"])["Server"].is_object());
        assert_eq!(json(&["explain", "--format", "json", "told"])["Status"], "running");
    });
}

#[test]
fn explain_says_how_a_container_is() {
    flow(|s| {
        if !s.is_ours() {
            return skip("a command of ours alone");
        }
        s.detached(&["--name", "well", s.busybox(), "sleep", "100"]);
        assert!(s.text(&["explain", "well"]).contains("running"));
        s.run(&["run", "--name", "ended", s.busybox(), "sh", "-c", "exit 3"]).code(3);
        let text = s.text(&["explain", "ended"]);
        assert!(text.contains("code 3"), "{text}");
        s.run(&["explain", "nowhere"]).code(1);
    });
}

#[test]
fn help_needs_no_daemon() {
    flow(|s| {
        let host = ("DOCKER_HOST", "unix:///nowhere.sock");
        let call = |arguments: &[&str]| s.call(arguments).env(host.0, host.1).env("STRATA_HOST", host.1).output();
        assert!(call(&["--help"]).ok().text().contains("run"));
        let help = call(&["run", "--help"]).ok().text();
        for flag in ["--detach", "--rm", "--publish", "--volume", "--env", "--network", "--memory", "--cap-add"] {
            assert!(help.contains(flag), "{flag} is not in {help}");
        }
        call(&["no-such-command"]).code(1);
        assert_ne!(call(&["ps"]).code, 0);
    });
}

/// Now, in seconds since 1970.
fn seconds() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs()
}
