//! What a container's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` hold. Pure: the core writes the files.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Where systemd-resolved keeps the real servers, while `/etc/resolv.conf` names its own stub.
pub(crate) const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
/// The address of that stub.
const RESOLVED_STUB: &str = "127.0.0.53";
/// Asked when the host names no server that a container can reach; the same as Docker's.
const FALLBACK_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The names that every container knows.
const HOSTS: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// `/etc/hosts`: the standard names, `extra` names, and the container's own name with its address, if it has one.
/// Of a name with a domain both the full and the short form are written.
pub(crate) fn hosts(hostname: &str, address: Option<IpAddr>, extra: &[(String, IpAddr)]) -> String {
    let mut text = HOSTS.to_owned();
    for (name, ip) in extra {
        let _ = writeln!(text, "{ip}\t{name}");
    }
    if let Some(ip) = address {
        let _ = match hostname.split_once('.') {
            Some((short, _)) if !short.is_empty() => writeln!(text, "{ip}\t{hostname} {short}"),
            _ => writeln!(text, "{ip}\t{hostname}"),
        };
    }
    text
}

/// `/etc/hostname`.
pub(crate) fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}

/// What was asked for instead of the host's own; each list that is empty is the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<IpAddr>,
    /// `.` alone means no search domains at all.
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// Whether the host's `/etc/resolv.conf` names nothing but systemd-resolved's stub: then [`RESOLVED_FILE`] is to be read
/// in its place.
pub(crate) fn names_resolved_stub(host: &str) -> bool {
    let servers = Parsed::of(host).servers;
    !servers.is_empty() && servers.iter().all(|server| *server == RESOLVED_STUB)
}

/// `/etc/resolv.conf` of a container on the bridge, by Docker's rules: servers on the host's loopback are left out, as
/// the container's loopback is another; so are IPv6 servers, which it cannot reach; and when none is left, public ones
/// stand in. A container in the host's own network takes the host's file as it is.
pub(crate) fn resolv_conf(host: &str, dns: &Dns) -> String {
    let host = Parsed::of(host);
    let servers = if dns.servers.is_empty() {
        reachable_or_fallback(&host.servers)
    } else {
        dns.servers.iter().map(IpAddr::to_string).collect()
    };
    let or_host = |asked: &[String], host: &[&str]| -> Vec<String> {
        if asked.is_empty() { host.iter().map(|word| (*word).to_owned()).collect() } else { asked.to_vec() }
    };
    let search = or_host(&dns.search, &host.search);
    let options = or_host(&dns.options, &host.options);

    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

fn reachable_or_fallback(servers: &[&str]) -> Vec<String> {
    let reachable = |server: &&str| match server.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => !ip.is_loopback(),
        // What is not an address (`fe80::1%eth0` has a link's name in it) is no use inside.
        Ok(IpAddr::V6(_)) | Err(_) => false,
    };
    let kept: Vec<String> = servers.iter().copied().filter(|server| reachable(server)).map(str::to_owned).collect();
    if kept.is_empty() { FALLBACK_SERVERS.map(str::to_owned).to_vec() } else { kept }
}

/// The lines of a resolv.conf that count.
#[derive(Default)]
struct Parsed<'a> {
    servers: Vec<&'a str>,
    search: Vec<&'a str>,
    options: Vec<&'a str>,
}

impl<'a> Parsed<'a> {
    /// As the resolver reads it: the last `search` or `domain` wins, options add up, `#` and `;` begin a comment.
    fn of(text: &'a str) -> Parsed<'a> {
        let mut parsed = Parsed::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => parsed.servers.extend(words.next()),
                Some("search" | "domain") => parsed.search = words.collect(),
                Some("options") => parsed.options.extend(words),
                _ => {}
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_end_with_the_containers_own_name() {
        let extra = [("db".to_owned(), "10.0.0.9".parse().unwrap())];
        let text = hosts("web.example.org", Some("10.88.0.2".parse().unwrap()), &extra);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.9\tdb\n10.88.0.2\tweb.example.org web\n"), "{text}");
        assert!(!hosts("web", None, &[]).contains("web"));
        assert_eq!(hostname("web"), "web\n");
    }

    #[test]
    fn servers_on_the_loopback_and_of_ipv6_are_left_out() {
        let host = "# mine\nnameserver 127.0.0.53\nnameserver 192.0.2.7\nnameserver ::1\nnameserver 2001:db8::1\n\
                    search a.example\nsearch b.example c.example\noptions ndots:2\noptions edns0 ; trailing\n";
        assert_eq!(
            resolv_conf(host, &Dns::default()),
            "nameserver 192.0.2.7\nsearch b.example c.example\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn with_no_server_left_public_ones_stand_in() {
        for host in ["", "nameserver 127.0.0.1\n", "nameserver fe80::1%eth0\n"] {
            assert_eq!(resolv_conf(host, &Dns::default()), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "{host}");
        }
    }

    #[test]
    fn what_is_asked_for_wins() {
        let dns = Dns {
            servers: vec!["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            search: vec![".".to_owned()],
            options: vec!["ndots:1".to_owned()],
        };
        let host = "nameserver 192.0.2.7\nsearch a.example\noptions rotate\n";
        assert_eq!(resolv_conf(host, &dns), "nameserver 192.0.2.1\nnameserver 127.0.0.1\noptions ndots:1\n");
    }

    #[test]
    fn the_stub_is_known_only_when_it_is_alone() {
        assert!(names_resolved_stub("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"));
        assert!(!names_resolved_stub("nameserver 127.0.0.53\nnameserver 192.0.2.7\n"));
        assert!(!names_resolved_stub("search .\n"));
    }

    proptest! {
        /// Whatever stands in the host's file, a container gets at least one server, and only ones it can reach.
        #[test]
        fn a_container_always_has_a_server_it_can_reach(host in "(nameserver [0-9a-f.:]{0,15}\n|[a-z #;]{0,20}\n){0,8}") {
            let text = resolv_conf(&host, &Dns::default());
            let servers = Parsed::of(&text).servers;
            prop_assert!(!servers.is_empty());
            for server in servers {
                prop_assert!(matches!(server.parse(), Ok(IpAddr::V4(ip)) if !ip.is_loopback()));
            }
        }
    }
}
