//! What the fuzz targets feed to lowrun, and what must hold of the answers.
//!
//! One function for each target, named after it. The fuzzer calls them with inputs of its own, and `tests/corpus.rs`
//! with those that are kept in `corpus/`. A function panics when a promise is broken; refusing an input is no failure.

#![allow(dead_code, reason = "each fuzz target is a program of its own and uses one function")]

use std::path::{Component, Path};

use lowrun::cgroup::devices;
use lowrun::channel;
use lowrun::create::seccomp;
use lowrun::init::program::home_in;
use lowrun::plan::devices::{DeviceKind, DeviceRule, nodes, rules};
use lowrun::plan::mounts::{MountKind, MountPlan};
use lowrun::plan::{Plan, plan};
use lowrun::spec::{self, Spec};
use lowrun::state;
use lowrun::sys::bpf::Instruction;
use lowrun::sys::mount::MOUNT_ATTR_ATIME_MASK;
use serde_json::value::RawValue;

const BUNDLE: &str = "/bundle";

/// config.json: read, planned, written and read again with the same outcome.
pub(crate) fn config(input: &[u8]) {
    let Ok(spec) = spec::any_case::from_slice::<Spec>(input) else { return };
    let planned = plan("c", Path::new(BUNDLE), &spec);
    let text = serde_json::to_vec(&spec).expect("what was read can be written");
    let again: Spec = spec::any_case::from_slice(&text).expect("what was written can be read");
    let planned_again = plan("c", Path::new(BUNDLE), &again);
    assert_eq!(format!("{planned:?}"), format!("{planned_again:?}"));
    if let Ok(plan) = planned {
        check_plan(&plan);
    }
}

fn check_plan(plan: &Plan) {
    assert!(is_plain(&plan.rootfs));
    let masks = plan.masked_paths.iter().chain(&plan.readonly_paths);
    let devices = plan.devices.iter().map(|node| &node.path);
    assert!(masks.chain(devices).all(|path| is_plain(path)));
    for mount in &plan.mounts {
        check_mount(mount);
    }
    for (path, _) in &plan.sysctl {
        assert!(path.starts_with("sys/") && is_plain(&Path::new("/").join(path)), "{path}");
    }
    let process = &plan.process;
    assert!(![process.uid, process.gid].iter().chain(&process.groups).any(|id| *id == u32::MAX));
    assert!(!process.args.is_empty() && process.cwd.is_absolute());
    assert!(process.args.iter().chain(&process.env).all(|word| !word.contains('\0')));
}

/// Absolute, and no way up.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// The state file: what is read and written is read as the same.
pub(crate) fn state(input: &[u8]) {
    let path = Path::new("/run/lowrun/c");
    let Ok(state) = state::parse_state(path, input) else { return };
    let text = serde_json::to_vec(&state).expect("what was read can be written");
    let again = state::parse_state(path, &text).expect("what was written can be read");
    assert_eq!(format!("{state:?}"), format!("{again:?}"));
    let document = state::hook_state(&state, state::Status::Created, 1);
    serde_json::from_slice::<serde_json::Value>(&document).expect("hooks get JSON");
}

/// A seccomp section: what is compiled is a program that the kernel takes.
pub(crate) fn seccomp(input: &[u8]) {
    let Ok(section) = serde_json::from_slice::<&RawValue>(input) else { return };
    if let Ok(Some(filter)) = seccomp::compile(section) {
        check_filter(&filter.program);
    }
}

/// As the kernel's own check: jumps go forward and stay inside, and the last instruction returns.
fn check_filter(program: &[u8]) {
    const CLASS: u16 = 0x07;
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    const ALWAYS: u16 = 0x05;
    let (instructions, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && !instructions.is_empty() && instructions.len() <= 4096);
    let code = |at: usize| u16::from_ne_bytes([instructions[at][0], instructions[at][1]]);
    for (at, bytes) in instructions.iter().enumerate().filter(|(at, _)| code(*at) & CLASS == JUMP) {
        let [_, _, yes, no, value @ ..] = *bytes;
        let far = if code(at) == ALWAYS { u32::from_ne_bytes(value) as usize } else { yes.max(no).into() };
        assert!(at + 1 + far < instructions.len(), "the jump at {at} leaves the program");
    }
    assert_eq!(code(instructions.len() - 1) & CLASS, RETURN);
}

/// Lines: destination, type, source, then an option each.
pub(crate) fn mounts(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let mut lines = text.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let (destination, kind, source) = (next(), next(), next());
    let mount = spec::Mount { destination, kind, source, options: lines.collect(), ..spec::Mount::default() };
    if let Ok(plan) = MountPlan::parse(0, &mount, Path::new(BUNDLE)) {
        check_mount(&plan);
    }
}

fn check_mount(plan: &MountPlan) {
    assert!(is_plain(&plan.destination));
    for change in [plan.attr, plan.recursive_attr] {
        let attr = change.to_attr();
        // The kernel refuses to set and clear the same attribute at once, but for the access times.
        assert_eq!(attr.set & attr.clear & !MOUNT_ATTR_ATIME_MASK, 0);
        assert!(attr.set & MOUNT_ATTR_ATIME_MASK == 0 || attr.clear & MOUNT_ATTR_ATIME_MASK != 0);
    }
    assert!(plan.propagation.iter().all(|(flag, _)| flag.is_power_of_two()));
    match &plan.kind {
        MountKind::Bind { source, .. } => assert!(source.is_absolute()),
        MountKind::Filesystem { options, .. } | MountKind::Cgroup { options } => {
            assert!(options.iter().all(|(name, _)| !name.contains(',')));
        }
    }
}

/// A first line as `exec --user` takes it; all of it as a container's passwd.
pub(crate) fn user(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = home_in(&text, 0);
    let first = text.split('\n').next().unwrap_or_default();
    let Ok((uid, gid)) = lowrun::cli::parse_user(first) else { return };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = first.split(':').collect();
    assert!(parts.len() == 1 + usize::from(gid.is_some()) && parts.iter().all(|part| digits(part)), "{first:?}");
    let value = |part: &str| part.parse::<u128>().expect("digits are a number");
    assert_eq!(value(parts[0]), u128::from(uid));
    assert!(uid != u32::MAX && gid.is_none_or(|gid| value(parts[1]) == u128::from(gid) && gid != u32::MAX));
}

/// Two sections of JSON, one a line: `linux.resources.devices` and `linux.devices`.
pub(crate) fn devices(input: &[u8]) {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    if let Some(Ok(section)) = lines.next().map(serde_json::from_slice::<Vec<spec::DeviceRule>>)
        && let Ok(rules) = rules(&section)
    {
        check_rules(&rules);
    }
    if let Some(Ok(section)) = lines.next().map(serde_json::from_slice::<Vec<spec::Device>>)
        && let Ok(nodes) = nodes(&section)
    {
        assert!(nodes.iter().all(|node| is_plain(&node.path)));
    }
}

/// The program of cgroup v2 judges as the rules say, for the devices that the rules name and for one that none names.
fn check_rules(rules: &[DeviceRule]) {
    let program = devices::compile(rules);
    let named = rules.iter().map(|rule| (rule.major.unwrap_or(3), rule.minor.unwrap_or(3)));
    for (major, minor) in named.chain([(77, 77)]) {
        for kind in [DeviceKind::Block, DeviceKind::Char] {
            for access in 1..8 {
                let expected = judge(rules, kind, access, major, minor);
                assert_eq!(run(&program, kind, access, major, minor), expected, "{kind:?} {major}:{minor} {access}");
            }
        }
    }
}

/// The last rule that matches decides. An allowance must cover all of the access, a denial any of it.
fn judge(rules: &[DeviceRule], kind: DeviceKind, asked: u32, major: u32, minor: u32) -> bool {
    let matches = |rule: &&DeviceRule| {
        let access = rule.access;
        let named = u32::from(access.mknod) | u32::from(access.read) << 1 | u32::from(access.write) << 2;
        let covers = if rule.allow { asked & !named == 0 } else { asked & named != 0 };
        let same = |number: Option<u32>, of: u32| number.is_none_or(|number| number == of);
        (rule.kind == DeviceKind::All || rule.kind == kind)
            && same(rule.major, major)
            && same(rule.minor, minor)
            && covers
    };
    rules.iter().rev().find(matches).is_some_and(|rule| rule.allow)
}

/// Interprets the few instructions that such a program has.
fn run(program: &[Instruction], kind: DeviceKind, access: u32, major: u32, minor: u32) -> bool {
    let kind = if kind == DeviceKind::Block { 1 } else { 2 };
    let context = [(access << 16 | kind) as i32, major as i32, minor as i32];
    let mut registers = [0_i32; 11];
    let mut at = 0;
    loop {
        let Instruction { code, registers: pair, offset, immediate } = program[at];
        let (to, from) = ((pair & 15) as usize, (pair >> 4) as usize);
        at += 1;
        match code {
            0x61 => registers[to] = context[offset as usize / 4],
            0x54 => registers[to] &= immediate,
            0x74 => registers[to] = (registers[to] as u32 >> immediate) as i32,
            0xbc => registers[to] = registers[from],
            0xb4 => registers[to] = immediate,
            0x55 if registers[to] != immediate => at += offset as usize,
            0x15 if registers[to] == immediate => at += offset as usize,
            0x55 | 0x15 => {}
            0x95 => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

/// What the container side says: what is a message can be sent whole, and arrives as the same kind of message.
pub(crate) fn channel(input: &[u8]) {
    let Some(message) = channel::decode(input) else { return };
    let text = channel::encode(&message).expect("what was read can be written");
    assert!(text.len() <= channel::MESSAGE_MAX);
    let again = channel::decode(&text).expect("what was sent is a message");
    assert_eq!(std::mem::discriminant(&message), std::mem::discriminant(&again));
}
