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

use super::{
    AddressChange, Standing,
    words::{Word, Words},
};
use crate::plan::{
    compile::Input,
    tables::{SubjectRow, Tables},
};

/// Whatever stands in neither of the two is the same before and after.
#[derive(Debug, Default)]
pub(super) struct Excerpt {
    pub(super) before: Tables,
    pub(super) after: Tables,
}

/// Peers' rows that change: what they are and what they shall be.
type Rows = Vec<(PeerKey, Option<u32>, Option<u32>)>;

impl Excerpt {
    /// `None`: there might not be room for all.
    pub(super) fn of(
        standing: &Standing,
        input: Input<'_>,
        actual: &Tables,
        addresses: &[AddressChange],
        words: &Words,
    ) -> Option<Self> {
        let mut excerpt = Self::default();
        excerpt.before.identities_through = actual.identities_through;
        excerpt.after.identities_through = input.desired.identities_through;
        let rows = excerpt.add_rows(standing, actual, words)?;
        if !excerpt.has_room(standing, actual, words, &rows) {
            return None;
        }
        let mut last = None;
        for (key, _, _) in &rows {
            if last.replace(key.subject) != Some(key.subject) {
                let slot = standing.subjects.get(&key.subject)?.slot;
                excerpt.add_subject(actual, slot);
            }
        }
        let row = |key: PeerKey, number: Option<u32>| Some((key, number?));
        excerpt.before.peer_rules = rows.iter().filter_map(|(key, was, _)| row(*key, *was)).collect();
        excerpt.after.peer_rules = rows.iter().filter_map(|(key, _, shall)| row(*key, *shall)).collect();
        excerpt.add_addresses(standing, actual, addresses);
        Some(excerpt)
    }

    /// New rulebooks stand in `after`, those that nobody has any more in `before`.
    fn add_rows(&mut self, standing: &Standing, actual: &Tables, words: &Words) -> Option<Rows> {
        let mut numbers = Numbers::new(standing, actual);
        let mut uses = Uses::default();
        let mut rows = Rows::new();
        for ((slot, subject), word) in words {
            let key = |(direction, peer): &(Direction, u32)| PeerKey {
                subject: *subject,
                peer: *peer,
                direction: *direction as u32,
            };
            match word {
                Word::Peers(said) => {
                    for (peer, book) in said {
                        let shall = book.as_ref().map(|book| numbers.of(book));
                        let key = key(peer);
                        uses.change(&mut rows, key, actual.peer_rules.get(&key).copied(), shall);
                    }
                }
                Word::Whole(table) => {
                    let was = *actual.subjects.get(slot)?;
                    let classes = std::array::from_fn(|place| numbers.of(&table.classes[place]));
                    let shall = SubjectRow { identity: *subject, rulebooks: classes };
                    if was != shall {
                        uses.left(was.rulebooks.into_iter());
                        uses.taken.extend(classes);
                    }
                    self.before.subjects.insert(*slot, was);
                    self.after.subjects.insert(*slot, shall);
                    // In this order for the numbers of new ones; then in that of the rows.
                    let mut said: Vec<(PeerKey, u32)> =
                        table.peers.iter().map(|(peer, book)| (key(peer), numbers.of(book))).collect();
                    said.sort_unstable();
                    let ends =
                        [0, u32::MAX].map(|end| PeerKey { subject: *subject, peer: end, direction: end });
                    let held = actual.peer_rules.range(ends[0]..=ends[1]);
                    uses.change_all(&mut rows, held.map(|(key, number)| (*key, *number)), said);
                }
            }
        }
        self.after.rulebooks.extend(numbers.new.into_iter().map(|(book, number)| (number, book)));
        for (number, times) in uses.left {
            let unused = standing.uses.get(&number).is_none_or(|known| known.uses <= times);
            if let Some(book) =
                actual.rulebooks.get(&number).filter(|_| unused && !uses.taken.contains(&number))
            {
                self.before.rulebooks.insert(number, Arc::clone(book));
            }
        }
        Some(rows)
    }

    /// Counted as if nothing went: what this refuses, the whole compilation counts exactly.
    fn has_room(&self, standing: &Standing, actual: &Tables, words: &Words, rows: &Rows) -> bool {
        // A whole table was counted when it was made.
        let whole: BTreeSet<u32> = words
            .iter()
            .filter(|(_, word)| matches!(word, Word::Whole(_)))
            .map(|((_, subject), _)| *subject)
            .collect();
        let mut more: BTreeMap<u32, (usize, BTreeSet<u32>)> = BTreeMap::new();
        for (key, _, shall) in rows.iter().filter(|(key, _, _)| !whole.contains(&key.subject)) {
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
            self.before.subjects.entry(slot).or_insert(*subject);
            self.after.subjects.entry(slot).or_insert(*subject);
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

/// Numbers of rulebooks as a whole compilation gives them: by content where the kernel holds it, above all that are there
/// otherwise.
struct Numbers<'a> {
    known: &'a HashMap<Arc<Rulebook>, u32>,
    new: HashMap<Arc<Rulebook>, u32>,
    next: u32,
    /// Most peers have the rulebook of the peer before.
    last: Option<(Arc<Rulebook>, u32)>,
}

impl<'a> Numbers<'a> {
    fn new(standing: &'a Standing, actual: &Tables) -> Self {
        let next = actual.rulebooks.last_key_value().map_or(1, |(last, _)| last + 1);
        Self { known: &standing.numbers, new: HashMap::new(), next, last: None }
    }

    fn of(&mut self, book: &Arc<Rulebook>) -> u32 {
        if let Some((last, number)) = &self.last
            && Arc::ptr_eq(last, book)
        {
            return *number;
        }
        let known = self.known.get(book).or_else(|| self.new.get(book)).copied();
        let number = known.unwrap_or_else(|| {
            let number = self.next;
            self.next += 1;
            self.new.insert(Arc::clone(book), number);
            number
        });
        self.last = Some((Arc::clone(book), number));
        number
    }
}

/// Of rulebooks that change.
#[derive(Default)]
struct Uses {
    /// Number → how many have it no more.
    left: BTreeMap<u32, usize>,
    /// Numbers that somebody has newly.
    taken: BTreeSet<u32>,
}

impl Uses {
    fn left(&mut self, numbers: impl Iterator<Item = u32>) {
        for number in numbers {
            *self.left.entry(number).or_default() += 1;
        }
    }

    /// A peer's row.
    fn change(&mut self, rows: &mut Rows, key: PeerKey, was: Option<u32>, shall: Option<u32>) {
        if was != shall {
            self.left(was.into_iter());
            self.taken.extend(shall);
            rows.push((key, was, shall));
        }
    }

    /// All rows of a subject, both in their order.
    fn change_all(
        &mut self,
        rows: &mut Rows,
        held: impl Iterator<Item = (PeerKey, u32)>,
        said: Vec<(PeerKey, u32)>,
    ) {
        let mut said = said.into_iter().peekable();
        for (key, was) in held {
            while let Some((new, shall)) = said.next_if(|(other, _)| *other < key) {
                self.change(rows, new, None, Some(shall));
            }
            let shall = said.next_if(|(other, _)| *other == key).map(|(_, shall)| shall);
            self.change(rows, key, Some(was), shall);
        }
        for (new, shall) in said {
            self.change(rows, new, None, Some(shall));
        }
    }
}
