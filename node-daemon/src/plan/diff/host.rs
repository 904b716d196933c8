//! The node itself as a subject: what no policy of its can stop, and who judges it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_shared::{
    layout::{Action, FailsafeKey},
    policy::compile::Rulebook,
};

use super::{Planner, Sweep};
use crate::plan::{
    tables::{Step, Tables},
    who::masked,
};

impl Planner<'_> {
    /// Before the policies change, what held and what shall hold are both held open: a flow that the one or the other is
    /// about must not meet policies that have changed alone.
    pub(super) fn widen_failsafe(&mut self) {
        let (before, desired) = (self.before, self.desired);
        // Where nobody was judged, there is nothing to keep open.
        if before.failsafe == desired.failsafe || before.host.is_none() {
            return;
        }
        let lengths = lengths([before, desired]);
        for key in longest_first(before.failsafe.keys().chain(desired.failsafe.keys())) {
            let words = [before, desired].map(|tables| word(tables, &lengths, key));
            let wide = match words {
                [Some(former), Some(new)] => Some(self.either(former, new)),
                [former, new] => former.or(new),
            };
            if let Some(number) = wide
                && self.now.failsafe.get(&key) != Some(&number)
            {
                self.push(Step::Failsafe { key, rulebook: Some(number) });
                self.bump_host();
            }
        }
        self.bump();
    }

    /// The number of a rulebook that allows what one of two does; a new one that is in nobody's desire, where neither is it.
    fn either(&mut self, former: u32, new: u32) -> u32 {
        let books = [former, new].map(|number| self.now.rulebooks.get(&number).cloned().unwrap_or_default());
        let mut both = Rulebook::clone(&books[0]);
        for (ports, row) in books[1].iter() {
            let known = both.entry(*ports).or_insert(*row);
            if row.action == Action::Allow as u32 {
                *known = *row;
            }
        }
        let all = [&self.now.rulebooks, &self.desired.rulebooks];
        let known = all.into_iter().flatten().find(|(_, book)| ***book == both).map(|(number, _)| *number);
        let last = all.into_iter().filter_map(|books| books.last_key_value()).map(|(last, _)| *last).max();
        known.unwrap_or_else(|| {
            let number = last.unwrap_or(0) + 1;
            self.push(Step::Rulebook { number, rows: Some(Arc::new(both)) });
            number
        })
    }

    /// What shall hold, and with what was there before where that is not removed yet. Longest first: an address whose own
    /// word is not there yet has the former one.
    pub(super) fn set_failsafe(&mut self) {
        for key in longest_first(self.desired.failsafe.keys()) {
            let wanted = self.desired.failsafe.get(&key).copied();
            if self.now.failsafe.get(&key).copied() != wanted {
                self.push(Step::Failsafe { key, rulebook: wanted });
                self.bump_host();
            }
        }
        self.bump();
    }

    /// Shorter prefixes have their words by now.
    pub(super) fn remove_failsafe(&mut self) {
        for key in self.before.failsafe.keys() {
            if !self.desired.failsafe.contains_key(key) {
                self.push(Step::Failsafe { key: *key, rulebook: None });
                self.bump_host();
            }
        }
        self.bump();
    }

    /// The node is judged by the subject that it shall have, whose policy is there. That it is judged no more is a removal.
    pub(super) fn set_host(&mut self) {
        let (had, wanted) = (self.before.host, self.desired.host);
        if had == wanted || (wanted.is_none() && self.sweep == Sweep::Keep) {
            return;
        }
        self.push(Step::Host { host: wanted });
        self.bump_subjects.extend([had, wanted].into_iter().flatten().map(|host| host.subject));
        self.bump();
        if had.is_some_and(|had| wanted.is_none_or(|wanted| wanted.subject != had.subject)) {
            // Nobody judges it by the former subject any more, whose slot may become another's.
            self.push(Step::Settle);
        }
    }

    fn bump_host(&mut self) {
        self.bump_subjects.extend(self.now.host.map(|host| host.subject));
    }
}

fn longest_first<'a>(keys: impl Iterator<Item = &'a FailsafeKey>) -> Vec<FailsafeKey> {
    let keys: BTreeSet<FailsafeKey> = keys.copied().collect();
    let mut keys: Vec<FailsafeKey> = keys.into_iter().collect();
    keys.sort_by_key(|key| u32::MAX - key.bits);
    keys
}

fn lengths(tables: [&Tables; 2]) -> BTreeSet<u32> {
    tables.into_iter().flat_map(|tables| tables.failsafe.keys().map(|key| key.bits)).collect()
}

/// The number of the rulebook that addresses of a prefix find.
fn word(tables: &Tables, lengths: &BTreeSet<u32>, key: FailsafeKey) -> Option<u32> {
    let rows: &BTreeMap<FailsafeKey, u32> = &tables.failsafe;
    lengths.range(..=key.bits).rev().find_map(|bits| {
        let address = masked(key.address, bits - FailsafeKey::DIRECTION_BITS);
        rows.get(&FailsafeKey { bits: *bits, address, ..key }).copied()
    })
}
