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
    pub(super) fn within<'a>(
        &'a self,
        cidr: &'a IpNet,
        except: &'a [IpNet],
    ) -> impl Iterator<Item = u32> + 'a {
        // They stand together, from the first address on: a set of many prefixes asks for each of them.
        let (first, last) = (cidr.trunc(), IpNet::from(cidr.broadcast()));
        self.numbers.range(first..=last).filter_map(move |(prefix, number)| {
            (cidr.contains(prefix) && !except.iter().any(|hole| hole.contains(prefix))).then_some(*number)
        })
    }
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
