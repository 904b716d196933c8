//! The first half of the compiler, which selects and scopes: from the store's events to what each node is to be sent.
//! A state machine over values: no clock (the time is passed in), no stream, no store.
mod attached;
mod event;
mod gate;
mod index;
mod resources;
mod scope;
mod selected;
mod sets;
mod view;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use weft_proto::v1::ResourceType;
use weft_shared::policy::model::{Labels, Policy};

pub use event::{Change, EndpointFacts, EventError, NodeFacts};
pub use resources::{Key, Resource};
pub use view::{Delta, Rejected};

use gate::Gates;
use index::Index;
use view::View;

/// Versions of one resource that can be effective at once.
const VARIANTS: u32 = 2;

#[derive(Debug, Default)]
pub struct Fleet {
    revision: u64,
    index: Index,
    /// Of each node that was ever connected and still exists.
    views: BTreeMap<String, View>,
    gates: Gates,
}

/// What `apply` has to do afterwards for all of a revision's changes together.
#[derive(Debug, Default)]
struct Aftermath {
    /// Nodes whose scope must be computed anew.
    stale: BTreeSet<String>,
    /// Endpoints that are new or changed.
    closed: BTreeSet<String>,
}

impl Fleet {
    /// Takes all changes of one revision, in any order.
    pub fn apply(&mut self, revision: u64, now: Duration, changes: Vec<Change>) {
        self.revision = revision;
        let mut aftermath = Aftermath::default();
        let (deletions, others): (Vec<_>, Vec<_>) = changes.into_iter().partition(Change::is_deletion);
        for change in deletions.into_iter().chain(others) {
            self.apply_one(change, now, &mut aftermath);
        }
        for node in &aftermath.stale {
            self.rescope(node);
        }
        for endpoint in &aftermath.closed {
            let waiting = self.nodes_that_want(endpoint);
            self.gates.wait_for(endpoint, waiting);
        }
        self.open_what_may(Some(now));
    }

    /// The node starts anew: its next delta holds everything. It must exist.
    pub fn connect(&mut self, node: &str) {
        let view = self.views.entry(node.to_owned()).or_default();
        view.connect(&mut self.index.resources);
        self.rescope(node);
    }

    pub fn disconnect(&mut self, node: &str) {
        if let Some(view) = self.views.get_mut(node) {
            view.disconnect();
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
        let known = self.views.get_mut(node).is_some_and(|view| view.acknowledge(nonce, rejected));
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
        let news = self.views.iter_mut().filter_map(|(node, view)| view.take_news().then(|| node.clone()));
        news.collect()
    }

    // ---- Asking ----

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn identities_through(&self) -> u32 {
        self.index.highest_identity()
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

    /// Of an identity.
    pub fn labels(&self, identity: u32) -> Option<&Labels> {
        self.index.identities.get(&identity)
    }

    pub fn identity_numbers(&self) -> impl Iterator<Item = u32> {
        self.index.identities.keys().copied()
    }

    // ---- Opening ----

    /// Cheap while nothing is held closed.
    fn open_what_may(&mut self, now: Option<Duration>) {
        if self.gates.is_empty() {
            return;
        }
        let (views, revision) = (&self.views, self.revision);
        // A node that rejects something else has acknowledged all the same.
        let answered = |node: &str| {
            views.get(node).filter(|view| view.is_connected()).map(|view| view.answered(revision))
        };
        for endpoint in self.gates.take_open(now, answered) {
            self.encode_endpoint(&endpoint);
        }
    }

    /// Connected nodes beside its own that are to know the endpoint's addresses.
    fn nodes_that_want(&self, endpoint: &str) -> BTreeSet<String> {
        let Some(facts) = self.index.endpoints.get(endpoint) else { return BTreeSet::new() };
        let ids: Vec<_> =
            facts.addresses.iter().filter_map(|address| self.index.address_id(*address)).collect();
        let wanting = self.views.iter().filter(|(node, view)| {
            view.is_connected() && **node != facts.node && ids.iter().any(|id| view.wanted.contains(*id))
        });
        wanting.map(|(node, _)| node.clone()).collect()
    }
}
