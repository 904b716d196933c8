//! Shapings: those of nodes' own processes go to the nodes that they select, by the labels that make their identities; those of
//! endpoints to the nodes with an endpoint of an identity that they may select. Labels that make no identity only nodes know: as
//! far as a selector is about these, any endpoint may be meant.
use std::collections::BTreeMap;

use prost::Message as _;
use weft_proto::v1::ResourceType;
use weft_shared::{
    policy::model::{Labels, Selector},
    service::{
        model::{Shaped, Shaping},
        wire,
    },
};

use super::{
    Fleet,
    index::Index,
    resources::{Id, Key},
};
use crate::identity;

#[derive(Debug, Default)]
pub(super) struct Shapings {
    by_name: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shaping: Shaping,
    id: Id,
}

impl Shapings {
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl Fleet {
    pub(super) fn change_shaping(&mut self, name: &str, shaping: Option<Shaping>) {
        let old = self.index.shapings.by_name.remove(name);
        let Some(shaping) = shaping else {
            if let Some(old) = old {
                self.delete(old.id);
            }
            return;
        };
        let message = wire::shaping_to_node(&shaping);
        let id = self.put(Key::new(ResourceType::Shaping, name), message.encode_to_vec());
        for (node, view) in self.views.iter_mut() {
            if self.index.concerns(&shaping, node) {
                view.want(id, self.revision);
            } else {
                view.unwant(id, self.revision);
            }
        }
        self.index.shapings.by_name.insert(name.to_owned(), Entry { shaping, id });
    }

    /// The node has its first endpoint of an identity.
    pub(super) fn shape(&mut self, node: &str, identity: u32) {
        let (index, revision) = (&self.index, self.revision);
        let Some(view) = self.views.get_mut(node) else { return };
        for id in index.shapings_of_identity(identity) {
            view.want(id, revision);
        }
    }

    pub fn shapings(&self) -> impl Iterator<Item = &Shaping> {
        self.index.shapings.by_name.values().map(|entry| &entry.shaping)
    }
}

impl Index {
    /// Resources of the shapings that concern the node.
    pub(super) fn shapings_of(&self, node: &str) -> impl Iterator<Item = Id> {
        let entries = self.shapings.by_name.values();
        entries.filter(move |entry| self.concerns(&entry.shaping, node)).map(|entry| entry.id)
    }

    fn concerns(&self, shaping: &Shaping, node: &str) -> bool {
        match &shaping.shaped {
            Shaped::Endpoints(selector) => {
                let local = self.local.get(node).into_iter().flat_map(|identities| identities.keys());
                local
                    .filter_map(|number| self.endpoint_labels(*number))
                    .any(|labels| self.may_select(selector, labels))
            }
            Shaped::Nodes { nodes, .. } => self.is_selected(nodes, node),
        }
    }

    fn shapings_of_identity(&self, number: u32) -> impl Iterator<Item = Id> {
        let labels = self.endpoint_labels(number);
        let entries = self.shapings.by_name.values().filter(move |entry| match &entry.shaping.shaped {
            Shaped::Endpoints(selector) => labels.is_some_and(|labels| self.may_select(selector, labels)),
            Shaped::Nodes { .. } => false,
        });
        entries.map(|entry| entry.id)
    }

    /// Those that make an identity of endpoints; `None`: not known yet, or a node's.
    fn endpoint_labels(&self, number: u32) -> Option<&Labels> {
        self.identities.get(number).filter(|labels| !identity::is_of_node(labels))
    }

    /// Whether it selects some endpoint with these labels and others that make no identity.
    fn may_select(&self, selector: &Selector, labels: &Labels) -> bool {
        let known =
            selector.requirements().filter(|requirement| self.identity_labels.contains(requirement.key()));
        known.into_iter().all(|requirement| requirement.holds(labels))
    }
}
