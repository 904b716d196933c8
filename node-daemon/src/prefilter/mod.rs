//! Prefilters on this node: what the controllers say becomes rows of the kernel's maps, and what differs from the kernel
//! becomes steps. Pure.
//!
//! A prefilter is realised whole or not at all. One that meets a prefix of a failsafe entry is not: controllers refuse such,
//! but of what changes at the same time a node may hear in any order, and nobody is to be locked out in between.

mod blocks;
pub mod lists;
mod open;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;
use weft_proto::v1;
use weft_shared::{
    layout::maps::{PREFILTER_PREFIXES_MAX, PREFILTER_SENDERS_MAX, PREFILTER_SLOTS, PREFILTERS_MAX},
    policy::{model::Failsafe, parse::FieldError},
};

use self::lists::{Lists, Step, name_digest};
use crate::plan::diff::Sweep;

/// Sources that this node does not listen to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefilter {
    pub prefixes: Vec<IpNet>,
    pub senders: Vec<Ipv4Addr>,
}

/// Prefilters by their names.
pub type Desired = BTreeMap<String, Arc<Prefilter>>;

impl TryFrom<&v1::NodePrefilter> for Prefilter {
    type Error = FieldError;

    fn try_from(sent: &v1::NodePrefilter) -> Result<Self, FieldError> {
        let prefixes = sent.cidrs.iter().enumerate().map(|(index, text)| {
            let net = text.parse::<IpNet>().ok().filter(|net| net.trunc() == *net && net.prefix_len() != 0);
            net.ok_or_else(|| wrong("cidrs", index, text, "a prefix without host bits, not everybody"))
        });
        let senders = sent.arp_senders.iter().enumerate().map(|(index, text)| {
            text.parse().map_err(|_| wrong("arpSenders", index, text, "an IPv4 address"))
        });
        Ok(Self {
            prefixes: prefixes.collect::<Result<_, _>>()?,
            senders: senders.collect::<Result<_, _>>()?,
        })
    }
}

fn wrong(field: &str, index: usize, text: &str, expected: &str) -> FieldError {
    FieldError::new(format!("{field}[{index}]"), format!("\"{text}\": expected {expected}"))
}

/// How much a node's maps hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub lists: usize,
    /// Of each family.
    pub prefixes: usize,
    pub senders: usize,
}

/// Of the kernel's maps.
pub const LIMITS: Limits =
    Limits { lists: PREFILTERS_MAX, prefixes: PREFILTER_PREFIXES_MAX, senders: PREFILTER_SENDERS_MAX };

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Slots of the prefilters that are realised when this is done.
    pub slots: BTreeMap<String, u32>,
    /// Prefilters that are not, and why.
    pub unrealised: Vec<(String, String)>,
}

/// The steps from what is to what shall be, and with [`Sweep::Keep`] to something that holds more, but nothing that a failsafe
/// entry names.
///
/// Order: what is held open; lists, before the rows that count for them; blocks, before the prefixes that meet them; rows that
/// come or change; rows that go; blocks and lists that go. Where there is a prefix in several lists, the first by name has it.
pub fn plan(desired: &Desired, failsafe: &[Failsafe], actual: &Lists, sweep: Sweep, limits: Limits) -> Plan {
    let kept: Vec<IpNet> = failsafe.iter().flat_map(|entry| entry.prefixes.iter().copied()).collect();
    let mut plan = Plan::default();
    let taken = choose(desired, &kept, actual, limits, &mut plan);
    let mut wanted = Lists { open: open::words(failsafe), ..Lists::default() };
    for (name, prefilter) in taken {
        let Some(slot) = slot(&name, actual, &wanted) else {
            plan.fails(&name, "there is no room for its counters until lists that went are taken out".into());
            continue;
        };
        wanted.slots.insert(slot, name_digest(&name));
        for net in &prefilter.prefixes {
            wanted.prefixes.entry(*net).or_insert(slot);
        }
        for sender in &prefilter.senders {
            wanted.senders.entry(*sender).or_insert(slot);
        }
        plan.slots.insert(name, slot);
    }
    plan.steps = steps(actual, &wanted, &kept, sweep);
    plan
}

/// Those that fit; what is in the kernel already goes before what comes.
fn choose(
    desired: &Desired,
    kept: &[IpNet],
    actual: &Lists,
    limits: Limits,
    plan: &mut Plan,
) -> BTreeMap<String, Arc<Prefilter>> {
    let known: BTreeSet<[u64; 2]> = actual.slots.values().copied().collect();
    let (old, new): (Vec<_>, Vec<_>) =
        desired.iter().partition(|(name, _)| known.contains(&name_digest(name)));
    let mut taken = BTreeMap::new();
    let mut room = Room::default();
    for (name, prefilter) in old.into_iter().chain(new) {
        let why = match meets(prefilter, kept) {
            Some((listed, entry)) => Some(format!("{listed} meets {entry}, which is in a failsafe entry")),
            None if taken.len() >= limits.lists => {
                Some(format!("a node has at most {} prefilters", limits.lists))
            }
            None => room.take(prefilter, limits).err(),
        };
        match why {
            Some(why) => plan.fails(name, why),
            None => drop(taken.insert(name.clone(), Arc::clone(prefilter))),
        }
    }
    taken
}

/// What is listed and what is held open there.
fn meets(prefilter: &Prefilter, kept: &[IpNet]) -> Option<(IpNet, IpNet)> {
    let senders = prefilter.senders.iter().map(|sender| IpAddr::V4(*sender).into());
    let listed = prefilter.prefixes.iter().copied().chain(senders);
    listed.into_iter().find_map(|net| Some((net, *kept.iter().find(|entry| overlap(&net, entry))?)))
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// What the lists that were taken need; a row that two of them have counts once.
#[derive(Default)]
struct Room {
    prefixes: [BTreeSet<IpNet>; 2],
    senders: BTreeSet<Ipv4Addr>,
}

impl Room {
    /// Takes all that the prefilter needs, or nothing.
    fn take(&mut self, prefilter: &Prefilter, limits: Limits) -> Result<(), String> {
        let family = |net: &IpNet| usize::from(matches!(net, IpNet::V6(_)));
        let mut added = [BTreeSet::new(), BTreeSet::new()];
        for net in &prefilter.prefixes {
            if !self.prefixes[family(net)].contains(net) {
                added[family(net)].insert(*net);
            }
        }
        let senders: BTreeSet<_> =
            prefilter.senders.iter().filter(|one| !self.senders.contains(one)).copied().collect();
        for (which, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let together = self.prefixes[which].len() + added[which].len();
            if together > limits.prefixes {
                return Err(full(together, limits.prefixes, &format!("{name} prefixes")));
            }
        }
        let together = self.senders.len() + senders.len();
        if together > limits.senders {
            return Err(full(together, limits.senders, "ARP senders"));
        }
        for (prefixes, added) in self.prefixes.iter_mut().zip(added) {
            prefixes.extend(added);
        }
        self.senders.extend(senders);
        Ok(())
    }
}

fn full(together: usize, limit: usize, what: &str) -> String {
    format!("with it there are {together} {what} on this node, at most {limit} fit")
}

/// The slot that the list has, or one that nobody has and that no list in the kernel leaves now.
fn slot(name: &str, actual: &Lists, wanted: &Lists) -> Option<u32> {
    let digest = name_digest(name);
    let own = actual.slots.iter().find(|(_, noted)| **noted == digest).map(|(slot, _)| *slot);
    let is_free = |slot: &u32| !actual.slots.contains_key(slot) && !wanted.slots.contains_key(slot);
    own.or_else(|| (1..PREFILTER_SLOTS).find(is_free))
}

fn steps(actual: &Lists, wanted: &Lists, kept: &[IpNet], sweep: Sweep) -> Vec<Step> {
    let goes = |net: &IpNet| sweep == Sweep::Remove || kept.iter().any(|entry| overlap(net, entry));
    let stay = actual.prefixes.keys().filter(|net| !goes(net));
    let blocks = blocks::words(wanted.prefixes.keys().chain(stay));
    let mut steps = Vec::new();
    for (word, bits) in &wanted.open {
        if actual.open.get(word) != Some(bits) {
            steps.push(Step::Open { word: *word, bits: *bits });
        }
    }
    for (slot, name) in &wanted.slots {
        if actual.slots.get(slot) != Some(name) {
            steps.push(Step::List { slot: *slot, name: Some(*name) });
        }
    }
    let there = |word: &u32| actual.blocks.get(word).copied().unwrap_or(0);
    for (word, bits) in &blocks {
        if there(word) & bits != *bits {
            steps.push(Step::Block { word: *word, bits: there(word) | bits });
        }
    }
    for (net, slot) in &wanted.prefixes {
        if actual.prefixes.get(net) != Some(slot) {
            steps.push(Step::Prefix { net: *net, slot: Some(*slot) });
        }
    }
    for (sender, slot) in &wanted.senders {
        if actual.senders.get(sender) != Some(slot) {
            steps.push(Step::Sender { sender: *sender, slot: Some(*slot) });
        }
    }
    for net in actual.prefixes.keys() {
        if !wanted.prefixes.contains_key(net) && goes(net) {
            steps.push(Step::Prefix { net: *net, slot: None });
        }
    }
    for sender in actual.senders.keys() {
        if !wanted.senders.contains_key(sender) && goes(&IpAddr::V4(*sender).into()) {
            steps.push(Step::Sender { sender: *sender, slot: None });
        }
    }
    for word in actual.blocks.keys() {
        let bits = blocks.get(word).copied().unwrap_or(0);
        if there(word) & !bits != 0 {
            steps.push(Step::Block { word: *word, bits });
        }
    }
    if sweep == Sweep::Keep {
        return steps;
    }
    for slot in actual.slots.keys() {
        if !wanted.slots.contains_key(slot) {
            steps.push(Step::List { slot: *slot, name: None });
        }
    }
    for word in actual.open.keys() {
        if !wanted.open.contains_key(word) {
            steps.push(Step::Open { word: *word, bits: 0 });
        }
    }
    steps
}

impl Plan {
    fn fails(&mut self, name: &str, why: String) {
        self.unrealised.push((name.to_owned(), why));
    }
}
