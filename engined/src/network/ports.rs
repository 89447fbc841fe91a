//! Reserving published ports on the host.
//!
//! Packets for a published port are rewritten before they reach a socket, so the kernel would let any program bind the
//! same port and wonder why nothing comes. A bound socket that never listens keeps the port ours for as long as the
//! process lives; after a restart it is bound anew.

use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::endpoint::{PortRequest, Protocol, PublishedPort};
use super::error::{Error, Refusal};

/// A port that this process holds; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) port: PublishedPort,
    _socket: OwnedFd,
}

/// Reserves all of `requests` or none.
pub(super) fn reserve_all(requests: &[PortRequest]) -> Result<Vec<Reservation>, Error> {
    requests.iter().map(reserve).collect()
}

fn reserve(request: &PortRequest) -> Result<Reservation, Error> {
    let host_ip = match request.host_ip {
        IpAddr::V4(ip) => ip,
        // A packet to [::1] cannot be rewritten to another host's address, and the bridge has no IPv6.
        IpAddr::V6(_) => return Err(Error::HostAddressVersion6(request.host_ip)),
    };
    if request.container_port == 0 {
        return Err(Error::ContainerPortZero);
    }
    let PortRequest { host_port, container_port, protocol, .. } = *request;
    hold(PublishedPort { host_ip, host_port, container_port, protocol })
}

/// Holds a port; a host port of 0 becomes one that the kernel chooses.
pub(super) fn hold(mut port: PublishedPort) -> Result<Reservation, Error> {
    match bind(port) {
        Ok((socket, host_port)) => {
            port.host_port = host_port;
            Ok(Reservation { port, _socket: socket })
        }
        Err(Errno::ADDRINUSE) => Err(Error::PortInUse { port, source: Errno::ADDRINUSE.into() }),
        Err(Errno::ADDRNOTAVAIL) => Err(Error::HostAddressUnknown(port.host_ip)),
        Err(errno) => Err(Error::PortReservation { port, source: Refusal::from(errno) }),
    }
}

fn bind(port: PublishedPort) -> Result<(OwnedFd, u16), Errno> {
    match bind_exclusively(port) {
        // Connections of an earlier program may linger in TIME_WAIT, which is nobody's use of the port.
        Err(Errno::ADDRINUSE) if port.protocol == Protocol::Tcp => bind_beside_lingering(port),
        outcome => outcome,
    }
}

/// Binds without `SO_REUSEADDR`: from then on nobody else can bind, whatever options they set.
fn bind_exclusively(port: PublishedPort) -> Result<(OwnedFd, u16), Errno> {
    let socket = socket(port.protocol)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(port.host_ip, port.host_port))?;
    let bound = local_port(&socket)?;
    Ok((socket, bound))
}

/// Two bound sockets with `SO_REUSEADDR` bear each other until one listens: so this one must listen to hold its port. It
/// is never reached, as packets are rewritten first.
fn bind_beside_lingering(port: PublishedPort) -> Result<(OwnedFd, u16), Errno> {
    let socket = socket(port.protocol)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(port.host_ip, port.host_port))?;
    rustix::net::listen(&socket, 0)?;
    let bound = local_port(&socket)?;
    Ok((socket, bound))
}

fn socket(protocol: Protocol) -> Result<OwnedFd, Errno> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)
}

fn local_port(socket: &OwnedFd) -> Result<u16, Errno> {
    let address = rustix::net::getsockname(socket)?;
    let address: SocketAddrV4 = address.try_into()?;
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    fn request(host_port: u16, protocol: Protocol) -> PortRequest {
        PortRequest { host_ip: Ipv4Addr::LOCALHOST.into(), host_port, container_port: 80, protocol }
    }

    #[test]
    fn a_reserved_port_is_nobody_elses_until_it_is_dropped() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let held = reserve_all(&[request(0, protocol)]).unwrap();
            let port = held[0].port.host_port;
            assert_ne!(port, 0);
            let again = reserve_all(&[request(port, protocol)]);
            assert!(matches!(again, Err(Error::PortInUse { port: named, .. }) if named.host_port == port), "{again:?}");
            assert!(TcpListener::bind(("127.0.0.1", port)).is_err() || protocol == Protocol::Udp);
            assert!(UdpSocket::bind(("127.0.0.1", port)).is_err() || protocol == Protocol::Tcp);
            drop(held);
            assert!(reserve_all(&[request(port, protocol)]).is_ok());
        }
    }

    #[test]
    fn one_refusal_frees_what_was_reserved_before() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let free_port = reserve_all(&[request(0, Protocol::Tcp)]).unwrap()[0].port.host_port;
        assert!(reserve_all(&[request(free_port, Protocol::Tcp), request(taken_port, Protocol::Tcp)]).is_err());
        assert!(reserve_all(&[request(free_port, Protocol::Tcp)]).is_ok());
    }

    #[test]
    fn connections_that_linger_do_not_hold_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // The side that closes first lingers: the server's.
        drop(listener.accept().unwrap());
        drop(listener);
        drop(client);
        let held = reserve_all(&[request(port, Protocol::Tcp)]).unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "std sets SO_REUSEADDR, and still it is refused");
        drop(held);
    }

    #[test]
    fn what_cannot_be_published_is_said() {
        let six = PortRequest { host_ip: Ipv6Addr::LOCALHOST.into(), ..request(80, Protocol::Tcp) };
        assert!(matches!(reserve_all(&[six]), Err(Error::HostAddressVersion6(_))));
        let zero = PortRequest { container_port: 0, ..request(0, Protocol::Tcp) };
        assert!(matches!(reserve_all(&[zero]), Err(Error::ContainerPortZero)));
        let strange = PortRequest { host_ip: Ipv4Addr::new(192, 0, 2, 250).into(), ..request(0, Protocol::Tcp) };
        assert!(matches!(reserve_all(&[strange]), Err(Error::HostAddressUnknown(_))));
    }
}
