//! Identities: one number for one canonical set of security labels, given in one transaction, never two for one set. Who
//! begins to bear one writes its reference; an identity without a bearer is collected by a transaction that compares the
//! reference, so that it never goes while somebody comes.
//!
//! Numbers only ascend, and end with [`limits::IDENTITY_LAST`]: a number that was given once stands for one label set for
//! ever, since `identities_through` says of everything below it that it is classified.
use weft_proto::v1::{self, object::Kind as Of};
use weft_shared::policy::model::Labels;

use crate::{
    keys, limits,
    plan::Plan,
    resource,
    store::{Compare, Store, StoreError},
};

/// Marks the label sets of nodes, so that a node and an endpoint with equal labels are still two identities, and
/// selectors of endpoints don't match nodes. Endpoints and operators can't use it.
pub const NODE_MARK: &str = "weft/node";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("all {} identities are in use", limits::IDENTITY_LAST - limits::IDENTITY_FIRST + 1)]
    Exhausted,
    #[error(
        "numbers through {through} are used elsewhere, {most} more than this store has given: too many would be lost",
        most = limits::ADOPTION_IDENTITIES_SKIPPED_MAX
    )]
    TooFar { through: u32 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The labels that make a node's identity.
pub fn of_node(security_labels: &Labels) -> Labels {
    let mut labels = security_labels.clone();
    labels.insert(NODE_MARK.to_owned(), String::new());
    labels
}

pub fn is_of_node(labels: &Labels) -> bool {
    labels.contains_key(NODE_MARK)
}

/// The labels as selectors see them, and operators.
pub fn without_mark(labels: &Labels) -> Labels {
    let mut labels = labels.clone();
    labels.remove(NODE_MARK);
    labels
}

/// The number of a label set for who bears it from now on, or has borne `former` until now (0: none). A new one becomes real
/// with the plan's commit.
pub async fn plan_bearer(
    store: &dyn Store,
    labels: &Labels,
    former: u32,
    made: &mut Plan,
) -> Result<u32, IdentityError> {
    let number = plan(store, labels, made).await?;
    if number != former {
        made.put(keys::identity_reference(number), "");
    }
    Ok(number)
}

/// Removes an identity of which no bearer was seen as of a revision. `false`: it has one by now, or is gone.
pub async fn collect(
    store: &dyn Store,
    number: u32,
    labels: &Labels,
    seen_at: u64,
) -> Result<bool, StoreError> {
    let by_labels = keys::identity_by_labels(labels);
    let (known, _) = store.get(&by_labels).await?;
    let Some(known) = known.filter(|item| parse_number(&item.value) == Some(number)) else {
        return Ok(false);
    };
    let reference = keys::identity_reference(number);
    let mut plan = Plan::default();
    // Who takes the number at this moment compares this key, too.
    plan.expect(&by_labels, Some(&known));
    plan.compare(Compare::not_changed_after(&*reference, seen_at));
    plan.delete(by_labels);
    plan.delete(reference);
    plan.delete(keys::object(v1::Kind::Identity, &number.to_string()));
    Ok(plan.commit(store).await?.is_some())
}

/// The number of a label set. A new one becomes real with the plan's commit.
pub async fn plan(store: &dyn Store, labels: &Labels, plan: &mut Plan) -> Result<u32, IdentityError> {
    let by_labels = keys::identity_by_labels(labels);
    let (known, _) = store.get(&by_labels).await?;
    plan.expect(&by_labels, known.as_ref());
    if let Some(item) = known {
        return parse_number(&item.value).ok_or(StoreError::Corrupt { key: item.key }.into());
    }
    let number = next(store, plan).await?;
    if number > limits::IDENTITY_LAST {
        return Err(IdentityError::Exhausted);
    }
    plan.note_allocation();
    plan.put(keys::NEXT_IDENTITY, (number + 1).to_string());
    plan.put(by_labels, number.to_string());
    let identity = v1::Identity {
        metadata: Some(v1::Metadata {
            name: number.to_string(),
            uid: resource::new_uid(),
            ..v1::Metadata::default()
        }),
        number,
        security_labels: labels.clone(),
    };
    let key = keys::object(v1::Kind::Identity, &number.to_string());
    plan.put(key, resource::encode(resource::object(Of::Identity(identity))));
    Ok(number)
}

/// No number through this one is given any more.
pub async fn skip_through(store: &dyn Store, through: u32, plan: &mut Plan) -> Result<(), IdentityError> {
    let next = next(store, plan).await?;
    if through < next {
        return Ok(());
    }
    if through >= limits::IDENTITY_LAST || through - next > limits::ADOPTION_IDENTITIES_SKIPPED_MAX {
        return Err(IdentityError::TooFar { through });
    }
    plan.put(keys::NEXT_IDENTITY, (through + 1).to_string());
    Ok(())
}

async fn next(store: &dyn Store, plan: &mut Plan) -> Result<u32, IdentityError> {
    let (counter, _) = store.get(keys::NEXT_IDENTITY).await?;
    plan.expect(keys::NEXT_IDENTITY, counter.as_ref());
    Ok(match counter {
        None => limits::IDENTITY_FIRST,
        Some(item) => parse_number(&item.value).ok_or(StoreError::Corrupt { key: item.key })?,
    })
}

fn parse_number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    };

    use tokio::task::JoinSet;

    use super::*;
    use crate::store::Memory;

    fn labels(app: usize) -> Labels {
        Labels::from([("app".to_owned(), app.to_string())])
    }

    /// Without queueing: the transactions alone must keep numbers apart.
    async fn allocate(store: &dyn Store, labels: &Labels) -> u32 {
        loop {
            let mut made = Plan::default();
            let number = plan(store, labels, &mut made).await.unwrap();
            tokio::task::yield_now().await;
            if made.changes_nothing() || made.commit(store).await.unwrap().is_some() {
                return number;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn allocators_at_once_never_give_two_numbers_to_one_set_or_one_number_to_two() {
        let store = Arc::new(Memory::default());
        let mut allocators = JoinSet::new();
        for allocator in 0..64 {
            let store = Arc::clone(&store);
            allocators.spawn(async move {
                (allocator % 8, allocate(store.as_ref(), &labels(allocator % 8)).await)
            });
        }
        let mut given: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for (app, number) in allocators.join_all().await {
            given.entry(app).or_default().insert(number);
        }
        assert!(given.values().all(|numbers| numbers.len() == 1), "{given:?}");
        let numbers: BTreeSet<u32> = given.into_values().flatten().collect();
        assert_eq!(numbers, (256..264).collect());
    }

    #[tokio::test]
    async fn a_node_and_an_endpoint_with_equal_labels_are_two_identities() {
        let store = Memory::default();
        let endpoint = allocate(&store, &labels(1)).await;
        let node = allocate(&store, &of_node(&labels(1))).await;
        assert_ne!(endpoint, node);
        assert_eq!(allocate(&store, &labels(1)).await, endpoint);
    }

    #[tokio::test]
    async fn numbers_end_with_what_a_vni_carries() {
        let store = Memory::default();
        let mut last = Plan::default();
        last.put(keys::NEXT_IDENTITY, limits::IDENTITY_LAST.to_string());
        last.commit(&store).await.unwrap();
        assert_eq!(allocate(&store, &labels(1)).await, limits::IDENTITY_LAST);
        let refused = plan(&store, &labels(2), &mut Plan::default()).await;
        assert!(matches!(refused, Err(IdentityError::Exhausted)));
    }
}
