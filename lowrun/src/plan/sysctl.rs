//! Kernel parameters: which a container may set, and where they are below `/proc/sys`.

use std::collections::BTreeMap;

use crate::fault::{Code, Fault, Result};
use crate::plan::namespaces::{Kind, Namespaces};

/// Parameters that belong to the ipc namespace.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Path below `/proc` and value of each parameter of the section.
///
/// Only what a namespace of the container holds may be set, by the same rules as runc's; whether a joined namespace is
/// the host's own is checked where it is opened.
pub fn parse(section: &BTreeMap<String, String>, namespaces: &Namespaces) -> Result<Vec<(String, String)>> {
    let mut parameters = Vec::with_capacity(section.len());
    for (name, value) in section {
        let dotted = dotted(name);
        if let Some(cause) = refusal(&dotted, namespaces) {
            return Err(Fault::new(Code::SpecInvalid, format!("linux.sysctl {name:?}")).cause(cause));
        }
        let path = dotted.chars().map(swap).collect::<String>();
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(Fault::new(Code::SpecInvalid, format!("linux.sysctl {name:?}")).cause("not a parameter's name"));
        }
        parameters.push((format!("sys/{path}"), value.clone()));
    }
    Ok(parameters)
}

/// The kind of namespace that a parameter belongs to, by the path that [`parse`] gave it.
pub fn kind_of(path: &str) -> Kind {
    match path.strip_prefix("sys/").unwrap_or(path) {
        "kernel/domainname" => Kind::Uts,
        path if path.starts_with("net/") => Kind::Network,
        path if path.starts_with("user/") => Kind::User,
        _ => Kind::Ipc,
    }
}

/// Why a parameter may not be set.
fn refusal(name: &str, namespaces: &Namespaces) -> Option<&'static str> {
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        return (!namespaces.has(Kind::Ipc)).then_some("not allowed in the host's ipc namespace");
    }
    if name.starts_with("net.") {
        return (!namespaces.has(Kind::Network)).then_some("not allowed in host network namespace");
    }
    match name {
        "kernel.domainname" if namespaces.has(Kind::Uts) => None,
        "kernel.hostname" if namespaces.has(Kind::Uts) => Some("conflicts with the field \"hostname\""),
        _ if name.starts_with("user.") => {
            (!namespaces.has(Kind::User)).then_some("setting ucounts without a user namespace not allowed")
        }
        _ => Some("is not in a separate kernel namespace"),
    }
}

/// A name with its separators as dots: the first separator tells which of the two forms of sysctl(8) it is in.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

fn swap(letter: char) -> char {
    match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    fn namespaces(kinds: &[&str]) -> Namespaces {
        let section: Vec<_> =
            kinds.iter().map(|kind| spec::Namespace { kind: (*kind).to_owned(), path: String::new() }).collect();
        Namespaces::parse(&section).unwrap()
    }

    fn one(name: &str, kinds: &[&str]) -> Result<Vec<(String, String)>> {
        parse(&BTreeMap::from([(name.to_owned(), "1".to_owned())]), &namespaces(kinds))
    }

    #[test]
    fn both_forms_of_a_name_lead_to_the_same_file() {
        for name in ["net.ipv4.conf.eno2/100.rp_filter", "net/ipv4/conf/eno2.100/rp_filter"] {
            let parsed = one(name, &["network"]).unwrap();
            assert_eq!(parsed[0].0, "sys/net/ipv4/conf/eno2.100/rp_filter", "{name}");
        }
    }

    #[test]
    fn only_namespaced_parameters_are_allowed() {
        for (name, kinds, allowed) in [
            ("kernel.shmmax", &["ipc"][..], true),
            ("kernel.shmmax", &[], false),
            ("net.ipv4.ip_forward", &[], false),
            ("kernel.hostname", &["uts"], false),
            ("kernel.domainname", &["uts"], true),
            ("kernel.core_pattern", &["ipc", "uts", "network", "user"], false),
            ("user.max_user_namespaces", &[], false),
            ("vm.swappiness", &["ipc"], false),
            ("net.ipv4..x", &["network"], false),
            ("net.ipv4.//.x", &["network"], false),
        ] {
            assert_eq!(one(name, kinds).is_ok(), allowed, "{name} in {kinds:?}");
        }
    }
}
