//! The first half of the compiler, which selects and scopes: from the store's events to what each node is to be sent.
//! A state machine over values: no clock (the time is passed in), no stream, no store.
mod anchored;
mod attached;
mod event;
mod gate;
pub mod health;
mod index;
mod labelled;
mod prefilters;
mod resources;
mod resume;
mod scope;
mod selected;
mod services;
mod sets;
mod shapings;
mod view;
mod views;
mod watchers;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;
use roaring::RoaringBitmap;
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    digest::Digest,
    policy::model::{CidrSet, CidrSetSelector, Labels, Policy},
};

use crate::nodes;

pub use event::{Change, EndpointFacts, EventError, NodeFacts};
pub use health::{Probe, Word, Words};
pub use resources::{Key, Resource};
pub use resume::Have;
pub use services::Answering;
pub use view::{Delta, Rejected};

use gate::Gates;
use index::Index;
use view::View;
use views::Views;
use watchers::Watchers;

/// Versions of one resource that can be effective at once.
const VARIANTS: u32 = 2;

#[derive(Debug, Default)]
pub struct Fleet {
    revision: u64,
    /// When contents changed that are taken in now; 0 for the first listing, which does not say.
    contents_revision: u64,
    /// The last revision that changed anything here.
    changed: u64,
    index: Index,
    /// Of each node that was ever connected and still exists.
    views: Views,
    watchers: Watchers,
    gates: Gates,
}

/// What `apply` has to do afterwards for all of a revision's changes together.
#[derive(Debug, Default)]
struct Aftermath {
    /// Nodes whose scope must be computed anew.
    stale: BTreeSet<String>,
    /// Endpoints that are new or changed.
    closed: BTreeSet<String>,
    /// Services that are new or changed, or whose backends may be others.
    services: BTreeSet<String>,
}

impl Fleet {
    /// Takes all changes of one revision, in any order.
    pub fn apply(&mut self, revision: u64, now: Duration, changes: Vec<Change>) {
        self.contents_revision = if self.revision == 0 { 0 } else { revision };
        self.revision = revision;
        if !changes.is_empty() {
            self.changed = revision;
        }
        let mut aftermath = Aftermath::default();
        let (deletions, others): (Vec<_>, Vec<_>) = changes.into_iter().partition(Change::is_deletion);
        for change in deletions.into_iter().chain(others) {
            self.apply_one(change, now, &mut aftermath);
        }
        self.encode_services(&aftermath.services);
        for node in &aftermath.stale {
            self.rescope(node);
        }
        for endpoint in &aftermath.closed {
            let waiting = self.nodes_that_want(endpoint);
            self.gates.wait_for(endpoint, waiting);
        }
        self.open_what_may(Some(now));
    }

    /// The node starts anew, with what it says that it holds of this store. It must exist. Returns what to ask it; while
    /// it has not answered, it is sent nothing.
    pub fn connect(&mut self, node: &str, have: Option<&Have>) -> Vec<v1::WantBuckets> {
        let revision = self.revision;
        let known = self.realised(node).min(have.map_or(0, |have| have.revision));
        let number = self.views.enter(node);
        if let Some(view) = self.views.by_number_mut(number) {
            view.connect(&mut self.index.resources, known.min(revision) + 1);
        }
        self.watchers.set_connected(number, true);
        self.rescope(node);
        let view = self.views.by_number_mut(number);
        let asked = view.zip(have).map(|(view, have)| view.resume(&mut self.index.resources, have));
        asked.unwrap_or_default()
    }

    /// A node that is not connected and was not since this fleet began: what it had realised, as far as is known. If nothing
    /// has changed since then, nothing is pending for it.
    pub fn remember(&mut self, node: &str, realised: u64) {
        if self.views.contains(node) || !self.index.nodes.contains_key(node) {
            return;
        }
        self.views.enter(node);
        self.rescope(node);
        let since = (realised < self.changed).then_some(realised + 1);
        if let Some(view) = self.views.get_mut(node) {
            view.remember(&mut self.index.resources, since);
        }
    }

    /// The node's answer to what it was asked first. Returns what to ask it next.
    pub fn take_buckets(&mut self, node: &str, report: &v1::DigestBuckets) -> Option<v1::WantItems> {
        self.views.get_mut(node)?.take_buckets(&mut self.index.resources, report)
    }

    /// The node's answer to what it was asked next.
    pub fn take_items(&mut self, node: &str, report: &v1::DigestItems) {
        if let Some(view) = self.views.get_mut(node) {
            view.take_items(&mut self.index.resources, report);
        }
    }

    /// The node does not answer: it is sent everything.
    pub fn give_up_resume(&mut self, node: &str) {
        if let Some(view) = self.views.get_mut(node) {
            view.give_up_resume(&mut self.index.resources);
        }
    }

    pub fn disconnect(&mut self, node: &str) {
        if let Some(number) = self.views.number(node) {
            self.views.by_number_mut(number).into_iter().for_each(View::disconnect);
            self.watchers.set_connected(number, false);
        }
        self.open_what_may(None);
    }

    /// What the node is to be told now.
    pub fn drain(&mut self, node: &str) -> Option<Delta> {
        let through = self.index.highest_identity();
        self.views.get_mut(node)?.drain(&mut self.index.resources, self.revision, through)
    }

    /// For a node without other news.
    pub fn drain_identities_through(&mut self, node: &str) -> Option<Delta> {
        let through = self.index.highest_identity();
        self.views.get_mut(node)?.drain_through(self.revision, through)
    }

    /// `false`: the node was sent no such delta.
    pub fn acknowledge(
        &mut self,
        node: &str,
        nonce: u64,
        rejected: Vec<(ResourceType, String, String)>,
    ) -> bool {
        let resources = &self.index.resources;
        let view = self.views.get_mut(node);
        let known = view.is_some_and(|view| view.acknowledge(resources, nonce, rejected));
        self.open_what_may(None);
        known
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        self.open_what_may(Some(now));
    }

    /// When `tick` is next needed.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.gates.next_deadline()
    }

    /// Nodes with news since this was last asked: something pending, or room for more.
    pub fn take_news(&mut self) -> Vec<String> {
        let news = self.views.iter_mut().filter_map(|(node, view)| view.take_news().then(|| node.to_owned()));
        news.collect()
    }

    // ---- Asking ----

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn identities_through(&self) -> u32 {
        self.index.highest_identity()
    }

    /// After a listing: when what is there changed last.
    pub fn note_changed(&mut self, revision: u64) {
        self.changed = revision.min(self.revision);
    }

    /// The last revision that changed anything for anybody: who has realised it has realised all later ones.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// Whether it was connected, or [`Fleet::remember`]ed.
    pub fn is_remembered(&self, node: &str) -> bool {
        self.views.contains(node)
    }

    pub fn is_connected(&self, node: &str) -> bool {
        self.views.get(node).is_some_and(View::is_connected)
    }

    /// Everything up to this revision is realised on the node; 0 when nothing is known.
    pub fn realised(&self, node: &str) -> u64 {
        self.views.get(node).map_or(0, |view| view.realised(self.revision))
    }

    /// Everything up to this revision was realised or rejected by the node.
    pub fn answered(&self, node: &str) -> u64 {
        self.views.get(node).map_or(0, |view| view.answered(self.revision))
    }

    pub fn rejections(&self, node: &str) -> Vec<Rejected> {
        self.views.get(node).into_iter().flat_map(View::rejections).cloned().collect()
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeFacts)> {
        self.index.nodes.iter().map(|(name, facts)| (name.as_str(), facts))
    }

    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &EndpointFacts)> {
        self.index.endpoints.iter().map(|(name, facts)| (name.as_str(), facts))
    }

    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.index.policies.values().map(|entry| &entry.policy)
    }

    pub fn cidr_sets(&self) -> impl Iterator<Item = &CidrSet> {
        self.index.cidr_sets.values().map(|entry| &entry.set)
    }

    /// Names of the policies that name this CIDR set.
    pub fn policies_naming(&self, cidr_set: &str) -> impl Iterator<Item = &str> {
        let named =
            move |meant: &CidrSetSelector| matches!(meant, CidrSetSelector::Name(name) if name == cidr_set);
        let policies = self.index.policies.iter();
        let naming = policies.filter(move |(_, entry)| index::cidr_set_selectors(&entry.policy).any(named));
        naming.map(|(name, _)| name.as_str())
    }

    /// Identities that no endpoint and no node has, with their labels.
    pub fn identities_without_bearer(&self) -> impl Iterator<Item = (u32, &Labels)> {
        self.index.without_bearer()
    }

    pub fn node(&self, name: &str) -> Option<&NodeFacts> {
        self.index.nodes.get(name)
    }

    pub fn endpoint(&self, name: &str) -> Option<&EndpointFacts> {
        self.index.endpoints.get(name)
    }

    pub fn endpoint_by_address(&self, address: IpAddr) -> Option<(&str, &EndpointFacts)> {
        let (name, facts) = self.index.endpoints.get_key_value(self.index.owners.get(&address)?)?;
        Some((name, facts))
    }

    /// Names of the node's endpoints.
    pub fn endpoints_of(&self, node: &str) -> impl Iterator<Item = &str> {
        self.index.by_node.get(node).into_iter().flatten().map(String::as_str)
    }

    /// Whether these are the digests of the reports that made the node's endpoints what they are, of all of them and no
    /// other, and each would be accepted now: the node need not report.
    pub fn has_reports(&self, node: &str, reports: Digest) -> bool {
        let Some(of_node) = self.node(node) else { return false };
        let cidrs: Vec<IpNet> = nodes::parse_all(&of_node.endpoint_cidrs);
        let mut held = Digest::default();
        for facts in self.endpoints_of(node).filter_map(|name| self.endpoint(name)) {
            held += facts.report;
            let inside = |address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
            if !facts.addresses.iter().all(inside) {
                return false;
            }
        }
        held == reports
    }

    /// Of an identity.
    pub fn labels(&self, identity: u32) -> Option<&Labels> {
        self.index.identities.get(identity)
    }

    pub fn identity_numbers(&self) -> impl Iterator<Item = u32> {
        self.index.identities.iter().map(|(number, _)| number)
    }

    // ---- Opening ----

    /// Cheap while nothing is held closed.
    fn open_what_may(&mut self, now: Option<Duration>) {
        if self.gates.is_empty() {
            return;
        }
        let (views, revision) = (&self.views, self.revision);
        // A node that rejects something else has acknowledged all the same.
        let answered = |node: u32| {
            views.by_number(node).filter(|view| view.is_connected()).map(|view| view.answered(revision))
        };
        for endpoint in self.gates.take_open(now, answered) {
            self.encode_endpoint(&endpoint);
        }
    }

    /// Numbers of the connected nodes beside its own that are to know the endpoint's addresses.
    fn nodes_that_want(&self, endpoint: &str) -> RoaringBitmap {
        let facts = self.index.endpoints.get(endpoint);
        let Some(facts) = facts.filter(|facts| !facts.addresses.is_empty()) else {
            return RoaringBitmap::new();
        };
        let sets = self.index.used.get(&facts.identity).into_iter().flat_map(|used| &used.sets);
        let mut nodes = self.watchers.connected_of_addresses(sets);
        if let Some(own) = self.views.number(&facts.node) {
            nodes.remove(own);
        }
        nodes
    }
}
