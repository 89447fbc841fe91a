//! Requests of the wire, read into what the core understands. What cannot be is refused here, by the core's own
//! constructors, which name the field.

use proto_engine as wire;

use crate::engine::PullPolicy;
use crate::engine::container::exec::ExecWanted;
use crate::engine::container::id::Name;
use crate::engine::container::wanted::{
    ContainerPath, EnvVar, Hostname, Mount, MountKind, Network, NetworkMode, Port, Propagation, Resources,
    RestartPolicy, Seccomp, Security, Ulimit, Wanted,
};
use crate::engine::error::{Error, Field};
use crate::engine::image::{Auth, Pull};
use crate::engine::signal::Signal;
use crate::engine::spec::capability::CapabilityName;
use crate::engine::spec::user::UserSpec;

/// Reads a container that is wanted; `cpus` is how many the host has.
pub(super) fn container(spec: Option<wire::ContainerSpec>, cpus: u64) -> Result<Wanted, Error> {
    let spec = spec.unwrap_or_default();
    let resources = spec.resources.unwrap_or_default();
    Wanted {
        image: spec.image,
        name: present(&spec.name).map(Name::parse).transpose()?,
        command: spec.command,
        entrypoint: entrypoint(spec.entrypoint),
        env: spec.env.iter().map(|text| EnvVar::parse(text)).collect::<Result<_, _>>()?,
        working_dir: path(Field::WorkingDir, &spec.working_dir)?,
        user: present(&spec.user).map(UserSpec::parse).transpose()?,
        hostname: present(&spec.hostname).map(Hostname::parse).transpose()?,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: spec.stdin_once,
        labels: labels(spec.labels)?,
        mounts: spec.mounts.iter().map(mount).collect::<Result<_, _>>()?,
        network: network(spec.network.unwrap_or_default())?,
        resources: Resources::parse(resources.memory, resources.nano_cpus, resources.pids_limit, cpus)?,
        security: security(spec.security.unwrap_or_default())?,
        stop_signal: present(&spec.stop_signal).map(|text| Signal::parse(Field::StopSignal, text)).transpose()?,
        stop_timeout_s: Some(spec.stop_timeout_s).filter(|timeout| *timeout > 0),
        restart: restart(spec.restart.unwrap_or_default())?,
        auto_remove: spec.auto_remove,
        read_only_rootfs: spec.read_only_rootfs,
        ulimits: spec
            .ulimits
            .iter()
            .map(|limit| Ulimit::parse(&limit.name, limit.soft, limit.hard))
            .collect::<Result<_, _>>()?,
    }
    .checked()
}

/// An empty text is none.
fn present(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn path(field: Field, text: &str) -> Result<Option<ContainerPath>, Error> {
    present(text).map(|text| ContainerPath::parse(field, text)).transpose()
}

/// One empty text resets the image's.
fn entrypoint(words: Vec<String>) -> Option<Vec<String>> {
    match words.as_slice() {
        [] => None,
        [only] if only.is_empty() => Some(Vec::new()),
        _ => Some(words),
    }
}

fn labels(
    given: std::collections::HashMap<String, String>,
) -> Result<std::collections::BTreeMap<String, String>, Error> {
    match given.keys().find(|key| key.is_empty()) {
        Some(key) => Err(Error::invalid(Field::Labels, key, "keys that are not empty")),
        None => Ok(given.into_iter().collect()),
    }
}

fn mount(given: &wire::Mount) -> Result<Mount, Error> {
    let kind = match given.kind() {
        wire::mount::Kind::Bind => MountKind::bind(
            &given.source,
            Propagation::parse(&given.propagation)?,
            given.create_source,
            !given.non_recursive,
        )?,
        wire::mount::Kind::Tmpfs => MountKind::tmpfs(given.tmpfs_size, given.tmpfs_mode)?,
        wire::mount::Kind::Unspecified => {
            return Err(Error::invalid(Field::MountKind, given.kind.to_string(), "BIND or TMPFS"));
        }
    };
    Ok(Mount { target: ContainerPath::parse(Field::MountTarget, &given.target)?, read_only: given.read_only, kind })
}

fn network(given: wire::Network) -> Result<Network, Error> {
    let mode = match given.mode() {
        wire::network::Mode::Bridge => NetworkMode::Bridge,
        wire::network::Mode::None => NetworkMode::None,
        wire::network::Mode::Host => NetworkMode::Host,
    };
    let port =
        |port: &wire::PortMapping| Port::parse(&port.host_ip, port.host_port, port.container_port, &port.protocol);
    Ok(Network { mode, ports: given.ports.iter().map(port).collect::<Result<_, _>>()? })
}

fn security(given: wire::Security) -> Result<Security, Error> {
    use wire::security::Seccomp as Given;
    let names = |field, texts: &[String]| -> Result<Vec<CapabilityName>, Error> {
        texts.iter().map(|text| CapabilityName::parse(field, text)).collect()
    };
    Ok(Security {
        privileged: given.privileged,
        cap_add: names(Field::CapAdd, &given.cap_add)?,
        cap_drop: names(Field::CapDrop, &given.cap_drop)?,
        no_new_privileges: given.no_new_privileges,
        seccomp: match given.seccomp {
            Some(Given::SeccompUnconfined(true)) => Seccomp::Unconfined,
            Some(Given::SeccompProfile(profile)) => Seccomp::profile(&profile)?,
            _ => Seccomp::Default,
        },
    })
}

fn restart(given: wire::RestartPolicy) -> Result<RestartPolicy, Error> {
    use wire::restart_policy::Kind;
    let policy = match given.kind() {
        Kind::No => RestartPolicy::No,
        Kind::OnFailure => return Ok(RestartPolicy::OnFailure { max_retries: given.max_retries }),
        Kind::Always => RestartPolicy::Always,
        Kind::UnlessStopped => RestartPolicy::UnlessStopped,
    };
    match given.max_retries {
        0 => Ok(policy),
        retries => Err(Error::invalid(Field::Restart, retries.to_string(), "retries with ON_FAILURE only")),
    }
}

/// Reads a program that is wanted in a container; also the container's name.
pub(super) fn exec(open: wire::ExecOpen) -> Result<(String, ExecWanted), Error> {
    let wanted = ExecWanted {
        env: open.env.iter().map(|text| EnvVar::parse(text)).collect::<Result<_, _>>()?,
        working_dir: path(Field::WorkingDir, &open.working_dir)?,
        user: present(&open.user).map(UserSpec::parse).transpose()?,
        size: size(open.size)?,
        command: open.command,
        tty: open.tty,
        open_stdin: open.open_stdin,
        privileged: open.privileged,
        detach: open.detach,
    };
    match wanted.command.iter().find(|word| word.contains('\0')) {
        Some(word) => Err(Error::invalid(Field::Command, word, "words without a NUL")),
        None => Ok((open.container, wanted)),
    }
}

/// A terminal has 65535 rows and columns at most, as the kernel counts them in 16 bits.
pub(super) fn size(given: Option<wire::WindowSize>) -> Result<Option<(u32, u32)>, Error> {
    let Some(size) = given.filter(|size| (size.width, size.height) != (0, 0)) else { return Ok(None) };
    if size.width > u16::MAX.into() || size.height > u16::MAX.into() {
        return Err(Error::invalid(Field::Size, format!("{}x{}", size.width, size.height), "at most 65535x65535"));
    }
    Ok(Some((size.width, size.height)))
}

/// A signal; the empty text is `default`.
pub(super) fn signal(text: &str) -> Result<Option<Signal>, Error> {
    present(text).map(|text| Signal::parse(Field::Signal, text)).transpose()
}

pub(super) fn pull(name: String, auth: Option<wire::RegistryAuth>, platform: &str) -> Pull {
    let auth = auth.map(|auth| Auth {
        host: auth.host,
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
    });
    Pull { name, auth, platform: present(platform).map(str::to_owned) }
}

pub(super) fn pull_policy(policy: wire::PullPolicy) -> PullPolicy {
    match policy {
        wire::PullPolicy::Missing => PullPolicy::Missing,
        wire::PullPolicy::AlwaysPull => PullPolicy::Always,
        wire::PullPolicy::Never => PullPolicy::Never,
    }
}

pub(super) fn filters(given: Vec<wire::Filter>) -> Vec<crate::engine::filter::Given> {
    given.into_iter().map(|filter| (filter.key, filter.values)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_fault::Fault;

    fn spec() -> wire::ContainerSpec {
        wire::ContainerSpec { image: "busybox".to_owned(), ..Default::default() }
    }

    fn message(spec: wire::ContainerSpec) -> String {
        Fault::from(container(Some(spec), 2).unwrap_err()).message
    }

    #[test]
    fn a_request_that_asks_for_nothing_is_fine() {
        let wanted = container(Some(spec()), 2).unwrap();
        assert_eq!(wanted.network.mode, NetworkMode::Bridge);
        assert_eq!((wanted.entrypoint, wanted.stop_timeout_s), (None, None));
    }

    #[test]
    fn each_refusal_names_its_field() {
        let cases: Vec<(wire::ContainerSpec, &str)> = vec![
            (wire::ContainerSpec::default(), "image"),
            (wire::ContainerSpec { name: "a b".to_owned(), ..spec() }, "name"),
            (wire::ContainerSpec { env: vec!["X".to_owned()], ..spec() }, "env"),
            (wire::ContainerSpec { working_dir: "x".to_owned(), ..spec() }, "working_dir"),
            (wire::ContainerSpec { user: "a b".to_owned(), ..spec() }, "user"),
            (wire::ContainerSpec { hostname: "-".to_owned(), ..spec() }, "hostname"),
            (wire::ContainerSpec { stop_signal: "NOPE".to_owned(), ..spec() }, "stop_signal"),
            (wire::ContainerSpec { mounts: vec![wire::Mount::default()], ..spec() }, "mounts.kind"),
            (
                wire::ContainerSpec { resources: Some(wire::Resources { memory: 1, ..Default::default() }), ..spec() },
                "resources.memory",
            ),
            (
                wire::ContainerSpec {
                    security: Some(wire::Security { cap_add: vec!["X".to_owned()], ..Default::default() }),
                    ..spec()
                },
                "security.cap_add",
            ),
            (
                wire::ContainerSpec {
                    network: Some(wire::Network {
                        ports: vec![wire::PortMapping { container_port: 0, ..Default::default() }],
                        ..Default::default()
                    }),
                    ..spec()
                },
                "network.ports",
            ),
        ];
        for (spec, field) in cases {
            let words = message(spec);
            assert!(words.starts_with(field), "{words}");
        }
    }

    #[test]
    fn wishes_that_exclude_each_other() {
        let always = wire::RestartPolicy { kind: wire::restart_policy::Kind::Always.into(), max_retries: 0 };
        let both = wire::ContainerSpec { auto_remove: true, restart: Some(always), ..spec() };
        assert_eq!(message(both), "auto_remove and a restart policy exclude each other");
    }

    #[test]
    fn an_entrypoint_is_reset_by_one_empty_word() {
        assert_eq!(entrypoint(vec![]), None);
        assert_eq!(entrypoint(vec![String::new()]), Some(vec![]));
        assert_eq!(entrypoint(vec!["a".to_owned()]), Some(vec!["a".to_owned()]));
    }
}
