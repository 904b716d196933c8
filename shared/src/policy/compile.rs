//! The table compiler: the policies that select a subject become its rulebooks.
//!
//! Each peer of a subject has one rulebook in each direction, which says everything: a peer's rules are those that name it
//! and those that name its class, and they are walked here, in the order of the tiers. Peers about whom the same rules
//! speak share a rulebook; a peer about whom no more is said than about its class has none of its own.

mod one;
mod peers;
mod rulebook;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;
use siphasher::sip::SipHasher13;

pub use self::{one::PeerCompiler, rulebook::Rulebook};
use self::{
    peers::{Peers, Whom},
    rulebook::{Book, Rules},
};
use super::{
    model::{Action, Class, Direction, HostToEndpoint, NodePolicy, unmanaged_is_closed},
    prefix::PrefixIdentities,
};
use crate::{
    layout::{CLASS_RULEBOOKS, PolicyRow, PortKey, class_rulebook, maps::POLICY_ROWS_MAX},
    names::Identity,
};

/// Members of each identity set, by its name.
pub type IdentitySets = BTreeMap<String, BTreeSet<u32>>;
/// Prefixes of each CIDR set, by its name.
pub type CidrSets = BTreeMap<String, Vec<IpNet>>;

/// What policies are compiled with.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    pub sets: &'a IdentitySets,
    pub cidr_sets: &'a CidrSets,
    pub prefixes: &'a PrefixIdentities,
    pub default_action: Action,
    pub host_to_endpoint: HostToEndpoint,
    /// This node's own identity, where it has one: rules that name it are about the host.
    pub own_node: Option<u32>,
}

/// A subject's whole policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// By [`class_rulebook`].
    pub classes: [Arc<Rulebook>; CLASS_RULEBOOKS],
    /// Of peers about whom something else is said than about their class.
    pub peers: BTreeMap<(Direction, u32), Arc<Rulebook>>,
}

/// The policy would have more rows than one may have. Nothing of it may be used: the subject is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy of identity {subject} takes {rows} rows, at most {max} are possible", max = POLICY_ROWS_MAX)]
pub struct Overflow {
    pub subject: Identity,
    pub rows: usize,
}

/// Compiles the policies that select a subject, in any order.
pub fn table(
    subject: Identity,
    policies: &[&NodePolicy],
    surroundings: Surroundings<'_>,
) -> Result<Table, Overflow> {
    let mut table = closed_table();
    for direction in Direction::ALL {
        Compiler::new(policies, surroundings, direction, Whom::Everybody).add_to(&mut table);
    }
    let rows = table.rows();
    if rows > POLICY_ROWS_MAX { Err(Overflow { subject, rows }) } else { Ok(table) }
}

/// The table of a subject that must be closed: nothing in, nothing out.
pub fn closed_table() -> Table {
    let closed = Arc::new(Rulebook::from([(PortKey::EVERYTHING, PolicyRow::of(Action::Deny, 0))]));
    Table { classes: std::array::from_fn(|_| Arc::clone(&closed)), peers: BTreeMap::new() }
}

impl Table {
    /// Rows that it takes: of peers, and of all different rulebooks.
    pub fn rows(&self) -> usize {
        self.peers.len() + self.rulebooks().iter().map(|book| book.len()).sum::<usize>()
    }

    /// All different rulebooks.
    pub fn rulebooks(&self) -> BTreeSet<&Rulebook> {
        let mut seen = BTreeSet::new();
        let mut last: Option<&Arc<Rulebook>> = None;
        for book in self.classes.iter().chain(self.peers.values()) {
            // Most peers have the one of the peer before.
            if !last.is_some_and(|last| Arc::ptr_eq(last, book)) {
                seen.insert(book.as_ref());
            }
            last = Some(book);
        }
        seen
    }

    /// The rulebook that a peer's flows find. The host has its class's: its identity may be other nodes', too.
    pub fn rulebook(&self, direction: Direction, identity: u32, class: Class) -> &Rulebook {
        let own = self.peers.get(&(direction, identity)).filter(|_| class != Class::Host);
        own.unwrap_or(&self.classes[class_rulebook(direction, class)])
    }
}

/// The number that rows carry for a rule, the same on every node and after every restart: a frozen hash (SipHash-1-3,
/// folded to 32 bits) of policy, direction and rule, never 0. Two rules may share one (1 in 2^32): a report then names
/// both. An empty rule name stands for the policy's default deny.
pub fn rule_number(policy: &str, direction: Direction, rule: &str) -> u32 {
    // A NUL is in no name, so different triples are different texts.
    let hash = SipHasher13::new().hash(format!("{policy}\0{}\0{rule}", direction as u8).as_bytes());
    let [_, _, _, _, low @ ..] = hash.to_be_bytes();
    u32::from_be_bytes(low).max(1)
}

/// One subject's policy in one direction.
struct Compiler<'a> {
    direction: Direction,
    rules: Rules<'a>,
    peers: Peers,
    /// By the rules that speak of a peer.
    books: HashMap<Vec<u32>, Arc<Rulebook>>,
    host_is_free: bool,
    /// Whether unknown addresses of the pools are kept out, by what is enforced and with what is audited.
    unmanaged_is_closed: [bool; 2],
}

impl<'a> Compiler<'a> {
    fn new(
        policies: &[&'a NodePolicy],
        surroundings: Surroundings<'_>,
        direction: Direction,
        whom: Whom,
    ) -> Self {
        let rules = Rules::of(policies, direction, surroundings.default_action);
        let closed = |with_audit: bool| {
            let taking_part = policies.iter().filter(move |policy| with_audit || policy.is_enforced());
            unmanaged_is_closed(taking_part.flat_map(|policy| policy.rules(direction)))
        };
        Self {
            direction,
            peers: Peers::of(&rules, surroundings, whom),
            rules,
            books: HashMap::new(),
            host_is_free: direction == Direction::Ingress
                && surroundings.host_to_endpoint == HostToEndpoint::Allow,
            unmanaged_is_closed: [closed(false), closed(true)],
        }
    }

    fn add_to(mut self, table: &mut Table) {
        for class in Class::ALL {
            table.classes[class_rulebook(self.direction, class)] = self.of_class(class);
        }
        let peers = std::mem::take(&mut self.peers.named);
        for (identity, (class, own)) in peers {
            let of_class = &table.classes[class_rulebook(self.direction, class)];
            let book = self.book(merged(&own, self.peers.of_class(class)));
            if book != *of_class {
                table.peers.insert((self.direction, identity), book);
            }
        }
    }

    fn of_class(&mut self, class: Class) -> Arc<Rulebook> {
        if class == Class::Host && self.host_is_free {
            return everything(PolicyRow::of(Action::Allow, 0));
        }
        let spoken = self.peers.of_class(class).to_vec();
        let [enforced, audited] = self.unmanaged_is_closed;
        if class != Class::Unmanaged || (!enforced && !audited) {
            return self.book(spoken);
        }
        let closed = PolicyRow::of(Action::Deny, 0);
        let open = |row: &PolicyRow| {
            let audited = if audited { (closed.action, 0) } else { (row.audit_action, row.audit_rule) };
            if enforced { closed } else { *row }.audited_as(audited)
        };
        let book = self.book(spoken);
        Arc::new(book.iter().map(|(key, row)| (*key, open(row))).collect())
    }

    fn book(&mut self, spoken: Vec<u32>) -> Arc<Rulebook> {
        let rules = &self.rules;
        let book = self.books.entry(spoken);
        Arc::clone(book.or_insert_with_key(|spoken| Arc::new(Book::new(rules, spoken).compile())))
    }
}

fn everything(row: PolicyRow) -> Arc<Rulebook> {
    Arc::new(Rulebook::from([(PortKey::EVERYTHING, row)]))
}

/// Two ascending lists as one.
fn merged(one: &[u32], other: &[u32]) -> Vec<u32> {
    let all: BTreeSet<u32> = one.iter().chain(other).copied().collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests;
