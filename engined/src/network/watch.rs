//! Hearing that somebody else changed nftables.
//!
//! `nft flush ruleset` takes everybody's rules, ours too, and is what many a firewall service does when it starts. Docker
//! sets its FORWARD chain to drop when it starts, which may be after us. The kernel tells whoever listens; the worker then
//! looks and repairs.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::error::Refusal;
use super::forwarding;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
const SUBSYSTEM: u8 = 10;
const FAMILY_IPV4: u8 = 2;
/// `NFT_MSG_NEWGEN` ends each transaction and has no table.
const GENERATION: u8 = 15;
/// In the messages of all other objects the table's name has this number.
const TABLE_NAME: u16 = 1;
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
const RECEIVE_BYTES: usize = 64 * 1024;

/// Whose rules were changed by others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Our table.
    pub(super) ours: bool,
    /// The table that our tagged rules may have to stand in.
    pub(super) forwarding: bool,
}

/// An ear at nftables.
pub(super) struct Watch {
    socket: Socket,
    /// Changes from here are our own.
    own_port: u32,
    table: String,
}

impl Watch {
    /// `own_port` is the netlink port that our own changes come from.
    pub(super) fn open(own_port: u32, table: &str) -> Result<Watch, Refusal> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        Ok(Watch { socket, own_port, table: table.to_owned() })
    }

    /// What has happened since the last time; never waits.
    pub(super) fn changes(&self) -> Result<Changes, Refusal> {
        let mut changes = Changes::default();
        let mut datagram = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            datagram.clear();
            match self.socket.recv(&mut datagram, 0) {
                Ok(_) => note(&datagram, self.own_port, &self.table, &mut changes),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // More happened than the socket holds: anything may have.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes = Changes { ours: true, forwarding: true };
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads the messages of one datagram; what is not understood is not about us.
fn note(mut datagram: &[u8], own_port: u32, table: &str, changes: &mut Changes) {
    while let Some((message, rest)) = split(datagram) {
        if let Some(changed) = changed_table(message, own_port) {
            changes.ours |= changed == table.as_bytes();
            changes.forwarding |= changed == forwarding::TABLE.as_bytes();
        }
        datagram = rest;
    }
}

/// The first message and what follows it.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let message = datagram.get(..length).filter(|message| message.len() >= NETLINK_HEADER)?;
    Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The name of the IPv4 table that somebody else changed.
fn changed_table(message: &[u8], own_port: u32) -> Option<&[u8]> {
    let [kind, subsystem] = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?).to_le_bytes();
    let port = u32::from_ne_bytes(message.get(12..16)?.try_into().ok()?);
    let family = *message.get(NETLINK_HEADER)?;
    if subsystem != SUBSYSTEM || kind == GENERATION || port == own_port || family != FAMILY_IPV4 {
        return None;
    }
    let mut attributes = message.get(NETLINK_HEADER + NETFILTER_HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let number = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if number == TABLE_NAME {
            return value.strip_suffix(b"\0");
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, family: u8, port: u32, table: &str) -> Vec<u8> {
        let value = [table.as_bytes(), b"\0"].concat();
        let mut body = vec![family, 0, 0, 0];
        body.extend_from_slice(&((value.len() + ATTRIBUTE_HEADER) as u16).to_ne_bytes());
        body.extend_from_slice(&TABLE_NAME.to_ne_bytes());
        body.extend_from_slice(&value);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut bytes = ((body.len() + NETLINK_HEADER) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&u16::from_le_bytes([kind, SUBSYSTEM]).to_ne_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&port.to_ne_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    fn heard(datagram: &[u8]) -> Changes {
        let mut changes = Changes::default();
        note(datagram, 7, "strata-x", &mut changes);
        changes
    }

    #[test]
    fn only_others_changes_of_the_two_tables_count() {
        let none = Changes::default();
        assert_eq!(heard(&message(2, FAMILY_IPV4, 9, "strata-x")), Changes { ours: true, ..none });
        assert_eq!(heard(&message(3, FAMILY_IPV4, 9, "filter")), Changes { forwarding: true, ..none });
        assert_eq!(heard(&message(2, FAMILY_IPV4, 7, "strata-x")), none, "our own");
        assert_eq!(heard(&message(2, 10, 9, "filter")), none, "another family");
        assert_eq!(heard(&message(2, FAMILY_IPV4, 9, "strata-y")), none, "another table");
        assert_eq!(heard(&message(GENERATION, FAMILY_IPV4, 9, "filter")), none);
        let several = [message(2, FAMILY_IPV4, 9, "nat"), message(2, FAMILY_IPV4, 9, "strata-x")].concat();
        assert_eq!(heard(&several), Changes { ours: true, ..none });
    }

    proptest! {
        #[test]
        fn no_bytes_stop_us(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            heard(&bytes);
        }
    }
}
