//! `bpf(2)`, for the device programs of cgroup v2.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Result, check};

/// One eBPF instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    /// Destination in the low half, source in the high half.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Loads a program that decides about device accesses.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    let attr = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `attr` describes `program` and the licence, which outlive the call.
    let fd = check("bpf(PROG_LOAD)", unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attr, size_of::<Load>())
    })?;
    // SAFETY: a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a program to a cgroup directory, beside what is attached there.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let attr = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
    };
    // SAFETY: `attr` outlives the call and holds open descriptors.
    check("bpf(PROG_ATTACH)", unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attr, size_of::<Attach>())
    })
    .map(drop)
}

/// Takes off a cgroup directory every program that decides about device accesses.
pub fn detach_device_programs(cgroup: BorrowedFd<'_>) -> Result<()> {
    // The kernel attaches no more than this to one directory (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0_u32; 64];
    let mut attr = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        padding: 0,
    };
    // SAFETY: `attr` and the array that it names, with its length, outlive the call.
    check("bpf(PROG_QUERY)", unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut attr, size_of::<Query>()) })?;
    ids.iter().take(attr.prog_cnt as usize).try_for_each(|id| detach(cgroup, *id))
}

fn detach(cgroup: BorrowedFd<'_>, id: u32) -> Result<()> {
    let by_id = ById { id, next_id: 0, open_flags: 0 };
    // SAFETY: `by_id` outlives the call.
    let fd = check("bpf(PROG_GET_FD_BY_ID)", unsafe {
        libc::syscall(libc::SYS_bpf, PROG_GET_FD_BY_ID, &raw const by_id, size_of::<ById>())
    })?;
    // SAFETY: a new descriptor, owned by nobody else.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attr = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: `attr` outlives the call and holds open descriptors.
    check("bpf(PROG_DETACH)", unsafe {
        libc::syscall(libc::SYS_bpf, PROG_DETACH, &raw const attr, size_of::<Attach>())
    })
    .map(drop)
}
