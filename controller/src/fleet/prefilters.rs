//! Prefilters: each goes to the nodes that it selects, by the labels that make their identities.
use std::collections::BTreeMap;

use prost::Message as _;
use weft_proto::v1::ResourceType;
use weft_shared::{
    policy::model::{Labels, Selector},
    service::{model::Prefilter, wire},
};

use super::{
    Aftermath, Fleet,
    index::Index,
    resources::{Id, Key},
};
use crate::identity;

#[derive(Debug, Default)]
pub(super) struct Prefilters {
    by_name: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    prefilter: Prefilter,
    id: Id,
}

impl Fleet {
    pub(super) fn change_prefilter(&mut self, name: &str, prefilter: Option<Prefilter>) {
        let old = self.index.prefilters.by_name.remove(name);
        let Some(prefilter) = prefilter else {
            if let Some(old) = old {
                self.delete(old.id);
            }
            return;
        };
        let message = wire::prefilter_to_node(&prefilter);
        let id = self.put(Key::new(ResourceType::Prefilter, name), message.encode_to_vec());
        for (node, view) in self.views.iter_mut() {
            if self.index.is_selected(&prefilter.nodes, node) {
                view.want(id, self.revision);
            } else {
                view.unwant(id, self.revision);
            }
        }
        self.index.prefilters.by_name.insert(name.to_owned(), Entry { prefilter, id });
    }

    /// The labels of an identity are, or were, others: nodes of it, or with endpoints of it, are selected by others.
    pub(super) fn note_nodes_of(&self, number: u32, aftermath: &mut Aftermath) {
        if !self.index.prefilters.by_name.is_empty() || !self.index.shapings.is_empty() {
            let nodes = self.index.used.get(&number).into_iter().flat_map(|used| used.nodes.keys());
            aftermath.stale.extend(nodes.cloned());
        }
    }

    pub fn prefilters(&self) -> impl Iterator<Item = &Prefilter> {
        self.index.prefilters.by_name.values().map(|entry| &entry.prefilter)
    }
}

impl Index {
    /// Resources of the prefilters that select the node.
    pub(super) fn prefilters_of(&self, node: &str) -> impl Iterator<Item = Id> {
        let entries = self.prefilters.by_name.values();
        entries.filter(move |entry| self.is_selected(&entry.prefilter.nodes, node)).map(|entry| entry.id)
    }

    /// While a node's labels are not known, only what selects all nodes selects it.
    pub(super) fn is_selected(&self, selector: &Selector, node: &str) -> bool {
        match self.node_labels(node) {
            Some(labels) => selector.matches(&labels),
            None => *selector == Selector::default(),
        }
    }

    /// Those that make the node's identity; `None`: not known yet.
    pub(super) fn node_labels(&self, node: &str) -> Option<Labels> {
        let labels = self.identities.get(self.nodes.get(node)?.identity)?;
        identity::is_of_node(labels).then(|| identity::without_mark(labels))
    }
}
