//! Policies of subjects.
//!
//! A packet has one peer, finds one rulebook for it, and looks into that one alone. So the unit that changes at once is what
//! a subject says of one peer, and a rulebook is never changed: a new one is written whole, before anybody finds it, and an
//! old one goes when nobody can have it in hand any more.
//!
//! A program reads its class's rulebook before it looks for the peer's row. So rows come before the classes change, and go
//! after that: whoever finds no row has the rulebook of a class that goes with that.

use std::collections::BTreeSet;

use weft_shared::layout::{Class, Direction, PeerKey};

use super::{Party, Planner};
use crate::plan::tables::{Step, SubjectRow, Tables};

/// Slots of the subjects whose policy says one thing of the first and another of the second.
pub(super) fn that_differ(tables: &Tables, parties: [Party; 2]) -> BTreeSet<u32> {
    let differs = |subject: &SubjectRow| {
        Direction::ALL.into_iter().any(|direction| {
            let [one, other] = parties.map(|Party { identity, class }| {
                let class = Class::from_number(class);
                class.map(|class| tables.rulebook(subject, direction, identity, class))
            });
            one != other
        })
    };
    let differing = tables.subjects.iter().filter(|(_, subject)| differs(subject));
    differing.map(|(slot, _)| *slot).collect()
}

impl Planner<'_> {
    /// New rulebooks, which nobody finds yet.
    pub(super) fn set_rulebooks(&mut self) {
        for (number, rows) in &self.desired.rulebooks {
            if self.now.rulebooks.get(number) != Some(rows) {
                self.push(Step::Rulebook { number: *number, rows: Some(rows.clone()) });
            }
        }
    }

    pub(super) fn set_policies(&mut self) {
        let mut last = None;
        for (key, rulebook) in &self.desired.peer_rules {
            if self.now.peer_rules.get(key) != Some(rulebook) {
                self.push(Step::PeerRules { key: *key, rulebook: Some(*rulebook) });
                if last.replace(key.subject) != Some(key.subject) {
                    self.bump_subject_of(*key);
                }
            }
        }
        for (slot, subject) in &self.desired.subjects {
            if self.before.subjects.get(slot) != Some(subject) {
                self.push(Step::Subject { slot: *slot, subject: Some(*subject) });
                self.bump_subjects.insert(*slot);
            }
        }
        self.subjects_that_differ.clear();
        self.bump();
        let wanted: BTreeSet<u32> = self.desired.subjects.values().map(|subject| subject.identity).collect();
        self.remove_peers(|subject| wanted.contains(&subject));
    }

    pub(super) fn remove_policies(&mut self) {
        for slot in self.before.subjects.keys() {
            if !self.desired.subjects.contains_key(slot) {
                self.push(Step::Subject { slot: *slot, subject: None });
                self.bump_subjects.insert(*slot);
            }
        }
        self.bump();
        self.remove_peers(|_| true);
        self.remove_rulebooks();
    }

    /// Takes away rows of such subjects that nobody desires.
    fn remove_peers(&mut self, of: impl Fn(u32) -> bool) {
        // All that are desired are there by now.
        if self.now.peer_rules.len() == self.desired.peer_rules.len() {
            return;
        }
        let unwanted = |key: &&PeerKey| !self.desired.peer_rules.contains_key(*key) && of(key.subject);
        let leaving: Vec<PeerKey> = self.now.peer_rules.keys().filter(unwanted).copied().collect();
        if leaving.is_empty() {
            return;
        }
        // Whoever has read the class's former rulebook still finds the row.
        self.push(Step::Settle);
        for key in leaving {
            self.bump_subject_of(key);
            self.push(Step::PeerRules { key, rulebook: None });
        }
        self.subjects_that_differ.clear();
        self.bump();
    }

    fn remove_rulebooks(&mut self) {
        let unused = self.now.rulebooks.keys().filter(|number| !self.desired.rulebooks.contains_key(*number));
        let unused: Vec<u32> = unused.copied().collect();
        if !unused.is_empty() {
            self.push(Step::Settle);
        }
        for number in unused {
            self.push(Step::Rulebook { number, rows: None });
        }
    }

    fn bump_subject_of(&mut self, key: PeerKey) {
        self.bump_subjects.extend(self.slots.get(&key.subject).into_iter().flatten());
    }

    /// Lets a peer be judged as another one, where nothing is said of it yet.
    pub(super) fn copy_peer(&mut self, from: u32, to: u32) {
        let mut steps = Vec::new();
        for subject in self.now.subjects.values() {
            for direction in Direction::ALL {
                let key = |peer| PeerKey { subject: subject.identity, peer, direction: direction as u32 };
                let rulebook = self.now.peer_rules.get(&key(from)).copied();
                if rulebook.is_some() && !self.now.peer_rules.contains_key(&key(to)) {
                    steps.push(Step::PeerRules { key: key(to), rulebook });
                }
            }
        }
        if !steps.is_empty() {
            self.subjects_that_differ.clear();
        }
        self.push_all(steps);
    }
}
