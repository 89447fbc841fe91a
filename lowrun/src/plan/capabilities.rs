//! Capability names and sets.

use crate::spec;

/// Names by number, as in `linux/capability.h`.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets of a process, as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Capabilities {
    /// Reads the section; a missing one is five empty sets. Names that are not known come back: like runc, a warning
    /// and no error, so that a caller with a newer list works on an older kernel.
    pub fn parse(section: Option<&spec::Capabilities>) -> (Capabilities, Vec<String>) {
        let Some(section) = section else { return (Capabilities::default(), Vec::new()) };
        let mut unknown = Vec::new();
        let mut mask = |names: &[String]| mask_of(names, &mut unknown);
        let sets = Capabilities {
            bounding: mask(&section.bounding),
            effective: mask(&section.effective),
            permitted: mask(&section.permitted),
            inheritable: mask(section.inheritable.as_deref().unwrap_or_default()),
            ambient: mask(&section.ambient),
        };
        unknown.sort_unstable();
        unknown.dedup();
        (sets, unknown)
    }
}

fn mask_of(names: &[String], unknown: &mut Vec<String>) -> u64 {
    let mut mask = 0;
    for name in names {
        match NAMES.iter().position(|known| known == name) {
            Some(number) => mask |= 1 << number,
            None => unknown.push(name.clone()),
        }
    }
    mask
}

/// The numbers of a mask.
pub fn numbers(mask: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |number| mask >> number & 1 == 1)
}

/// The names of a mask.
pub fn names(mask: u64) -> String {
    let names: Vec<&str> = numbers(mask).filter_map(|number| NAMES.get(number as usize).copied()).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_at_their_numbers() {
        assert_eq!(NAMES[21], "CAP_SYS_ADMIN");
        assert_eq!(NAMES[40], "CAP_CHECKPOINT_RESTORE");
    }

    #[test]
    fn unknown_names_come_back_and_the_rest_counts() {
        let names = ["CAP_CHOWN", "CAP_MOON", "CAP_KILL"].map(str::to_owned).to_vec();
        let section = spec::Capabilities { bounding: names, ..spec::Capabilities::default() };
        let (sets, unknown) = Capabilities::parse(Some(&section));
        assert_eq!(numbers(sets.bounding).collect::<Vec<_>>(), [0, 5]);
        assert_eq!(unknown, ["CAP_MOON"]);
        assert_eq!(sets.inheritable, 0);
    }
}
