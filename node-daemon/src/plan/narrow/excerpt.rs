//! The rows that a change touches, and those that the planner looks up beside them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_shared::{
    layout::{
        Direction, PeerKey,
        maps::{PEER_RULES_MAX, POLICY_ROWS_MAX, RULES_MAX},
    },
    policy::compile::Rulebook,
};

use super::{AddressChange, Books, Standing};
use crate::plan::{compile::Input, tables::Tables};

/// Whatever stands in neither of the two is the same before and after.
#[derive(Debug, Default)]
pub(super) struct Excerpt {
    pub(super) before: Tables,
    pub(super) after: Tables,
}

/// Peers' rows that change: what they are and what they shall be.
type Rows = BTreeMap<PeerKey, (Option<u32>, Option<u32>)>;

impl Excerpt {
    /// `None`: there might not be room for all.
    pub(super) fn of(
        standing: &Standing,
        input: Input<'_>,
        actual: &Tables,
        addresses: &[AddressChange],
        books: &Books,
    ) -> Option<Self> {
        let mut excerpt = Self::default();
        excerpt.before.identities_through = actual.identities_through;
        excerpt.after.identities_through = input.desired.identities_through;
        let rows = excerpt.add_rulebooks(standing, actual, books);
        if !excerpt.has_room(standing, actual, &rows) {
            return None;
        }
        for (key, (was, shall)) in rows {
            if let Some(number) = was {
                excerpt.before.peer_rules.insert(key, number);
            }
            if let Some(number) = shall {
                excerpt.after.peer_rules.insert(key, number);
            }
            let slot = standing.subjects.get(&key.subject)?.slot;
            excerpt.add_subject(actual, slot);
        }
        excerpt.add_addresses(standing, actual, addresses);
        Some(excerpt)
    }

    /// Numbers as a whole compilation gives them: by content where the kernel holds it, above all that are there otherwise.
    /// New rulebooks stand in `after`, those that nobody has any more in `before`.
    fn add_rulebooks(&mut self, standing: &Standing, actual: &Tables, books: &Books) -> Rows {
        let mut next = actual.rulebooks.last_key_value().map_or(1, |(last, _)| last + 1);
        let mut new: HashMap<&Arc<Rulebook>, u32> = HashMap::new();
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        let mut rows = Rows::new();
        for ((_, subject, direction, peer), book) in books {
            let shall = book.as_ref().map(|book| {
                let known = standing.numbers.get(book).or_else(|| new.get(book)).copied();
                known.unwrap_or_else(|| {
                    let number = next;
                    next += 1;
                    new.insert(book, number);
                    self.after.rulebooks.insert(number, Arc::clone(book));
                    number
                })
            });
            let key = PeerKey { subject: *subject, peer: *peer, direction: *direction as u32 };
            let was = actual.peer_rules.get(&key).copied();
            if was != shall {
                if let Some(was) = was {
                    *left.entry(was).or_default() += 1;
                }
                taken.extend(shall);
                rows.insert(key, (was, shall));
            }
        }
        for (number, times) in left {
            let unused = standing.uses.get(&number).is_none_or(|known| known.uses <= times);
            if let Some(book) = actual.rulebooks.get(&number).filter(|_| unused && !taken.contains(&number)) {
                self.before.rulebooks.insert(number, Arc::clone(book));
            }
        }
        rows
    }

    /// Counted as if nothing went: what this refuses, the whole compilation counts exactly.
    fn has_room(&self, standing: &Standing, actual: &Tables, rows: &Rows) -> bool {
        let mut more: BTreeMap<u32, (usize, BTreeSet<u32>)> = BTreeMap::new();
        for (key, (_, shall)) in rows {
            let (peers, numbers) = more.entry(key.subject).or_default();
            *peers += usize::from(shall.is_some());
            numbers.extend(shall);
        }
        let length = |number: &u32| {
            let new = self.after.rulebooks.get(number).map(|book| book.len());
            new.or_else(|| Some(standing.uses.get(number)?.rows)).unwrap_or(POLICY_ROWS_MAX)
        };
        let fits = |(subject, (peers, numbers)): (&u32, &(usize, BTreeSet<u32>))| {
            let more = peers + numbers.iter().map(length).sum::<usize>();
            standing.subjects.get(subject).is_some_and(|subject| subject.rows + more <= POLICY_ROWS_MAX)
        };
        let new_rows: usize = self.after.rulebooks.values().map(|book| book.len()).sum();
        more.iter().all(fits)
            && standing.rows + new_rows <= RULES_MAX / 2
            && actual.peer_rules.len() + rows.len() <= PEER_RULES_MAX / 2
    }

    fn add_subject(&mut self, actual: &Tables, slot: u32) {
        if let Some(subject) = actual.subjects.get(&slot) {
            self.before.subjects.insert(slot, *subject);
            self.after.subjects.insert(slot, *subject);
        }
    }

    /// With the prefixes around them, and what every subject says of whoever they were and are: flows of subjects that
    /// tell the two apart are judged again.
    fn add_addresses(&mut self, standing: &Standing, actual: &Tables, addresses: &[AddressChange]) {
        if addresses.is_empty() {
            return;
        }
        let mut parties = BTreeSet::new();
        for AddressChange { address, was, shall } in addresses {
            self.before.ipcache.extend(was.map(|peer| (*address, peer)));
            self.after.ipcache.extend(shall.map(|peer| (*address, peer)));
            parties.extend(was.iter().chain(shall).map(|peer| peer.identity));
            for (key, peer) in standing.lengths.around(actual, *address) {
                self.before.prefixes.insert(key, peer);
                self.after.prefixes.insert(key, peer);
                parties.insert(peer.identity);
            }
        }
        let former = std::mem::take(&mut self.before.peer_rules);
        let wanted = std::mem::take(&mut self.after.peer_rules);
        for (slot, subject) in &actual.subjects {
            self.add_subject(actual, *slot);
            for direction in Direction::ALL {
                for peer in &parties {
                    let key = PeerKey { subject: subject.identity, peer: *peer, direction: direction as u32 };
                    let Some(number) = actual.peer_rules.get(&key) else { continue };
                    self.before.peer_rules.insert(key, *number);
                    // Where it changes, the next lines say so.
                    if !former.contains_key(&key) {
                        self.after.peer_rules.insert(key, *number);
                    }
                }
            }
        }
        self.before.peer_rules.extend(former);
        self.after.peer_rules.extend(wanted);
    }
}
