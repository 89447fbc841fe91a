//! rtnetlink, as far as moving a network device needs it: finding, moving, addresses, up.
//!
//! One request, one answer (or one dump), on a socket that stays in the network namespace that it was made in.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::{Call, Failure, Result};

const HEADER: usize = 16;
const ADDRESS: usize = 8;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_EXCL: u16 = 0x600;
/// Longest answer: the kernel's own bound of a dump's part.
const ANSWER_MAX: usize = 32 * 1024;

/// An address of a device: what is sent again to add it elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    flags: u32,
    scope: u8,
    /// Attributes as they came, without those that the new namespace decides.
    attributes: Vec<u8>,
}

impl Address {
    /// Given by somebody for good, and meant for everybody: what a device keeps when it moves.
    pub fn is_kept(&self) -> bool {
        self.flags & libc::IFA_F_PERMANENT != 0 && self.scope == libc::RT_SCOPE_UNIVERSE
    }
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: i32,
    pub is_up: bool,
}

/// A socket in the network namespace of its maker.
pub struct Socket(OwnedFd);

impl Socket {
    /// A socket in this process's network namespace.
    pub fn open() -> Result<Socket> {
        // Without a protocol it is NETLINK_ROUTE, whose number is 0.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        let socket = socket.call("socket")?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).call("bind")?;
        Ok(Socket(socket))
    }

    /// The device of that name.
    pub fn find(&self, name: &str) -> Result<Link> {
        let mut request = link_request(libc::RTM_GETLINK, REQUEST, 0, 0);
        push_name(&mut request, name);
        self.link(&request)
    }

    /// The device of that index.
    pub fn find_index(&self, index: i32) -> Result<Link> {
        self.link(&link_request(libc::RTM_GETLINK, REQUEST, index, 0))
    }

    fn link(&self, request: &[u8]) -> Result<Link> {
        let call = "rtnetlink(RTM_GETLINK)";
        let answers = self.ask(call, request)?;
        let number = |at: usize| answers.first()?.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
        let (index, flags) = number(HEADER + 4).zip(number(HEADER + 8)).ok_or(Failure { call, errno: Errno::NODEV })?;
        Ok(Link { index, is_up: flags & libc::IFF_UP != 0 })
    }

    /// Brings a device up or down.
    pub fn set_up(&self, index: i32, up: bool) -> Result<()> {
        let flags = if up { libc::IFF_UP as u32 } else { 0 };
        self.ask("rtnetlink(RTM_NEWLINK)", &link_request(libc::RTM_NEWLINK, REQUEST | ACK, index, flags)).map(drop)
    }

    /// Moves a device into a network namespace, under a name that must be free there; `%d` is a free number.
    pub fn move_into(&self, index: i32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut request = link_request(libc::RTM_NEWLINK, REQUEST | ACK, index, 0);
        // No change of flags.
        request[HEADER + 12..HEADER + 16].fill(0);
        push_name(&mut request, name);
        push(&mut request, libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.ask("rtnetlink(RTM_NEWLINK)", &request).map(drop)
    }

    /// The addresses of a device, of all families.
    pub fn addresses(&self, index: i32) -> Result<Vec<Address>> {
        let mut request = header(libc::RTM_GETADDR, REQUEST | DUMP);
        request.extend([0; ADDRESS]);
        let answers = self.ask("rtnetlink(RTM_GETADDR)", &request)?;
        Ok(answers.iter().filter_map(|answer| parse_address(answer, index)).collect())
    }

    /// Gives a device an address.
    pub fn add_address(&self, index: i32, address: &Address) -> Result<()> {
        let mut request = header(libc::RTM_NEWADDR, REQUEST | ACK | CREATE_EXCL);
        request.extend([address.family, address.prefix, 0, address.scope]);
        request.extend((index as u32).to_ne_bytes());
        request.extend(&address.attributes);
        self.ask("rtnetlink(RTM_NEWADDR)", &request).map(drop)
    }

    /// Sends a request and gives the messages of its answer.
    fn ask(&self, call: &'static str, request: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut request = request.to_vec();
        let length = (request.len() as u32).to_ne_bytes();
        request[..4].copy_from_slice(&length);
        rustix::net::send(&self.0, &request, SendFlags::empty()).call(call)?;
        let is_dump = u16::from_ne_bytes([request[6], request[7]]) & DUMP == DUMP;
        let mut messages = Vec::new();
        loop {
            let mut buffer = Vec::with_capacity(ANSWER_MAX);
            rustix::net::recv(self.0.as_fd(), rustix::buffer::spare_capacity(&mut buffer), RecvFlags::empty())
                .call(call)?;
            let done = take_messages(call, &buffer, &mut messages)?;
            if done || !is_dump {
                return Ok(messages);
            }
        }
    }
}

/// Adds the messages of one datagram; whether the answer ends with it.
fn take_messages(call: &'static str, mut datagram: &[u8], messages: &mut Vec<Vec<u8>>) -> Result<bool> {
    let word = |bytes: &[u8], at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    while let Some(length) = word(datagram, 0).map(|length| length as usize) {
        let Some(message) = datagram.get(..length).filter(|message| message.len() >= HEADER) else { break };
        match i32::from(u16::from_ne_bytes([message[4], message[5]])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let error = word(message, HEADER).unwrap_or(0) as i32;
                return match error {
                    0 => Ok(true),
                    error => Err(Failure { call, errno: Errno::from_raw_os_error(-error) }),
                };
            }
            _ => messages.push(message.to_vec()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct nlmsghdr`; the length is filled in when it is sent.
fn header(kind: u16, flags: u16) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

/// With a `struct ifinfomsg` that changes the flag `IFF_UP` alone.
fn link_request(kind: u16, flags: u16, index: i32, device_flags: u32) -> Vec<u8> {
    let mut message = header(kind, flags);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend(device_flags.to_ne_bytes());
    message.extend((libc::IFF_UP as u32).to_ne_bytes());
    message
}

fn push_name(message: &mut Vec<u8>, name: &str) {
    push(message, libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
}

fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((value.len() + 4) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// An address of the device `index`, from a `struct ifaddrmsg` and its attributes.
fn parse_address(message: &[u8], index: i32) -> Option<Address> {
    let [family, prefix, flags, scope] = *message.get(HEADER..HEADER + 4)?.first_chunk::<4>()?;
    let own = i32::from_ne_bytes(message.get(HEADER + 4..HEADER + 8)?.try_into().ok()?);
    if own != index {
        return None;
    }
    let mut address = Address { family, prefix, flags: flags.into(), scope, attributes: Vec::new() };
    let mut rest = message.get(HEADER + ADDRESS..)?;
    while let Some([low, high, kind_low, kind_high]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let value = rest.get(4..length)?;
        match u16::from_ne_bytes([*kind_low, *kind_high]) {
            libc::IFA_FLAGS => address.flags = u32::from_ne_bytes(value.try_into().ok()?),
            kind @ (libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST) => {
                push(&mut address.attributes, kind, value);
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_with_its_addresses() {
        let socket = Socket::open().unwrap();
        assert_eq!(socket.find("lo").unwrap().index, 1);
        assert_eq!(socket.find_index(1), socket.find("lo"));
        assert_eq!(socket.find("no-such-device").unwrap_err().errno, Errno::NODEV);
        let addresses = socket.addresses(1).unwrap();
        // 127.0.0.1 is of host scope: it does not move.
        assert!(addresses.iter().all(|address| !address.is_kept()), "{addresses:?}");
    }

    #[test]
    fn what_is_cut_short_is_no_address() {
        let mut message = header(libc::RTM_NEWADDR, 0);
        message.extend([2, 24, 0x80, 0, 5, 0, 0, 0]);
        push(&mut message, libc::IFA_LOCAL, &[10, 0, 0, 1]);
        let address = parse_address(&message, 5).unwrap();
        assert!(address.is_kept());
        assert_eq!(parse_address(&message, 6), None);
        for length in HEADER..message.len() {
            let _ = parse_address(&message[..length], 5);
        }
    }
}
