//! Follows the store: a listing first, then every change, into the fleet. When the watch is lost, it lists again.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::hub::Hub;
use crate::{
    fleet::Change,
    keys, limits,
    store::{Range, Store, StoreError, Watch},
};

/// Between two tries at a store that fails.
const RETRY: Duration = Duration::from_millis(500);

pub async fn follow(store: Arc<dyn Store>, hub: Arc<Hub>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let followed = tokio::select! {
            followed = list_then_watch(store.as_ref(), &hub) => followed,
            () = stop.cancelled() => return,
        };
        match followed {
            Ok(()) => return,
            Err(StoreError::Compacted { .. }) => {
                tracing::info!("fell behind the store's history, listing again");
            }
            Err(error) => {
                tracing::error!(%error, "following the store failed, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn list_then_watch(store: &dyn Store, hub: &Hub) -> Result<(), StoreError> {
    let revision = load(store, hub).await?;
    let mut watch = store.watch(keys::ROOT, revision).await?;
    while let Some(batch) = next_batch(&mut watch, hub).await {
        let batch = batch?;
        let changes = batch.events.iter().map(Change::from_event);
        hub.apply(batch.revision, understood(changes));
    }
    Ok(())
}

/// The next batch; meanwhile the fleet's deadlines are kept.
async fn next_batch(watch: &mut Watch, hub: &Hub) -> Option<Result<crate::store::Batch, StoreError>> {
    let mut deadline = hub.next_deadline();
    loop {
        tokio::select! {
            batch = watch.next() => return batch,
            () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                deadline = hub.tick();
            }
        }
    }
}

/// Brings the fleet to what the store holds now, whatever it held before.
async fn load(store: &dyn Store, hub: &Hub) -> Result<u64, StoreError> {
    let mut range =
        Range { prefix: keys::ROOT.to_owned(), limit: limits::LIST_PAGE_MAX_OBJECTS, ..Range::default() };
    let mut changes = Vec::new();
    loop {
        let page = store.range(range.clone()).await?;
        changes.extend(understood(page.items.iter().map(Change::from_item)));
        if !page.more {
            let gone = hub.ask(|fleet| gone(fleet, &changes));
            changes.extend(gone);
            hub.apply(page.revision, changes);
            return Ok(page.revision);
        }
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
    }
}

/// What a bad record says is left out, and said loudly: the rest of the fleet must not wait for it.
fn understood<E: std::fmt::Display>(changes: impl Iterator<Item = Result<Option<Change>, E>>) -> Vec<Change> {
    let mut understood = Vec::new();
    for change in changes {
        match change {
            Ok(change) => understood.extend(change),
            Err(error) => tracing::error!(%error, "an object in the store is left out"),
        }
    }
    understood
}

/// Deletions of what the fleet knows and the listing has not.
fn gone(fleet: &crate::fleet::Fleet, listed: &[Change]) -> Vec<Change> {
    let (mut nodes, mut endpoints, mut policies) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut identities = BTreeSet::new();
    for change in listed {
        match change {
            Change::Node { name, .. } => drop(nodes.insert(name.as_str())),
            Change::Endpoint { name, .. } => drop(endpoints.insert(name.as_str())),
            Change::Policy { name, .. } => drop(policies.insert(name.as_str())),
            Change::Identity { number, .. } => drop(identities.insert(*number)),
            Change::Config(_) => {}
        }
    }
    let owned = str::to_owned;
    let gone_nodes = fleet.nodes().map(|(name, _)| name).filter(|name| !nodes.contains(name));
    let gone_endpoints = fleet.endpoints().map(|(name, _)| name).filter(|name| !endpoints.contains(name));
    let gone_policies =
        fleet.policies().map(|policy| policy.name.as_str()).filter(|name| !policies.contains(name));
    let gone_identities = fleet.identity_numbers().filter(|number| !identities.contains(number));
    let mut changes: Vec<Change> =
        gone_nodes.map(|name| Change::Node { name: owned(name), facts: None }).collect();
    changes.extend(gone_endpoints.map(|name| Change::Endpoint { name: owned(name), facts: None }));
    changes.extend(gone_policies.map(|name| Change::Policy { name: owned(name), policy: None }));
    changes.extend(gone_identities.map(|number| Change::Identity { number, labels: None }));
    changes
}
