//! Device rules on cgroup v2: a small eBPF program attached to the container's directory.
//!
//! The program gets the kind of device and of access, major and minor, and answers 1 (allowed) or 0. The last rule that
//! matches decides, so the rules are compiled last first; what none matches is denied, as on v1.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::fault::{Attempt, Code, Result};
use crate::plan::devices::{DeviceKind, DeviceRule};
use crate::sys::Call;
use crate::sys::bpf::{self, Instruction};

const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

const R0: u8 = 0;
/// The context: `{ u32 access_type; u32 major; u32 minor; }`.
const R1: u8 = 1;
const R_TYPE: u8 = 2;
const R_ACCESS: u8 = 3;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;
const R_SCRATCH: u8 = 6;

const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x74;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE_IMMEDIATE: u8 = 0xb4;
const JUMP_IF_NOT_IMMEDIATE: u8 = 0x55;
const JUMP_IF_IMMEDIATE: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Puts the rules in force.
pub fn attach(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    let attempted = || format!("set the device rules of cgroup {}", dir.display());
    let program = bpf::load_device_program(&compile(rules)).attempt(Code::CgroupFailed, attempted)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir, flags, Mode::empty()).call("open").attempt(Code::CgroupFailed, attempted)?;
    use std::os::fd::AsFd;
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd()).attempt(Code::CgroupFailed, attempted)
}

/// Lifts the rules of a container that was here before. Best effort: what stays only denies more.
pub fn detach(dir: &Path) {
    use std::os::fd::AsFd;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(cgroup) = rustix::fs::open(dir, flags, Mode::empty()) {
        let _ = bpf::detach_device_programs(cgroup.as_fd());
    }
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// The program that judges by these rules.
pub fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, R_TYPE, R1, 0, 0),
        instruction(AND_IMMEDIATE, R_TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, R_ACCESS, R1, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE, R_ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, R_MAJOR, R1, 4, 0),
        instruction(LOAD_WORD, R_MINOR, R1, 8, 0),
    ];
    let mut decided = false;
    for rule in rules.iter().rev() {
        program.extend(compile_rule(rule));
        // Behind a rule that matches everything the verifier finds dead code and refuses the program.
        if matches_all(rule) {
            decided = true;
            break;
        }
    }
    if !decided {
        program.extend(answer(false));
    }
    program
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_IMMEDIATE, R0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn matches_all(rule: &DeviceRule) -> bool {
    let any_device = rule.kind == DeviceKind::All && rule.major.is_none() && rule.minor.is_none();
    any_device && access_mask(rule) == ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE
}

fn access_mask(rule: &DeviceRule) -> i32 {
    let access = rule.access;
    [(access.mknod, ACCESS_MKNOD), (access.read, ACCESS_READ), (access.write, ACCESS_WRITE)]
        .iter()
        .filter(|(has, _)| *has)
        .fold(0, |mask, (_, bit)| mask | bit)
}

/// Tests that jump past the answer when they fail, then the answer.
fn compile_rule(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests: Vec<Vec<Instruction>> = Vec::new();
    let unless = |register, value| vec![instruction(JUMP_IF_NOT_IMMEDIATE, register, 0, 0, value)];
    match rule.kind {
        DeviceKind::All => {}
        DeviceKind::Block => tests.push(unless(R_TYPE, TYPE_BLOCK)),
        DeviceKind::Char => tests.push(unless(R_TYPE, TYPE_CHAR)),
    }
    if access_mask(rule) != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        tests.push(access_test(rule));
    }
    if let Some(major) = rule.major {
        tests.push(unless(R_MAJOR, major as i32));
    }
    if let Some(minor) = rule.minor {
        tests.push(unless(R_MINOR, minor as i32));
    }
    let mut code: Vec<Instruction> = tests.concat();
    code.extend(answer(rule.allow));
    let length = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_IF_NOT_IMMEDIATE | JUMP_IF_IMMEDIATE) {
            instruction.offset = (length - at - 1) as i16;
        }
    }
    code
}

/// An allowance must cover all that is asked; a denial bites when it covers any of it.
fn access_test(rule: &DeviceRule) -> Vec<Instruction> {
    let all = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;
    let copy = instruction(MOVE_REGISTER, R_SCRATCH, R_ACCESS, 0, 0);
    let (mask, jump) = if rule.allow {
        (all & !access_mask(rule), JUMP_IF_NOT_IMMEDIATE)
    } else {
        (access_mask(rule), JUMP_IF_IMMEDIATE)
    };
    vec![copy, instruction(AND_IMMEDIATE, R_SCRATCH, 0, 0, mask), instruction(jump, R_SCRATCH, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::devices::{Access, rules};
    use crate::spec;

    /// What the program answers: enough of an interpreter for the instructions used.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i32; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = ((pair & 15) as usize, (pair >> 4) as usize);
            at += 1;
            match code {
                LOAD_WORD => registers[to] = context[offset as usize / 4],
                AND_IMMEDIATE => registers[to] &= immediate,
                SHIFT_RIGHT_IMMEDIATE => registers[to] >>= immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                MOVE_IMMEDIATE => registers[to] = immediate,
                JUMP_IF_NOT_IMMEDIATE if registers[to] != immediate => at += offset as usize,
                JUMP_IF_IMMEDIATE if registers[to] == immediate => at += offset as usize,
                JUMP_IF_NOT_IMMEDIATE | JUMP_IF_IMMEDIATE => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn default_devices_are_open_and_others_closed() {
        let program = compile(&rules(&[]).unwrap());
        assert!(run(&program, TYPE_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3));
        assert!(run(&program, TYPE_CHAR, ACCESS_MKNOD, 99, 1));
        assert!(!run(&program, TYPE_CHAR, ACCESS_READ, 99, 1));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ, 1, 3));
    }

    #[test]
    fn a_denial_of_writing_also_stops_reading_and_writing() {
        let rule = |allow, access| DeviceRule { allow, kind: DeviceKind::Block, major: Some(8), minor: None, access };
        let all = Access { read: true, write: true, mknod: true };
        let write = Access { write: true, ..Access::default() };
        let program = compile(&[rule(true, all), rule(false, write)]);
        assert!(run(&program, TYPE_BLOCK, ACCESS_READ, 8, 0));
        assert!(!run(&program, TYPE_BLOCK, ACCESS_READ | ACCESS_WRITE, 8, 0));
    }

    #[test]
    fn a_rule_for_everything_ends_the_program() {
        let allow_all = spec::DeviceRule { allow: true, access: "rwm".to_owned(), ..spec::DeviceRule::default() };
        let program = compile(&rules(&[allow_all]).unwrap());
        assert!(run(&program, TYPE_BLOCK, ACCESS_WRITE, 8, 1));
        assert_eq!(program.last().unwrap().code, EXIT);
    }

    #[test]
    fn every_default_program_loads() {
        let deny = spec::DeviceRule { access: "rwm".to_owned(), ..spec::DeviceRule::default() };
        for section in [
            vec![],
            vec![deny.clone()],
            vec![deny, spec::DeviceRule { allow: true, access: "rwm".to_owned(), ..spec::DeviceRule::default() }],
        ] {
            match bpf::load_device_program(&compile(&rules(&section).unwrap())) {
                Ok(_) => {}
                Err(failure) if failure.errno == rustix::io::Errno::PERM => eprintln!("skipped: {failure}"),
                Err(failure) => panic!("{failure}"),
            }
        }
    }
}
