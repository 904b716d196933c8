//! The steps from what the kernel holds to what it should hold.
//!
//! Order: nodes; prefixes of policies; policies of all subjects; addresses and pool prefixes; endpoints, and the node
//! itself; removals in reverse. So a deny row is there before the address that it denies, and no endpoint opens before its policy is there.
//! What makes unknown pool addresses *unmanaged* goes before the policies, what makes them *fleet* goes last.
//!
//! Epochs are bumped after the writes that they announce (see `RuntimeState::epoch`): verdicts that were given from the
//! old rows end with the bump.

mod host;
mod policies;
mod prefixes;

use std::collections::{BTreeSet, HashMap};

use weft_shared::layout::Peer;

use super::{
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
        slots: slots([actual, desired]),
        subjects_that_differ: HashMap::new(),
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
    planner.set_rulebooks();
    planner.widen_failsafe();
    planner.set_policies();
    planner.set_addresses();
    planner.set_pools();
    planner.raise_identities_through();
    planner.set_endpoints();
    if planner.before.host.is_none() {
        planner.set_failsafe();
    }
    planner.set_host();
    planner.set_failsafe();
    if sweep == Sweep::Remove {
        planner.remove_endpoints();
        planner.remove_addresses();
        planner.remove_pools();
        planner.remove_failsafe();
        planner.remove_policies();
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

/// Identity → slots that it has.
fn slots(tables: [&Tables; 2]) -> HashMap<u32, BTreeSet<u32>> {
    let mut found: HashMap<u32, BTreeSet<u32>> = HashMap::new();
    for (slot, subject) in tables.into_iter().flat_map(|tables| &tables.subjects) {
        found.entry(subject.identity).or_default().insert(*slot);
    }
    found
}

/// Somebody, as far as policies tell parties apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Party {
    identity: u32,
    class: u32,
}

struct Planner<'a> {
    /// What the kernel holds after the steps so far.
    now: Tables,
    before: &'a Tables,
    desired: &'a Tables,
    sweep: Sweep,
    lengths: Lengths,
    slots: HashMap<u32, BTreeSet<u32>>,
    /// Slots of the subjects whose policy tells two parties apart, as long as no policy changes: many addresses become the
    /// same.
    subjects_that_differ: HashMap<[Party; 2], BTreeSet<u32>>,
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
        let parties = [from, to].map(|peer| Party { identity: peer.identity, class: peer.class });
        if parties[0] != parties[1] {
            let now = &self.now;
            let differing = self.subjects_that_differ.entry(parties);
            let differing = differing.or_insert_with(|| policies::that_differ(now, parties));
            self.bump_subjects.extend(differing.iter());
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

#[cfg(test)]
mod tests;
