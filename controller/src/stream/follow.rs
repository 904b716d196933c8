//! Follows the store: a listing first, then every change, into the fleet. When the watch is lost, it lists again.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::hub::Hub;
use crate::{
    fleet::{Change, EventError, Fleet},
    keys, limits,
    store::{Range, Store, StoreError, Watch},
};

/// Between two tries at a store that fails.
const RETRY: Duration = Duration::from_millis(500);

/// Goes on from `revision`, which the fleet has taken in. An error ends it when the store is not the one any more that the
/// fleet was made from: what nodes hold must not be brought to what that one holds.
pub async fn follow(
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    mut revision: Option<u64>,
    stop: CancellationToken,
) -> Result<(), EventError> {
    loop {
        let followed = tokio::select! {
            biased;
            followed = list_then_watch(store.as_ref(), &hub, revision.take()) => followed,
            () = stop.cancelled() => return Ok(()),
        };
        match followed {
            Ok(()) | Err(EventError::Store(StoreError::Closed)) => return Ok(()),
            Err(error @ EventError::Store(StoreError::Replaced { .. } | StoreError::Future { .. })) => {
                tracing::error!(%error, "the store is not the one that was served");
                return Err(error);
            }
            Err(EventError::Store(StoreError::Compacted { .. })) => {
                tracing::info!("fell behind the store's history, listing again");
            }
            Err(error) => {
                // Nodes keep what they have: leaving out what is not understood might open what it closes.
                tracing::error!(%error, "cannot follow the store, no node is told anything; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn list_then_watch(store: &dyn Store, hub: &Hub, revision: Option<u64>) -> Result<(), EventError> {
    let revision = match revision {
        Some(revision) => revision,
        None => load(store, hub).await?,
    };
    let mut watch = store.watch(keys::ROOT, revision).await?;
    while let Some(batch) = next_batch(&mut watch, hub).await {
        let batch = batch?;
        hub.take_records(&batch.events);
        let changes = batch.events.iter().map(Change::from_event);
        hub.apply(batch.revision, understood(changes)?);
    }
    Ok(())
}

/// The next batch; meanwhile the fleet's deadlines are kept.
async fn next_batch(watch: &mut Watch, hub: &Hub) -> Option<Result<crate::store::Batch, StoreError>> {
    let mut deadline = hub.next_deadline();
    loop {
        tokio::select! {
            // Each batch looks at the deadlines, too.
            biased;
            batch = watch.next() => return batch,
            () = tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                deadline = hub.tick();
            }
        }
    }
}

/// Brings the fleet to what the store holds now, whatever it held before.
pub async fn load(store: &dyn Store, hub: &Hub) -> Result<u64, EventError> {
    let mut range =
        Range { prefix: keys::ROOT.to_owned(), limit: limits::LIST_PAGE_MAX_OBJECTS, ..Range::default() };
    let mut changes = Vec::new();
    let mut latest = 0;
    loop {
        let page = store.range(range.clone()).await?;
        let known = hub.ask(Fleet::revision);
        if page.revision < known {
            return Err(StoreError::Future { requested: known, current: page.revision }.into());
        }
        hub.take_listed_records(&page.items);
        let changing = page.items.iter().filter(|item| keys::tells_of_change(&item.key));
        latest = changing.map(|item| item.mod_revision).fold(latest, u64::max);
        changes.extend(understood(page.items.iter().map(Change::from_item))?);
        if !page.more {
            let gone = hub.ask(|fleet| gone(fleet, &changes));
            changes.extend(gone);
            hub.apply(page.revision, changes);
            hub.listed(latest);
            return Ok(page.revision);
        }
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
    }
}

fn understood(
    changes: impl Iterator<Item = Result<Option<Change>, EventError>>,
) -> Result<Vec<Change>, EventError> {
    changes.filter_map(Result::transpose).collect()
}

/// Deletions of what the fleet knows and the listing has not.
fn gone(fleet: &Fleet, listed: &[Change]) -> Vec<Change> {
    let (mut nodes, mut endpoints, mut policies) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut identities, mut cidr_sets) = (BTreeSet::new(), BTreeSet::new());
    let (mut services, mut prefilters, mut shapings) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut words, mut away) = (BTreeSet::new(), BTreeSet::new());
    for change in listed {
        match change {
            Change::Node { name, .. } => drop(nodes.insert(name.as_str())),
            Change::Endpoint { name, .. } => drop(endpoints.insert(name.as_str())),
            Change::Policy { name, .. } => drop(policies.insert(name.as_str())),
            Change::Identity { number, .. } => drop(identities.insert(*number)),
            Change::CidrSet { name, .. } => drop(cidr_sets.insert(name.as_str())),
            Change::Service { name, .. } => drop(services.insert(name.as_str())),
            Change::Prefilter { name, .. } => drop(prefilters.insert(name.as_str())),
            Change::Health { node, service, .. } => drop(words.insert((node.as_str(), service.as_str()))),
            Change::Away { node, .. } => drop(away.insert(node.as_str())),
            Change::Shaping { name, .. } => drop(shapings.insert(name.as_str())),
            Change::Config(_) => {}
        }
    }
    let owned = str::to_owned;
    let gone_nodes = fleet.nodes().map(|(name, _)| name).filter(|name| !nodes.contains(name));
    let gone_endpoints = fleet.endpoints().map(|(name, _)| name).filter(|name| !endpoints.contains(name));
    let gone_policies =
        fleet.policies().map(|policy| policy.name.as_str()).filter(|name| !policies.contains(name));
    let gone_cidr_sets =
        fleet.cidr_sets().map(|set| set.name.as_str()).filter(|name| !cidr_sets.contains(name));
    let gone_services =
        fleet.services().map(|service| service.name.as_str()).filter(|name| !services.contains(name));
    let gone_prefilters =
        fleet.prefilters().map(|one| one.name.as_str()).filter(|name| !prefilters.contains(name));
    let gone_words = fleet.all_words().filter(|word| !words.contains(word));
    let gone_away = fleet.away().filter(|node| !away.contains(node));
    let gone_shapings = fleet.shapings().map(|one| one.name.as_str()).filter(|name| !shapings.contains(name));
    let gone_identities = fleet.identity_numbers().filter(|number| !identities.contains(number));
    let mut changes: Vec<Change> =
        gone_nodes.map(|name| Change::Node { name: owned(name), facts: None }).collect();
    changes.extend(gone_endpoints.map(|name| Change::Endpoint { name: owned(name), facts: None }));
    changes.extend(gone_policies.map(|name| Change::Policy { name: owned(name), policy: None }));
    changes.extend(gone_cidr_sets.map(|name| Change::CidrSet { name: owned(name), set: None }));
    changes.extend(gone_services.map(|name| Change::Service { name: owned(name), service: None }));
    changes.extend(gone_prefilters.map(|name| Change::Prefilter { name: owned(name), prefilter: None }));
    changes.extend(gone_words.map(|(node, service)| Change::Health {
        node: owned(node),
        service: owned(service),
        words: None,
    }));
    changes.extend(gone_away.map(|node| Change::Away { node: owned(node), away: false }));
    changes.extend(gone_shapings.map(|name| Change::Shaping { name: owned(name), shaping: None }));
    changes.extend(gone_identities.map(|number| Change::Identity { number, labels: None }));
    changes
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::{self, object::Kind as Of};

    use super::*;
    use crate::{fleet_config, identity, plan::Plan, resource, store::Memory};

    fn policy(name: &str) -> v1::Object {
        let subject = v1::Subject { endpoints: Some(v1::Selector::default()), nodes: None };
        let policy = v1::Policy {
            metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
            subject: Some(subject),
            ingress: Some(v1::RuleList::default()),
            ..v1::Policy::default()
        };
        resource::object(Of::Policy(policy))
    }

    fn policies(hub: &Hub) -> Vec<String> {
        let mut names: Vec<String> =
            hub.ask(|fleet| fleet.policies().map(|policy| policy.name.clone()).collect());
        names.sort();
        names
    }

    async fn put(store: &Memory, name: &str) {
        let mut plan = Plan::default();
        plan.put(keys::object(v1::Kind::Policy, name), resource::encode(policy(name)));
        plan.commit(store).await.unwrap();
    }

    #[tokio::test]
    async fn after_history_was_lost_a_listing_brings_the_fleet_to_what_the_store_holds() {
        let (store, hub) = (Memory::default(), Hub::default());
        fleet_config::initialise(&store).await.unwrap();
        put(&store, "stays").await;
        put(&store, "goes").await;
        let listed = load(&store, &hub).await.unwrap();
        assert_eq!(policies(&hub), ["goes", "stays"]);

        let mut plan = Plan::default();
        plan.delete(keys::object(v1::Kind::Policy, "goes"));
        identity::plan(&store, &identity::of_node(&std::collections::BTreeMap::new()), &mut plan)
            .await
            .unwrap();
        plan.commit(&store).await.unwrap();
        put(&store, "comes").await;
        let revision = store.revision().await.unwrap();
        store.compact(revision).await.unwrap();

        let (store, hub, stop): (Arc<dyn Store>, _, _) =
            (Arc::new(store), Arc::new(hub), CancellationToken::new());
        let following = tokio::spawn(follow(store, Arc::clone(&hub), Some(listed), stop.clone()));
        let reached = tokio::time::timeout(Duration::from_secs(30), hub.wait_applied(revision)).await;
        reached.expect("the follower lists again");
        stop.cancel();
        following.await.unwrap().unwrap();
        assert_eq!(policies(&hub), ["comes", "stays"]);
        assert_eq!(hub.ask(Fleet::revision), revision);
        assert_eq!(hub.ask(Fleet::identities_through), 256);
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_never_left_out() {
        let (store, hub) = (Memory::default(), Hub::default());
        fleet_config::initialise(&store).await.unwrap();
        put(&store, "good").await;
        let before = load(&store, &hub).await.unwrap();
        let mut plan = Plan::default();
        plan.put(keys::object(v1::Kind::Policy, "broken"), "not an object");
        plan.delete(keys::object(v1::Kind::Policy, "good"));
        plan.commit(&store).await.unwrap();
        let error = load(&store, &hub).await.unwrap_err();
        assert!(error.to_string().contains("/weft/v1/policy/broken"), "{error}");
        assert_eq!((hub.ask(Fleet::revision), policies(&hub)), (before, vec!["good".to_owned()]));
    }
}
