//! IPv4 subnets: parsing, overlap, and the choice of one that the host does not use.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network: an address whose host bits are zero, and a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The subnet that `address` lies in. `None` when the prefix length is over 32.
    pub(crate) fn around(address: Ipv4Addr, prefix: u8) -> Option<Subnet> {
        (prefix <= 32).then(|| Subnet { network: Ipv4Addr::from(u32::from(address) & mask(prefix)), prefix })
    }

    /// The prefix length.
    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address with all host bits zero.
    pub(crate) fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The address with all host bits one.
    pub(crate) fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !mask(self.prefix))
    }

    /// The first address that a host can have.
    pub(crate) fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// The netmask.
    pub(crate) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.network)
    }

    /// Whether an address of one can be an address of the other.
    pub(crate) fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Whether `address` can be given to a host: inside, and neither the network's own nor the broadcast address.
    pub(crate) fn has_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network && address != self.broadcast()
    }

    /// Whether a gateway and a container find room.
    pub(crate) fn has_room(self) -> bool {
        (8..=30).contains(&self.prefix)
    }
}

impl Default for Subnet {
    /// Everything: `0.0.0.0/0`.
    fn default() -> Subnet {
        Subnet { network: Ipv4Addr::UNSPECIFIED, prefix: 0 }
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// `10.88.0.0/16`; bits of the host part must be zero, as a slip there is more often a mistake than a wish.
    fn from_str(text: &str) -> Result<Subnet, String> {
        let wrong = || format!("{text:?} is not an IPv4 subnet such as 10.88.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let subnet = Subnet::around(address, prefix).ok_or_else(wrong)?;
        if subnet.network == address {
            Ok(subnet)
        } else {
            Err(format!("{text:?} has host bits set: {subnet} is meant?"))
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Subnet, String> {
        text.parse()
    }
}

/// Where containers may live when nothing is configured, best first: private ranges that few networks use.
fn candidates() -> impl Iterator<Item = Subnet> {
    let tens = (88..=127).map(|second| Ipv4Addr::new(10, second, 0, 0));
    let seventeens = (20..=31).map(|second| Ipv4Addr::new(172, second, 0, 0));
    tens.chain(seventeens).map(|network| Subnet { network, prefix: 16 })
}

/// The first candidate that overlaps none of `used`.
pub(super) fn choose(used: &[Subnet]) -> Option<Subnet> {
    candidates().find(|candidate| !used.iter().any(|route| route.overlaps(*candidate)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_are_parsed_strictly() {
        assert_eq!(subnet("10.88.0.0/16").broadcast(), Ipv4Addr::new(10, 88, 255, 255));
        assert_eq!(subnet("0.0.0.0/0").mask(), Ipv4Addr::UNSPECIFIED);
        for bad in ["10.88.0.0", "10.88.0.1/16", "10.88.0.0/33", "::/8", "10.88.0.0/-1", "a/8", ""] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_free_candidate_is_chosen() {
        assert_eq!(choose(&[]), Some(subnet("10.88.0.0/16")));
        assert_eq!(choose(&[subnet("10.88.7.0/24"), subnet("10.89.0.0/16")]), Some(subnet("10.90.0.0/16")));
        assert_eq!(choose(&[subnet("10.0.0.0/8")]), Some(subnet("172.20.0.0/16")));
        assert_eq!(choose(&[subnet("0.0.0.0/1"), subnet("128.0.0.0/1")]), None);
    }

    proptest! {
        #[test]
        fn overlap_is_symmetric_and_means_a_common_address(a: u32, b: u32, p in 0u8..=32, q in 0u8..=32) {
            let one = Subnet::around(Ipv4Addr::from(a), p).unwrap();
            let two = Subnet::around(Ipv4Addr::from(b), q).unwrap();
            prop_assert_eq!(one.overlaps(two), two.overlaps(one));
            let shared = one.contains(two.network()) || two.contains(one.network())
                || one.contains(two.broadcast()) || two.contains(one.broadcast());
            prop_assert_eq!(one.overlaps(two), shared);
        }

        #[test]
        fn what_is_printed_is_parsed(a: u32, p in 0u8..=32) {
            let one = Subnet::around(Ipv4Addr::from(a), p).unwrap();
            prop_assert_eq!(one.to_string().parse::<Subnet>(), Ok(one));
        }
    }
}
