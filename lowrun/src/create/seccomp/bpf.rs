//! The few instructions of classic BPF that seccomp filters are made of (`bpf(4)`, `seccomp(2)`).

pub(super) const LOAD_ABSOLUTE: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub(super) const JUMP_SET: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;
/// Where `struct seccomp_data` has the number of the call, and its architecture.
pub(super) const OFFSET_NUMBER: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;

/// `struct sock_filter`: code, jump if true, jump if false, operand.
pub(super) type Instruction = (u16, u8, u8, u32);

/// The bytes that the kernel takes.
pub(super) fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let bytes = |&(code, yes, no, value): &Instruction| {
        let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), value.to_ne_bytes());
        [a, b, yes, no, c, d, e, f]
    };
    program.iter().flat_map(bytes).collect()
}

/// The instructions of whole ones.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<Instruction> {
    let instruction = |&[a, b, yes, no, c, d, e, f]: &[u8; 8]| {
        (u16::from_ne_bytes([a, b]), yes, no, u32::from_ne_bytes([c, d, e, f]))
    };
    bytes.as_chunks().0.iter().map(instruction).collect()
}
