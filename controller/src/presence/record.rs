//! What a controller says in a shared store of the nodes that it serves. Written when that changes, and now and then so
//! that the others see that it is alive.
use std::collections::BTreeSet;

use crate::{
    keys, limits,
    plan::Plan,
    store::{KeyValue, Range, Store, StoreError},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Of one run of a controller: names may be given twice.
    pub instance: String,
    pub controller: String,
    pub nodes: BTreeSet<String>,
    /// Of the last write.
    pub revision: u64,
}

impl Record {
    fn parse(item: &KeyValue) -> Self {
        // Names of nodes have no line ends; a controller's were replaced.
        let text = String::from_utf8_lossy(&item.value);
        let mut lines = text.lines().map(str::to_owned);
        Self {
            instance: item.key[keys::PRESENCE.len()..].to_owned(),
            controller: lines.next().unwrap_or_default(),
            nodes: lines.collect(),
            revision: item.mod_revision,
        }
    }
}

/// Of all controllers.
pub async fn read(store: &dyn Store) -> Result<Vec<Record>, StoreError> {
    let limit = limits::LIST_PAGE_MAX_OBJECTS;
    let range = Range { prefix: keys::PRESENCE.to_owned(), limit, ..Range::default() };
    Ok(store.range(range).await?.items.iter().map(Record::parse).collect())
}

pub(super) async fn write(
    store: &dyn Store,
    instance: &str,
    controller: &str,
    nodes: &BTreeSet<String>,
) -> Result<(), StoreError> {
    let mut text = controller.replace(['\n', '\r'], " ");
    for node in nodes {
        text.push('\n');
        text.push_str(node);
    }
    let mut plan = Plan::default();
    plan.put(format!("{}{instance}", keys::PRESENCE), text);
    plan.commit(store).await.map(drop)
}

pub(super) async fn remove(store: &dyn Store, instance: &str) -> Result<(), StoreError> {
    let mut plan = Plan::default();
    plan.delete(format!("{}{instance}", keys::PRESENCE));
    plan.commit(store).await.map(drop)
}
