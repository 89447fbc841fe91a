//! Published ports as `ps` shows them.

use proto_engine::PortMapping;

/// A run of neighbouring ports that are published under their own numbers.
struct Group {
    host_ip: String,
    protocol: String,
    first: u32,
    last: u32,
}

/// `0.0.0.0:8080->80/tcp, 0.0.0.0:90-92->90-92/tcp`: neighbours are joined where host and container use the same
/// numbers; the others come last.
pub(crate) fn shown(ports: &[PortMapping]) -> String {
    let mut ports: Vec<PortMapping> = ports.to_vec();
    ports.sort_by(|one, other| key(one).cmp(&key(other)));
    let mut groups: Vec<Group> = Vec::new();
    let mut singles: Vec<String> = Vec::new();
    for port in &ports {
        if port.host_port != port.container_port {
            singles.push(format!("{}:{}->{}/{}", host(port), port.host_port, port.container_port, protocol(port)));
            continue;
        }
        add_to_groups(&mut groups, port);
    }
    let grouped = groups.iter().map(group_text);
    grouped.chain(singles).collect::<Vec<_>>().join(", ")
}

fn add_to_groups(groups: &mut Vec<Group>, port: &PortMapping) {
    let fits = |group: &&mut Group| {
        group.host_ip == host(port) && group.protocol == protocol(port) && group.last + 1 == port.container_port
    };
    match groups.iter_mut().find(fits) {
        Some(group) => group.last = port.container_port,
        None => groups.push(Group {
            host_ip: host(port),
            protocol: protocol(port).to_owned(),
            first: port.container_port,
            last: port.container_port,
        }),
    }
}

fn group_text(group: &Group) -> String {
    let ports =
        if group.first == group.last { group.first.to_string() } else { format!("{}-{}", group.first, group.last) };
    format!("{}:{ports}->{ports}/{}", group.host_ip, group.protocol)
}

fn key(port: &PortMapping) -> (u32, &str, u32, &str) {
    (port.container_port, &port.host_ip, port.host_port, &port.protocol)
}

/// The host's address as it is written before a port.
pub(crate) fn host(port: &PortMapping) -> String {
    match port.host_ip.as_str() {
        "" => "0.0.0.0".to_owned(),
        address if address.contains(':') => format!("[{address}]"),
        address => address.to_owned(),
    }
}

/// The protocol's word; what is not said is tcp.
pub(crate) fn protocol(port: &PortMapping) -> &str {
    if port.protocol.is_empty() { "tcp" } else { &port.protocol }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host_port: u32, container_port: u32, protocol: &str) -> PortMapping {
        PortMapping { host_ip: host_ip.to_owned(), host_port, container_port, protocol: protocol.to_owned() }
    }

    #[test]
    fn ports_are_grouped_as_docker_does() {
        for (ports, text) in [
            (vec![], ""),
            (vec![port("", 8080, 80, "")], "0.0.0.0:8080->80/tcp"),
            (vec![port("127.0.0.1", 80, 80, "tcp")], "127.0.0.1:80->80/tcp"),
            (
                vec![port("", 91, 91, "tcp"), port("", 90, 90, "tcp"), port("", 92, 92, "tcp")],
                "0.0.0.0:90-92->90-92/tcp",
            ),
            (
                vec![port("", 53, 53, "udp"), port("", 53, 53, "tcp"), port("::1", 1, 2, "tcp")],
                "0.0.0.0:53->53/tcp, 0.0.0.0:53->53/udp, [::1]:1->2/tcp",
            ),
            (vec![port("", 90, 90, "tcp"), port("", 92, 92, "tcp")], "0.0.0.0:90->90/tcp, 0.0.0.0:92->92/tcp"),
        ] {
            assert_eq!(shown(&ports), text);
        }
    }
}
