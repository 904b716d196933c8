//! Shapings: those of nodes' own processes go to the nodes that they select, by the labels that make their identities; those of
//! endpoints to all nodes, which know their endpoints' labels.
use std::collections::BTreeMap;

use prost::Message as _;
use weft_proto::v1::ResourceType;
use weft_shared::service::{
    model::{Shaped, Shaping},
    wire,
};

use super::{
    Fleet,
    index::Index,
    resources::{Id, Key},
};

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
            Shaped::Endpoints(_) => true,
            Shaped::Nodes { nodes, .. } => self.is_selected(nodes, node),
        }
    }
}
