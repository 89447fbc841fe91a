//! Network devices that a container gets from the host.

use std::collections::BTreeMap;

use crate::fault::{Code, Fault, Result};
use crate::plan::namespaces::{Kind, Namespaces};
use crate::spec;

/// Longest name of a device, without the closing NUL.
const NAME_MAX: usize = 15;

/// A device to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    pub name: String,
    /// In the container; may hold `%d`, for a number that is free there.
    pub name_inside: String,
}

/// Reads the section.
pub fn parse(section: &BTreeMap<String, spec::NetDevice>, namespaces: &Namespaces) -> Result<Vec<NetDevice>> {
    let invalid = |field: String, cause: &str| Fault::new(Code::SpecInvalid, field).cause(cause);
    if !section.is_empty() && !namespaces.has(Kind::Network) {
        let cause = "unable to move network devices without a NET namespace";
        return Err(invalid("linux.netDevices".to_owned(), cause));
    }
    let device = |(name, device): (&String, &spec::NetDevice)| {
        let name_inside = if device.name.is_empty() { name } else { &device.name };
        match [name, name_inside].into_iter().find(|name| !is_valid(name)) {
            Some(bad) => {
                Err(invalid(format!("linux.netDevices {name:?}"), &format!("invalid network device name {bad:?}")))
            }
            None => Ok(NetDevice { name: name.clone(), name_inside: name_inside.clone() }),
        }
    };
    section.iter().map(device).collect()
}

/// As the kernel takes names.
fn is_valid(name: &str) -> bool {
    let forbidden = |letter: char| letter == '/' || letter == ':' || letter == '\0' || letter.is_ascii_whitespace();
    !name.is_empty() && name.len() <= NAME_MAX && name != "." && name != ".." && !name.contains(forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str, inside: &str, kinds: &[&str]) -> Result<Vec<NetDevice>> {
        let kinds: Vec<_> =
            kinds.iter().map(|kind| spec::Namespace { kind: (*kind).to_owned(), ..Default::default() }).collect();
        let section = BTreeMap::from([(name.to_owned(), spec::NetDevice { name: inside.to_owned() })]);
        parse(&section, &Namespaces::parse(&kinds)?)
    }

    #[test]
    fn a_device_keeps_its_name_unless_told_another() {
        assert_eq!(parsed("eth0", "", &["network"]).unwrap()[0].name_inside, "eth0");
        assert_eq!(parsed("eth0", "net%d", &["network"]).unwrap()[0].name_inside, "net%d");
    }

    #[test]
    fn names_that_the_kernel_does_not_take_are_refused() {
        for (name, inside) in
            [("", ""), ("a/b", ""), ("a:1", ""), (".", ""), ("a b", ""), ("x", ".."), ("x", "0123456789abcdef")]
        {
            assert!(parsed(name, inside, &["network"]).is_err(), "{name:?} {inside:?}");
        }
        assert!(parsed("eth0", "", &["pid"]).unwrap_err().one_line().contains("netDevices"));
    }
}
