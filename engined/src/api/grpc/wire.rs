//! Answers of the core, as the wire has them.

use std::time::SystemTime;

use prost_types::Timestamp;
use proto_engine as wire;

use crate::engine::container::exit::{Exit, Problem};
use crate::engine::container::output::Piece;
use crate::engine::container::state::{Life, Phase};
use crate::engine::container::wanted::{
    Mount, MountKind, Network, NetworkMode, Port, Resources, RestartPolicy, Seccomp, Security, Wanted,
};
use crate::engine::container::{Container, View};
use crate::engine::event::Event;
use crate::engine::image::{Phase as PullPhase, Progress, Pulled, Summary};
use crate::engine::stamp::Stamp;
use crate::network::{Endpoint, PublishedPort};

pub(super) fn time(stamp: Stamp) -> Timestamp {
    Timestamp::from(SystemTime::from(stamp))
}

pub(super) fn stamp(time: Option<Timestamp>) -> Option<Stamp> {
    time.and_then(|time| SystemTime::try_from(time).ok()).map(Stamp::from)
}

pub(super) fn output(piece: Piece) -> wire::Output {
    match piece {
        Piece::Output { stream, data, next, .. } => {
            let stream = match stream {
                strata_log::Stream::Stdout => wire::Stream::Stdout,
                strata_log::Stream::Stderr => wire::Stream::Stderr,
            };
            wire::Output { stream: stream.into(), data: data.into(), next, lost: 0 }
        }
        Piece::Lost { bytes, next } => wire::Output { next, lost: bytes, ..Default::default() },
    }
}

pub(super) fn exit(exit: &Exit) -> wire::Exit {
    wire::Exit {
        code: exit.code,
        oom_killed: exit.oom_killed,
        signal: exit.signal.map_or(0, |signal| signal.number()),
        unknown: exit.unknown,
        at: Some(time(exit.at)),
        problem: exit.problem.clone().map(problem),
    }
}

fn problem(problem: Problem) -> wire::Problem {
    wire::Problem {
        layer: problem.layer,
        step: problem.step,
        code: problem.code,
        message: problem.message,
        causes: problem.causes,
        hint: problem.hint.unwrap_or_default(),
    }
}

pub(super) fn progress(progress: Progress) -> wire::PullProgress {
    use wire::pull_progress::Phase as Wire;
    let phase = match progress.phase {
        PullPhase::Resolving => Wire::Resolving,
        PullPhase::Waiting => Wire::Waiting,
        PullPhase::Downloading => Wire::Downloading,
        PullPhase::Verifying => Wire::Verifying,
        PullPhase::Extracting => Wire::Extracting,
        PullPhase::Done => Wire::Done,
        PullPhase::Exists => Wire::Exists,
    };
    wire::PullProgress {
        digest: progress.digest,
        phase: phase.into(),
        current: progress.current,
        total: progress.total,
        image: progress.image,
    }
}

pub(super) fn pulled(pulled: Pulled) -> wire::PullDone {
    wire::PullDone {
        image: pulled.image.reference.clone(),
        digest: pulled.image.digest.clone(),
        image_id: pulled.image.id.clone(),
        changed: pulled.changed,
    }
}

pub(super) fn image(summary: Summary) -> wire::ImageSummary {
    wire::ImageSummary {
        id: summary.id,
        references: summary.references,
        digests: summary.digests,
        created: summary.created.map(Timestamp::from),
        size: summary.size,
    }
}

pub(super) fn event(event: &Event) -> wire::Event {
    wire::Event {
        r#type: event.kind.as_str().to_owned(),
        action: event.action.to_owned(),
        id: event.id.clone(),
        attributes: event.attributes.clone().into_iter().collect(),
        at: Some(time(event.at)),
    }
}

pub(super) fn summary(view: &View) -> wire::ContainerSummary {
    let fixed = &view.fixed;
    wire::ContainerSummary {
        id: fixed.id.to_string(),
        name: fixed.name.to_string(),
        image: fixed.wanted.image.clone(),
        image_id: fixed.image.id.clone(),
        command: fixed.program.args.clone(),
        created: Some(time(fixed.created)),
        state: Some(state(&view.life)),
        ports: match &view.endpoint {
            Some(endpoint) => endpoint.ports.iter().map(published).collect(),
            None => Vec::new(),
        },
        labels: fixed.labels().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
    }
}

fn state(life: &Life) -> wire::State {
    use wire::state::Status;
    let (status, pid) = match life.phase {
        Phase::Created | Phase::Starting => (Status::Created, 0),
        Phase::Running { pid } => (Status::Running, pid),
        Phase::Restarting => (Status::Restarting, 0),
        Phase::Exited => (Status::Exited, 0),
        Phase::Removing => (Status::Removing, 0),
    };
    wire::State {
        status: status.into(),
        pid,
        started: life.started.map(time),
        exit: life.exit.as_ref().map(exit),
        restart_count: life.restart_count,
    }
}

fn published(port: &PublishedPort) -> wire::PortMapping {
    wire::PortMapping {
        host_ip: port.host_ip.to_string(),
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: port.protocol.to_string(),
    }
}

pub(super) fn detail(container: &Container, view: &View) -> wire::ContainerDetail {
    let fixed = &view.fixed;
    let files = container.files();
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    wire::ContainerDetail {
        summary: Some(summary(view)),
        spec: Some(spec(&fixed.wanted)),
        args: fixed.program.args.clone(),
        env: fixed.program.env.clone(),
        working_dir: fixed.program.cwd.clone(),
        user: fixed.program.user_as_written.clone(),
        hostname: fixed.hostname.clone(),
        image_digest: fixed.image.digest.clone(),
        endpoint: view.endpoint.as_deref().map(endpoint),
        log_path: text(files.log()),
        sandbox_id: fixed.sandbox.clone(),
        hosts_path: text(files.hosts()),
        hostname_path: text(files.hostname()),
        resolv_conf_path: text(files.resolv_conf()),
        stop_signal: fixed.program.stop_signal.to_string(),
    }
}

fn endpoint(endpoint: &Endpoint) -> wire::Endpoint {
    wire::Endpoint {
        network: "bridge".to_owned(),
        ip_address: endpoint.address.to_string(),
        prefix_len: endpoint.prefix.into(),
        gateway: endpoint.gateway.to_string(),
        mac_address: endpoint.mac.to_string(),
        ports: endpoint.ports.iter().map(published).collect(),
        netns_path: endpoint.namespace.to_string_lossy().into_owned(),
    }
}

/// What was asked for, as it could be asked for again.
fn spec(wanted: &Wanted) -> wire::ContainerSpec {
    wire::ContainerSpec {
        image: wanted.image.clone(),
        name: wanted.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        command: wanted.command.clone(),
        entrypoint: match &wanted.entrypoint {
            Some(words) if words.is_empty() => vec![String::new()],
            Some(words) => words.clone(),
            None => Vec::new(),
        },
        env: wanted.env.iter().map(|var| var.as_str().to_owned()).collect(),
        working_dir: wanted.working_dir.as_ref().map(|path| path.as_str().to_owned()).unwrap_or_default(),
        user: wanted.user.clone().map(String::from).unwrap_or_default(),
        hostname: wanted.hostname.as_ref().map(|name| name.as_str().to_owned()).unwrap_or_default(),
        tty: wanted.tty,
        open_stdin: wanted.open_stdin,
        stdin_once: wanted.stdin_once,
        labels: wanted.labels.clone().into_iter().collect(),
        mounts: wanted.mounts.iter().map(mount).collect(),
        network: Some(network(&wanted.network)),
        resources: Some(resources(&wanted.resources)),
        security: Some(security(&wanted.security)),
        stop_signal: wanted.stop_signal.map(|signal| signal.to_string()).unwrap_or_default(),
        stop_timeout_s: wanted.stop_timeout_s.unwrap_or(0),
        restart: Some(restart(wanted.restart)),
        auto_remove: wanted.auto_remove,
        read_only_rootfs: wanted.read_only_rootfs,
        ulimits: wanted.ulimits.iter().map(ulimit).collect(),
    }
}

fn mount(mount: &Mount) -> wire::Mount {
    let target = mount.target.as_str().to_owned();
    match &mount.kind {
        MountKind::Bind { source, propagation, create_source, recursive } => wire::Mount {
            kind: wire::mount::Kind::Bind.into(),
            source: source.to_string_lossy().into_owned(),
            target,
            read_only: mount.read_only,
            propagation: propagation.as_str().to_owned(),
            create_source: *create_source,
            non_recursive: !recursive,
            ..Default::default()
        },
        MountKind::Tmpfs { size, mode } => wire::Mount {
            kind: wire::mount::Kind::Tmpfs.into(),
            target,
            read_only: mount.read_only,
            tmpfs_size: size.unwrap_or(0),
            tmpfs_mode: mode.unwrap_or(0),
            ..Default::default()
        },
    }
}

fn network(network: &Network) -> wire::Network {
    let mode = match network.mode {
        NetworkMode::Bridge => wire::network::Mode::Bridge,
        NetworkMode::None => wire::network::Mode::None,
        NetworkMode::Host => wire::network::Mode::Host,
    };
    wire::Network { mode: mode.into(), ports: network.ports.iter().map(asked_port).collect() }
}

fn asked_port(port: &Port) -> wire::PortMapping {
    wire::PortMapping {
        host_ip: if port.host_ip.is_unspecified() { String::new() } else { port.host_ip.to_string() },
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: port.protocol.to_string(),
    }
}

fn resources(resources: &Resources) -> wire::Resources {
    wire::Resources {
        memory: resources.memory.unwrap_or(0),
        nano_cpus: resources.nano_cpus.unwrap_or(0),
        pids_limit: resources.pids.unwrap_or(0),
    }
}

fn security(security: &Security) -> wire::Security {
    use wire::security::Seccomp as Wire;
    wire::Security {
        privileged: security.privileged,
        cap_add: security.cap_add.iter().map(|name| String::from(*name)).collect(),
        cap_drop: security.cap_drop.iter().map(|name| String::from(*name)).collect(),
        no_new_privileges: security.no_new_privileges,
        seccomp: Some(match &security.seccomp {
            Seccomp::Default => Wire::SeccompDefault(true),
            Seccomp::Unconfined => Wire::SeccompUnconfined(true),
            Seccomp::Profile(text) => Wire::SeccompProfile(text.clone().into_bytes()),
        }),
    }
}

fn restart(policy: RestartPolicy) -> wire::RestartPolicy {
    use wire::restart_policy::Kind;
    let (kind, max_retries) = match policy {
        RestartPolicy::No => (Kind::No, 0),
        RestartPolicy::OnFailure { max_retries } => (Kind::OnFailure, max_retries),
        RestartPolicy::Always => (Kind::Always, 0),
        RestartPolicy::UnlessStopped => (Kind::UnlessStopped, 0),
    };
    wire::RestartPolicy { kind: kind.into(), max_retries }
}

fn ulimit(limit: &crate::engine::container::wanted::Ulimit) -> wire::Ulimit {
    let value = |limit: Option<u64>| limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1));
    wire::Ulimit { name: limit.name.clone(), soft: value(limit.soft), hard: value(limit.hard) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_can_be_asked_for_again() {
        let asked = wire::ContainerSpec {
            image: "busybox".to_owned(),
            name: "web".to_owned(),
            command: vec!["sh".to_owned()],
            entrypoint: vec![String::new()],
            env: vec!["A=1".to_owned()],
            working_dir: "/w".to_owned(),
            user: "1:2".to_owned(),
            hostname: "box".to_owned(),
            tty: true,
            open_stdin: true,
            stdin_once: true,
            labels: [("a".to_owned(), "b".to_owned())].into(),
            mounts: vec![
                wire::Mount {
                    kind: wire::mount::Kind::Bind.into(),
                    source: "/s".to_owned(),
                    target: "/t".to_owned(),
                    read_only: true,
                    propagation: "rslave".to_owned(),
                    create_source: true,
                    ..Default::default()
                },
                wire::Mount {
                    kind: wire::mount::Kind::Tmpfs.into(),
                    target: "/tmp".to_owned(),
                    tmpfs_size: 5,
                    tmpfs_mode: 0o700,
                    ..Default::default()
                },
            ],
            network: Some(wire::Network {
                mode: wire::network::Mode::Bridge.into(),
                ports: vec![wire::PortMapping {
                    host_ip: "127.0.0.1".to_owned(),
                    host_port: 8080,
                    container_port: 80,
                    protocol: "tcp".to_owned(),
                }],
            }),
            resources: Some(wire::Resources { memory: 8 << 20, nano_cpus: 1_000_000_000, pids_limit: 5 }),
            security: Some(wire::Security {
                privileged: true,
                cap_add: vec!["ALL".to_owned()],
                cap_drop: vec!["CAP_CHOWN".to_owned()],
                no_new_privileges: true,
                seccomp: Some(wire::security::Seccomp::SeccompUnconfined(true)),
            }),
            stop_signal: "SIGQUIT".to_owned(),
            stop_timeout_s: 3,
            restart: Some(wire::RestartPolicy { kind: wire::restart_policy::Kind::OnFailure.into(), max_retries: 2 }),
            auto_remove: false,
            read_only_rootfs: true,
            ulimits: vec![wire::Ulimit { name: "nofile".to_owned(), soft: 5, hard: -1 }],
        };
        let wanted = super::super::wanted::container(Some(asked.clone()), 2).unwrap();
        assert_eq!(spec(&wanted), asked);
    }
}
