//! Which nodes want the members of which set, so that a change finds them without asking all.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use roaring::RoaringBitmap;

/// Numbers of nodes stand for their names; none is used again.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    names: HashMap<u32, Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
    next: u32,
    by_set: HashMap<Arc<str>, RoaringBitmap>,
    /// Those that want all used addresses.
    of_all: RoaringBitmap,
    connected: RoaringBitmap,
}

impl Watchers {
    /// The node wants the members of one set more.
    pub(super) fn add(&mut self, node: &str, set: &Arc<str>) {
        let number = self.number(node);
        self.by_set.entry(Arc::clone(set)).or_default().insert(number);
    }

    /// What the node wanted, and what it wants now.
    pub(super) fn replace(
        &mut self,
        node: &str,
        before: &BTreeSet<Arc<str>>,
        after: &BTreeSet<Arc<str>>,
        all_addresses: bool,
    ) {
        for set in after.difference(before) {
            self.add(node, set);
        }
        let number = self.number(node);
        for set in before.difference(after) {
            self.remove(number, set);
        }
        if all_addresses {
            self.of_all.insert(number);
        } else {
            self.of_all.remove(number);
        }
    }

    /// The node is no more, or is forgotten.
    pub(super) fn forget(&mut self, node: &str, sets: &BTreeSet<Arc<str>>) {
        let Some(number) = self.numbers.remove(node) else { return };
        self.names.remove(&number);
        self.of_all.remove(number);
        self.connected.remove(number);
        for set in sets {
            self.remove(number, set);
        }
    }

    pub(super) fn set_connected(&mut self, node: &str, connected: bool) {
        let number = self.number(node);
        if connected {
            self.connected.insert(number);
        } else {
            self.connected.remove(number);
        }
    }

    fn remove(&mut self, number: u32, set: &Arc<str>) {
        let Some(watching) = self.by_set.get_mut(set) else { return };
        watching.remove(number);
        if watching.is_empty() {
            self.by_set.remove(set);
        }
    }

    fn number(&mut self, node: &str) -> u32 {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        let (number, name) = (self.next, Arc::<str>::from(node));
        self.next += 1;
        self.names.insert(number, Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    /// Nodes that want the members of a set.
    pub(super) fn of_set(&self, set: &str) -> impl Iterator<Item = &Arc<str>> {
        self.named(self.by_set.get(set).cloned().unwrap_or_default())
    }

    /// Nodes that want the addresses of an identity in these sets.
    pub(super) fn of_addresses<'a>(
        &self,
        sets: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> impl Iterator<Item = &Arc<str>> {
        self.named(self.numbers_of_addresses(sets))
    }

    fn numbers_of_addresses<'a>(&self, sets: impl IntoIterator<Item = &'a Arc<str>>) -> RoaringBitmap {
        let mut numbers = self.of_all.clone();
        for watching in sets.into_iter().filter_map(|set| self.by_set.get(set)) {
            numbers |= watching;
        }
        numbers
    }

    /// Numbers of those among them that are connected, without one of a name.
    pub(super) fn connected_of_addresses<'a>(
        &self,
        sets: impl IntoIterator<Item = &'a Arc<str>>,
        without: &str,
    ) -> RoaringBitmap {
        let mut numbers = self.numbers_of_addresses(sets) & &self.connected;
        if let Some(own) = self.numbers.get(without) {
            numbers.remove(*own);
        }
        numbers
    }

    /// `None`: the node is no more.
    pub(super) fn name(&self, number: u32) -> Option<&str> {
        self.names.get(&number).map(AsRef::as_ref)
    }

    fn named(&self, numbers: RoaringBitmap) -> impl Iterator<Item = &Arc<str>> {
        numbers.into_iter().filter_map(|number| self.names.get(&number))
    }
}
