//! Errors: layer, step, words, form and exit code.

use std::os::unix::fs::PermissionsExt;

use crate::fake::Fake;
use crate::support::{Ended, run, strata, strata_at};

#[test]
fn nobody_at_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    for (line, code) in [("ps", 1), ("run busybox", 125), ("exec web sh", 1), ("stop web", 1)] {
        let ended = Ended::of(strata_at(&socket).args(line.split(' ')).output().unwrap());
        assert_eq!(ended.code, code, "{line}");
        let expected = format!(
            "strata: client: connect: connect to engined at {}\n  cause: No such file or directory (os error 2)\n  hint: \
             there is no such socket: start engined, or name its socket with --host or STRATA_HOST\n",
            socket.display()
        );
        assert_eq!(ended.err, expected, "{line}");
    }
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let ended = Ended::of(strata_at(&socket).arg("ps").output().unwrap());
    assert!(ended.err.contains("Connection refused") && ended.err.contains("nobody listens"), "{}", ended.err);
}

#[test]
fn no_permission_on_the_socket() {
    let fake = Fake::start();
    std::fs::set_permissions(fake.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(fake.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to become somebody else");
        return;
    }
    use std::os::unix::process::CommandExt;
    // A copy, as the build's folder may be closed to others.
    let program = fake.folder().join("strata");
    std::fs::copy(env!("CARGO_BIN_EXE_strata"), &program).unwrap();
    let mut command = std::process::Command::new(program);
    command.env_clear().env("STRATA_HOST", format!("unix://{}", fake.socket().display())).env("STRATA_ERRORS", "json");
    let ended = Ended::of(command.uid(65534).gid(65534).arg("ps").output().unwrap());
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.contains("\"code\":\"PERMISSION_DENIED\"") && ended.err.contains("\"layer\":\"client\""),
        "{}",
        ended.err
    );
}

#[test]
fn an_address_that_is_no_socket() {
    let fake = Fake::start();
    let ended = run(&fake, "-H tcp://localhost:2375 ps");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("the daemon's address \"tcp://localhost:2375\" is not a unix socket"), "{}", ended.err);
}

#[test]
fn what_a_layer_said_is_told_unchanged() {
    for (image, code, words) in [
        (
            "missing",
            125,
            "strata: registry: pull: pull docker.io/library/missing:latest\n  cause: manifest unknown\n  hint: check the name\n",
        ),
        ("nocommand", 127, "strata: runtime: start: run \"nope\"\n  cause: ENOENT\n"),
        ("noexec", 126, "strata: runtime: start: run \"/etc/passwd\"\n  cause: EACCES\n"),
        ("badmount", 125, "strata: kernel: create:mounts: mount /x on /y\n"),
    ] {
        let fake = Fake::start();
        run(&fake, &format!("run {image} nope")).is(code, "", words);
    }
}

#[test]
fn as_json() {
    let fake = Fake::start();
    let output = strata(&fake).env("STRATA_ERRORS", "json").args(["run", "missing"]).output().unwrap();
    Ended::of(output).is(
        125,
        "",
        "{\"layer\":\"registry\",\"step\":\"pull\",\"code\":\"IMAGE_NOT_FOUND\",\"message\":\"pull docker.io/library/missing:latest\",\
         \"causes\":[\"manifest unknown\"],\"hint\":\"check the name\"}\n",
    );
}

#[test]
fn what_is_typed_wrong() {
    let fake = Fake::start();
    for (line, code, words) in [
        ("run --frobnicate x", 125, "unknown flag: --frobnicate\n  hint: see 'strata run --help'\n"),
        ("run --gpus all x", 125, "unknown flag: --gpus\n  hint: docker has --gpus; strata does not support it; see"),
        ("run -Z x", 125, "unknown shorthand flag: 'Z' in -Z\n"),
        ("run -itZ x", 125, "unknown shorthand flag: 'Z' in -itZ\n"),
        ("run --name", 125, "flag needs an argument: --name\n"),
        ("run -e", 125, "flag needs an argument: --env\n"),
        ("run --rm=maybe x", 125, "invalid argument \"maybe\" for \"--rm\" flag: "),
        ("run", 1, "'strata run' requires at least 1 argument\n"),
        ("run -p x busybox", 125, "invalid argument \"x\" for \"-p, --publish\" flag: invalid containerPort: x"),
        ("run -d -a stdout x", 125, "conflicting options: cannot specify both --attach and --detach\n"),
        ("run -it x", 125, "cannot attach stdin to a TTY-enabled container because stdin is not a terminal\n"),
        ("run --detach-keys nope x", 125, "invalid argument \"nope\" for \"--detach-keys\" flag: unknown key"),
        ("ps extra", 1, "'strata ps' accepts no arguments\n"),
        ("ps --format {{.ID", 1, "parse the template of --format\n  cause: unclosed action\n"),
        ("ps -f status", 125, "bad format of filter (expected name=value)"),
        ("stop", 1, "'strata stop' requires at least 1 argument\n"),
        ("logs a b", 1, "'strata logs' requires exactly 1 argument\n"),
        ("logs --since tomorrow a", 125, "invalid argument \"tomorrow\" for \"--since\" flag: "),
        ("frobnicate", 1, "unknown command: strata frobnicate\n"),
        ("imagse", 1, "did you mean 'strata images'?"),
        ("start -a a b", 1, "you cannot start and attach multiple containers at once\n"),
    ] {
        let ended = run(&fake, line);
        assert!(ended.err.starts_with("strata: client: parse: "), "{line}: {}", ended.err);
        assert!(ended.err.contains(words), "{line}: {}", ended.err);
        // A missing terminal is docker's only complaint of `run` that is not 125.
        let code = if line == "run -it x" { 1 } else { code };
        assert_eq!((ended.code, ended.out.as_str()), (code, ""), "{line}");
    }
    let asked: Vec<_> = fake.shared().requests.iter().map(|(name, _)| *name).collect();
    assert!(asked.iter().all(|name| *name == "list"), "{asked:?}");
}

#[test]
fn one_failure_does_not_keep_the_others() {
    let fake = Fake::start();
    for command in ["stop", "kill", "rm", "wait"] {
        let ended = run(&fake, &format!("{command} gone web"));
        assert_eq!(ended.code, 1, "{command}");
        assert_eq!(ended.out, if command == "wait" { "3\n" } else { "web\n" });
        assert_eq!(ended.err, "strata: engine: validate: find container gone\n");
    }
    let forced = run(&fake, "rm -f gone");
    assert_eq!((forced.code, forced.err.as_str()), (0, "strata: engine: validate: find container gone\n"));
}

#[test]
fn help_and_version_need_no_engine() {
    let folder = tempfile::tempdir().unwrap();
    let of = |line: &str| Ended::of(strata_at(&folder.path().join("x")).args(line.split(' ')).output().unwrap());
    for line in ["--help", "run --help", "ps -h", "help", "help run", "--version", "-v", "completion bash"] {
        let ended = of(line);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{line}");
        assert!(!ended.out.is_empty(), "{line}");
    }
    assert!(of("run --help").out.starts_with("Usage:  strata run [OPTIONS] IMAGE [COMMAND] [ARG...]\n"));
    assert!(of("completion bash").out.contains("--publish"));
    let version = of("version");
    assert_eq!(version.code, 1);
    assert!(version.out.starts_with("Client:\n Version:"), "{}", version.out);
}
