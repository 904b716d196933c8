//! Identities of prefixes. A prefix that a policy names (also as an exception) gets a number that is local to the node;
//! an address has the number of the longest prefix around it, so the rows of that number must say what every policy
//! says of all around it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{
    compile::CidrSets,
    model::{NodePeer, Peer},
};
use crate::layout::FIRST_LOCAL_IDENTITY;

/// Prefix → its number on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixIdentities {
    numbers: BTreeMap<IpNet, u32>,
}

impl PrefixIdentities {
    /// Numbers for the `wanted` prefixes. Those that have one in `previous` keep it; new ones get numbers above all in
    /// `previous`, so that a number in the kernel never changes what it stands for. Prefixes inside a pool get none:
    /// what is inside the pools is never matched by prefix.
    pub fn assign(
        previous: impl IntoIterator<Item = (IpNet, u32)>,
        wanted: impl IntoIterator<Item = IpNet>,
        pools: &[IpNet],
    ) -> Self {
        let previous: BTreeMap<IpNet, u32> = previous.into_iter().collect();
        let mut next = previous.values().copied().max().map_or(FIRST_LOCAL_IDENTITY, |highest| highest + 1);
        let wanted: BTreeSet<IpNet> =
            wanted.into_iter().filter(|prefix| !pools.iter().any(|pool| pool.contains(prefix))).collect();
        let mut numbers = BTreeMap::new();
        for prefix in wanted {
            let number = previous.get(&prefix).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            numbers.insert(prefix, number);
        }
        Self { numbers }
    }

    /// All of them, as they are written to `PREFIXES`.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, u32)> + '_ {
        self.numbers.iter().map(|(prefix, number)| (*prefix, *number))
    }

    /// The numbers of the prefixes all of whose addresses are in `cidr` and in none of `except`. Exceptions have numbers
    /// of their own, so an address inside one never has the number of a prefix around it.
    ///
    /// Prefixes are ordered by their first address, and then the wider first. So those inside of one stand together right
    /// behind it, and no more than these are looked at.
    pub(super) fn within(&self, cidr: &IpNet, except: &[IpNet]) -> impl Iterator<Item = u32> + '_ {
        let mut holes: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
        holes.sort_unstable();
        let (mut holes, mut hole) = (holes.into_iter().peekable(), None::<IpNet>);
        self.numbers.range(cidr.trunc()..=last_within(cidr)).filter_map(move |(prefix, number)| {
            while let Some(next) = holes.next_if(|next| next <= prefix) {
                if !hole.is_some_and(|hole| hole.contains(&next)) {
                    hole = Some(next);
                }
            }
            (!hole.is_some_and(|hole| hole.contains(prefix))).then_some(*number)
        })
    }
}

/// The last of all prefixes inside of one: its last address.
fn last_within(cidr: &IpNet) -> IpNet {
    IpNet::from(cidr.broadcast())
}

/// Every prefix that a peer names, also by CIDR sets.
pub fn named<'a>(peer: &'a NodePeer, cidr_sets: &'a CidrSets) -> Box<dyn Iterator<Item = IpNet> + 'a> {
    match peer {
        Peer::Cidr { cidr, except } => Box::new(std::iter::once(*cidr).chain(except.iter().copied())),
        Peer::CidrSet(names) => {
            Box::new(names.iter().filter_map(|name| cidr_sets.get(name)).flatten().copied())
        }
        Peer::Endpoints(_) | Peer::Nodes(_) | Peer::Entity(_) => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few different addresses, so that many are inside of others.
    fn prefixes(most: usize) -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (0..8_u32, 24..=32_u8).prop_map(|(low, bits)| {
            let address = std::net::Ipv4Addr::from(0xc000_0200 | (low * 37) & 0xff);
            IpNet::new(address.into(), bits).expect("a prefix").trunc()
        });
        let v6 = (0..8_u128, 0..=128_u8).prop_map(|(low, bits)| {
            IpNet::new(std::net::Ipv6Addr::from(low << 61).into(), bits).expect("a prefix").trunc()
        });
        let wide = prop::sample::select(vec!["0.0.0.0/0", "::/0", "192.0.2.255/32"])
            .prop_map(|text| text.parse().expect("a prefix"));
        prop::collection::vec(prop_oneof![4 => v4, 4 => v6, 1 => wide], 0..most)
    }

    proptest! {
        #[test]
        fn those_within_are_those_that_a_walk_over_all_finds(
            named in prefixes(40), cidr in prefixes(2), except in prefixes(6),
        ) {
            let numbers = PrefixIdentities::assign([], named, &[]);
            for cidr in &cidr {
                let found: Vec<u32> = numbers.within(cidr, &except).collect();
                let walked: Vec<u32> = numbers
                    .iter()
                    .filter(|(prefix, _)| cidr.contains(prefix))
                    .filter(|(prefix, _)| !except.iter().any(|hole| hole.contains(prefix)))
                    .map(|(_, number)| number)
                    .collect();
                prop_assert_eq!(found, walked);
            }
        }
    }
}
