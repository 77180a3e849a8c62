//! Addresses of a node's pods: which are given out, and which comes next.
//!
//! Pure: no I/O, no clock, no randomness.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 network, `10.244.0.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCidr {
    network: u32,
    prefix_len: u8,
}

/// Why a text is not a pod CIDR.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a pod CIDR: {why}, write it like 10.244.0.0/24")]
pub struct ParseCidrError {
    text: String,
    why: &'static str,
}

impl FromStr for PodCidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = |why| ParseCidrError { text: text.to_owned(), why };
        let (address, prefix_len) = text.split_once('/').ok_or(err("it has no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| err("the address is not an IPv4 address"))?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| err("the prefix length is not a number"))?;
        // Below /8 is nobody's pod network; above /30 there is no room for a gateway and a pod.
        if !(8..=30).contains(&prefix_len) {
            return Err(err("the prefix length is not from 8 to 30"));
        }
        let network = u32::from(address);
        if network & host_mask(prefix_len) != 0 {
            return Err(err("the address has bits beyond the prefix"));
        }
        Ok(Self { network, prefix_len })
    }
}

impl fmt::Display for PodCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix_len)
    }
}

impl PodCidr {
    /// Bits of the network.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The first address: the bridge's, and the pods' way out.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// How many pods have room: all addresses but the network's, the gateway's and the broadcast one.
    pub fn capacity(&self) -> usize {
        usize::try_from(host_mask(self.prefix_len) - 2).unwrap_or(usize::MAX)
    }

    /// Whether a pod may have this address.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        (self.first()..=self.last()).contains(&address)
    }

    fn first(&self) -> u32 {
        self.network + 2
    }

    fn last(&self) -> u32 {
        self.network + host_mask(self.prefix_len) - 1
    }
}

fn host_mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0)
}

/// Gives out addresses, each to one pod at a time, going round so that an address rests before it comes again.
#[derive(Debug, Clone)]
pub struct Addresses {
    cidr: PodCidr,
    used: BTreeSet<u32>,
    next: u32,
}

impl Addresses {
    /// All addresses of `cidr` free.
    pub fn new(cidr: PodCidr) -> Self {
        Self { cidr, used: BTreeSet::new(), next: cidr.first() }
    }

    /// The next free address, or none when all are in use.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (self.cidr.first(), self.cidr.last());
        let free = (self.next..=last).chain(first..self.next).find(|address| !self.used.contains(address))?;
        self.used.insert(free);
        self.next = if free == last { first } else { free + 1 };
        Some(Ipv4Addr::from(free))
    }

    /// Marks an address that is found in use. False when it is not of this network or has been taken already.
    pub fn claim(&mut self, address: Ipv4Addr) -> bool {
        self.cidr.holds(address) && self.used.insert(u32::from(address))
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address));
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.244.0.0/24", 253)]
    #[case("10.0.0.0/8", 16_777_213)]
    #[case("192.168.1.4/30", 1)]
    fn reads_a_cidr(#[case] text: &str, #[case] capacity: usize) {
        let cidr: PodCidr = text.parse().unwrap();
        assert_eq!(cidr.to_string(), text);
        assert_eq!(cidr.capacity(), capacity);
    }

    #[rstest]
    #[case("10.244.0.0")]
    #[case("10.244.0.0/31")]
    #[case("10.244.0.0/7")]
    #[case("10.244.0.1/24")]
    #[case("fd00::/64")]
    #[case("10.244.0.0/x")]
    fn refuses_what_is_no_pod_cidr(#[case] text: &str) {
        let message = text.parse::<PodCidr>().unwrap_err().to_string();
        assert!(message.contains(text) && message.contains("10.244.0.0/24"), "{message}");
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice(prefix_len in 24u8..=30, steps in prop::collection::vec(any::<Option<u8>>(), 0..600)) {
            let cidr: PodCidr = format!("10.1.2.0/{prefix_len}").parse().unwrap();
            let mut addresses = Addresses::new(cidr);
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for step in steps {
                match step {
                    None => match addresses.take() {
                        Some(address) => {
                            prop_assert!(cidr.holds(address) && address != cidr.gateway());
                            prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), cidr.capacity()),
                    },
                    Some(which) if !held.is_empty() => {
                        let address = held.swap_remove(usize::from(which) % held.len());
                        addresses.release(address);
                    }
                    Some(_) => {}
                }
                prop_assert_eq!(addresses.in_use(), held.len());
            }
        }

        #[test]
        fn an_address_rests_as_long_as_others_are_free(prefix_len in 25u8..=29) {
            let cidr: PodCidr = format!("10.1.2.0/{prefix_len}").parse().unwrap();
            let mut addresses = Addresses::new(cidr);
            let first = addresses.take().unwrap();
            addresses.release(first);
            for _ in 1..cidr.capacity() {
                prop_assert_ne!(addresses.take(), Some(first));
            }
            prop_assert_eq!(addresses.take(), Some(first));
        }
    }
}
