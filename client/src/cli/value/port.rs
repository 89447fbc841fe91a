//! `--publish`: `[[ip:][hostPort]:]containerPort[/protocol]`, with ranges.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use proto_engine::PortMapping;

use super::Parsed;

/// The mappings that one `--publish` stands for.
pub(crate) fn publish(text: &str) -> Parsed<Vec<PortMapping>> {
    let (ip, host, container) = parts(text);
    let (container, protocol) = split_protocol(container)?;
    if container.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    let host_ip = host_address(ip)?;
    let ports = range(container).map_err(|why| format!("invalid containerPort: {container}: {why}"))?;
    if *ports.start() == 0 {
        return Err(format!("invalid containerPort: {container}: port 0 cannot be published"));
    }
    let host_ports = match host {
        "" => None,
        host => Some(range(host).map_err(|why| format!("invalid hostPort: {host}: {why}"))?),
    };
    if let Some(hosts) = &host_ports
        && hosts.len() != ports.len()
    {
        return Err(unequal(hosts, &ports, host, container));
    }
    Ok(mappings(&host_ip, host_ports, ports, &protocol))
}

/// Address, host port and container port; the address may hold colons.
fn parts(text: &str) -> (&str, &str, &str) {
    let Some((before, container)) = text.rsplit_once(':') else { return ("", "", text) };
    match before.rsplit_once(':') {
        Some((ip, host)) => (ip, host, container),
        None => ("", before, container),
    }
}

fn split_protocol(port: &str) -> Parsed<(&str, String)> {
    let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    match protocol.to_ascii_lowercase().as_str() {
        known @ ("tcp" | "udp") => Ok((port, known.to_owned())),
        "" => Ok((port, "tcp".to_owned())),
        "sctp" => Err("invalid proto: sctp: only tcp and udp are published".to_owned()),
        other => Err(format!("invalid proto: {other}")),
    }
}

fn host_address(text: &str) -> Parsed<String> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(|| format!("invalid IP address: {text}"))?,
        None => text,
    };
    if bare.is_empty() && text.is_empty() {
        return Ok(String::new());
    }
    let address: IpAddr = bare.parse().map_err(|_| format!("invalid IP address: {bare}"))?;
    Ok(address.to_string())
}

fn range(text: &str) -> Parsed<RangeInclusive<u16>> {
    let port = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u16>().ok()).flatten().ok_or_else(|| format!("\"{digits}\" is not a port"))
    };
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (port(start)?, port(end)?),
        None => (port(text)?, port(text)?),
    };
    if end < start {
        return Err(format!("the range ends before it begins: {text}"));
    }
    Ok(start..=end)
}

fn unequal(hosts: &RangeInclusive<u16>, ports: &RangeInclusive<u16>, host: &str, container: &str) -> String {
    if ports.len() == 1 && hosts.len() > 1 {
        return format!(
            "a range of host ports ({host}) for the one container port {container} is not supported: \
             name one host port, or none for a free one"
        );
    }
    format!("invalid ranges specified for container and host Ports: {container} and {host}")
}

fn mappings(
    host_ip: &str,
    host_ports: Option<RangeInclusive<u16>>,
    ports: RangeInclusive<u16>,
    protocol: &str,
) -> Vec<PortMapping> {
    let first = *ports.start();
    let host_port = |port: u16| host_ports.as_ref().map_or(0, |hosts| hosts.start() + (port - first));
    ports
        .map(|port| PortMapping {
            host_ip: host_ip.to_owned(),
            host_port: host_port(port).into(),
            container_port: port.into(),
            protocol: protocol.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        let mappings = publish(text)?;
        let shown =
            mappings.iter().map(|m| format!("{}|{}|{}|{}", m.host_ip, m.host_port, m.container_port, m.protocol));
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn accepted_as_docker_does() {
        for (text, mappings) in [
            ("80", "|0|80|tcp"),
            ("8080:80", "|8080|80|tcp"),
            ("8080:80/udp", "|8080|80|udp"),
            ("8080:80/TCP", "|8080|80|tcp"),
            ("127.0.0.1:8080:80", "127.0.0.1|8080|80|tcp"),
            ("127.0.0.1::80", "127.0.0.1|0|80|tcp"),
            ("[::1]:8080:80", "::1|8080|80|tcp"),
            ("::1:8080:80", "::1|8080|80|tcp"),
            ("80-81", "|0|80|tcp |0|81|tcp"),
            ("8080-8081:80-81/udp", "|8080|80|udp |8081|81|udp"),
            ("0.0.0.0:0:80", "0.0.0.0|0|80|tcp"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(mappings), "{text}");
        }
    }

    #[test]
    fn refused_in_dockers_words() {
        for (text, words) in [
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("asdf", "invalid containerPort: asdf"),
            ("asdf:80", "invalid hostPort: asdf"),
            ("80/asdf", "invalid proto: asdf"),
            ("80/sctp", "invalid proto: sctp"),
            ("65536", "invalid containerPort: 65536"),
            ("65536:80", "invalid hostPort: 65536"),
            ("0", "port 0 cannot be published"),
            ("300.1.1.1:80:80", "invalid IP address: 300.1.1.1"),
            ("localhost:80:80", "invalid IP address: localhost"),
            ("[::1:80:80", "invalid IP address"),
            ("8080-8081:80-85", "invalid ranges specified"),
            ("8080-8085:80", "range of host ports"),
            ("90-80", "ends before it begins"),
            ("-80", "invalid containerPort"),
        ] {
            let error = shown(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9a:./\\[\\]-]{0,20}") {
            let _ = publish(&text);
        }
    }
}
