//! The flags that `run` and `create` share: what a container is made from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use proto_engine::{
    ContainerSpec, Mount, Network, PortMapping, PullPolicy, Resources, RestartPolicy, Security, network,
    restart_policy, security::Seccomp,
};

use super::arguments::{Arity, all, list, on, parsed, parsed_all, parsed_file, said, switch, text, words};
use super::value::security::SecurityOption;
use super::value::{
    Parsed, environment, label, lines, mount, number, port, restart, security, size, tmpfs, ulimit, volume,
};
use crate::error::Error;
use crate::session::Attached;

/// What was meant.
pub(super) struct Meant {
    pub(super) spec: ContainerSpec,
    pub(super) pull: PullPolicy,
    pub(super) quiet: bool,
    /// Where the container's id is to be written.
    pub(super) cid_file: Option<PathBuf>,
    /// What `--attach` says, or everything.
    pub(super) attached: Attached,
    /// `--attach` was said.
    pub(super) attach_said: bool,
    /// What is accepted but has no effect, in docker's words.
    pub(super) warnings: Vec<String>,
}

/// The flags, in alphabetical order.
pub(super) fn flags(command: Command) -> Command {
    command
        .arg(list("attach", "list").short('a').help("Attach to STDIN, STDOUT or STDERR"))
        .arg(list("cap-add", "list").help("Add Linux capabilities"))
        .arg(list("cap-drop", "list").help("Drop Linux capabilities"))
        .arg(text("cidfile", "string").help("Write the container ID to the file"))
        .arg(text("cpus", "decimal").help("Number of CPUs"))
        .arg(text("entrypoint", "string").help("Overwrite the default ENTRYPOINT of the image"))
        .arg(list("env", "list").short('e').help("Set environment variables"))
        .arg(list("env-file", "list").help("Read in a file of environment variables"))
        .arg(text("hostname", "string").short('h').help("Container host name"))
        .arg(switch("interactive").short('i').help("Keep STDIN open even if not attached"))
        .arg(list("label", "list").short('l').help("Set meta data on a container"))
        .arg(list("label-file", "list").help("Read in a line delimited file of labels"))
        .arg(text("memory", "bytes").short('m').help("Memory limit"))
        .arg(list("mount", "mount").help("Attach a filesystem mount to the container (type=bind or type=tmpfs)"))
        .arg(text("name", "string").help("Assign a name to the container"))
        .arg(text("network", "network").alias("net").help("Connect a container to a network (bridge, none or host)"))
        .arg(text("pids-limit", "int").help("Tune container pids limit (set -1 for unlimited)"))
        .arg(switch("privileged").help("Give extended privileges to this container"))
        .arg(list("publish", "list").short('p').help("Publish a container's port(s) to the host"))
        .arg(text("pull", "string").help("Pull image before running (always, missing or never; default missing)"))
        .arg(switch("quiet").short('q').help("Suppress the pull output"))
        .arg(switch("read-only").help("Mount the container's root filesystem as read only"))
        .arg(text("restart", "string").help("Restart policy to apply when a container exits (default no)"))
        .arg(switch("rm").help("Automatically remove the container when it exits"))
        .arg(list("security-opt", "list").help("Security options (no-new-privileges, seccomp=unconfined|FILE)"))
        .arg(text("stop-signal", "string").help("Signal to stop the container"))
        .arg(text("stop-timeout", "int").help("Timeout (in seconds) to stop a container"))
        .arg(list("tmpfs", "list").help("Mount a tmpfs directory"))
        .arg(switch("tty").short('t').help("Allocate a pseudo-TTY"))
        .arg(list("ulimit", "ulimit").help("Ulimit options"))
        .arg(text("user", "string").short('u').help("Username or UID (format: <name|uid>[:<group|gid>])"))
        .arg(list("volume", "list").short('v').help("Bind mount a directory or file of the host"))
        .arg(text("workdir", "string").short('w').help("Working directory inside the container"))
        // What follows the image is the command's, flags too.
        .arg(Arg::new("words").num_args(0..).trailing_var_arg(true).hide(true))
}

/// Reads the flags and the words after them.
pub(super) fn meant(matches: &ArgMatches, command: &str) -> Result<Meant, Error> {
    let mut words = words(matches, "words", command, Arity::AtLeast(1))?.into_iter();
    let image = words.next().unwrap_or_default();
    let (network, warnings) = network(matches)?;
    let (attached, attach_said) = attached(matches)?;
    let restart = parsed(matches, "restart", "--restart", restart::policy)?;
    let auto_remove = on(matches, "rm");
    check_removal(auto_remove, restart.as_ref())?;
    let open_stdin = on(matches, "interactive");
    let spec = ContainerSpec {
        image,
        name: said(matches, "name").unwrap_or_default().to_owned(),
        command: words.collect(),
        entrypoint: said(matches, "entrypoint").map(str::to_owned).into_iter().collect(),
        env: environment(matches)?,
        working_dir: working_dir(matches)?,
        user: said(matches, "user").unwrap_or_default().to_owned(),
        hostname: said(matches, "hostname").unwrap_or_default().to_owned(),
        tty: on(matches, "tty"),
        open_stdin,
        stdin_once: open_stdin && attached.stdin,
        labels: labels(matches)?,
        mounts: mounts(matches)?,
        network: Some(network),
        resources: Some(resources(matches)?),
        security: Some(security(matches)?),
        stop_signal: said(matches, "stop-signal").unwrap_or_default().to_owned(),
        stop_timeout_s: parsed(matches, "stop-timeout", "--stop-timeout", number::seconds)?.unwrap_or(0),
        restart,
        auto_remove,
        read_only_rootfs: on(matches, "read-only"),
        ulimits: parsed_all(matches, "ulimit", "--ulimit", ulimit::ulimit)?,
    };
    Ok(Meant {
        spec,
        pull: parsed(matches, "pull", "--pull", pull_policy)?.unwrap_or(PullPolicy::Missing),
        quiet: on(matches, "quiet"),
        cid_file: said(matches, "cidfile").map(PathBuf::from),
        attached,
        attach_said,
        warnings,
    })
}

fn check_removal(auto_remove: bool, restart: Option<&RestartPolicy>) -> Result<(), Error> {
    let restarts = restart.is_some_and(|policy| policy.kind() != restart_policy::Kind::No);
    if auto_remove && restarts {
        return Err(Error::refused("conflicting options: cannot specify both --restart and --rm"));
    }
    Ok(())
}

fn pull_policy(text: &str) -> Parsed<PullPolicy> {
    match text {
        "missing" | "" => Ok(PullPolicy::Missing),
        "always" => Ok(PullPolicy::AlwaysPull),
        "never" => Ok(PullPolicy::Never),
        _ => Err("must be one of \"always\", \"missing\" or \"never\"".to_owned()),
    }
}

/// All standard streams that are open, unless `--attach` names some.
fn attached(matches: &ArgMatches) -> Result<(Attached, bool), Error> {
    let interactive = on(matches, "interactive");
    let mut named = Attached { stdin: false, stdout: false, stderr: false };
    let mut any = false;
    for stream in all(matches, "attach") {
        any = true;
        match stream.to_ascii_lowercase().as_str() {
            "stdin" => named.stdin = true,
            "stdout" => named.stdout = true,
            "stderr" => named.stderr = true,
            _ => return Err(Error::flag_value("-a, --attach", stream, "valid streams are STDIN, STDOUT and STDERR")),
        }
    }
    if !any {
        named = Attached { stdin: false, stdout: true, stderr: true };
    }
    named.stdin |= interactive;
    Ok((named, any))
}

/// Variables of files first, so that `--env` can replace them.
pub(super) fn environment(matches: &ArgMatches) -> Result<Vec<String>, Error> {
    let mut variables = Vec::new();
    for file in all(matches, "env-file") {
        variables.extend(parsed_file("read the env file", file, |content| {
            lines::key_values(content, environment::of_process)
        })?);
    }
    let named = |text: &str| environment::variable(text, environment::of_process);
    variables.extend(parsed_all(matches, "env", "-e, --env", named)?.into_iter().flatten());
    Ok(variables)
}

fn working_dir(matches: &ArgMatches) -> Result<String, Error> {
    let absolute = |text: &str| match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(format!("the working directory '{text}' is invalid, it needs to be an absolute path")),
    };
    Ok(parsed(matches, "workdir", "-w, --workdir", absolute)?.unwrap_or_default())
}

fn labels(matches: &ArgMatches) -> Result<HashMap<String, String>, Error> {
    let mut labels = HashMap::new();
    for file in all(matches, "label-file") {
        let entries = parsed_file("read the label file", file, |content| {
            let entries = lines::key_values(content, |_| Some(String::new()))?;
            entries.iter().map(|entry| label::label(entry)).collect::<Parsed<Vec<_>>>()
        })?;
        labels.extend(entries);
    }
    labels.extend(parsed_all(matches, "label", "-l, --label", label::label)?);
    Ok(labels)
}

fn mounts(matches: &ArgMatches) -> Result<Vec<Mount>, Error> {
    let here = here();
    let mut mounts = parsed_all(matches, "volume", "-v, --volume", |text| volume::bind(text, &here))?;
    mounts.extend(parsed_all(matches, "mount", "--mount", |text| mount::mount(text, &here))?);
    mounts.extend(parsed_all(matches, "tmpfs", "--tmpfs", tmpfs::tmpfs)?);
    Ok(mounts)
}

fn here() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| Path::new("/").to_owned())
}

fn network(matches: &ArgMatches) -> Result<(Network, Vec<String>), Error> {
    let mode = parsed(matches, "network", "--network", network_mode)?.unwrap_or(network::Mode::Bridge);
    let mut ports: Vec<PortMapping> =
        parsed_all(matches, "publish", "-p, --publish", port::publish)?.into_iter().flatten().collect();
    let mut warnings = Vec::new();
    if mode != network::Mode::Bridge && !ports.is_empty() {
        let word = if mode == network::Mode::Host { "host" } else { "none" };
        warnings.push(format!("Published ports are discarded when using {word} network mode"));
        ports.clear();
    }
    Ok((Network { mode: mode.into(), ports }, warnings))
}

fn network_mode(text: &str) -> Parsed<network::Mode> {
    match text {
        "bridge" | "default" | "" => Ok(network::Mode::Bridge),
        "none" => Ok(network::Mode::None),
        "host" => Ok(network::Mode::Host),
        _ => Err(format!("network '{text}' is not supported (bridge, none and host are)")),
    }
}

fn resources(matches: &ArgMatches) -> Result<Resources, Error> {
    Ok(Resources {
        memory: parsed(matches, "memory", "-m, --memory", size::bytes)?.unwrap_or(0),
        nano_cpus: parsed(matches, "cpus", "--cpus", number::nano_cpus)?.unwrap_or(0),
        pids_limit: parsed(matches, "pids-limit", "--pids-limit", number::pids_limit)?.unwrap_or(0),
    })
}

fn security(matches: &ArgMatches) -> Result<Security, Error> {
    let mut security = Security {
        privileged: on(matches, "privileged"),
        cap_add: all(matches, "cap-add").map(str::to_owned).collect(),
        cap_drop: all(matches, "cap-drop").map(str::to_owned).collect(),
        ..Security::default()
    };
    for option in parsed_all(matches, "security-opt", "--security-opt", security::option)? {
        match option {
            SecurityOption::NoNewPrivileges(on) => security.no_new_privileges = on,
            SecurityOption::SeccompDefault => security.seccomp = Some(Seccomp::SeccompDefault(true)),
            SecurityOption::SeccompUnconfined => security.seccomp = Some(Seccomp::SeccompUnconfined(true)),
            SecurityOption::SeccompFile(file) => {
                let profile = parsed_file("read the seccomp profile", &file, security::profile)?;
                security.seccomp = Some(Seccomp::SeccompProfile(profile));
            }
        }
    }
    Ok(security)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<Meant, Error> {
        let words = std::iter::once("run").chain(line.iter().copied());
        let command = flags(Command::new("run").disable_help_flag(true).args_override_self(true));
        let matches = command.try_get_matches_from(words).expect("clap accepts it");
        meant(&matches, "run")
    }

    fn spec(line: &[&str]) -> ContainerSpec {
        read(line).unwrap_or_else(|error| panic!("{line:?}: {error:?}")).spec
    }

    #[test]
    fn what_follows_the_image_is_the_commands() {
        let spec = spec(&["--rm", "-it", "busybox", "sh", "-c", "exit 7", "--rm=false", "--", "-x"]);
        assert_eq!(spec.image, "busybox");
        assert_eq!(spec.command, ["sh", "-c", "exit 7", "--rm=false", "--", "-x"]);
        assert!(spec.auto_remove && spec.tty && spec.open_stdin && spec.stdin_once);
        assert_eq!(super::tests::spec(&["busybox", "-x"]).command, ["-x"]);
        assert_eq!(super::tests::spec(&["--", "busybox", "-x"]).command, ["-x"]);
    }

    #[test]
    fn flags_in_all_their_forms() {
        for line in [
            &["-t=false", "--rm=false", "--read-only", "-p8080:80", "-eA=1", "--env=B=2", "-m=64m", "x"][..],
            &[
                "--tty=0",
                "--rm=f",
                "--read-only=true",
                "-p",
                "8080:80",
                "-e",
                "A=1",
                "-e",
                "B=2",
                "--memory",
                "64m",
                "x",
            ],
            &[
                "--tty",
                "--tty=false",
                "--memory",
                "1m",
                "--read-only=1",
                "--publish=8080:80",
                "-e=A=1",
                "-e=B=2",
                "-m64m",
                "x",
            ],
        ] {
            let spec = spec(line);
            assert!(!spec.tty && !spec.auto_remove && spec.read_only_rootfs, "{line:?}");
            assert_eq!(spec.env, ["A=1", "B=2"], "{line:?}");
            assert_eq!(spec.resources.unwrap().memory, 64 << 20, "{line:?}");
            assert_eq!(spec.network.unwrap().ports[0].host_port, 8080, "{line:?}");
        }
    }

    #[test]
    fn a_flags_value_may_look_like_a_flag() {
        let spec = spec(&["--pids-limit", "-1", "--entrypoint", "-x", "-e", "--rm=1", "busybox"]);
        assert_eq!(
            (spec.entrypoint, spec.env, spec.auto_remove),
            (vec!["-x".to_owned()], vec!["--rm=1".to_owned()], false)
        );
    }

    #[test]
    fn the_whole_of_it() {
        let spec = spec(&[
            "--name",
            "web",
            "-w",
            "/srv",
            "-u",
            "1:2",
            "--entrypoint",
            "",
            "-h",
            "host",
            "--network",
            "none",
            "--cpus",
            "1.5",
            "--pids-limit",
            "100",
            "--cap-add",
            "NET_ADMIN",
            "--cap-drop=ALL",
            "--privileged",
            "--security-opt",
            "no-new-privileges",
            "--security-opt",
            "seccomp=unconfined",
            "--ulimit",
            "nofile=1:2",
            "--stop-signal",
            "INT",
            "--stop-timeout",
            "3",
            "-l",
            "a=b",
            "--label",
            "c",
            "--restart",
            "on-failure:2",
            "-v",
            "/a:/b:ro",
            "--mount",
            "type=tmpfs,target=/t",
            "--tmpfs",
            "/run",
            "image",
        ]);
        assert_eq!((&*spec.name, &*spec.working_dir, &*spec.user, &*spec.hostname), ("web", "/srv", "1:2", "host"));
        assert_eq!(spec.entrypoint, [""]);
        assert_eq!(spec.network.unwrap().mode(), network::Mode::None);
        assert_eq!(spec.resources.unwrap(), Resources { memory: 0, nano_cpus: 1_500_000_000, pids_limit: 100 });
        let security = spec.security.unwrap();
        assert!(security.privileged && security.no_new_privileges);
        assert_eq!((security.cap_add.len(), security.cap_drop.len()), (1, 1));
        assert_eq!(security.seccomp, Some(Seccomp::SeccompUnconfined(true)));
        assert_eq!((spec.ulimits.len(), spec.mounts.len(), spec.stop_timeout_s), (1, 3, 3));
        assert_eq!(spec.labels["c"], "");
        assert_eq!(spec.restart.unwrap().max_retries, 2);
    }

    #[test]
    fn files_of_variables_and_labels() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let (env, label, profile) = (path("env", "A=1\nB=2\n"), path("label", "x=y\nz\n"), path("p", " {} "));
        let seccomp = format!("seccomp={profile}");
        let spec = spec(&[
            "--env-file",
            &env,
            "-e",
            "B=3",
            "--label-file",
            &label,
            "-l",
            "x=n",
            "--security-opt",
            &seccomp,
            "i",
        ]);
        assert_eq!(spec.env, ["A=1", "B=2", "B=3"]);
        assert_eq!((&*spec.labels["x"], &*spec.labels["z"]), ("n", ""));
        assert_eq!(spec.security.unwrap().seccomp, Some(Seccomp::SeccompProfile(b"{}".to_vec())));
        let error = read(&["--env-file", "/nonexistent/env", "i"]).err().unwrap().fault();
        assert_eq!(error.message, "read the env file /nonexistent/env");
    }

    #[test]
    fn errors_name_the_flag() {
        for (line, words) in [
            (&["-p", "x", "i"][..], "invalid argument \"x\" for \"-p, --publish\" flag: invalid containerPort: x"),
            (&["-m", "lots", "i"], "invalid argument \"lots\" for \"-m, --memory\" flag: invalid size"),
            (&["--network", "mynet", "i"], "network 'mynet' is not supported"),
            (&["-v", "data:/d", "i"], "named volumes are not supported"),
            (&["-w", "rel", "i"], "needs to be an absolute path"),
            (&["--pull", "often", "i"], "must be one of"),
            (&["-a", "std", "i"], "valid streams are STDIN, STDOUT and STDERR"),
            (&["--rm", "--restart", "always", "i"], "cannot specify both --restart and --rm"),
            (&["--rm"], "'strata run' requires at least 1 argument"),
        ] {
            let message = read(line).err().expect("an error").fault().message;
            assert!(message.contains(words), "{line:?}: {message}");
        }
    }

    #[test]
    fn streams_are_attached_as_docker_does() {
        let of = |line: &[&str]| read(line).unwrap().attached;
        assert_eq!(of(&["i"]), Attached { stdin: false, stdout: true, stderr: true });
        assert_eq!(of(&["-i", "i"]), Attached { stdin: true, stdout: true, stderr: true });
        assert_eq!(of(&["-a", "STDERR", "i"]), Attached { stdin: false, stdout: false, stderr: true });
        assert_eq!(of(&["-a", "stdout", "-i", "i"]), Attached { stdin: true, stdout: true, stderr: false });
    }

    #[test]
    fn ports_without_a_bridge_are_discarded_with_a_word() {
        let meant = read(&["--net", "host", "-p", "80:80", "i"]).unwrap();
        assert!(meant.spec.network.unwrap().ports.is_empty());
        assert_eq!(meant.warnings, ["Published ports are discarded when using host network mode"]);
    }
}
