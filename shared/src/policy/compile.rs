//! The table compiler: the policies that select a subject become the rows of its table.
//!
//! A flow is looked up twice, by the peer's exact identity and by its class, each time with the longest matching prefix
//! of (direction, identity, protocol, port); the answer of the higher precedence wins, deny at equal precedence. For
//! that to be the oracle's verdict, the row of the longest prefix must say what the highest precedence around it says:
//! broader rules are folded into narrower rows here.

use std::collections::{BTreeMap, BTreeSet};

use siphasher::sip::SipHasher13;

use super::{
    model::{Action, Class, Direction, Entity, NodePolicy, NodeRule, Peer, RuleAction, unmanaged_is_closed},
    ports,
    prefix::PrefixIdentities,
};
use crate::{
    layout::{
        DIRECTION_PREFIX_BITS, IDENTITY_PREFIX_BITS, PROTOCOL_PREFIX_BITS, PolicyKey, PolicyRow,
        maps::POLICY_ROWS_MAX,
    },
    names::Identity,
};

/// Members of each identity set, by its name.
pub type IdentitySets = BTreeMap<String, BTreeSet<u32>>;
/// Rows of one subject's table.
pub type Table = BTreeMap<PolicyKey, PolicyRow>;

/// Precedences of the application tier. 0 is the default row's.
mod precedence {
    pub(super) const ALLOW: u32 = 1;
    pub(super) const DENY: u32 = 2;
    /// What keeps unknown addresses out, whatever a rule allows.
    pub(super) const CLOSED: u32 = 3;
}

/// The table would have more rows than a table can hold. Nothing of it may be used: the subject is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy of identity {subject} takes {rows} rows, a table holds {max}", max = POLICY_ROWS_MAX)]
pub struct Overflow {
    pub subject: Identity,
    pub rows: usize,
}

/// Compiles the policies that select a subject, in any order, into its table.
pub fn table(
    subject: Identity,
    policies: &[&NodePolicy],
    sets: &IdentitySets,
    prefixes: &PrefixIdentities,
    default_action: Action,
) -> Result<Table, Overflow> {
    let mut table = Table::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for (identity, entries) in entries_by_peer(policies, sets, prefixes, direction) {
            add_rows(&mut table, direction, identity, &entries);
        }
        table.insert(default_key(direction), default_row(policies, direction, default_action));
    }
    if table.len() > POLICY_ROWS_MAX { Err(Overflow { subject, rows: table.len() }) } else { Ok(table) }
}

/// The table of a subject that must be closed: nothing in, nothing out.
pub fn closed_table() -> Table {
    let row = PolicyRow { precedence: 0, action: Action::Deny as u32, rule: 0 };
    [Direction::Ingress, Direction::Egress].map(|direction| (default_key(direction), row)).into()
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

/// What one rule says of one peer's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// `None`: every protocol and port.
    ports: Option<(u8, u16, u16)>,
    row: PolicyRow,
}

fn entries_by_peer(
    policies: &[&NodePolicy],
    sets: &IdentitySets,
    prefixes: &PrefixIdentities,
    direction: Direction,
) -> BTreeMap<u32, Vec<Entry>> {
    let mut found: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
    // By name, so that of two rules which say the same the one that the oracle names is in the rows.
    let mut policies = policies.to_vec();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    for policy in &policies {
        for rule in policy.rules(direction) {
            let entries = entries_of(policy, direction, rule);
            for identity in peers_of(rule, sets, prefixes) {
                found.entry(identity).or_default().extend_from_slice(&entries);
            }
        }
    }
    if unmanaged_is_closed(policies.iter().flat_map(|policy| policy.rules(direction))) {
        let row = PolicyRow { precedence: precedence::CLOSED, action: Action::Deny as u32, rule: 0 };
        found.entry(Class::Unmanaged as u32).or_default().push(Entry { ports: None, row });
    }
    found
}

fn entries_of(policy: &NodePolicy, direction: Direction, rule: &NodeRule) -> Vec<Entry> {
    let row = PolicyRow {
        precedence: match rule.action {
            RuleAction::Allow => precedence::ALLOW,
            RuleAction::Deny | RuleAction::Pass => precedence::DENY,
        },
        action: rule.action.verdict().unwrap_or(Action::Deny) as u32,
        rule: rule_number(&policy.name, direction, &rule.name),
    };
    match &rule.ports {
        None => vec![Entry { ports: None, row }],
        Some(ranges) => {
            let entry = |range: &super::model::PortRange| Entry {
                ports: Some((range.protocol, range.first, range.last)),
                row,
            };
            ranges.iter().map(entry).collect()
        }
    }
}

/// Identities (of endpoints, prefixes and classes) that a rule is about.
fn peers_of(rule: &NodeRule, sets: &IdentitySets, prefixes: &PrefixIdentities) -> BTreeSet<u32> {
    let classes = || Class::ALL.map(|class| class as u32);
    let Some(peers) = &rule.peers else { return classes().into() };
    let mut found = BTreeSet::new();
    for peer in peers {
        match peer {
            Peer::Endpoints(set) | Peer::Nodes(set) => found.extend(sets.get(set).into_iter().flatten()),
            Peer::Cidr { cidr, except } => found.extend(prefixes.within(cidr, except)),
            Peer::CidrSet(_) => {}
            Peer::Entity(Entity::All) => found.extend(classes()),
            Peer::Entity(Entity::Class(class)) => {
                found.insert(*class as u32);
            }
        }
    }
    found
}

/// Rows of one peer: first those of every protocol, then, for each protocol that an entry names, the winner of each run
/// of ports.
fn add_rows(table: &mut Table, direction: Direction, identity: u32, entries: &[Entry]) {
    let everything = best(entries.iter().filter(|entry| entry.ports.is_none()));
    if let Some(row) = everything {
        let key = PolicyKey { bits: IDENTITY_PREFIX_BITS, ..PolicyKey::flow(direction, identity, 0, 0) };
        table.insert(key, row);
    }
    let protocols: BTreeSet<u8> =
        entries.iter().filter_map(|entry| entry.ports.map(|ports| ports.0)).collect();
    for protocol in protocols {
        for (first, last, row) in runs(entries, protocol) {
            if Some(row) == everything {
                continue;
            }
            for (port, bits) in ports::prefixes(first, last) {
                let key = PolicyKey::flow(direction, identity, protocol, port);
                table.insert(PolicyKey { bits: PROTOCOL_PREFIX_BITS + bits, ..key }, row);
            }
        }
    }
}

/// The longest runs of ports of a protocol with the same winner; ports that no entry is about are in none.
fn runs(entries: &[Entry], protocol: u8) -> Vec<(u16, u16, PolicyRow)> {
    let covering: Vec<(u16, u16, &Entry)> = entries
        .iter()
        .filter_map(|entry| match entry.ports {
            None => Some((0, u16::MAX, entry)),
            Some((of, first, last)) => (of == protocol).then_some((first, last, entry)),
        })
        .collect();
    let ends = covering.iter().filter_map(|(_, last, _)| last.checked_add(1));
    let starts: BTreeSet<u16> = covering.iter().map(|(first, _, _)| *first).chain(ends).collect();
    let mut found: Vec<(u16, u16, PolicyRow)> = Vec::new();
    let mut starts = starts.into_iter().peekable();
    while let Some(start) = starts.next() {
        let end = starts.peek().map_or(u16::MAX, |next| next - 1);
        let here = covering.iter().filter(|(first, last, _)| (*first..=*last).contains(&start));
        let Some(row) = best(here.map(|(_, _, entry)| *entry)) else { continue };
        match found.last_mut() {
            Some((_, last, same)) if *same == row && last.checked_add(1) == Some(start) => *last = end,
            _ => found.push((start, end, row)),
        }
    }
    found
}

/// The highest precedence; the first of equals, as the oracle names it.
fn best<'a>(entries: impl Iterator<Item = &'a Entry>) -> Option<PolicyRow> {
    entries
        .map(|entry| entry.row)
        .reduce(|best, row| if row.precedence > best.precedence { row } else { best })
}

fn default_key(direction: Direction) -> PolicyKey {
    PolicyKey { bits: DIRECTION_PREFIX_BITS, ..PolicyKey::flow(direction, 0, 0, 0) }
}

fn default_row(policies: &[&NodePolicy], direction: Direction, default_action: Action) -> PolicyRow {
    let denying =
        policies.iter().filter(|policy| policy.default_deny(direction)).map(|policy| &policy.name).min();
    match denying {
        Some(policy) => {
            PolicyRow { precedence: 0, action: Action::Deny as u32, rule: rule_number(policy, direction, "") }
        }
        None => PolicyRow { precedence: 0, action: default_action as u32, rule: 0 },
    }
}

#[cfg(test)]
mod tests;
