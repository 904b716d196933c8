//! Which slot each table gets.
//!
//! A slot's table may only be changed into another one if all that finds the slot now is to find the other one: rows of
//! frontends change one by one, and a flow must meet what was or what shall be. So a table that stays as it is keeps
//! its slot, one that changes keeps it where nobody else would find it there, and all others get slots in which nothing is and
//! to which nothing leads. What leads where is read from the kernel, so nothing has to be remembered.

use std::collections::{BTreeMap, BTreeSet};

use weft_shared::layout::maps::SERVICES_MAX;

use super::{
    tables::Services,
    view::{Reference, Scope, Share},
};

/// A slot for each of the shares, in their order; `None`: all slots are taken.
pub(super) fn place(shares: &[&Share], actual: &Services) -> Vec<Option<u32>> {
    let finding = finding(actual);
    let mut taken = BTreeSet::new();
    let mut placed = vec![None; shares.len()];
    let as_it_is = |share: &Share, slot: u32| actual.tables.get(&slot) == Some(&share.table.digest());
    let to_itself = |share: &Share, slot: u32| {
        finding.get(&slot).is_some_and(|references| references.is_subset(&share.references))
    };
    for first in [true, false] {
        let keeps = |share: &Share, slot| if first { as_it_is(share, slot) } else { to_itself(share, slot) };
        for (share, placed) in shares.iter().zip(&mut placed).filter(|(_, placed)| placed.is_none()) {
            let had = share.references.iter().filter_map(|reference| slot(actual, reference));
            let had: BTreeSet<u32> = had.filter(|slot| !taken.contains(slot)).collect();
            *placed = had.into_iter().find(|slot| keeps(share, *slot));
            taken.extend(*placed);
        }
    }
    let last = u32::try_from(SERVICES_MAX).unwrap_or(u32::MAX);
    let mut free = (1..last).filter(|slot| {
        !taken.contains(slot) && !actual.tables.contains_key(slot) && !finding.contains_key(slot)
    });
    for placed in placed.iter_mut().filter(|placed| placed.is_none()) {
        *placed = free.next();
    }
    placed
}

/// What leads to each slot.
fn finding(actual: &Services) -> BTreeMap<u32, BTreeSet<Reference>> {
    let mut finding: BTreeMap<u32, BTreeSet<Reference>> = BTreeMap::new();
    for (key, frontend) in &actual.frontends {
        finding.entry(frontend.inside).or_default().insert((*key, Scope::Inside));
        finding.entry(frontend.outside).or_default().insert((*key, Scope::Outside));
    }
    finding
}

fn slot(actual: &Services, (key, scope): &Reference) -> Option<u32> {
    let frontend = actual.frontends.get(key)?;
    Some(match scope {
        Scope::Inside => frontend.inside,
        Scope::Outside => frontend.outside,
    })
}
