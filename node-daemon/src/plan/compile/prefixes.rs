//! Rows of `PREFIXES`: pools, what of them is behind which node, and prefixes that policies name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weft_shared::{
    layout::{Address, Class, FIRST_LOCAL_IDENTITY, PrefixKey},
    policy::{model::NodePolicy, prefix},
};

use super::{Compiled, Input, Stale, peer};
use crate::{
    desired::Fleet,
    plan::{tables::Tables, who::WORLD},
};

/// The key of a prefix in a longest-prefix-match map.
pub fn prefix_key(prefix: IpNet) -> PrefixKey {
    let mapping = if prefix.addr().is_ipv4() { Address::MAPPED_PREFIX_BITS } else { 0 };
    PrefixKey { bits: mapping + u32::from(prefix.prefix_len()), address: prefix.network().into() }
}

/// The prefix of a key.
pub fn prefix_of(key: PrefixKey) -> Option<IpNet> {
    let address = IpAddr::from(key.address);
    let mapping = if address.is_ipv4() { Address::MAPPED_PREFIX_BITS } else { 0 };
    IpNet::new(address, key.bits.checked_sub(mapping)?.try_into().ok()?).ok()
}

pub(super) fn add_pools(tables: &mut Tables, input: Input<'_>, fleet: &Fleet, slots: &BTreeMap<&str, u32>) {
    // IPv4 is inside of IPv6 in the maps: without a row of its own, `::/0` of a policy would match it, too.
    tables
        .prefixes
        .insert(PrefixKey { bits: Address::MAPPED_PREFIX_BITS, address: Address::from_v4(0) }, WORLD);
    let class = fleet.unknown_pool_address;
    for pool in &fleet.pools {
        tables.prefixes.insert(prefix_key(*pool), peer(0, class, 0, 0));
    }
    for (name, route) in input.desired.nodes() {
        let Some(slot) = slots.get(name.as_str()) else { continue };
        for cidr in &route.endpoint_cidrs {
            tables.prefixes.insert(prefix_key(*cidr), peer(0, class, *slot, 0));
        }
    }
}

pub(super) fn add_policy_prefixes(
    compiled: &mut Compiled,
    input: Input<'_>,
    fleet: &Fleet,
    actual: &Tables,
    stale: Stale,
) -> prefix::PrefixIdentities {
    let in_kernel = actual.prefixes.iter().filter(|(_, peer)| peer.identity >= FIRST_LOCAL_IDENTITY);
    let previous: Vec<(IpNet, u32)> =
        in_kernel.filter_map(|(key, peer)| Some((prefix_of(*key)?, peer.identity))).collect();
    let peers = input.desired.policies().values().flat_map(NodePolicy::peers);
    let named = peers.flat_map(|peer| prefix::named(peer, input.desired.cidr_sets()));
    let mut wanted: BTreeSet<IpNet> = named.map(|prefix| prefix.trunc()).collect();
    compiled.unfinished |= previous.iter().any(|(prefix, _)| !wanted.contains(prefix));
    if stale == Stale::Keep {
        wanted.extend(previous.iter().map(|(prefix, _)| *prefix));
    }
    let numbers = prefix::PrefixIdentities::assign(previous.iter().copied(), wanted, &fleet.pools);
    for (prefix, number) in numbers.iter() {
        compiled.tables.prefixes.insert(prefix_key(prefix), peer(number, Class::World, 0, 0));
    }
    numbers
}
