//! The views of all nodes, by name and by number. Numbers are what sets of nodes are made of: one stands for one node as long as
//! this fleet lives, and is never used again.
use std::{collections::BTreeMap, sync::Arc};

use super::view::View;

#[derive(Debug, Default)]
pub(super) struct Views {
    numbers: BTreeMap<Arc<str>, u32>,
    by_number: BTreeMap<u32, (Arc<str>, View)>,
    next: u32,
}

impl Views {
    /// The node's number, where it has a view.
    pub(super) fn number(&self, node: &str) -> Option<u32> {
        self.numbers.get(node).copied()
    }

    pub(super) fn contains(&self, node: &str) -> bool {
        self.numbers.contains_key(node)
    }

    pub(super) fn get(&self, node: &str) -> Option<&View> {
        self.by_number(self.number(node)?)
    }

    pub(super) fn get_mut(&mut self, node: &str) -> Option<&mut View> {
        self.by_number_mut(self.number(node)?)
    }

    pub(super) fn by_number(&self, number: u32) -> Option<&View> {
        self.by_number.get(&number).map(|(_, view)| view)
    }

    pub(super) fn by_number_mut(&mut self, number: u32) -> Option<&mut View> {
        self.by_number.get_mut(&number).map(|(_, view)| view)
    }

    /// The number of the node, which has a view from now on.
    pub(super) fn enter(&mut self, node: &str) -> u32 {
        if let Some(number) = self.number(node) {
            return number;
        }
        let (number, name) = (self.next, Arc::<str>::from(node));
        self.next += 1;
        self.numbers.insert(Arc::clone(&name), number);
        self.by_number.insert(number, (name, View::default()));
        number
    }

    /// With the number that it had.
    pub(super) fn remove(&mut self, node: &str) -> Option<(u32, View)> {
        let number = self.numbers.remove(node)?;
        self.by_number.remove(&number).map(|(_, view)| (number, view))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.numbers.keys()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut View)> {
        self.by_number.values_mut().map(|(name, view)| (&**name, view))
    }
}
