//! Device nodes that a container gets, and the rules of its device cgroup.

use std::path::PathBuf;

use crate::fault::{Code, Fault, Result};
use crate::path::clean;
use crate::spec;

/// A node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    pub path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with the permissions.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// One rule of the device cgroup; a missing number is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    pub kind: DeviceKind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

/// Which devices a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    All,
    Block,
    Char,
}

/// What may be done with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl Access {
    pub const ALL: Access = Access { read: true, write: true, mknod: true };
    const MKNOD: Access = Access { read: false, write: false, mknod: true };

    fn parse(text: &str) -> Option<Access> {
        let mut access = Access::default();
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                // As runc, which knows three letters and passes over this one.
                'a' => {}
                _ => return None,
            }
        }
        (!text.is_empty()).then_some(access)
    }

    /// This and that.
    pub fn with(self, other: Access) -> Access {
        Access { read: self.read | other.read, write: self.write | other.write, mknod: self.mknod | other.mknod }
    }

    /// This less that.
    pub fn without(self, other: Access) -> Access {
        Access { read: self.read & !other.read, write: self.write & !other.write, mknod: self.mknod & !other.mknod }
    }

    /// As it was parsed, in the order of the kernel's files.
    pub fn letters(self) -> String {
        let all = [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')];
        all.iter().filter(|(has, _)| *has).map(|(_, letter)| letter).collect()
    }
}

/// Devices that every container gets: name below `/dev`, major, minor.
const DEFAULT_NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("random", 1, 8), ("full", 1, 7), ("tty", 5, 0), ("zero", 1, 5), ("urandom", 1, 9)];

/// Devices that every container may use without a node of ours: pseudo-terminals, their multiplexer and, because much
/// software above runc relies on it, the tunnel device.
const DEFAULT_ACCESS: [(u32, Option<u32>); 3] = [(136, None), (5, Some(2)), (10, Some(200))];

/// The nodes to make: the default ones, but for those that the section names itself, and the section's.
pub fn nodes(section: &[spec::Device]) -> Result<Vec<DeviceNode>> {
    let named: Vec<PathBuf> = section.iter().map(|device| clean(&device.path)).collect();
    let mut nodes: Vec<DeviceNode> = DEFAULT_NODES
        .iter()
        .map(|&(name, major, minor)| DeviceNode {
            path: PathBuf::from("/dev").join(name),
            mode: libc::S_IFCHR | 0o666,
            major,
            minor,
            uid: 0,
            gid: 0,
        })
        .filter(|node| !named.contains(&node.path))
        .collect();
    for (index, device) in section.iter().enumerate() {
        let kind = kind(index, device)?;
        // As runc: one without a path is there for the cgroup only.
        if !device.path.is_empty() {
            nodes.push(node(index, device, kind)?);
        }
    }
    Ok(nodes)
}

fn invalid(index: usize, cause: String) -> Box<Fault> {
    Fault::new(Code::SpecInvalid, format!("linux.devices[{index}]")).cause(cause)
}

fn kind(index: usize, device: &spec::Device) -> Result<u32> {
    match device.kind.as_str() {
        "c" | "u" => Ok(libc::S_IFCHR),
        "b" => Ok(libc::S_IFBLK),
        "p" => Ok(libc::S_IFIFO),
        other => Err(invalid(index, format!("invalid device type {other:?}"))),
    }
}

fn node(index: usize, device: &spec::Device, kind: u32) -> Result<DeviceNode> {
    let invalid = |cause: String| invalid(index, cause);
    let number = |value: i64, name: &str| {
        u32::try_from(value).map_err(|_| invalid(format!("{name} {value} is not a device number")))
    };
    Ok(DeviceNode {
        path: clean(&device.path),
        mode: kind | device.file_mode.unwrap_or(0o666) & 0o7777,
        major: number(device.major, "major")?,
        minor: number(device.minor, "minor")?,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}

/// The rules in the order in which they count: the section's, then those of the default devices, which like runc's are
/// always in force.
pub fn rules(section: &[spec::DeviceRule]) -> Result<Vec<DeviceRule>> {
    let mut rules = Vec::with_capacity(section.len() + 12);
    for (index, entry) in section.iter().enumerate() {
        rules.push(rule(index, entry)?);
    }
    let allow = |kind, major, minor, access| DeviceRule { allow: true, kind, major, minor, access };
    rules.push(allow(DeviceKind::Char, None, None, Access::MKNOD));
    rules.push(allow(DeviceKind::Block, None, None, Access::MKNOD));
    for (_, major, minor) in DEFAULT_NODES {
        rules.push(allow(DeviceKind::Char, Some(major), Some(minor), Access::ALL));
    }
    for (major, minor) in DEFAULT_ACCESS {
        rules.push(allow(DeviceKind::Char, Some(major), minor, Access::ALL));
    }
    Ok(rules)
}

fn rule(index: usize, entry: &spec::DeviceRule) -> Result<DeviceRule> {
    let field = format!("linux.resources.devices[{index}]");
    let invalid = |cause: String| Fault::new(Code::SpecInvalid, field.clone()).cause(cause);
    let kind = match entry.kind.as_str() {
        "" | "a" => DeviceKind::All,
        "b" => DeviceKind::Block,
        "c" => DeviceKind::Char,
        other => return Err(invalid(format!("invalid cgroup device type {other:?}"))),
    };
    if entry.access.is_empty() {
        return Err(invalid("device access field cannot be empty".to_owned()));
    }
    let access = Access::parse(&entry.access).ok_or_else(|| invalid(format!("invalid access {:?}", entry.access)))?;
    // -1 is the wildcard of runc's own structures and reaches us from callers that print those.
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| invalid(format!("{value} is not a device number"))),
    };
    Ok(DeviceRule { allow: entry.allow, kind, major: number(entry.major)?, minor: number(entry.minor)?, access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_the_section_takes_the_place_of_a_default_one() {
        let device = spec::Device {
            path: "/dev/./null".to_owned(),
            kind: "c".to_owned(),
            major: 1,
            minor: 3,
            file_mode: Some(0o600),
            ..spec::Device::default()
        };
        let nodes = nodes(&[device]).unwrap();
        let null: Vec<_> = nodes.iter().filter(|node| node.path.ends_with("null")).collect();
        assert_eq!(null.len(), 1);
        assert_eq!(null[0].mode, libc::S_IFCHR | 0o600);
    }

    #[test]
    fn impossible_devices_and_rules_name_their_field() {
        let device = spec::Device { path: "/dev/x".to_owned(), kind: "x".to_owned(), ..spec::Device::default() };
        assert!(nodes(&[device]).unwrap_err().one_line().contains("linux.devices[0]"));
        let rule = spec::DeviceRule { allow: true, access: "rx".to_owned(), ..spec::DeviceRule::default() };
        assert!(rules(&[rule]).unwrap_err().one_line().contains("linux.resources.devices[0]"));
        assert!(rules(&[spec::DeviceRule::default()]).is_err());
    }

    #[test]
    fn the_sections_rules_come_first() {
        let deny = spec::DeviceRule { access: "rwm".to_owned(), ..spec::DeviceRule::default() };
        let rules = rules(&[deny]).unwrap();
        assert!(!rules[0].allow);
        assert!(rules[1..].iter().all(|rule| rule.allow));
    }
}
