//! Which nodes probe a backend outside of the fleet: those whose hashes with the backend are the highest (rendezvous), so that
//! a node that comes or goes moves its own part and nothing else. Frozen: controllers of different releases must agree.

use std::{cmp::Reverse, hash::Hasher as _, net::IpAddr, num::NonZeroU16};

use siphasher::sip::SipHasher24;

/// Probes that agree tell a backend that is broken from a way to it that is.
pub const PROBERS_MAX: usize = 3;

const KEY: [u8; 16] = *b"weft probers v1\0";

/// The nodes that probe one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probers {
    backend: (IpAddr, Option<NonZeroU16>),
    /// The first comes first; at most [`PROBERS_MAX`].
    best: Vec<(Reverse<u64>, String)>,
}

impl Probers {
    /// Of these nodes, in any order.
    pub fn among<'a>(nodes: impl Iterator<Item = &'a str>, backend: (IpAddr, Option<NonZeroU16>)) -> Self {
        let mut probers = Self { backend, best: Vec::with_capacity(PROBERS_MAX + 1) };
        for node in nodes {
            probers.offer(node);
        }
        probers
    }

    /// There is one node more. `true`: it is one of them now.
    pub fn offer(&mut self, node: &str) -> bool {
        let hash = Reverse(hash(node, self.backend));
        let at = self.best.partition_point(|(other, name)| (*other, name.as_str()) < (hash, node));
        if at == PROBERS_MAX || self.best.get(at).is_some_and(|(_, name)| name == node) {
            return false;
        }
        self.best.insert(at, (hash, node.to_owned()));
        self.best.truncate(PROBERS_MAX);
        true
    }

    pub fn contains(&self, node: &str) -> bool {
        self.best.iter().any(|(_, name)| name == node)
    }

    /// By name.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.best.iter().map(|(_, name)| name.clone()).collect();
        names.sort_unstable();
        names
    }
}

fn hash(node: &str, (address, port): (IpAddr, Option<NonZeroU16>)) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&KEY);
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    hasher.write(&octets);
    hasher.write(&port.map_or(0, NonZeroU16::get).to_be_bytes());
    // Last: it is the only part of no fixed length.
    hasher.write(node.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn backend(last: u8) -> (IpAddr, Option<NonZeroU16>) {
        (IpAddr::from([203, 0, 113, last]), NonZeroU16::new(80))
    }

    fn names(count: u8) -> Vec<String> {
        (0..count).map(|number| format!("n{number}")).collect()
    }

    #[test]
    fn the_choice_is_frozen() {
        let nodes = names(20);
        let chosen = Probers::among(nodes.iter().map(String::as_str), backend(1)).names();
        assert_eq!(chosen, ["n0", "n18", "n5"]);
    }

    #[test]
    fn whoever_comes_and_goes_in_whatever_order_the_choice_is_that_of_those_who_are_there() {
        let nodes = names(9);
        for last in 0..50 {
            let forth = Probers::among(nodes.iter().map(String::as_str), backend(last));
            let back = Probers::among(nodes.iter().rev().map(String::as_str), backend(last));
            assert_eq!(forth, back);
            let without = |gone: &str| {
                let rest = nodes.iter().map(String::as_str).filter(|name| *name != gone);
                Probers::among(rest, backend(last))
            };
            for gone in &nodes {
                let mut again = without(gone);
                assert_eq!(again == forth, !forth.contains(gone), "who was not chosen moves nothing");
                assert_eq!(again.offer(gone), forth.contains(gone));
                assert!(!again.offer(gone), "it is there once");
                assert_eq!(again, forth);
            }
        }
    }

    #[test]
    fn backends_are_spread_over_nodes() {
        let nodes = names(10);
        let mut counts = BTreeMap::<String, usize>::new();
        for last in 0..=255 {
            for name in Probers::among(nodes.iter().map(String::as_str), backend(last)).names() {
                *counts.entry(name).or_default() += 1;
            }
        }
        // 76.8 each; a deviation of six of these fair coins' has a chance of 10^-9.
        assert!(counts.len() == 10 && counts.values().all(|count| (32..=121).contains(count)), "{counts:?}");
    }

    #[test]
    fn fewer_nodes_than_are_wanted_all_probe() {
        assert_eq!(Probers::among(["b", "a"].into_iter(), backend(1)).names(), ["a", "b"]);
        assert_eq!(Probers::among(std::iter::empty(), backend(1)).names(), Vec::<String>::new());
    }
}
