//! What can go wrong while a container is connected, and the fault that each becomes.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use strata_fault::{Fault, GrpcCode, Layer, code};

use super::endpoint::{EndpointId, PublishedPort};
use super::subnet::Subnet;

/// The step of a run that this part does.
const STEP: &str = "connect";

/// An attempt of the network part that failed. The text never holds its cause: that is the source.
#[derive(Debug)]
pub(crate) enum Error {
    /// The id cannot be the name of a file.
    EndpointId(String),
    /// The id is connected already.
    EndpointExists(EndpointId),
    /// A published port is taken on the host.
    PortInUse { port: PublishedPort, source: Refusal },
    /// A published port could not be reserved for another reason.
    PortReservation { port: PublishedPort, source: Refusal },
    /// A port is to be published on an address that this host does not have.
    HostAddressUnknown(Ipv4Addr),
    /// A port is to be published on an IPv6 address.
    HostAddressVersion6(IpAddr),
    /// The container's side of a published port is zero.
    ContainerPortZero,
    /// The bridge has no free port.
    BridgeFull { bridge: String, source: Refusal },
    /// A link that we did not make has the bridge's name.
    BridgeNameInUse(String),
    /// Every address is given away.
    AddressesExhausted(Subnet),
    /// A configured value cannot be.
    Config { field: &'static str, value: String, why: &'static str },
    /// The host has a route into the configured subnet.
    SubnetInUse { subnet: Subnet, route: Subnet },
    /// The host has routes into every subnet that could have been chosen.
    NoFreeSubnet,
    /// The namespace of a live endpoint is gone.
    NamespaceGone { path: PathBuf, source: Refusal },
    /// The kernel refused a call or a request.
    Kernel { attempted: String, source: Refusal },
}

/// The kernel's answer: an errno, and over netlink sometimes words of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    errno: i32,
    words: Option<String>,
}

impl Refusal {
    pub(super) fn new(errno: i32, words: Option<String>) -> Refusal {
        Refusal { errno, words }
    }

    /// The refusal for an answer that makes no sense: what a kernel never sends.
    pub(super) fn garbled(words: &str) -> Refusal {
        Refusal { errno: libc::EPROTO, words: Some(words.to_owned()) }
    }

    pub(super) fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = &self.words {
            write!(f, "{words}: ")?;
        }
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Refusal {}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(errno) => Refusal { errno, words: None },
            None => Refusal { errno: libc::EIO, words: Some(error.to_string()) },
        }
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(errno: rustix::io::Errno) -> Refusal {
        Refusal { errno: errno.raw_os_error(), words: None }
    }
}

impl From<nix::errno::Errno> for Refusal {
    fn from(errno: nix::errno::Errno) -> Refusal {
        Refusal { errno: errno as i32, words: None }
    }
}

/// Names what was attempted when the kernel refuses.
pub(super) trait Attempt<T> {
    /// `words` say what was attempted on what, in lower case.
    fn attempt(self, words: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<Refusal>> Attempt<T> for Result<T, E> {
    fn attempt(self, words: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|refusal| Error::Kernel { attempted: words(), source: refusal.into() })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::EndpointId(id) => write!(f, "endpoint id {id:?} is not 1 to 128 letters, digits, '_', '.' or '-'"),
            Error::EndpointExists(id) => write!(f, "endpoint {id} is connected already"),
            Error::PortInUse { port, .. } => write!(f, "publish {port}: the port is in use on this host"),
            Error::PortReservation { port, .. } => write!(f, "publish {port}: reserve the port on this host"),
            Error::HostAddressUnknown(ip) => write!(f, "publish a port on {ip}: no address of this host"),
            Error::HostAddressVersion6(ip) => {
                write!(f, "publish a port on [{ip}]: only IPv4 addresses can be published")
            }
            Error::ContainerPortZero => write!(f, "publish a port: the container's port is 0"),
            Error::BridgeFull { bridge, .. } => {
                write!(f, "connect to bridge {bridge}: it has 1023 containers, as many as a Linux bridge holds")
            }
            Error::BridgeNameInUse(name) => write!(f, "create bridge {name}: this host has another link of that name"),
            Error::AddressesExhausted(subnet) => write!(f, "allocate an address of {subnet}: all are in use"),
            Error::Config { field, value, why } => write!(f, "network configuration: {field} = {value:?} {why}"),
            Error::SubnetInUse { subnet, route } => {
                write!(f, "use subnet {subnet} for containers: this host has a route to {route}")
            }
            Error::NoFreeSubnet => write!(f, "choose a subnet for containers: this host has routes to all candidates"),
            Error::NamespaceGone { path, .. } => write!(f, "open network namespace {}", path.display()),
            Error::Kernel { attempted, .. } => f.write_str(attempted),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::PortInUse { source, .. }
            | Error::PortReservation { source, .. }
            | Error::BridgeFull { source, .. }
            | Error::NamespaceGone { source, .. }
            | Error::Kernel { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Error {
    /// Code and transport class; what is `None` in the second place is the code's usual class.
    fn class(&self) -> (&'static str, Option<GrpcCode>) {
        match self {
            Error::PortInUse { .. } => (code::PORT_IN_USE, None),
            Error::EndpointId(_)
            | Error::HostAddressUnknown(_)
            | Error::HostAddressVersion6(_)
            | Error::ContainerPortZero
            | Error::Config { .. } => (code::INVALID_ARGUMENT, None),
            Error::EndpointExists(_) => ("ENDPOINT_EXISTS", Some(GrpcCode::AlreadyExists)),
            Error::BridgeFull { .. } => ("BRIDGE_FULL", Some(GrpcCode::ResourceExhausted)),
            Error::AddressesExhausted(_) => ("ADDRESSES_EXHAUSTED", Some(GrpcCode::ResourceExhausted)),
            Error::SubnetInUse { .. } | Error::NoFreeSubnet => ("SUBNET_IN_USE", Some(GrpcCode::FailedPrecondition)),
            Error::BridgeNameInUse(_) => ("BRIDGE_NAME_IN_USE", Some(GrpcCode::FailedPrecondition)),
            Error::NamespaceGone { .. } => ("NAMESPACE_GONE", Some(GrpcCode::NotFound)),
            Error::PortReservation { source, .. } | Error::Kernel { source, .. } => match source.errno {
                libc::EPERM | libc::EACCES => (code::PERMISSION_DENIED, None),
                libc::ENOSPC => (code::NO_SPACE, None),
                _ => ("NETWORK_REFUSED", Some(GrpcCode::Internal)),
            },
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Error::PortInUse { port, .. } => {
                format!("stop what listens on port {}, or publish on another port", port.host_port)
            }
            Error::HostAddressVersion6(_) => "publish on an IPv4 address, such as 127.0.0.1 or 0.0.0.0".to_owned(),
            Error::BridgeFull { .. } => "remove a container, or run one with --network host or none".to_owned(),
            Error::AddressesExhausted(_) | Error::SubnetInUse { .. } | Error::NoFreeSubnet => {
                "set network.subnet in the configuration of engined".to_owned()
            }
            Error::BridgeNameInUse(_) => "set network.bridge in the configuration of engined".to_owned(),
            _ => return None,
        })
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let (code, class) = error.class();
        let mut fault = Fault::new(Layer::Network, STEP, code, error.to_string());
        if let Some(class) = class {
            fault = fault.grpc(class);
        }
        if let Some(source) = std::error::Error::source(&error) {
            fault = fault.caused_by(source);
        }
        match error.hint() {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::endpoint::Protocol;

    #[test]
    fn a_port_in_use_names_the_port_and_keeps_the_errno() {
        let port = PublishedPort {
            host_ip: Ipv4Addr::LOCALHOST,
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
        };
        let fault = Fault::from(Error::PortInUse { port, source: Refusal::new(libc::EADDRINUSE, None) });
        assert_eq!((fault.layer, fault.step.as_str()), (Layer::Network, "connect"));
        assert_eq!(fault.code, code::PORT_IN_USE);
        assert_eq!(fault.message, "publish 127.0.0.1:8080:80/tcp: the port is in use on this host");
        assert_eq!(fault.causes, ["Address already in use (os error 98)"]);
        assert!(fault.hint.is_some());
    }

    #[test]
    fn the_kernels_own_words_stand_before_the_errno() {
        let refusal = Refusal::new(libc::EINVAL, Some("invalid netns".to_owned()));
        assert_eq!(refusal.to_string(), "invalid netns: Invalid argument (os error 22)");
    }
}
