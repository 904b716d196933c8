//! Who probes backends outside of the fleet must be there to do so. Of a node that stays away this is in the store, so that all
//! controllers choose the same others; of one that probes nothing there it is not written.
use std::collections::BTreeSet;

use crate::{
    keys, limits,
    plan::Plan,
    store::{Store, StoreError},
    stream::Hub,
};

/// Marks nodes that probe and are away, and takes the marks of those who are back.
pub(super) async fn mark(store: &dyn Store, hub: &Hub, away: &BTreeSet<String>) -> Result<(), StoreError> {
    let (gone, marked) = hub.ask(|fleet| {
        let marked: BTreeSet<String> = fleet.away().map(str::to_owned).collect();
        let probing = fleet.probers_outside();
        (away.intersection(&probing).cloned().collect::<Vec<_>>(), marked)
    });
    let back = marked.into_iter().filter(|node| hub.standing(node).is_none_or(|standing| standing.connected));
    let back: Vec<String> = back.collect();
    for some in gone.chunks(limits::HEALTH_FORGOTTEN_AT_ONCE) {
        let mut plan = Plan::default();
        for node in some {
            plan.put(keys::prober_away(node), "");
        }
        plan.commit(store).await?;
    }
    for some in back.chunks(limits::HEALTH_FORGOTTEN_AT_ONCE) {
        let mut plan = Plan::default();
        for node in some {
            plan.delete(keys::prober_away(node));
        }
        plan.put(keys::HEALTH_TAKEN_BACK, "");
        plan.commit(store).await?;
    }
    Ok(())
}
