//! Who may meet whom: from labels to the selectors that may match them, and from a selector to the identities that it may
//! match, without trying all. What is found is tried then.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use roaring::RoaringBitmap;
use weft_shared::policy::model::{Labels, Requirement, Selector};

/// One requirement of a selector which must hold whatever else does.
#[derive(Debug, Clone, Copy)]
enum Anchor<'a> {
    /// The key has one of the values.
    Values(&'a str, &'a BTreeSet<String>),
    /// The key is there.
    Key(&'a str),
    /// There is no such requirement: anybody may match.
    Nothing,
}

impl<'a> Anchor<'a> {
    /// The one that the fewest meet, as far as can be seen from it.
    fn of(selector: &'a Selector) -> Self {
        let anchors = selector.requirements().filter_map(|requirement| match requirement {
            Requirement::In { key, values } => Some(Self::Values(key, values)),
            Requirement::Exists { key } => Some(Self::Key(key)),
            Requirement::NotIn { .. } | Requirement::DoesNotExist { .. } => None,
        });
        anchors.min_by_key(Self::width).unwrap_or(Self::Nothing)
    }

    fn width(&self) -> usize {
        match self {
            Self::Values(_, values) => values.len(),
            Self::Key(_) | Self::Nothing => usize::MAX,
        }
    }
}

/// Names of sets by an anchor of their selectors.
#[derive(Debug, Default)]
pub(super) struct Anchored {
    by_value: HashMap<String, HashMap<String, BTreeSet<Arc<str>>>>,
    by_key: HashMap<String, BTreeSet<Arc<str>>>,
    others: BTreeSet<Arc<str>>,
}

impl Anchored {
    pub(super) fn insert(&mut self, selector: &Selector, set: &Arc<str>) {
        match Anchor::of(selector) {
            Anchor::Values(key, values) => {
                let of_key = self.by_value.entry(key.to_owned()).or_default();
                for value in values {
                    of_key.entry(value.clone()).or_default().insert(Arc::clone(set));
                }
            }
            Anchor::Key(key) => drop(self.by_key.entry(key.to_owned()).or_default().insert(Arc::clone(set))),
            Anchor::Nothing => drop(self.others.insert(Arc::clone(set))),
        }
    }

    pub(super) fn remove(&mut self, selector: &Selector, set: &str) {
        match Anchor::of(selector) {
            Anchor::Values(key, values) => {
                let Some(of_key) = self.by_value.get_mut(key) else { return };
                for value in values {
                    remove_from(of_key, value, set);
                }
                if of_key.is_empty() {
                    self.by_value.remove(key);
                }
            }
            Anchor::Key(key) => remove_from(&mut self.by_key, key, set),
            Anchor::Nothing => drop(self.others.remove(set)),
        }
    }

    /// All sets that may select these labels, each once, and some that do not.
    pub(super) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Arc<str>> {
        let by_label = labels.iter().flat_map(|(key, value)| {
            let by_value = self.by_value.get(key).and_then(|values| values.get(value));
            by_value.into_iter().chain(self.by_key.get(key)).flatten()
        });
        by_label.chain(&self.others)
    }
}

fn remove_from(sets: &mut HashMap<String, BTreeSet<Arc<str>>>, of: &str, set: &str) {
    let Some(named) = sets.get_mut(of) else { return };
    named.remove(set);
    if named.is_empty() {
        sets.remove(of);
    }
}

/// Identities with their labels, and by them.
#[derive(Debug, Default)]
pub(super) struct Identities {
    labels: BTreeMap<u32, Labels>,
    by_value: HashMap<String, BTreeMap<String, RoaringBitmap>>,
}

impl Identities {
    pub(super) fn get(&self, number: u32) -> Option<&Labels> {
        self.labels.get(&number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Labels)> {
        self.labels.iter().map(|(number, labels)| (*number, labels))
    }

    /// One that is not there.
    pub(super) fn insert(&mut self, number: u32, labels: Labels) {
        for (key, value) in &labels {
            let of_key = self.by_value.entry(key.clone()).or_default();
            of_key.entry(value.clone()).or_default().insert(number);
        }
        self.labels.insert(number, labels);
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Labels> {
        let labels = self.labels.remove(&number)?;
        for (key, value) in &labels {
            let Some(of_key) = self.by_value.get_mut(key) else { continue };
            if let Some(numbers) = of_key.get_mut(value) {
                numbers.remove(number);
                if numbers.is_empty() {
                    of_key.remove(value);
                }
            }
            if of_key.is_empty() {
                self.by_value.remove(key);
            }
        }
        Some(labels)
    }

    /// All that the selector may match, ascending, and some that it does not.
    pub(super) fn candidates(&self, selector: &Selector) -> Vec<(u32, &Labels)> {
        let numbers = match Anchor::of(selector) {
            Anchor::Values(key, values) => {
                let of_key = self.by_value.get(key);
                let of_each = values.iter().filter_map(|value| of_key?.get(value));
                union(of_each)
            }
            Anchor::Key(key) => union(self.by_value.get(key).into_iter().flat_map(BTreeMap::values)),
            Anchor::Nothing => return self.iter().collect(),
        };
        numbers.iter().filter_map(|number| Some((number, self.get(number)?))).collect()
    }
}

fn union<'a>(bitmaps: impl Iterator<Item = &'a RoaringBitmap>) -> RoaringBitmap {
    bitmaps.fold(RoaringBitmap::new(), |all, some| all | some)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use weft_shared::policy::arbitrary;

    use super::*;

    proptest! {
        #[test]
        fn no_match_is_missed_whoever_came_first_and_what_is_gone_is_not_found(
            selectors in vec(arbitrary::selector(), 1..8),
            labels in vec(select(arbitrary::label_sets()), 1..8),
            gone in vec(any::<bool>(), 8),
        ) {
            let (mut anchored, mut identities) = (Anchored::default(), Identities::default());
            let names: Vec<Arc<str>> = (0..selectors.len()).map(|place| place.to_string().into()).collect();
            for (selector, name) in selectors.iter().zip(&names) {
                anchored.insert(selector, name);
            }
            for (number, labels) in (0..).zip(&labels) {
                identities.insert(number, labels.clone());
            }
            for ((selector, name), _) in selectors.iter().zip(&names).zip(&gone).filter(|(_, gone)| **gone) {
                anchored.remove(selector, name);
            }
            for (number, _) in (0..).zip(&labels).zip(&gone).filter(|(_, gone)| **gone).map(|(one, _)| one) {
                identities.remove(number);
            }
            for ((selector, name), selector_gone) in selectors.iter().zip(&names).zip(&gone) {
                let found = identities.candidates(selector);
                for ((number, labels), label_gone) in (0..).zip(&labels).zip(&gone) {
                    let met = anchored.candidates(labels).filter(|found| *found == name).count();
                    prop_assert!(met <= 1);
                    prop_assert!(!(met == 1 && *selector_gone));
                    prop_assert!(met == 1 || *selector_gone || !selector.matches(labels));
                    let found = found.iter().any(|(found, _)| *found == number);
                    prop_assert!(!(found && *label_gone));
                    prop_assert!(found || *label_gone || !selector.matches(labels));
                }
            }
        }
    }
}
