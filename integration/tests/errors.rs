//! Each error belongs to a layer: for everything that can go wrong on the way of a run, which layer says so, at which
//! step, by which code, with which words, and how the client ends. Afterwards nothing is left (the harness looks) and the
//! next run works.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use integration::registry::{Access, Registry, free_port};
use integration::stack::ours::Settings;
use integration::{Call, Output, Stack, ours, ours_with, programs, wait};
use serde_json::Value;

/// What is expected of an error.
struct Expected<'a> {
    layer: &'a str,
    /// The step without what follows a colon.
    step: &'a str,
    code: &'a str,
    /// The client's exit status.
    status: i32,
    /// All of these stand in the message or in one of the causes.
    words: &'a [&'a str],
}

/// Runs `strata` so that it tells its error as JSON.
fn strata(s: &Stack, arguments: &[&str]) -> Output {
    s.call(arguments).env("STRATA_ERRORS", "json").output()
}

/// The error is as expected; the same call without JSON tells the same in lines for people.
#[track_caller]
fn assert_error(s: &Stack, arguments: &[&str], expected: &Expected<'_>) {
    let out = strata(s, arguments);
    assert_fault(&out, expected);
    let plain = s.run(arguments);
    assert_eq!(plain.code, expected.status, "{}", plain.errors());
    let head = format!("strata: {}: {}", expected.layer, expected.step);
    assert!(plain.errors().contains(&head), "no {head:?} in {}", plain.errors());
    assert_next_run_works(s);
}

#[track_caller]
fn assert_fault(out: &Output, expected: &Expected<'_>) {
    assert_eq!(out.code, expected.status, "{}", out.errors());
    let line = out.errors().lines().rev().find(|line| line.starts_with('{')).map(str::to_owned);
    let line = line.unwrap_or_else(|| panic!("no JSON in {}", out.errors()));
    let fault: Value = serde_json::from_str(&line).expect("an error as JSON");
    assert_told(&fault, expected);
}

#[track_caller]
fn assert_told(fault: &Value, expected: &Expected<'_>) {
    let field = |name: &str| fault[name].as_str().or(fault[capitalised(name)].as_str()).unwrap_or_default().to_owned();
    let step = field("step");
    let told = (field("layer"), step.split(':').next().unwrap_or_default().to_owned(), field("code"));
    assert_eq!(
        (told.0.as_str(), told.1.as_str(), told.2.as_str()),
        (expected.layer, expected.step, expected.code),
        "{fault}"
    );
    let text = fault.to_string();
    for word in expected.words {
        assert!(text.contains(&word.replace('"', "\\\"")), "no {word:?} in {text}");
    }
    let message = field("message");
    let first = message.chars().next().unwrap_or('A');
    assert!(!first.is_uppercase() && !message.ends_with('.'), "the message {message:?}");
}

fn capitalised(name: &str) -> String {
    name[..1].to_uppercase() + &name[1..]
}

#[track_caller]
fn assert_next_run_works(s: &Stack) {
    assert_eq!(s.text(&["run", "--rm", s.busybox(), "echo", "next"]), "next");
}

#[test]
fn a_syntax_error() {
    ours(|s| {
        let memory = Expected {
            layer: "client",
            step: "parse",
            code: "INVALID_ARGUMENT",
            status: 125,
            words: &["memory", "lots"],
        };
        assert_error(s, &["run", "--rm", "--memory", "lots", s.busybox(), "true"], &memory);
        let flag = Expected { words: &["--nosuch"], ..memory };
        assert_error(s, &["run", "--nosuch", s.busybox(), "true"], &flag);
        let image = Expected { layer: "engine", step: "validate", words: &["Not/A/Reference"], ..flag };
        assert_error(s, &["run", "--rm", "Not/A/Reference", "true"], &image);
        let name = Expected { words: &["name", "a/b"], ..image };
        assert_error(s, &["run", "--rm", "--name", "a/b", s.busybox(), "true"], &name);
    });
}

#[test]
fn no_permission_on_the_socket() {
    ours(|s| {
        // A copy that everybody may execute, wherever the checkout lies.
        let program = s.site().path("tmp/strata");
        std::fs::copy(programs::ours().join("strata"), &program).expect("copy the client");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("let others execute it");
        let socket = integration::stack::ours::socket(s.site()).display().to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(["ps"]);
        command.env("STRATA_HOST", format!("unix://{socket}")).env("STRATA_ERRORS", "json");
        let out = Call::new(command).output();
        let expected = Expected {
            layer: "client",
            step: "connect",
            code: "PERMISSION_DENIED",
            status: 1,
            words: &[&socket, "denied"],
        };
        assert_fault(&out, &expected);
        assert_next_run_works(s);
    });
}

#[test]
fn no_daemon() {
    ours(|s| {
        let call =
            |host: &str| s.call(&["run", s.busybox()]).env("STRATA_HOST", host).env("STRATA_ERRORS", "json").output();
        let expected = Expected {
            layer: "client",
            step: "connect",
            code: "DAEMON_UNREACHABLE",
            status: 125,
            words: &["/nowhere.sock"],
        };
        assert_fault(&call("unix:///nowhere.sock"), &expected);
    });
}

#[test]
fn an_unknown_image() {
    ours(|s| {
        let image = s.image("nowhere");
        let expected =
            Expected { layer: "registry", step: "pull", code: "IMAGE_NOT_FOUND", status: 125, words: &[&image] };
        assert_error(s, &["run", "--rm", &image, "true"], &expected);
        let tag = format!("{}:nosuchtag", s.busybox());
        assert_error(s, &["run", "--rm", &tag, "true"], &Expected { words: &["nosuchtag"], ..expected });
    });
}

#[test]
fn an_image_that_is_not_here_and_may_not_be_pulled() {
    ours(|s| {
        let image = s.image("stubborn");
        let expected =
            Expected { layer: "engine", step: "validate", code: "IMAGE_NOT_LOCAL", status: 125, words: &["stubborn"] };
        assert_error(s, &["run", "--rm", "--pull", "never", &image, "true"], &expected);
    });
}

#[test]
fn a_registry_that_is_down() {
    ours(|s| {
        let image = format!("localhost:{}/busybox", free_port());
        let expected = Expected {
            layer: "registry",
            step: "pull",
            code: "REGISTRY_UNREACHABLE",
            status: 125,
            words: &[&image, "refused"],
        };
        assert_error(s, &["run", "--rm", &image, "true"], &expected);
    });
}

#[test]
fn a_registry_that_wants_credentials() {
    ours(|s| {
        let locked = Registry::start(s.site(), "locked", Access::WithPassword).expect("a locked registry");
        locked.add(&programs::images().join("stubborn"), "app", "latest").expect("an image");
        let image = format!("{}/app", locked.host());
        let expected =
            Expected { layer: "registry", step: "pull", code: "REGISTRY_UNAUTHORIZED", status: 125, words: &[&image] };
        assert_error(s, &["run", "--rm", &image, "true"], &expected);
    });
}

#[test]
fn a_layer_with_a_wrong_digest() {
    ours(|s| {
        let layout = programs::images().join("stubborn");
        let digest = s.registry().damage(&layout).expect("damage a layer");
        let expected =
            Expected { layer: "registry", step: "pull", code: "DIGEST_MISMATCH", status: 125, words: &[&digest] };
        assert_error(s, &["run", "--rm", &s.image("stubborn"), "true"], &expected);
        assert_eq!(s.text(&["images", "-q", &s.image("stubborn")]), "", "the damaged image is not listed");
    });
}

#[test]
fn a_full_disk() {
    let settings = Settings { supervisor_megabytes: Some(14), ..Settings::default() };
    ours_with(settings, |s| {
        let image = s.image("nginx");
        let expected =
            Expected { layer: "supervisor", step: "pull", code: "NO_SPACE", status: 125, words: &["No space left"] };
        let out = strata(s, &["run", "--rm", &image, "true"]);
        assert!(out.errors().to_lowercase().contains("no space left"), "{}", out.errors());
        assert_fault(&out, &Expected { words: &[], ..expected });
        assert_eq!(s.text(&["images", "-q", &image]), "");
        assert_next_run_works(s);
    });
}

#[test]
fn a_command_that_is_not_there() {
    ours(|s| {
        let expected = Expected {
            layer: "runtime",
            step: "create",
            code: "COMMAND_NOT_FOUND",
            status: 127,
            words: &["no-such-program"],
        };
        assert_error(s, &["run", "--rm", s.busybox(), "no-such-program"], &expected);
        assert_error(s, &["run", "--rm", s.busybox(), "/no-such-program"], &expected);
    });
}

#[test]
fn a_command_that_is_not_executable() {
    ours(|s| {
        let expected = Expected {
            layer: "kernel",
            step: "create",
            code: "COMMAND_NOT_EXECUTABLE",
            status: 126,
            words: &["/etc/passwd"],
        };
        assert_error(s, &["run", "--rm", s.busybox(), "/etc/passwd"], &expected);
        assert_error(s, &["run", "--rm", &s.image("noexec")], &Expected { words: &["/start"], ..expected });
    });
}

#[test]
fn a_missing_bind_source() {
    ours(|s| {
        let missing = s.site().path("tmp/missing").display().to_string();
        let mount = format!("type=bind,source={missing},target=/data");
        let expected = Expected {
            layer: "engine",
            step: "validate",
            code: "MOUNT_SOURCE_MISSING",
            status: 125,
            words: &[&missing],
        };
        assert_error(s, &["run", "--rm", "--mount", &mount, s.busybox(), "true"], &expected);
    });
}

#[test]
fn an_unknown_user() {
    ours(|s| {
        let expected =
            Expected { layer: "engine", step: "configure", code: "USER_UNKNOWN", status: 125, words: &["nosuchuser"] };
        assert_error(s, &["run", "--rm", "-u", "nosuchuser", s.busybox(), "true"], &expected);
        assert_error(s, &["run", "--rm", &s.image("nouser"), "true"], &expected);
        assert_error(
            s,
            &["run", "--rm", "-u", "root:nosuchgroup", s.busybox(), "true"],
            &Expected { words: &["nosuchgroup"], ..expected },
        );
    });
}

#[test]
fn a_bad_limit() {
    ours(|s| {
        let expected = Expected {
            layer: "engine",
            step: "validate",
            code: "LIMIT_INVALID",
            status: 125,
            words: &["memory", "6291456"],
        };
        assert_error(s, &["run", "--rm", "--memory", "1m", s.busybox(), "true"], &expected);
        assert_error(
            s,
            &["run", "--rm", "--cpus", "1000", s.busybox(), "true"],
            &Expected { words: &["cpus"], ..expected },
        );
    });
}

#[test]
fn a_port_in_use() {
    ours(|s| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port().to_string();
        let expected =
            Expected { layer: "network", step: "connect", code: "PORT_IN_USE", status: 125, words: &[&port] };
        assert_error(s, &["run", "--rm", "-p", &format!("127.0.0.1:{port}:80"), s.busybox(), "true"], &expected);
    });
}

#[test]
fn a_name_in_use() {
    ours(|s| {
        s.detached(&["--name", "taken", s.busybox(), "sleep", "1000"]);
        let expected =
            Expected { layer: "engine", step: "validate", code: "NAME_IN_USE", status: 125, words: &["taken"] };
        assert_error(s, &["run", "--rm", "--name", "taken", s.busybox(), "true"], &expected);
    });
}

#[test]
fn containers_that_are_not_there_or_do_not_run() {
    ours(|s| {
        let nowhere =
            Expected { layer: "engine", step: "validate", code: "CONTAINER_NOT_FOUND", status: 1, words: &["nowhere"] };
        for command in [["stop", "nowhere"], ["inspect", "nowhere"], ["logs", "nowhere"], ["wait", "nowhere"]] {
            let out = strata(s, &command);
            assert_eq!(out.code, 1, "{command:?}: {}", out.errors());
            assert!(out.errors().contains("nowhere"), "{command:?}: {}", out.errors());
        }
        assert_fault(&strata(s, &["start", "nowhere"]), &nowhere);
        s.run(&["run", "--name", "over", s.busybox(), "true"]).ok();
        let over = Expected { code: "CONTAINER_NOT_RUNNING", words: &["is not running"], ..nowhere };
        assert_fault(&strata(s, &["kill", "over"]), &over);
        assert_fault(&strata(s, &["exec", "over", "true"]), &over);
    });
}

/// What a container's record says of its end.
#[track_caller]
fn assert_problem(s: &Stack, container: &str, expected: &Expected<'_>) {
    let text = s.text(&["inspect", "--format", "{{json .State}}", container]);
    let state: Value = serde_json::from_str(&text).expect("a state");
    assert_eq!(state["ExitCode"].as_i64(), Some(i64::from(expected.status)), "{text}");
    assert_told(&state["Problem"], expected);
    let explained = s.text(&["explain", container]);
    assert!(explained.contains(expected.layer) && explained.contains(expected.code), "{explained}");
}

#[test]
fn a_crash_by_a_signal() {
    ours(|s| {
        let expected = Expected {
            layer: "application",
            step: "watch",
            code: "KILLED_BY_SIGNAL",
            status: 139,
            words: &["SIGSEGV"],
        };
        let mount = format!("{}:/crash", s.compiled("crash"));
        s.run(&["run", "--name", "crashed", "-v", &mount, s.busybox(), "/crash"]).code(139);
        assert_problem(s, "crashed", &expected);
        assert_next_run_works(s);
    });
}

#[test]
fn an_oom_kill() {
    ours(|s| {
        let expected = Expected { layer: "kernel", step: "watch", code: "OOM_KILLED", status: 137, words: &["memory"] };
        let eater = ["sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=200M count=1"];
        let mut arguments = vec!["run", "--name", "eater", "--memory", "16m", s.busybox()];
        arguments.extend(eater);
        s.run(&arguments).code(137);
        assert_eq!(s.inspect("eater", "{{.State.OOMKilled}}"), "true");
        assert_problem(s, "eater", &expected);
        assert_next_run_works(s);
    });
}

#[test]
fn a_shim_that_died() {
    ours(|s| {
        let running = s.call(&["run", "--name", "orphan", s.busybox(), "sh", "-c", "echo up; exec sleep 1000"]).start();
        running.expect("up");
        let pid: i32 = s.inspect("orphan", "{{.State.Pid}}").parse().expect("a pid");
        let shim = integration::process::find(pid).expect("the program").parent;
        let name = integration::process::find(shim).expect("its parent").command;
        assert!(name.contains("shim"), "the program's parent is {name}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)
            .expect("kill the shim");
        let out = running.end();
        assert!(out.code == 137 || out.code == 255, "{}: {}", out.code, out.errors());
        wait::until_true("the program is gone", || {
            integration::process::find(pid).is_none_or(|process| process.state == 'Z')
        });
        assert_eq!(s.inspect("orphan", "{{.State.Running}}"), "false");
        let expected = Expected { layer: "shim", step: "watch", code: "SHIM_DIED", status: out.code, words: &["shim"] };
        assert_problem(s, "orphan", &expected);
        assert_next_run_works(s);
    });
}

#[test]
fn one_that_could_not_be_started_remembers_why() {
    ours(|s| {
        s.run(&["run", "--name", "never", s.busybox(), "no-such-program"]).code(127);
        assert_eq!(s.inspect("never", "{{.State.Status}}"), "created");
        let explained = s.text(&["explain", "never"]);
        assert!(explained.contains("no-such-program") && explained.contains("COMMAND_NOT_FOUND"), "{explained}");
        s.run(&["rm", "never"]).ok();
    });
}
