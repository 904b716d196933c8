//! Nodes that hold the state of another store, or of a later revision than this store is at: an etcd that is empty or holds
//! another fleet, or a backup that was restored. They change nothing and are told nothing until an operator adopts them.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prost::Message as _;
use tokio::time::Instant;
use weft_proto::v1;
use weft_shared::digest;

use crate::{
    identity::{self, IdentityError},
    keys, limits,
    plan::{Contended, Plan},
    store::{Store, StoreError},
};

#[derive(Debug, thiserror::Error)]
pub enum AdoptionError {
    #[error("node {0} does not wait for adoption, or is not heard of by any controller")]
    NotWaiting(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Contended(#[from] Contended),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Nodes that were turned away here, and when.
#[derive(Debug, Default)]
pub struct Waiting {
    nodes: BTreeMap<String, (v1::WaitingNode, Instant)>,
}

impl Waiting {
    /// `true`: it was not known to wait, or held something else.
    pub fn note(&mut self, node: v1::WaitingNode) -> bool {
        if self.nodes.len() >= limits::ADOPTION_WAITING_MAX && !self.nodes.contains_key(&node.name) {
            return false;
        }
        let news = self.nodes.get(&node.name).is_none_or(|(before, _)| *before != node);
        self.nodes.insert(node.name.clone(), (node, Instant::now()));
        news
    }

    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// Those that were heard of lately, by name.
    pub fn list(&mut self) -> Vec<v1::WaitingNode> {
        self.nodes.retain(|_, (_, heard)| heard.elapsed() < limits::ADOPTION_HEARD);
        self.nodes.values().map(|(node, _)| node.clone()).collect()
    }
}

/// Whether the node may be served, given what it holds.
pub fn is_of_store(have: &v1::Have, store_id: &str, revision: u64) -> bool {
    have.store_id.is_empty() || (have.store_id == store_id && have.revision <= revision)
}

/// As operators are told of it.
pub fn waiting(node: &str, have: &v1::Have) -> v1::WaitingNode {
    let digests = have.digests.iter().map(|digest| &*digest.digest);
    v1::WaitingNode {
        name: node.to_owned(),
        store_id: have.store_id.clone(),
        revision: have.revision,
        identities_through: have.identities_through,
        digest: digest::total(digests).unwrap_or_default().to_bytes().to_vec(),
    }
}

/// What an operator has said of the node, if it is about what it holds.
pub async fn find(store: &dyn Store, node: &v1::WaitingNode) -> Result<Option<v1::Adoption>, StoreError> {
    let key = keys::adoption(&node.name);
    let (item, _) = store.get(&key).await?;
    let Some(item) = item else { return Ok(None) };
    let adoption = v1::Adoption::decode(item.value).map_err(|_| StoreError::Corrupt { key })?;
    Ok((adoption == adoption_of(node)).then_some(adoption))
}

/// The node has taken this store's word: what was said of it is used up.
pub async fn done(store: &dyn Store, node: &str) -> Result<(), StoreError> {
    let mut plan = Plan::default();
    plan.delete(keys::adoption(node));
    plan.commit(store).await.map(drop)
}

/// Adopts these of the nodes that wait.
pub async fn adopt(
    store: &Arc<dyn Store>,
    waiting: &[v1::WaitingNode],
    names: &BTreeSet<String>,
) -> Result<Vec<v1::WaitingNode>, AdoptionError> {
    let waits = |name: &String| waiting.iter().any(|node| node.name == *name);
    if let Some(missing) = names.iter().find(|name| !waits(name)) {
        return Err(AdoptionError::NotWaiting(missing.clone()));
    }
    let adopted: Vec<v1::WaitingNode> =
        waiting.iter().filter(|node| names.contains(&node.name)).cloned().collect();
    for some in adopted.chunks(limits::APPLY_MAX_OBJECTS) {
        write(store.as_ref(), some).await?;
    }
    Ok(adopted)
}

/// A number that a node has heard of may still be in the kernels of its fleet: it is not given to anybody else.
async fn write(store: &dyn Store, nodes: &[v1::WaitingNode]) -> Result<(), AdoptionError> {
    let through = nodes.iter().map(|node| node.identities_through).max().unwrap_or_default();
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let mut plan = Plan::default();
        identity::skip_through(store, through, &mut plan).await?;
        for node in nodes {
            plan.put(keys::adoption(&node.name), adoption_of(node).encode_to_vec());
        }
        plan.put(keys::OPERATOR_CHANGE, "");
        if plan.commit(store).await?.is_some() {
            return Ok(());
        }
    }
    Err(Contended.into())
}

fn adoption_of(node: &v1::WaitingNode) -> v1::Adoption {
    v1::Adoption {
        former_store_id: node.store_id.clone(),
        former_revision: node.revision,
        former_digest: node.digest.clone(),
    }
}
