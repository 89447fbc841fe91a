//! Network devices of the host that move into the container's network namespace, with the addresses that were given to
//! them for good. They stay there: the namespace's end is theirs, or the kernel brings them back.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use super::clone::open_namespace;
use crate::fault::{Attempt, Code, Result};
use crate::plan::namespaces::Kind;
use crate::plan::net_devices::NetDevice;
use crate::sys::rtnetlink::Socket;
use crate::sys::{self, Failure};

/// Moves the devices into `namespace`.
pub(super) fn hand_over(devices: &[NetDevice], namespace: BorrowedFd<'_>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let here = Socket::open().attempt(Code::NamespaceFailed, || "open rtnetlink")?;
    let there = open_there(namespace)?;
    devices.iter().try_for_each(|device| {
        move_one(device, &here, &there, namespace)
            .attempt(Code::NamespaceFailed, || format!("linux.netDevices {:?}: move the network device", device.name))
    })
}

/// A socket in the other namespace, made on a short visit.
fn open_there(namespace: BorrowedFd<'_>) -> Result<Socket> {
    let attempted = || "enter the container's network namespace";
    let own = open_namespace(Kind::Network, Path::new("/proc/self/ns/net"))?;
    sys::process::setns(namespace, Kind::Network.flag()).attempt(Code::NamespaceFailed, attempted)?;
    let socket = Socket::open().attempt(Code::NamespaceFailed, attempted);
    sys::process::setns(own.as_fd(), Kind::Network.flag()).attempt(Code::NamespaceFailed, attempted)?;
    socket
}

/// Down first, so that the host's others do not use it while it changes; moved and renamed in one, so that no name of
/// the host's is in the way.
fn move_one(device: &NetDevice, here: &Socket, there: &Socket, namespace: BorrowedFd<'_>) -> sys::Result<()> {
    let old = here.find(&device.name)?;
    // The kernel would move it first, and then refuse the name.
    if there.find(&device.name_inside).is_ok() {
        return Err(Failure { call: "rtnetlink(RTM_NEWLINK)", errno: Errno::EXIST });
    }
    let addresses = here.addresses(old.index)?;
    here.set_up(old.index, false)?;
    if let Err(failure) = here.move_into(old.index, namespace, &device.name_inside) {
        // It stays the host's, as it was.
        let _ = here.set_up(old.index, old.is_up);
        return Err(failure);
    }
    // A template's name only the kernel knows, which keeps the index where that is free.
    let index = there.find(&device.name_inside).or_else(|_| there.find_index(old.index))?.index;
    addresses.iter().filter(|address| address.is_kept()).try_for_each(|address| there.add_address(index, address))?;
    there.set_up(index, true)
}
