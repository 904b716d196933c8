//! Which nodes want the members of which set, so that a change finds them without asking all. Nodes are numbers here
//! ([`Views`](super::views::Views)).
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use roaring::RoaringBitmap;

#[derive(Debug, Default)]
pub(super) struct Watchers {
    by_set: HashMap<Arc<str>, RoaringBitmap>,
    /// Those that want all used addresses.
    of_all: RoaringBitmap,
    connected: RoaringBitmap,
}

impl Watchers {
    /// The node wants the members of one set more.
    pub(super) fn add(&mut self, node: u32, set: &Arc<str>) {
        self.by_set.entry(Arc::clone(set)).or_default().insert(node);
    }

    /// What the node wanted, and what it wants now.
    pub(super) fn replace(
        &mut self,
        node: u32,
        before: &BTreeSet<Arc<str>>,
        after: &BTreeSet<Arc<str>>,
        all_addresses: bool,
    ) {
        for set in after.difference(before) {
            self.add(node, set);
        }
        for set in before.difference(after) {
            self.remove(node, set);
        }
        set_member(&mut self.of_all, node, all_addresses);
    }

    /// The node is no more, or is forgotten.
    pub(super) fn forget(&mut self, node: u32, sets: &BTreeSet<Arc<str>>) {
        self.of_all.remove(node);
        self.connected.remove(node);
        for set in sets {
            self.remove(node, set);
        }
    }

    pub(super) fn set_connected(&mut self, node: u32, connected: bool) {
        set_member(&mut self.connected, node, connected);
    }

    fn remove(&mut self, node: u32, set: &Arc<str>) {
        let Some(watching) = self.by_set.get_mut(set) else { return };
        watching.remove(node);
        if watching.is_empty() {
            self.by_set.remove(set);
        }
    }

    /// Nodes that want the members of a set.
    pub(super) fn of_set(&self, set: &str) -> RoaringBitmap {
        self.by_set.get(set).cloned().unwrap_or_default()
    }

    /// Nodes that want the addresses of an identity in these sets.
    pub(super) fn of_addresses<'a>(&self, sets: impl IntoIterator<Item = &'a Arc<str>>) -> RoaringBitmap {
        let mut nodes = self.of_all.clone();
        for watching in sets.into_iter().filter_map(|set| self.by_set.get(set)) {
            nodes |= watching;
        }
        nodes
    }

    /// Those among them that are connected.
    pub(super) fn connected_of_addresses<'a>(
        &self,
        sets: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> RoaringBitmap {
        self.of_addresses(sets) & &self.connected
    }
}

fn set_member(nodes: &mut RoaringBitmap, node: u32, is: bool) {
    if is {
        nodes.insert(node);
    } else {
        nodes.remove(node);
    }
}
