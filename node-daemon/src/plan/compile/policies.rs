//! Rows of subjects: slots, the rulebooks of their policies, and which peer has which.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_shared::{
    layout::{
        Address, CLASS_RULEBOOKS, Peer, PeerKey,
        maps::{PEER_RULES_MAX, RULES_MAX, SUBJECTS_MAX},
    },
    names::Identity,
    policy::compile::{self, Kind, Rulebook, Surroundings},
};

use super::{Compiled, Input, Selecting, Stale, lowest_free, policies_of_all};
use crate::plan::tables::{SubjectRow, Tables};

/// Slot → identity.
pub(super) type Slots = BTreeMap<u32, u32>;

/// Gives each identity that endpoints of this node have, and each of `hosts`, a slot, the one it has where it has one.
pub(super) fn slots(
    compiled: &mut Compiled,
    input: Input<'_>,
    hosts: &BTreeSet<u32>,
    actual: &Tables,
    stale: Stale,
) -> Slots {
    let kept: BTreeMap<u32, u32> =
        actual.subjects.iter().map(|(slot, subject)| (subject.identity, *slot)).collect();
    let mut taken: BTreeSet<u32> = actual.subjects.keys().copied().chain([0]).collect();
    let mut wanted = identities(input);
    if stale == Stale::Keep {
        // Until its endpoint's row is written, a relabelled endpoint is judged by its former subject's policy.
        let former = actual.endpoints.values().filter_map(|endpoint| actual.subjects.get(&endpoint.subject));
        let before = wanted.len();
        wanted.extend(former.map(|subject| subject.identity));
        compiled.unfinished |= wanted.len() > before;
    }
    let wanted: BTreeSet<(bool, u32)> =
        wanted.union(hosts).map(|identity| (!hosts.contains(identity), *identity)).collect();
    let mut slots = Slots::new();
    for (of_endpoint, identity) in wanted {
        let slot = kept.get(&identity).copied().unwrap_or_else(|| lowest_free(&mut taken));
        let most = if of_endpoint { SUBJECTS_MAX - NODE_SLOTS } else { SUBJECTS_MAX };
        if slot as usize >= most {
            compiled.problems.push(format!("identity {identity}: there are more than {most} subjects"));
            continue;
        }
        slots.insert(slot, identity);
    }
    slots
}

/// Slots that endpoints leave free: whoever finds none is closed, but the node itself would be open. Two, so that it changes
/// its identity as everybody does.
const NODE_SLOTS: usize = 2;

/// The identities that endpoints of this node have.
fn identities(input: Input<'_>) -> BTreeSet<u32> {
    let attachments = input.attachments;
    let words = input.desired.endpoints();
    let standings = attachments.endpoints.values().filter_map(|own| attachments.standing(own, words));
    standings.map(|(identity, _)| identity).filter(|identity| *identity != 0).collect()
}

/// Members that left their sets while an address of the kernel still carries their identity. What a set selects and what
/// labels an identity stands for never change, so they are still what their sets say.
pub(super) fn keep_members(
    compiled: &mut Compiled,
    sets: &mut Cow<'_, compile::IdentitySets>,
    input: Input<'_>,
    actual: &Tables,
    slots: &Slots,
) {
    let changed = |(address, peer): &(&Address, &Peer)| compiled.tables.ipcache.get(*address) != Some(*peer);
    let mut leaving: BTreeSet<u32> =
        actual.ipcache.iter().filter(changed).map(|(_, peer)| peer.identity).collect();
    leaving.extend(slots.values());
    for (set, members) in input.former_sets {
        for identity in members.intersection(&leaving) {
            if !sets.get(set).is_some_and(|members| members.contains(identity)) {
                sets.to_mut().entry(set.clone()).or_default().insert(*identity);
                compiled.unfinished = true;
            }
        }
    }
}

/// What policies were compiled to.
type Found = Result<Arc<compile::Table>, compile::Unfit>;

pub(super) fn add_policies(
    compiled: &mut Compiled,
    input: Input<'_>,
    numbers: &mut Numbers,
    surroundings: Surroundings<'_>,
    (slots, hosts): (&Slots, &BTreeSet<u32>),
) {
    let mut selecting = policies_of_all(slots.values().copied(), hosts, input.desired, surroundings.sets);
    // Subjects that the same policies select say the same.
    let mut known: HashMap<(Kind, Vec<&str>), Found> = HashMap::new();
    for (slot, identity) in slots {
        let subject = Identity(*identity);
        let Selecting { kind, policies } = selecting.remove(identity).unwrap_or_default();
        let names = policies.iter().map(|policy| policy.name.as_str()).collect();
        let compiled_once = known
            .entry((kind, names))
            .or_insert_with(|| compile::table(subject, kind, &policies, surroundings).map(Arc::new));
        let table = match compiled_once {
            Ok(table) => Arc::clone(table),
            Err(unfit) => {
                compiled.unfit.push(unfit.clone().of(subject));
                Arc::new(compile::closed_table(kind))
            }
        };
        if add_table(&mut compiled.tables, numbers, (*slot, *identity), &table).is_err() {
            let rows = table.rows();
            compiled.unfit.push(compile::Unfit::Overflow { subject, rows });
            compiled
                .problems
                .push(format!("the policies of this node's endpoints together take more rows than there are: {rows} of identity {subject} do not fit"));
            // Few rows, of rulebooks that all closed subjects share.
            drop(add_table(&mut compiled.tables, numbers, (*slot, *identity), &compile::closed_table(kind)));
        }
    }
}

/// The maps have no room for a subject's rows.
#[derive(Debug)]
struct Full;

/// Rows of a closed table: one for each class, or (a node's) what its link needs both ways.
const CLOSED_ROWS_MAX: usize = 3 * CLASS_RULEBOOKS;

fn add_table(
    tables: &mut Tables,
    numbers: &mut Numbers,
    (slot, identity): (u32, u32),
    table: &compile::Table,
) -> Result<(), Full> {
    let new_rows: usize = table
        .rulebooks()
        .into_iter()
        .filter(|book| !numbers.get(book).is_some_and(|number| tables.rulebooks.contains_key(&number)))
        .map(BTreeMap::len)
        .sum();
    // While one replaces the other, former rows are there beside the new ones.
    let closed = table.peers.is_empty() && new_rows <= CLOSED_ROWS_MAX;
    if !closed
        && (numbers.rows + new_rows > RULES_MAX / 2
            || tables.peer_rules.len() + table.peers.len() > PEER_RULES_MAX / 2)
    {
        return Err(Full);
    }
    numbers.rows += new_rows;
    let rulebooks = std::array::from_fn(|place| numbers.add(tables, &table.classes[place]));
    // Most peers have the rulebook of the peer before.
    let mut last: Option<(&Arc<Rulebook>, u32)> = None;
    for ((direction, peer), book) in &table.peers {
        let found = match last {
            Some((same, number)) if Arc::ptr_eq(same, book) => number,
            _ => numbers.add(tables, book),
        };
        last = Some((book, found));
        let key = PeerKey { subject: identity, peer: *peer, direction: *direction as u32 };
        tables.peer_rules.insert(key, found);
    }
    tables.subjects.insert(slot, SubjectRow { identity, rulebooks });
    Ok(())
}

/// Numbers of rulebooks: those that the kernel holds keep theirs, new ones get numbers above all that are there, so that a
/// number in the kernel never changes what it stands for.
pub(super) struct Numbers {
    by_content: HashMap<Arc<Rulebook>, u32>,
    next: u32,
    /// Rows of the rulebooks that are wanted.
    rows: usize,
}

impl Numbers {
    pub(super) fn of(actual: &Tables) -> Self {
        // Backwards, so that of equal ones the first counts.
        let by_content =
            actual.rulebooks.iter().rev().map(|(number, book)| (Arc::clone(book), *number)).collect();
        let next = actual.rulebooks.last_key_value().map_or(1, |(last, _)| last + 1);
        Self { by_content, next, rows: 0 }
    }

    /// The number of a rulebook, which is in the tables then.
    pub(super) fn add(&mut self, tables: &mut Tables, book: &Arc<Rulebook>) -> u32 {
        let number = self.number(book);
        tables.rulebooks.entry(number).or_insert_with(|| Arc::clone(book));
        number
    }

    fn get(&self, book: &Rulebook) -> Option<u32> {
        self.by_content.get(book).copied()
    }

    fn number(&mut self, book: &Arc<Rulebook>) -> u32 {
        if let Some(number) = self.get(book) {
            return number;
        }
        let number = self.next;
        self.next += 1;
        self.by_content.insert(Arc::clone(book), number);
        number
    }
}
