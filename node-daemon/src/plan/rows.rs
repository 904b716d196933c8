//! The smallest safe change of one subject's table.
//!
//! A packet has one peer identity and one class, and is judged by the longest row of each. So the rows of an identity
//! that had none may be written in place, longest first: a packet meets its final row, or none of them. The rows of an
//! identity that keeps none go the other way round. Any other change of several rows is a swap of the whole table.

use std::collections::BTreeSet;

use weft_shared::layout::{FIRST_GLOBAL_IDENTITY, IDENTITY_PREFIX_BITS, PolicyKey, PolicyRow};

use super::tables::{PolicyTable, Step};

/// The peer that a row is about; `None`: it is the default of a direction.
pub fn peer_of(key: &PolicyKey) -> Option<u32> {
    (key.bits >= IDENTITY_PREFIX_BITS).then(|| u32::from_be_bytes(key.identity))
}

/// Peers that a table has rows for.
pub fn peers(table: &PolicyTable) -> BTreeSet<u32> {
    table.keys().filter_map(peer_of).collect()
}

/// The steps that turn `from` (absent: there is no table) into `to`.
pub fn change(slot: u32, from: Option<&PolicyTable>, to: &PolicyTable) -> Vec<Step> {
    let swap = || vec![Step::PolicyTable { slot, table: Some(to.clone()) }];
    let Some(from) = from else { return swap() };
    let mut changes: Vec<(PolicyKey, Option<PolicyRow>)> = Vec::new();
    changes.extend(from.keys().filter(|key| !to.contains_key(key)).map(|key| (*key, None)));
    changes.extend(
        to.iter().filter(|(key, row)| from.get(key) != Some(row)).map(|(key, row)| (*key, Some(*row))),
    );
    if changes.len() > 1 && !can_be_in_place(from, to, &changes) {
        return swap();
    }
    // Removals broadest first, then additions longest first.
    changes.sort_by_key(|(key, row)| match row {
        None => (0, key.bits, *key),
        Some(_) => (1, u32::MAX - key.bits, *key),
    });
    changes.into_iter().map(|(key, row)| Step::PolicyRow { slot, key, row }).collect()
}

fn can_be_in_place(from: &PolicyTable, to: &PolicyTable, changes: &[(PolicyKey, Option<PolicyRow>)]) -> bool {
    let mut concerned = BTreeSet::new();
    for (key, _) in changes {
        // A default stands behind every packet.
        let Some(peer) = peer_of(key) else { return false };
        concerned.insert(peer);
    }
    // A packet may match rows of its class besides those of its identity.
    let classes = concerned.iter().filter(|peer| **peer < FIRST_GLOBAL_IDENTITY).count();
    if classes > 0 && classes < concerned.len() {
        return false;
    }
    let (before, after) = (peers(from), peers(to));
    concerned.iter().all(|peer| !(before.contains(peer) && after.contains(peer)))
}
