//! Capability sets by number. Names live in `plan::capabilities`.

use super::{Result, check};

/// The three sets of a process that `capset(2)` takes, as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// In force.
    pub effective: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What survives `execve(2)` through file capabilities.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// Sets the calling thread's three sets in one call.
pub fn capset(sets: Sets) -> Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: both structures have the layout of version 3 (two data halves) and outlive the call.
    check("capset", unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The calling thread's three sets.
pub fn capget() -> Result<Sets> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: as in `capset`; the kernel writes two halves.
    check("capget", unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |pick: fn(&Data) -> u32| u64::from(pick(&data[0])) | u64::from(pick(&data[1])) << 32;
    Ok(Sets {
        effective: join(|half| half.effective),
        permitted: join(|half| half.permitted),
        inheritable: join(|half| half.inheritable),
    })
}

fn prctl(call: &'static str, option: libc::c_int, arg2: libc::c_ulong, arg3: libc::c_ulong) -> Result<libc::c_long> {
    // SAFETY: the options used here take integers only.
    check(call, libc::c_long::from(unsafe { libc::prctl(option, arg2, arg3, 0, 0) }))
}

/// Whether the bounding set holds capability `number`; `EINVAL` for one that the kernel does not know.
pub fn bounding_has(number: u32) -> Result<bool> {
    prctl("prctl(PR_CAPBSET_READ)", libc::PR_CAPBSET_READ, number.into(), 0).map(|held| held == 1)
}

/// Removes capability `number` from the bounding set, for good.
pub fn bounding_drop(number: u32) -> Result<()> {
    prctl("prctl(PR_CAPBSET_DROP)", libc::PR_CAPBSET_DROP, number.into(), 0).map(drop)
}

/// Empties the ambient set.
pub fn ambient_clear() -> Result<()> {
    prctl("prctl(PR_CAP_AMBIENT)", libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as _, 0).map(drop)
}

/// Adds capability `number`, which must be permitted and inheritable, to the ambient set.
pub fn ambient_raise(number: u32) -> Result<()> {
    prctl("prctl(PR_CAP_AMBIENT)", libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as _, number.into()).map(drop)
}

/// Whether permitted capabilities survive a change of user id.
pub fn keep_caps(keep: bool) -> Result<()> {
    prctl("prctl(PR_SET_KEEPCAPS)", libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop)
}
