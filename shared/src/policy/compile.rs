//! The table compiler: the policies that select a subject become its rulebooks.
//!
//! Each peer of a subject has one rulebook in each direction, which says everything: a peer's rules are those that name it
//! and those that name its class, and they are walked here, in the order of the tiers. Peers about whom the same rules
//! speak share a rulebook; a peer about whom no more is said than about its class has none of its own.
//!
//! A node is a subject like an endpoint, but for what holds whatever its policies say: failsafe entries have rulebooks of
//! their own, which are asked first; what the link needs is in the node's rulebooks, before all tiers.

mod failsafe;
mod one;
mod peers;
mod rulebook;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;
use siphasher::sip::SipHasher13;

pub use self::{
    failsafe::{FailsafeBooks, failsafe_books},
    one::PeerCompiler,
    rulebook::Rulebook,
};
use self::{
    peers::{Peers, Whom},
    rulebook::{Book, Rules},
};
use super::{
    model::{Action, Class, Direction, HostToEndpoint, NodePolicy, Peer, unmanaged_is_closed},
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

/// Why nothing of a subject's policy may be used: the subject is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the policy of identity {subject} takes {rows} rows, at most {max} are possible", max = POLICY_ROWS_MAX)]
    Overflow { subject: Identity, rows: usize },
    /// A rule that denies a set which is not known would open to it.
    #[error("policy {policy} of identity {subject} names the CIDR set {set}, which is not known here")]
    NoSuchCidrSet { subject: Identity, policy: String, set: String },
}

impl Unfit {
    /// Whose policy it is.
    pub const fn subject(&self) -> Identity {
        match self {
            Self::Overflow { subject, .. } | Self::NoSuchCidrSet { subject, .. } => *subject,
        }
    }

    /// The same of another subject, which the same policies select.
    #[must_use]
    pub fn of(self, subject: Identity) -> Self {
        match self {
            Self::Overflow { rows, .. } => Self::Overflow { subject, rows },
            Self::NoSuchCidrSet { policy, set, .. } => Self::NoSuchCidrSet { subject, policy, set },
        }
    }
}

/// Whose policy a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    #[default]
    Endpoint,
    /// The node itself. What holds failsafe entries, and that its own endpoints may be free, is not in the table.
    Node,
}

/// Compiles the policies that select a subject, in any order.
pub fn table(
    subject: Identity,
    kind: Kind,
    policies: &[&NodePolicy],
    surroundings: Surroundings<'_>,
) -> Result<Table, Unfit> {
    if let Some((policy, set)) = missing_set(policies, surroundings.cidr_sets) {
        return Err(Unfit::NoSuchCidrSet { subject, policy: policy.to_owned(), set: set.to_owned() });
    }
    let mut table = closed_table(Kind::Endpoint);
    for direction in Direction::ALL {
        Compiler::new(kind, policies, surroundings, direction, Whom::Everybody).add_to(&mut table);
    }
    let rows = table.rows();
    if rows > POLICY_ROWS_MAX { Err(Unfit::Overflow { subject, rows }) } else { Ok(table) }
}

/// A policy that names a CIDR set which is not there, and the set.
fn missing_set<'a>(policies: &[&'a NodePolicy], sets: &CidrSets) -> Option<(&'a str, &'a str)> {
    policies.iter().find_map(|policy| {
        let named = policy.peers().filter_map(|peer| match peer {
            Peer::CidrSet(names) => Some(names),
            _ => None,
        });
        let missing = named.flatten().find(|name| !sets.contains_key(*name))?;
        Some((policy.name.as_str(), missing.as_str()))
    })
}

/// The table of a subject that must be closed: nothing in, nothing out, but what a node's link can't do without.
pub fn closed_table(kind: Kind) -> Table {
    let closed = everything(PolicyRow::of(Action::Deny, 0));
    let mut table = Table { classes: std::array::from_fn(|_| Arc::clone(&closed)), peers: BTreeMap::new() };
    if kind == Kind::Node {
        for direction in Direction::ALL {
            Compiler::closed_node(direction).add_to(&mut table);
        }
    }
    table
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
    /// By whether the peer may be on a link of the node's, and the rules that speak of it.
    books: HashMap<(bool, Vec<u32>), Arc<Rulebook>>,
    host_is_free: bool,
    /// Whether unknown addresses of the pools are kept out, by what is enforced and with what is audited.
    unmanaged_is_closed: [bool; 2],
}

impl<'a> Compiler<'a> {
    fn new(
        kind: Kind,
        policies: &[&'a NodePolicy],
        surroundings: Surroundings<'_>,
        direction: Direction,
        whom: Whom,
    ) -> Self {
        let rules = match kind {
            Kind::Endpoint => Rules::of(policies, direction, surroundings.default_action),
            Kind::Node => Rules::of_node(policies, direction, surroundings.default_action),
        };
        let host_to_endpoint =
            direction == Direction::Ingress && surroundings.host_to_endpoint == HostToEndpoint::Allow;
        let closed = |with_audit: bool| {
            let taking_part = policies.iter().filter(move |policy| with_audit || policy.is_enforced());
            unmanaged_is_closed(taking_part.flat_map(|policy| policy.rules(direction)))
        };
        Self {
            direction,
            peers: Peers::of(&rules, surroundings, whom),
            rules,
            books: HashMap::new(),
            // A node always reaches itself.
            host_is_free: kind == Kind::Node || host_to_endpoint,
            unmanaged_is_closed: [closed(false), closed(true)],
        }
    }

    fn closed_node(direction: Direction) -> Self {
        Self {
            direction,
            rules: Rules::closed_node(direction),
            peers: Peers::default(),
            books: HashMap::new(),
            host_is_free: true,
            unmanaged_is_closed: [false, false],
        }
    }

    fn add_to(mut self, table: &mut Table) {
        for class in Class::ALL {
            table.classes[class_rulebook(self.direction, class)] = self.of_class(class);
        }
        let peers = std::mem::take(&mut self.peers.named);
        for (identity, (class, own)) in peers {
            let of_class = &table.classes[class_rulebook(self.direction, class)];
            let book = self.book(class, merged(&own, self.peers.of_class(class)));
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
        if class == Class::Unmanaged {
            let book = Book::new(&self.rules, &spoken, false).closed(self.unmanaged_is_closed);
            return Arc::new(book.compile());
        }
        self.book(class, spoken)
    }

    fn book(&mut self, class: Class, spoken: Vec<u32>) -> Arc<Rulebook> {
        let rules = &self.rules;
        let on_a_link = matches!(class, Class::RemoteNode | Class::World);
        let book = self.books.entry((on_a_link, spoken));
        Arc::clone(book.or_insert_with_key(|(on_a_link, spoken)| {
            Arc::new(Book::new(rules, spoken, *on_a_link).compile())
        }))
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
