//! Policies of a test's subjects, row by row, and the rulebooks that they make.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_noded::plan::{
    compile::prefix_key,
    tables::{SubjectRow, Tables},
};
use weft_shared::{
    layout::{
        Action, Class, Direction, FIRST_GLOBAL_IDENTITY, FailsafeKey, PeerKey, PolicyRow, PortKey,
        class_rulebook,
    },
    policy::{
        compile::{Rulebook, failsafe_books},
        model::Failsafe,
    },
};

use crate::world::{PARTNERS_IDENTITY, REMOTE_NODE_IDENTITY};

/// What a row is about: a peer (an identity or a class) and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) direction: Direction,
    pub(crate) peer: u32,
    pub(crate) ports: PortKey,
}

/// One subject's: rows over a default. A peer is judged by the row of its identity or of its class with most bits; deny
/// counts before allow.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PolicyTable {
    default: Action,
    rows: BTreeMap<Row, PolicyRow>,
}

impl PolicyTable {
    pub(crate) fn of(default: Action) -> Self {
        Self { default, rows: BTreeMap::new() }
    }

    pub(crate) fn insert(&mut self, row: Row, says: PolicyRow) {
        self.rows.insert(row, says);
    }

    pub(crate) fn remove(&mut self, row: &Row) {
        self.rows.remove(row);
    }

    pub(crate) fn extend(&mut self, rows: impl IntoIterator<Item = (Row, PolicyRow)>) {
        self.rows.extend(rows);
    }

    fn peers(&self, direction: Direction) -> BTreeSet<u32> {
        self.rows.keys().filter(|row| row.direction == direction).map(|row| row.peer).collect()
    }

    fn rulebook(&self, direction: Direction, peers: &[u32]) -> Rulebook {
        let about = |row: &&Row| row.direction == direction && peers.contains(&row.peer);
        let ports = self.rows.keys().filter(about).map(|row| row.ports).chain([PortKey::EVERYTHING]);
        ports.map(|ports| (ports, self.says(direction, peers, ports))).collect()
    }

    fn says(&self, direction: Direction, peers: &[u32], ports: PortKey) -> PolicyRow {
        let longest = |peer: &u32| {
            (0..=ports.bits).rev().find_map(|bits| {
                self.rows.get(&Row { direction, peer: *peer, ports: ports.cut(bits) }).copied()
            })
        };
        let found = peers.iter().filter_map(longest);
        found.max_by_key(|row| row.action).unwrap_or(PolicyRow::of(self.default, 0))
    }
}

/// By slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies(BTreeMap<u32, (u32, PolicyTable)>);

impl Policies {
    /// A new subject, which may do everything.
    pub(crate) fn subject(&mut self, slot: u32, identity: u32) {
        self.0.insert(slot, (identity, PolicyTable::of(Action::Allow)));
    }

    /// Gives a subject this policy; the one that it had.
    pub(crate) fn insert(&mut self, slot: u32, table: PolicyTable) -> Option<PolicyTable> {
        self.get_mut(slot).map(|policy| std::mem::replace(policy, table))
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut PolicyTable> {
        self.0.get_mut(&slot).map(|(_, table)| table)
    }

    pub(crate) fn for_all(&mut self, table: &PolicyTable) {
        for (_, policy) in self.0.values_mut() {
            policy.clone_from(table);
        }
    }

    /// Writes all subjects. A node may always reach its own endpoints.
    pub(crate) fn write(&self, tables: &mut Tables, before: &Tables) {
        let mut numbers = Numbers { before, tables };
        for (slot, (identity, table)) in &self.0 {
            let mut subject = SubjectRow { identity: *identity, rulebooks: [0; _] };
            for direction in Direction::ALL {
                for class in Class::ALL {
                    let book = if (direction, class) == (Direction::Ingress, Class::Host) {
                        Rulebook::from([(PortKey::EVERYTHING, PolicyRow::of(Action::Allow, 0))])
                    } else {
                        table.rulebook(direction, &[class as u32])
                    };
                    subject.rulebooks[class_rulebook(direction, class)] = numbers.number(book);
                }
                for peer in table.peers(direction).into_iter().filter(|peer| *peer >= FIRST_GLOBAL_IDENTITY) {
                    let number = numbers.number(table.rulebook(direction, &[peer, class_of(peer) as u32]));
                    let key = PeerKey { subject: *identity, peer, direction: direction as u32 };
                    numbers.tables.peer_rules.insert(key, number);
                }
            }
            numbers.tables.subjects.insert(*slot, subject);
        }
    }
}

/// Writes what no policy of the node's can stop.
pub(crate) fn write_failsafe(tables: &mut Tables, before: &Tables, entries: &[Failsafe]) {
    for ((direction, prefix), book) in failsafe_books(entries) {
        let number = Numbers { before, tables }.number(Rulebook::clone(&book));
        tables.failsafe.insert(FailsafeKey::new(direction, prefix_key(prefix)), number);
    }
}

fn class_of(identity: u32) -> Class {
    match identity {
        PARTNERS_IDENTITY => Class::World,
        REMOTE_NODE_IDENTITY => Class::RemoteNode,
        _ => Class::Fleet,
    }
}

struct Numbers<'a> {
    before: &'a Tables,
    tables: &'a mut Tables,
}

impl Numbers<'_> {
    fn number(&mut self, book: Rulebook) -> u32 {
        let all = [&self.before.rulebooks, &self.tables.rulebooks];
        let known = all.iter().flat_map(|books| books.iter()).find(|(_, known)| ***known == book);
        let last = all.iter().filter_map(|books| books.last_key_value()).map(|(last, _)| *last).max();
        let number = known.map_or(last.unwrap_or(0) + 1, |(number, _)| *number);
        self.tables.rulebooks.insert(number, Arc::new(book));
        number
    }
}
