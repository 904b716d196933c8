//! Identities by number, and by each of their labels: what a new selector selects is found without trying all.
use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;
use weft_shared::policy::model::{Labels, Selector};

#[derive(Debug, Default)]
pub(super) struct Labelled {
    labels: BTreeMap<u32, Labels>,
    with: HashMap<String, HashMap<String, RoaringBitmap>>,
}

impl Labelled {
    pub(super) fn get(&self, number: u32) -> Option<&Labels> {
        self.labels.get(&number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Labels)> {
        self.labels.iter().map(|(number, labels)| (*number, labels))
    }

    pub(super) fn insert(&mut self, number: u32, labels: Labels) {
        self.remove(number);
        for (key, value) in &labels {
            let by_value = self.with.entry(key.clone()).or_default();
            by_value.entry(value.clone()).or_default().insert(number);
        }
        self.labels.insert(number, labels);
    }

    /// `false`: there is none of this number.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        let Some(labels) = self.labels.remove(&number) else { return false };
        for (key, value) in &labels {
            let Some(by_value) = self.with.get_mut(key) else { continue };
            if let Some(numbers) = by_value.get_mut(value) {
                numbers.remove(number);
                if numbers.is_empty() {
                    by_value.remove(value);
                }
            }
            if by_value.is_empty() {
                self.with.remove(key);
            }
        }
        true
    }

    /// All that a selector can select, and few others.
    pub(super) fn candidates(&self, selector: &Selector) -> Vec<(u32, &Labels)> {
        let Some((key, values)) = selector.anchor() else { return self.iter().collect() };
        let Some(by_value) = self.with.get(key) else { return Vec::new() };
        let numbers = values.iter().filter_map(|value| by_value.get(value)).flatten();
        numbers.filter_map(|number| Some((number, self.labels.get(&number)?))).collect()
    }
}
