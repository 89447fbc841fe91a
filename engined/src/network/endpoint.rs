//! An endpoint: one container's place on the bridge, as the core keeps it in its store.
//!
//! These types hold all that is needed to find, repair or remove the endpoint after a restart; the network part keeps no
//! files of its own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Error;

/// Longest id, in bytes: it becomes a file name.
const ID_MAX: usize = 128;

/// The name of an endpoint, safe as the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct EndpointId(String);

impl EndpointId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EndpointId {
    type Error = Error;

    fn try_from(id: String) -> Result<EndpointId, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        // A leading dot or dash is refused: the first hides or leaves the directory, the second looks like a flag.
        let begins_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins_well && id.len() <= ID_MAX && id.bytes().all(plain) {
            Ok(EndpointId(id))
        } else {
            Err(Error::EndpointId(id))
        }
    }
}

impl FromStr for EndpointId {
    type Err = Error;

    fn from_str(id: &str) -> Result<EndpointId, Error> {
        EndpointId::try_from(id.to_owned())
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> String {
        id.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A connected container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// Chosen by the core.
    pub(crate) id: EndpointId,
    /// Where the network namespace is pinned: the path for the container's spec.
    pub(crate) namespace: PathBuf,
    /// The link on the host whose far end is the container's `eth0`.
    pub(crate) link: String,
    /// The container's address.
    pub(crate) address: Ipv4Addr,
    /// Its prefix length.
    pub(crate) prefix: u8,
    /// The bridge's address, the container's default route.
    pub(crate) gateway: Ipv4Addr,
    /// The hardware address of `eth0`.
    pub(crate) mac: Mac,
    /// What the host forwards to the container.
    #[serde(default)]
    pub(crate) ports: Vec<PublishedPort>,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    /// The address for the holder of `address`. One address has one MAC, so that neighbours' ARP caches stay right when
    /// an address finds its next holder.
    pub(super) fn of(address: Ipv4Addr) -> Mac {
        let [a, b, c, d] = address.octets();
        // 0x02 in the first byte: locally administered, unicast.
        Mac([0x02, 0x53, a, b, c, d])
    }

    /// The address in the kernel's form; `None` when it is another kind's.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Mac> {
        bytes.try_into().ok().map(Mac)
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Mac, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(|| not_a_mac(&text))?;
        }
        if parts.next().is_some() { Err(not_a_mac(&text)) } else { Ok(Mac(bytes)) }
    }
}

fn not_a_mac(text: &str) -> String {
    format!("{text:?} is not an Ethernet address")
}

/// The protocols that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The number in the IP header.
    pub(super) const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port that somebody asks to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRequest {
    /// Where on the host; the unspecified address means every IPv4 address.
    pub(crate) host_ip: IpAddr,
    /// The port on the host; 0 lets the kernel choose one.
    pub(crate) host_port: u16,
    /// The port in the container.
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
}

/// A port that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PublishedPort {
    /// Where on the host; the unspecified address means every IPv4 address.
    pub(crate) host_ip: Ipv4Addr,
    /// The port on the host, chosen if none was asked for.
    pub(crate) host_port: u16,
    /// The port in the container.
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
}

impl fmt::Display for PublishedPort {
    /// As the `-p` flag takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}/{}", self.host_ip, self.host_port, self.container_port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names_and_stay_in_their_directory() {
        for good in ["a", "0f", "web_1.x-y", &"a".repeat(128)] {
            assert!(good.parse::<EndpointId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a\0", "ä", "a b", &"a".repeat(129)] {
            assert!(bad.parse::<EndpointId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mac_is_made_of_the_address_and_parsed_back() {
        let mac = Mac::of(Ipv4Addr::new(10, 88, 0, 255));
        assert_eq!(mac.to_string(), "02:53:0a:58:00:ff");
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
        for bad in ["", "02:53:0a:58:00", "02:53:0a:58:00:ff:00", "2:53:0a:58:00:ff", "zz:53:0a:58:00:ff"] {
            assert!(Mac::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let endpoint = Endpoint {
            id: "web".parse().unwrap(),
            namespace: "/run/x/netns/web".into(),
            link: "v12340a580002".to_owned(),
            address: Ipv4Addr::new(10, 88, 0, 2),
            prefix: 16,
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            mac: Mac::of(Ipv4Addr::new(10, 88, 0, 2)),
            ports: vec![PublishedPort {
                host_ip: Ipv4Addr::UNSPECIFIED,
                host_port: 80,
                container_port: 8080,
                protocol: Protocol::Udp,
            }],
        };
        let text = serde_json::to_string(&endpoint).unwrap();
        assert_eq!(serde_json::from_str::<Endpoint>(&text).unwrap(), endpoint);
    }
}
