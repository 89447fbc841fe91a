//! ENOSYS for system calls that are newer than the profile.
//!
//! A profile that denies by default would also deny calls that did not exist when it was written, and programs that try
//! a new call fall back to the old one on ENOSYS, not on EPERM. So on each of the profile's architectures a call with a
//! higher number than any that the profile names gets ENOSYS, in front of the filter.
//!
//! ```text
//! load arch
//! per architecture:   is it this one?  no: next architecture
//!                     load number; on x86-64: is it of x32?
//!                     higher than the highest?  yes: return ENOSYS
//!                     on to the filter
//! ```

use libseccomp::{ScmpArch, ScmpSyscall};

use super::architecture;
use super::bpf::{
    Instruction, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_SET, LOAD_ABSOLUTE, OFFSET_ARCH, OFFSET_NUMBER, RETURN, to_bytes,
};
use crate::spec::Seccomp;

const RETURN_ERRNO: u32 = 0x0005_0000;
/// Set in the numbers of x32.
const X32_BIT: u32 = 0x4000_0000;
/// Instructions of one architecture.
const BLOCK: usize = 7;

/// `AUDIT_ARCH_*`, under which the kernel tells the architecture of a call. That of x32 is that of x86-64.
const AUDIT_ARCHES: [(ScmpArch, u32); 18] = [
    (ScmpArch::X86, 0x4000_0003),
    (ScmpArch::X8664, 0xc000_003e),
    (ScmpArch::Arm, 0x4000_0028),
    (ScmpArch::Aarch64, 0xc000_00b7),
    (ScmpArch::Mips, 0x0000_0008),
    (ScmpArch::Mips64, 0x8000_0008),
    (ScmpArch::Mips64N32, 0xa000_0008),
    (ScmpArch::Mipsel, 0x4000_0008),
    (ScmpArch::Mipsel64, 0xc000_0008),
    (ScmpArch::Mipsel64N32, 0xe000_0008),
    (ScmpArch::Ppc, 0x0000_0014),
    (ScmpArch::Ppc64, 0x8000_0015),
    (ScmpArch::Ppc64Le, 0xc000_0015),
    (ScmpArch::S390, 0x0000_0016),
    (ScmpArch::S390X, 0x8000_0016),
    (ScmpArch::Parisc, 0x0000_000f),
    (ScmpArch::Parisc64, 0x8000_000f),
    (ScmpArch::Riscv64, 0xc000_00f3),
];

/// The filter with the answer for new calls in front.
pub(super) fn prepend(program: &[u8], profile: &Seccomp) -> Vec<u8> {
    let mut whole = to_bytes(&stub(profile));
    whole.extend(program);
    whole
}

fn stub(profile: &Seccomp) -> Vec<Instruction> {
    let mut wanted: Vec<ScmpArch> = profile.architectures.iter().filter_map(|name| architecture(name)).collect();
    // The filter judges calls of the native one in any case.
    wanted.push(ScmpArch::native());
    let x32 = if wanted.contains(&ScmpArch::X32) { highest(profile, ScmpArch::X32) } else { None };
    let known = AUDIT_ARCHES.iter().filter(|(arch, _)| wanted.contains(arch));
    let limits: Vec<(u32, u32)> = known.filter_map(|(arch, audit)| Some((*audit, highest(profile, *arch)?))).collect();
    if limits.is_empty() {
        return Vec::new();
    }
    let mut stub = vec![(LOAD_ABSOLUTE, 0, 0, OFFSET_ARCH)];
    for (at, (audit, highest)) in limits.iter().enumerate() {
        let left = ((limits.len() - at - 1) * BLOCK) as u32;
        stub.extend(block(*audit, *highest, x32.map_or(u32::MAX, |number| number | X32_BIT), left));
    }
    stub
}

/// The highest number among the calls that the profile names.
fn highest(profile: &Seccomp, arch: ScmpArch) -> Option<u32> {
    let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
    let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok()).map(i32::from);
    // Negative ones are calls that the architecture has not.
    numbers.max().filter(|number| *number > 0).map(|number| number as u32)
}

/// `left` instructions of other architectures follow the block.
fn block(audit: u32, highest: u32, highest_x32: u32, left: u32) -> [Instruction; BLOCK] {
    let is_x86_64 = audit == 0xc000_003e;
    [
        (JUMP_EQUAL, 0, BLOCK as u8 - 1, audit),
        (LOAD_ABSOLUTE, 0, 0, OFFSET_NUMBER),
        (JUMP_SET, u8::from(is_x86_64), 0, X32_BIT),
        (JUMP_GREATER, 1, 2, highest),
        (JUMP_GREATER, 0, 1, highest_x32),
        (RETURN, 0, 0, RETURN_ERRNO | libc::ENOSYS as u32),
        (JUMP, 0, 0, left),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the stub on a call; `None` is "on to the filter".
    fn judge(stub: &[Instruction], arch: u32, number: u32) -> Option<u32> {
        let (mut at, mut word) = (0, 0);
        while let Some(&(code, yes, no, value)) = stub.get(at) {
            at += 1;
            let jump = |holds: bool| usize::from(if holds { yes } else { no });
            match code {
                LOAD_ABSOLUTE => word = if value == OFFSET_ARCH { arch } else { number },
                JUMP => at += value as usize,
                JUMP_EQUAL => at += jump(word == value),
                JUMP_GREATER => at += jump(word > value),
                JUMP_SET => at += jump(word & value != 0),
                _ => return Some(value & 0xffff),
            }
        }
        assert_eq!(at, stub.len(), "it ends where the filter begins");
        None
    }

    fn stub_of(architectures: &str) -> Vec<Instruction> {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":[{architectures}],
                "syscalls":[{{"names":["read","openat2","no_such_call"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        );
        stub(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn newer_calls_of_every_architecture_get_enosys() {
        let stub = stub_of(r#""SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_AARCH64""#);
        let enosys = Some(libc::ENOSYS as u32);
        // openat2 is 437 on all three.
        for arch in [0xc000_003e, 0x4000_0003, 0xc000_00b7] {
            assert_eq!(judge(&stub, arch, 437), None, "{arch:x}");
            assert_eq!(judge(&stub, arch, 0), None);
            assert_eq!(judge(&stub, arch, 438), enosys, "{arch:x}");
        }
        assert_eq!(judge(&stub, 0xc000_00f3, 999), None, "an architecture that the profile does not name");
        assert_eq!(judge(&stub, 0xc000_003e, X32_BIT | 999), None, "x32 is not named: the filter itself denies it");
    }

    #[test]
    fn x32_has_a_limit_of_its_own() {
        let stub = stub_of(r#""SCMP_ARCH_X86_64","SCMP_ARCH_X32""#);
        assert_eq!(judge(&stub, 0xc000_003e, X32_BIT | 437), None);
        assert_eq!(judge(&stub, 0xc000_003e, X32_BIT | 999), Some(libc::ENOSYS as u32));
        assert_eq!(judge(&stub, 0xc000_003e, 438), Some(libc::ENOSYS as u32));
    }
}
