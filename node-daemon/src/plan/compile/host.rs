//! The node itself as a subject: it has a slot like the endpoints' identities where host policies select it.

use std::collections::BTreeSet;

use weft_shared::{
    layout::{Class, Direction, FailsafeKey},
    policy::{
        compile::{self, IdentitySets},
        model::{HostToEndpoint, NodePolicy},
    },
};

use super::{
    Compiled, Input, Stale,
    policies::{Numbers, Slots},
    prefix_key,
};
use crate::{
    desired::{Desired, Fleet},
    plan::tables::{HostRow, Tables},
};

/// In place of an identity that is not known.
const NAMELESS: u32 = Class::Host as u32;

/// The node's own identity; that of its class where the controller has not said.
fn own_identity(node: &str, desired: &Desired) -> u32 {
    let route = desired.nodes().get(node);
    route.map(|route| route.identity).filter(|identity| *identity != 0).unwrap_or(NAMELESS)
}

/// The host policies that select a node of an identity. A controller sends a node those that select it: where it has not said
/// who this node is, they all count.
pub fn policies_of<'a>(
    identity: u32,
    desired: &'a Desired,
    sets: &IdentitySets,
) -> impl Iterator<Item = &'a NodePolicy> {
    let selects = move |policy: &&NodePolicy| {
        let selected = || sets.get(policy.subject.named()).is_some_and(|members| members.contains(&identity));
        policy.subject.is_nodes() && (identity == NAMELESS || selected())
    };
    desired.policies().values().filter(selects)
}

/// The directions in which host policies judge the node of a name; those that are only audited count.
pub fn node_is_judged(node: &str, desired: &Desired) -> Vec<Direction> {
    let own = own_identity(node, desired);
    let is_judged = |direction: &Direction| {
        policies_of(own, desired, desired.sets()).any(|policy| policy.is_about(*direction))
    };
    Direction::ALL.into_iter().filter(is_judged).collect()
}

/// The identities that the node is judged as: its own, if a host policy selects it in any direction, and while what is stale
/// is kept, the one it was judged as before.
pub(super) fn identities(
    compiled: &mut Compiled,
    input: Input<'_>,
    actual: &Tables,
    stale: Stale,
) -> BTreeSet<u32> {
    let own = own_identity(input.node, input.desired);
    let judged = !node_is_judged(input.node, input.desired).is_empty();
    let mut identities: BTreeSet<u32> = judged.then_some(own).into_iter().collect();
    if stale == Stale::Keep {
        let former = actual.host.and_then(|host| actual.subjects.get(&host.subject));
        compiled.unfinished |= former.is_some_and(|subject| identities.insert(subject.identity));
    }
    identities
}

/// Who judges the node, and what nobody can stop.
pub(super) fn add(
    compiled: &mut Compiled,
    input: Input<'_>,
    fleet: &Fleet,
    numbers: &mut Numbers,
    subjects: &Slots,
) {
    let own = own_identity(input.node, input.desired);
    let tables = &mut compiled.tables;
    let own_slot = subjects.iter().find(|(_, identity)| **identity == own);
    let Some((slot, _)) = own_slot.filter(|(slot, _)| tables.subjects.contains_key(slot)) else { return };
    let own_endpoints_free = fleet.host_to_endpoint == HostToEndpoint::Allow;
    tables.host = Some(HostRow { subject: *slot, own_endpoints_free });
    for ((direction, prefix), book) in compile::failsafe_books(&fleet.failsafe) {
        let number = numbers.add(tables, &book);
        tables.failsafe.insert(FailsafeKey::new(direction, prefix_key(prefix)), number);
    }
}
