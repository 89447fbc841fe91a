//! Which addresses of the bridge's subnet are given away. Pure, in memory: after a restart the live endpoints' records
//! fill it again.
//!
//! An address goes through three states: free → taken → draining → free. It drains while the kernel still takes the old
//! holder's link apart; it belongs to nobody by then, but two links must not answer for it.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::subnet::Subnet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Taken,
    Draining,
}

/// The addresses of one subnet.
#[derive(Debug)]
pub(super) struct Ipam {
    subnet: Subnet,
    gateway: Ipv4Addr,
    used: HashMap<Ipv4Addr, Use>,
    /// Where the next search begins. It moves on with each allocation, so that an address rests as long as it can before
    /// its next holder: stale connections of the outside world then meet nobody.
    cursor: u32,
}

impl Ipam {
    pub(super) fn new(subnet: Subnet, gateway: Ipv4Addr) -> Ipam {
        Ipam { subnet, gateway, used: HashMap::new(), cursor: u32::from(subnet.first_host()) }
    }

    /// A free address, now taken; `None` when there is none.
    pub(super) fn allocate(&mut self) -> Option<Ipv4Addr> {
        if self.used.len() >= self.capacity() {
            return None;
        }
        // At most one round: fewer addresses are used than exist, so one is found.
        let address = (0..=u32::from(self.subnet.broadcast()) - u32::from(self.subnet.network()))
            .map(|step| self.at(step))
            .find(|address| self.is_free(*address))?;
        self.used.insert(address, Use::Taken);
        self.cursor = u32::from(address).wrapping_add(1);
        Some(address)
    }

    /// Marks the address of a live endpoint; `false` when it is taken already or is no host's address.
    pub(super) fn claim(&mut self, address: Ipv4Addr) -> bool {
        let free = self.is_free(address);
        if free {
            self.used.insert(address, Use::Taken);
            self.cursor = self.cursor.max(u32::from(address).wrapping_add(1));
        }
        free
    }

    /// The holder is gone but its link may not be.
    pub(super) fn drain(&mut self, address: Ipv4Addr) {
        if let Some(state) = self.used.get_mut(&address) {
            *state = Use::Draining;
        }
    }

    /// The address is free again, whatever it was.
    pub(super) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        self.subnet.has_host(address) && address != self.gateway && !self.used.contains_key(&address)
    }

    /// The address `step` places after the cursor, round the subnet.
    fn at(&self, step: u32) -> Ipv4Addr {
        let first = u32::from(self.subnet.network());
        let size = u64::from(u32::from(self.subnet.broadcast()) - first) + 1;
        let offset = u64::from(self.cursor.wrapping_sub(first)) + u64::from(step);
        Ipv4Addr::from(first + (offset % size) as u32)
    }

    /// How many containers find an address: all but the network's, the broadcast and the gateway's.
    fn capacity(&self) -> usize {
        let hosts = (u32::from(self.subnet.broadcast()) - u32::from(self.subnet.network())).saturating_sub(1) as usize;
        if self.subnet.has_host(self.gateway) { hosts.saturating_sub(1) } else { hosts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn ipam(text: &str) -> Ipam {
        let subnet: Subnet = text.parse().unwrap();
        Ipam::new(subnet, subnet.first_host())
    }

    #[test]
    fn addresses_follow_each_other_and_rest_before_their_next_holder() {
        let mut ipam = ipam("10.88.0.0/29");
        let first: Vec<_> = (0..5).map(|_| ipam.allocate().unwrap().octets()[3]).collect();
        assert_eq!(first, [2, 3, 4, 5, 6]);
        assert_eq!(ipam.allocate(), None);
        ipam.release(Ipv4Addr::new(10, 88, 0, 3));
        ipam.release(Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(ipam.allocate(), Some(Ipv4Addr::new(10, 88, 0, 2)));
        assert_eq!(ipam.allocate(), Some(Ipv4Addr::new(10, 88, 0, 3)));
    }

    #[test]
    fn a_draining_address_is_not_given_away() {
        let mut ipam = ipam("10.88.0.0/30");
        let only = ipam.allocate().unwrap();
        ipam.drain(only);
        assert_eq!(ipam.allocate(), None);
        ipam.release(only);
        assert_eq!(ipam.allocate(), Some(only));
    }

    #[test]
    fn claims_are_checked() {
        let mut ipam = ipam("10.88.0.0/24");
        assert!(ipam.claim(Ipv4Addr::new(10, 88, 0, 9)));
        for bad in [[10, 88, 0, 9], [10, 88, 0, 0], [10, 88, 0, 1], [10, 88, 0, 255], [10, 89, 0, 4]] {
            assert!(!ipam.claim(Ipv4Addr::from(bad)), "{bad:?}");
        }
        assert_eq!(ipam.allocate(), Some(Ipv4Addr::new(10, 88, 0, 10)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate,
        Claim(u8),
        Drain(usize),
        Release(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Allocate),
            1 => any::<u8>().prop_map(Step::Claim),
            1 => any::<usize>().prop_map(Step::Drain),
            2 => any::<usize>().prop_map(Step::Release),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against a model: an address has one holder at most, reserved ones have none, and as long as one is free
        /// one is found.
        #[test]
        fn no_address_has_two_holders(prefix in 24u8..=30, steps in steps()) {
            let subnet = Subnet::around(Ipv4Addr::new(192, 168, 7, 0), prefix).unwrap();
            let mut ipam = Ipam::new(subnet, subnet.first_host());
            let capacity = (1usize << (32 - prefix)) - 3;
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate => match ipam.allocate() {
                        Some(address) => {
                            prop_assert!(subnet.has_host(address) && address != subnet.first_host());
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), capacity),
                    },
                    Step::Claim(last) => {
                        let address = Ipv4Addr::new(192, 168, 7, last);
                        if ipam.claim(address) {
                            held.push(address);
                        }
                    }
                    Step::Drain(index) if !held.is_empty() => ipam.drain(held[index % held.len()]),
                    Step::Release(index) if !held.is_empty() => {
                        let address = held.swap_remove(index % held.len());
                        ipam.release(address);
                    }
                    Step::Drain(_) | Step::Release(_) => {}
                }
                prop_assert_eq!(held.iter().collect::<HashSet<_>>().len(), held.len());
            }
        }
    }
}
