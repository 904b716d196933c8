//! Selectors by what they demand: of thousands, few are tried on a set of labels.
use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
};

use weft_shared::policy::model::{Labels, Selector};

/// Names of things that select.
#[derive(Debug)]
pub(super) struct Anchored<N> {
    /// Label, value → who selects only what has it ([`Selector::anchor`]).
    by_label: HashMap<String, HashMap<String, BTreeSet<N>>>,
    /// Who demands no label by its value.
    others: BTreeSet<N>,
}

impl<N> Default for Anchored<N> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), others: BTreeSet::new() }
    }
}

impl<N: Clone + Ord> Anchored<N> {
    pub(super) fn insert(&mut self, name: &N, selector: &Selector) {
        let Some((key, values)) = selector.anchor() else {
            self.others.insert(name.clone());
            return;
        };
        let by_value = self.by_label.entry(key.to_owned()).or_default();
        for value in values {
            by_value.entry(value.clone()).or_default().insert(name.clone());
        }
    }

    /// The selector is the one it was inserted with.
    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, name: &Q, selector: &Selector)
    where
        N: Borrow<Q>,
    {
        let Some((key, values)) = selector.anchor() else {
            self.others.remove(name);
            return;
        };
        let Some(by_value) = self.by_label.get_mut(key) else { return };
        for value in values {
            if let Some(names) = by_value.get_mut(value) {
                names.remove(name);
            }
        }
        by_value.retain(|_, names| !names.is_empty());
        if by_value.is_empty() {
            self.by_label.remove(key);
        }
    }

    /// All who can select these labels, and few others.
    pub(super) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a N> {
        let by_label = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value)).flatten();
        by_label.chain(&self.others)
    }
}
