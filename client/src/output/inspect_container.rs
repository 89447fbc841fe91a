//! A container in docker's `inspect` shape: its key names and nesting, filled with what engined knows. Keys that docker
//! has and Strata cannot fill truthfully are left out; `State.Problem` is Strata's own.

use std::collections::BTreeMap;

use proto_engine::{
    ContainerDetail, ContainerSpec, Endpoint, Exit, Mount, PortMapping, Problem, State, mount, network, restart_policy,
    security, state::Status,
};

use super::container::state_word;
use super::value::Value;
use super::{ports, time};

/// The whole object.
pub(crate) fn object(detail: &ContainerDetail) -> Value {
    let summary = detail.summary.clone().unwrap_or_default();
    let state = summary.state.clone().unwrap_or_default();
    let spec = detail.spec.clone().unwrap_or_default();
    let (path, args) = detail.args.split_first().map_or((String::new(), &[][..]), |(path, args)| (path.clone(), args));
    Value::structure([
        ("Id", summary.id.as_str().into()),
        ("Created", time::utc(summary.created.as_ref()).into()),
        ("Path", path.into()),
        ("Args", Value::words(args)),
        ("State", state_object(&state)),
        ("Image", summary.image_id.as_str().into()),
        ("ResolvConfPath", detail.resolv_conf_path.as_str().into()),
        ("HostnamePath", detail.hostname_path.as_str().into()),
        ("HostsPath", detail.hosts_path.as_str().into()),
        ("LogPath", detail.log_path.as_str().into()),
        ("Name", format!("/{}", summary.name).into()),
        ("RestartCount", state.restart_count.into()),
        ("Platform", "linux".into()),
        ("HostConfig", host_config(&spec)),
        ("Mounts", Value::list(spec.mounts.iter().map(mount_point))),
        ("Config", config(detail, &spec)),
        ("NetworkSettings", network_settings(detail, &spec)),
    ])
}

fn state_object(state: &State) -> Value {
    let exit = state.exit.clone().unwrap_or_default();
    let status = state.status();
    let runs = matches!(status, Status::Running | Status::Paused | Status::Restarting);
    Value::structure([
        ("Status", state_word(status).into()),
        ("Running", runs.into()),
        ("Paused", (status == Status::Paused).into()),
        ("Restarting", (status == Status::Restarting).into()),
        ("OOMKilled", exit.oom_killed.into()),
        ("Dead", (status == Status::Dead).into()),
        ("Pid", state.pid.into()),
        ("ExitCode", if runs { Value::Int(0) } else { exit.code.into() }),
        ("Error", exit.problem.as_ref().map_or("", |problem| &problem.message).into()),
        ("StartedAt", time::utc(state.started.as_ref()).into()),
        ("FinishedAt", time::utc(exit.at.as_ref()).into()),
        ("ExitUnknown", exit.unknown.into()),
        ("Problem", problem(&exit)),
    ])
}

fn problem(exit: &Exit) -> Value {
    let Some(Problem { layer, step, code, message, causes, hint }) = &exit.problem else { return Value::Null };
    Value::structure([
        ("Layer", layer.as_str().into()),
        ("Step", step.as_str().into()),
        ("Code", code.as_str().into()),
        ("Message", message.as_str().into()),
        ("Causes", Value::words(causes)),
        ("Hint", hint.as_str().into()),
    ])
}

fn host_config(spec: &ContainerSpec) -> Value {
    let resources = spec.resources.unwrap_or_default();
    let security = spec.security.clone().unwrap_or_default();
    let binds: Vec<String> = spec.mounts.iter().filter(|mount| mount.create_source).map(bind).collect();
    Value::structure([
        ("Binds", Value::words_or_null(&binds)),
        ("NetworkMode", network_mode(spec).into()),
        ("PortBindings", port_bindings(&network_ports(spec))),
        ("RestartPolicy", restart_policy(spec)),
        ("AutoRemove", spec.auto_remove.into()),
        ("CapAdd", Value::words_or_null(&security.cap_add)),
        ("CapDrop", Value::words_or_null(&security.cap_drop)),
        ("Privileged", security.privileged.into()),
        ("ReadonlyRootfs", spec.read_only_rootfs.into()),
        ("SecurityOpt", Value::words_or_null(&security_options(&security))),
        ("Tmpfs", tmpfs(spec)),
        ("Memory", resources.memory.into()),
        ("NanoCpus", resources.nano_cpus.into()),
        ("PidsLimit", if resources.pids_limit == 0 { Value::Null } else { Value::Int(resources.pids_limit) }),
        ("Ulimits", Value::list(spec.ulimits.iter().map(ulimit))),
    ])
}

fn ulimit(limit: &proto_engine::Ulimit) -> Value {
    Value::structure([("Name", limit.name.as_str().into()), ("Hard", limit.hard.into()), ("Soft", limit.soft.into())])
}

fn restart_policy(spec: &ContainerSpec) -> Value {
    let policy = spec.restart.unwrap_or_default();
    let name = match policy.kind() {
        restart_policy::Kind::No => "no",
        restart_policy::Kind::OnFailure => "on-failure",
        restart_policy::Kind::Always => "always",
        restart_policy::Kind::UnlessStopped => "unless-stopped",
    };
    Value::structure([("Name", name.into()), ("MaximumRetryCount", policy.max_retries.into())])
}

fn security_options(security: &proto_engine::Security) -> Vec<String> {
    let mut options = Vec::new();
    if security.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    match &security.seccomp {
        Some(security::Seccomp::SeccompUnconfined(true)) => options.push("seccomp=unconfined".to_owned()),
        Some(security::Seccomp::SeccompProfile(profile)) => {
            options.push(format!("seccomp={}", String::from_utf8_lossy(profile)));
        }
        _ => {}
    }
    options
}

/// A bind mount as `-v` writes it.
fn bind(mount: &Mount) -> String {
    let mut options = Vec::new();
    if mount.read_only {
        options.push("ro");
    }
    if !mount.propagation.is_empty() {
        options.push(&mount.propagation);
    }
    let colon = if options.is_empty() { "" } else { ":" };
    format!("{}:{}{colon}{}", mount.source, mount.target, options.join(","))
}

fn tmpfs(spec: &ContainerSpec) -> Value {
    let of_kind = spec.mounts.iter().filter(|mount| mount.kind() == mount::Kind::Tmpfs);
    Value::map(of_kind.map(|mount| (mount.target.clone(), Value::Text(tmpfs_options(mount)))))
}

fn tmpfs_options(mount: &Mount) -> String {
    let mut options = Vec::new();
    if mount.read_only {
        options.push("ro".to_owned());
    }
    if mount.tmpfs_size > 0 {
        options.push(format!("size={}", mount.tmpfs_size));
    }
    if mount.tmpfs_mode > 0 {
        options.push(format!("mode={:o}", mount.tmpfs_mode));
    }
    options.join(",")
}

fn mount_point(mount: &Mount) -> Value {
    let kind = if mount.kind() == mount::Kind::Tmpfs { "tmpfs" } else { "bind" };
    let propagation = match (mount.kind(), mount.propagation.as_str()) {
        (mount::Kind::Tmpfs, _) => "",
        (_, "") => "rprivate",
        (_, said) => said,
    };
    Value::structure([
        ("Type", kind.into()),
        ("Source", mount.source.as_str().into()),
        ("Destination", mount.target.as_str().into()),
        ("Mode", if mount.read_only { "ro" } else { "" }.into()),
        ("RW", (!mount.read_only).into()),
        ("Propagation", propagation.into()),
    ])
}

fn config(detail: &ContainerDetail, spec: &ContainerSpec) -> Value {
    let labels = detail.summary.as_ref().map_or_else(Default::default, |summary| summary.labels.clone());
    // The whole command where nobody said which part of it is the image's entrypoint.
    let command = if spec.command.is_empty() {
        detail.args.get(spec.entrypoint.len()..).unwrap_or_default()
    } else {
        &spec.command
    };
    Value::structure([
        ("Hostname", detail.hostname.as_str().into()),
        ("User", detail.user.as_str().into()),
        ("Tty", spec.tty.into()),
        ("OpenStdin", spec.open_stdin.into()),
        ("StdinOnce", spec.stdin_once.into()),
        ("Env", Value::words(&detail.env)),
        ("Cmd", Value::words_or_null(command)),
        ("Image", spec.image.as_str().into()),
        ("WorkingDir", detail.working_dir.as_str().into()),
        ("Entrypoint", Value::words_or_null(&spec.entrypoint)),
        ("Labels", Value::word_map(&labels)),
        ("StopSignal", detail.stop_signal.as_str().into()),
        ("StopTimeout", if spec.stop_timeout_s == 0 { Value::Null } else { spec.stop_timeout_s.into() }),
    ])
}

fn network_mode(spec: &ContainerSpec) -> &'static str {
    match spec.network.as_ref().map(proto_engine::Network::mode).unwrap_or_default() {
        network::Mode::Bridge => "bridge",
        network::Mode::None => "none",
        network::Mode::Host => "host",
    }
}

fn network_ports(spec: &ContainerSpec) -> Vec<PortMapping> {
    spec.network.as_ref().map(|network| network.ports.clone()).unwrap_or_default()
}

fn port_bindings(mappings: &[PortMapping]) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in mappings {
        let host_port = if port.host_port == 0 { String::new() } else { port.host_port.to_string() };
        bindings
            .entry(format!("{}/{}", port.container_port, ports::protocol(port)))
            .or_default()
            .push(Value::structure([("HostIp", port.host_ip.as_str().into()), ("HostPort", host_port.into())]));
    }
    Value::Map(bindings.into_iter().map(|(port, hosts)| (port, Value::List(hosts))).collect())
}

fn network_settings(detail: &ContainerDetail, spec: &ContainerSpec) -> Value {
    let endpoint = detail.endpoint.clone().unwrap_or_default();
    let published: Vec<PortMapping> = endpoint.ports.iter().map(with_host_address).collect();
    let mode = network_mode(spec);
    let name = if endpoint.network.is_empty() { mode.to_owned() } else { endpoint.network.clone() };
    Value::structure([
        ("SandboxID", detail.sandbox_id.as_str().into()),
        ("SandboxKey", endpoint.netns_path.as_str().into()),
        ("Ports", port_bindings(&published)),
        ("Gateway", endpoint.gateway.as_str().into()),
        ("IPAddress", endpoint.ip_address.as_str().into()),
        ("IPPrefixLen", endpoint.prefix_len.into()),
        ("MacAddress", endpoint.mac_address.as_str().into()),
        ("Networks", Value::map([(name, network_entry(&endpoint))])),
    ])
}

fn network_entry(endpoint: &Endpoint) -> Value {
    Value::structure([
        ("MacAddress", endpoint.mac_address.as_str().into()),
        ("Gateway", endpoint.gateway.as_str().into()),
        ("IPAddress", endpoint.ip_address.as_str().into()),
        ("IPPrefixLen", endpoint.prefix_len.into()),
    ])
}

/// docker spells "every address" out where a port is really bound.
fn with_host_address(port: &PortMapping) -> PortMapping {
    let host_ip = if port.host_ip.is_empty() { "0.0.0.0".to_owned() } else { port.host_ip.clone() };
    PortMapping { host_ip, ..port.clone() }
}

#[cfg(test)]
mod tests {
    use proto_engine::{ContainerSummary, Network, Resources};

    use super::super::format::object as formatted;
    use super::super::json;
    use super::*;

    fn web() -> ContainerDetail {
        let port = PortMapping { host_ip: String::new(), host_port: 8080, container_port: 80, protocol: String::new() };
        ContainerDetail {
            summary: Some(ContainerSummary {
                id: "0123".to_owned(),
                name: "web".to_owned(),
                state: Some(State { status: Status::Running.into(), pid: 42, ..State::default() }),
                labels: [("a".to_owned(), "1".to_owned())].into(),
                ..ContainerSummary::default()
            }),
            spec: Some(ContainerSpec {
                image: "nginx".to_owned(),
                mounts: vec![Mount {
                    kind: mount::Kind::Bind.into(),
                    source: "/src".to_owned(),
                    target: "/dst".to_owned(),
                    read_only: true,
                    create_source: true,
                    ..Mount::default()
                }],
                network: Some(Network { mode: 0, ports: vec![port.clone()] }),
                resources: Some(Resources { memory: 1 << 20, ..Resources::default() }),
                ..ContainerSpec::default()
            }),
            args: vec!["nginx".to_owned(), "-g".to_owned()],
            env: vec!["A=1".to_owned()],
            endpoint: Some(Endpoint { ip_address: "10.0.0.2".to_owned(), ports: vec![port], ..Endpoint::default() }),
            ..ContainerDetail::default()
        }
    }

    #[test]
    fn templates_that_people_use() {
        for (template, shown) in [
            ("{{.State.Pid}} {{.State.Status}} {{.State.Running}}", "42 running true\n"),
            ("{{.Name}} {{.Path}} {{.Args}}", "/web nginx [-g]\n"),
            ("{{.NetworkSettings.IPAddress}}", "10.0.0.2\n"),
            ("{{.NetworkSettings.Networks.bridge.IPAddress}}", "10.0.0.2\n"),
            ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "10.0.0.2\n"),
            ("{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}", "8080\n"),
            ("{{json .NetworkSettings.Ports}}", "{\"80/tcp\":[{\"HostIp\":\"0.0.0.0\",\"HostPort\":\"8080\"}]}\n"),
            ("{{json .HostConfig.PortBindings}}", "{\"80/tcp\":[{\"HostIp\":\"\",\"HostPort\":\"8080\"}]}\n"),
            ("{{.HostConfig.Memory}} {{.HostConfig.NetworkMode}}", "1048576 bridge\n"),
            ("{{.HostConfig.RestartPolicy.Name}} {{json .HostConfig.Binds}}", "no [\"/src:/dst:ro\"]\n"),
            ("{{.Config.Image}} {{.Config.Env}} {{index .Config.Labels \"a\"}}", "nginx [A=1] 1\n"),
            ("{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}{{end}}", "bind /dst false\n"),
        ] {
            assert_eq!(formatted(template, &object(&web())).unwrap(), shown, "{template}");
        }
    }

    #[test]
    fn a_problem_is_told() {
        let mut detail = web();
        let exit = Exit {
            code: 137,
            oom_killed: true,
            problem: Some(Problem { layer: "kernel".to_owned(), message: "killed".to_owned(), ..Problem::default() }),
            ..Exit::default()
        };
        detail.summary.as_mut().unwrap().state =
            Some(State { status: Status::Exited.into(), exit: Some(exit), ..State::default() });
        let object = object(&detail);
        let state = object.field("State").unwrap();
        assert_eq!(state.field("OOMKilled"), Some(&Value::Bool(true)));
        assert_eq!(state.field("ExitCode"), Some(&Value::Int(137)));
        assert!(json::compact(state).contains("\"Problem\":{\"Layer\":\"kernel\""));
    }

    #[test]
    fn an_empty_answer_is_no_panic() {
        json::pretty(&object(&ContainerDetail::default()));
    }
}
