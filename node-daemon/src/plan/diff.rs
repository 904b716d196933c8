//! The steps from what the kernel holds to what it should hold.
//!
//! Order: nodes; prefixes of policies; tables of all subjects; addresses and pool prefixes; endpoints; removals in
//! reverse. So a deny row is there before the address that it denies, and no endpoint opens before its table is there.
//! What makes unknown pool addresses *unmanaged* goes before the tables, what makes them *fleet* goes last.
//!
//! Epochs are bumped after the writes that they announce (see `RuntimeState::epoch`): verdicts that were given from the
//! old rows end with the bump.

use std::collections::{BTreeMap, BTreeSet};

use weft_shared::layout::{Class, FIRST_LOCAL_IDENTITY, Peer, PrefixKey};

use super::{
    rows,
    tables::{Step, Tables},
    who::{Lengths, Who},
};

/// Whether what nobody desires is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Not before a controller has said that all was sent.
    Keep,
    Remove,
}

/// The steps that turn `actual` into `desired`, and with [`Sweep::Keep`] into something that holds more.
pub fn diff(actual: &Tables, desired: &Tables, sweep: Sweep) -> Vec<Step> {
    let mut planner = Planner {
        now: actual.clone(),
        before: actual,
        desired,
        sweep,
        lengths: Lengths::of([actual, desired]),
        subjects_about: subjects_about(actual, desired),
        bump_subjects: BTreeSet::new(),
        bump_nodes: BTreeSet::new(),
        steps: Vec::new(),
    };
    if sweep == Sweep::Remove {
        planner.lower_identities_through();
    }
    planner.set_nodes();
    planner.tighten_pools();
    planner.policy_prefixes();
    planner.set_tables();
    planner.set_addresses();
    planner.set_pools();
    planner.raise_identities_through();
    planner.set_endpoints();
    if sweep == Sweep::Remove {
        planner.remove_endpoints();
        planner.remove_addresses();
        planner.remove_pools();
        planner.remove_tables();
        planner.remove_nodes();
    }
    planner.loosen_pools();
    planner.steps
}

/// The steps that take one interface's endpoint away, whatever else is desired.
pub fn remove_endpoint(actual: &Tables, ifindex: u32) -> Vec<Step> {
    let mut desired = actual.clone();
    desired.endpoints.remove(&ifindex);
    desired.ipcache.retain(|_, peer| peer.ifindex != ifindex);
    diff(actual, &desired, Sweep::Remove)
}

/// Peer → slots of the subjects that have a row for it, now or soon.
fn subjects_about(actual: &Tables, desired: &Tables) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut found: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (slot, table) in actual.policies.iter().chain(&desired.policies) {
        for peer in rows::peers(table) {
            found.entry(peer).or_default().insert(*slot);
        }
    }
    found
}

struct Planner<'a> {
    /// What the kernel holds after the steps so far.
    now: Tables,
    before: &'a Tables,
    desired: &'a Tables,
    sweep: Sweep,
    lengths: Lengths,
    subjects_about: BTreeMap<u32, BTreeSet<u32>>,
    bump_subjects: BTreeSet<u32>,
    bump_nodes: BTreeSet<u32>,
    steps: Vec<Step>,
}

impl Planner<'_> {
    fn push(&mut self, step: Step) {
        self.now.apply(&step);
        self.steps.push(step);
    }

    fn push_all(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.push(step);
        }
    }

    /// Announces what was written since the last time.
    fn bump(&mut self) {
        let subjects: Vec<u32> = std::mem::take(&mut self.bump_subjects).into_iter().collect();
        let nodes: Vec<u32> = std::mem::take(&mut self.bump_nodes).into_iter().collect();
        if !subjects.is_empty() || !nodes.is_empty() {
            self.push(Step::Bump { subjects, nodes });
        }
    }

    /// An address that was `from` is `to`: judge the flows again that the one or the other may concern.
    fn changed_peer(&mut self, from: Peer, to: Peer) {
        if (from.identity, from.class) != (to.identity, to.class) {
            for peer in [from.identity, from.class, to.identity, to.class] {
                self.bump_subjects.extend(self.subjects_about.get(&peer).into_iter().flatten());
            }
        }
        if (from.node, from.ifindex) != (to.node, to.ifindex) {
            self.bump_nodes.extend([from.node, to.node]);
            for ifindex in [from.ifindex, to.ifindex] {
                let endpoints = self
                    .before
                    .endpoints
                    .get(&ifindex)
                    .into_iter()
                    .chain(self.desired.endpoints.get(&ifindex));
                self.bump_subjects
                    .extend(endpoints.map(|endpoint| endpoint.subject).filter(|subject| *subject != 0));
            }
        }
    }

    fn lower_identities_through(&mut self) {
        if self.desired.identities_through < self.now.identities_through {
            self.push(Step::IdentitiesThrough { identity: self.desired.identities_through });
        }
    }

    fn raise_identities_through(&mut self) {
        if self.desired.identities_through > self.now.identities_through {
            self.push(Step::IdentitiesThrough { identity: self.desired.identities_through });
        }
    }

    fn set_nodes(&mut self) {
        for (slot, node) in &self.desired.nodes {
            let had = self.before.nodes.get(slot);
            if had != Some(node) {
                self.push(Step::Node { slot: *slot, node: Some(*node) });
                if had.map(|had| had.address) != Some(node.address) {
                    self.bump_nodes.insert(*slot);
                }
            }
        }
        for (address, slot) in &self.desired.node_addresses {
            if self.before.node_addresses.get(address) != Some(slot) {
                self.push(Step::NodeAddress { address: *address, slot: Some(*slot) });
            }
        }
        self.bump();
    }

    fn remove_nodes(&mut self) {
        for address in self.before.node_addresses.keys() {
            if !self.desired.node_addresses.contains_key(address) {
                self.push(Step::NodeAddress { address: *address, slot: None });
            }
        }
        for slot in self.before.nodes.keys() {
            if !self.desired.nodes.contains_key(slot) {
                self.push(Step::Node { slot: *slot, node: None });
                self.bump_nodes.insert(*slot);
            }
        }
        self.bump();
    }

    /// Prefixes that policies name. A new one first gets the rows of the prefix around it, so that it changes no verdict
    /// until its subject's table changes as a whole; one that goes has by now the rows of the prefix around it.
    fn policy_prefixes(&mut self) {
        let of_policy = |prefixes: &BTreeMap<PrefixKey, Peer>| -> Vec<(PrefixKey, Peer)> {
            let local = prefixes.iter().filter(|(_, peer)| peer.identity >= FIRST_LOCAL_IDENTITY);
            local.map(|(key, peer)| (*key, *peer)).collect()
        };
        let mut wanted = of_policy(&self.desired.prefixes);
        wanted.sort_by_key(|(key, _)| u32::MAX - key.bits);
        for (key, peer) in wanted {
            let had = self.before.prefixes.get(&key).copied();
            if had == Some(peer) {
                continue;
            }
            let around =
                had.unwrap_or_else(|| Who::new(&self.now, &self.lengths).within(key.address, key.bits));
            if around.identity >= FIRST_LOCAL_IDENTITY {
                self.copy_rows(around.identity, peer.identity);
            }
            self.push(Step::Prefix { prefix: key, peer: Some(peer) });
            self.changed_peer(around, peer);
        }
        if self.sweep == Sweep::Remove {
            for (key, peer) in of_policy(&self.before.prefixes) {
                if !self.desired.prefixes.contains_key(&key) {
                    self.push(Step::Prefix { prefix: key, peer: None });
                    let around = Who::new(&self.now, &self.lengths).within(key.address, key.bits);
                    self.changed_peer(peer, around);
                }
            }
        }
        self.bump();
    }

    fn copy_rows(&mut self, from: u32, to: u32) {
        let mut steps = Vec::new();
        for (slot, table) in &self.now.policies {
            let about = |peer: u32| table.iter().filter(move |(key, _)| rows::peer_of(key) == Some(peer));
            if about(to).next().is_some() {
                continue;
            }
            let mut copies: Vec<_> = about(from).collect();
            copies.sort_by_key(|(key, _)| u32::MAX - key.bits);
            for (key, row) in copies {
                let mut key = *key;
                key.identity = to.to_be_bytes();
                steps.push(Step::PolicyRow { slot: *slot, key, row: Some(*row) });
            }
        }
        self.push_all(steps);
    }

    /// Tables are there before the subject that they are for.
    fn set_tables(&mut self) {
        for (slot, table) in &self.desired.policies {
            let steps = rows::change(*slot, self.now.policies.get(slot), table);
            if !steps.is_empty() {
                self.bump_subjects.insert(*slot);
            }
            self.push_all(steps);
        }
        for (slot, identity) in &self.desired.subjects {
            if self.before.subjects.get(slot) != Some(identity) {
                self.push(Step::Subject { slot: *slot, identity: Some(*identity) });
                self.bump_subjects.insert(*slot);
            }
        }
        self.bump();
    }

    fn remove_tables(&mut self) {
        for slot in self.before.policies.keys() {
            if !self.desired.policies.contains_key(slot) {
                self.push(Step::PolicyTable { slot: *slot, table: None });
                self.bump_subjects.insert(*slot);
            }
        }
        for slot in self.before.subjects.keys() {
            if !self.desired.subjects.contains_key(slot) {
                self.push(Step::Subject { slot: *slot, identity: None });
                self.bump_subjects.insert(*slot);
            }
        }
        self.bump();
    }

    fn set_addresses(&mut self) {
        let lengths = self.lengths.clone();
        let who = Who::new(self.before, &lengths);
        for (address, peer) in &self.desired.ipcache {
            if self.before.ipcache.get(address) != Some(peer) {
                self.push(Step::Ipcache { address: *address, peer: Some(*peer) });
                self.changed_peer(who.is(*address), *peer);
            }
        }
        self.bump();
    }

    fn remove_addresses(&mut self) {
        let lengths = self.lengths.clone();
        let who = Who::new(self.desired, &lengths);
        for (address, peer) in &self.before.ipcache {
            if !self.desired.ipcache.contains_key(address) {
                self.push(Step::Ipcache { address: *address, peer: None });
                self.changed_peer(*peer, who.is(*address));
            }
        }
        self.bump();
    }

    fn pools(prefixes: &BTreeMap<PrefixKey, Peer>) -> impl Iterator<Item = (PrefixKey, Peer)> + '_ {
        prefixes
            .iter()
            .filter(|(_, peer)| peer.identity < FIRST_LOCAL_IDENTITY)
            .map(|(key, peer)| (*key, *peer))
    }

    /// Sets the pool prefixes that `which` picks by what the prefix is now and what it shall be.
    fn set_pools_where(&mut self, which: impl Fn(Peer, Peer) -> bool) {
        // Longest first: the addresses inside change once.
        let mut wanted: Vec<_> = Self::pools(&self.desired.prefixes).collect();
        wanted.sort_by_key(|(key, _)| u32::MAX - key.bits);
        for (key, peer) in wanted {
            let had = self.now.prefixes.get(&key).copied();
            let was = had.unwrap_or_else(|| Who::new(&self.now, &self.lengths).within(key.address, key.bits));
            if had != Some(peer) && which(was, peer) {
                self.push(Step::Prefix { prefix: key, peer: Some(peer) });
                self.changed_peer(was, peer);
            }
        }
        self.bump();
    }

    fn tighten_pools(&mut self) {
        self.set_pools_where(|was, shall| was.class == FLEET && shall.class == UNMANAGED);
    }

    fn set_pools(&mut self) {
        self.set_pools_where(|was, shall| !(was.class == UNMANAGED && shall.class == FLEET));
    }

    fn loosen_pools(&mut self) {
        self.set_pools_where(|_, _| true);
    }

    fn remove_pools(&mut self) {
        let gone: Vec<_> = Self::pools(&self.before.prefixes)
            .filter(|(key, _)| !self.desired.prefixes.contains_key(key))
            .collect();
        for (key, peer) in gone {
            self.push(Step::Prefix { prefix: key, peer: None });
            let around = Who::new(&self.now, &self.lengths).within(key.address, key.bits);
            self.changed_peer(peer, around);
        }
        self.bump();
    }

    fn set_endpoints(&mut self) {
        for (ifindex, endpoint) in &self.desired.endpoints {
            let had = self.before.endpoints.get(ifindex);
            if had != Some(endpoint) {
                self.push(Step::Endpoint { ifindex: *ifindex, endpoint: Some(*endpoint) });
                let subjects = had.map(|had| had.subject).into_iter().chain([endpoint.subject]);
                self.bump_subjects.extend(subjects.filter(|subject| *subject != 0));
            }
        }
        self.bump();
    }

    fn remove_endpoints(&mut self) {
        for (ifindex, endpoint) in &self.before.endpoints {
            if !self.desired.endpoints.contains_key(ifindex) {
                self.push(Step::Endpoint { ifindex: *ifindex, endpoint: None });
                self.bump_subjects.extend(Some(endpoint.subject).filter(|subject| *subject != 0));
            }
        }
        self.bump();
    }
}

const FLEET: u32 = Class::Fleet as u32;
const UNMANAGED: u32 = Class::Unmanaged as u32;

#[cfg(test)]
mod tests;
