//! The facts of the fleet and the indices between them: which sets an identity is in, where it has endpoints, what their
//! addresses are.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use roaring::RoaringBitmap;
use weft_proto::v1::ResourceType;
use weft_shared::policy::model::{Class, Labels, Peer, Policy, Selector};

use super::{
    event::{EndpointFacts, NodeFacts},
    resources::{Id, Key, Resources},
    sets::Sets,
};

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) resources: Resources,
    pub(super) nodes: BTreeMap<String, NodeFacts>,
    pub(super) endpoints: BTreeMap<String, EndpointFacts>,
    pub(super) policies: BTreeMap<String, PolicyEntry>,
    pub(super) identities: BTreeMap<u32, Labels>,
    highest_identity: u32,
    pub(super) sets: Sets,
    pub(super) used: HashMap<u32, Use>,
    /// Which endpoint has an address.
    pub(super) owners: HashMap<IpAddr, String>,
    /// Node → names of its endpoints.
    pub(super) by_node: BTreeMap<String, BTreeSet<String>>,
    /// Node → identities of its endpoints, and of how many.
    pub(super) local: BTreeMap<String, BTreeMap<u32, usize>>,
    pub(super) node_ids: RoaringBitmap,
    pub(super) address_ids: RoaringBitmap,
}

/// Where an identity is used.
#[derive(Debug, Default)]
pub(super) struct Use {
    pub(super) sets: BTreeSet<Arc<str>>,
    pub(super) addresses: RoaringBitmap,
    pub(super) nodes: BTreeMap<String, usize>,
}

#[derive(Debug)]
pub(super) struct PolicyEntry {
    pub(super) policy: Policy,
    pub(super) id: Id,
    pub(super) subject_set: Arc<str>,
    pub(super) peer_sets: BTreeSet<Arc<str>>,
    pub(super) needs_all_addresses: bool,
}

impl Use {
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.addresses.is_empty() && self.nodes.is_empty()
    }
}

impl Index {
    /// Numbers only ascend, so that every identity up to this one is known.
    pub(super) fn highest_identity(&self) -> u32 {
        self.highest_identity
    }

    pub(super) fn note_identity(&mut self, number: u32) {
        self.highest_identity = self.highest_identity.max(number);
    }

    pub(super) fn address_id(&self, address: IpAddr) -> Option<Id> {
        self.resources.find(&address_key(address))
    }

    pub(super) fn endpoint_id(&self, name: &str) -> Option<Id> {
        self.resources.find(&Key::new(ResourceType::Endpoint, name))
    }

    pub(super) fn fleet_id(&self, all_addresses: bool) -> Option<Id> {
        self.resources.find(&fleet_key(all_addresses))
    }

    /// Nodes that have endpoints of the set's members: those to whom a policy with this subject matters.
    pub(super) fn nodes_of_set(&self, set: &str) -> BTreeSet<String> {
        let members = self.sets.get(set).into_iter().flat_map(|set| set.members.keys());
        let uses = members.filter_map(|identity| self.used.get(identity));
        uses.flat_map(|used| used.nodes.keys().cloned()).collect()
    }

    /// The name of its node's resources ends the identity's use there, when it was the last.
    pub(super) fn forget_if_unused(&mut self, identity: u32) {
        if self.used.get(&identity).is_some_and(Use::is_empty) {
            self.used.remove(&identity);
        }
    }
}

impl PolicyEntry {
    pub(super) fn sets(&self) -> BTreeSet<Arc<str>> {
        let mut sets = self.peer_sets.clone();
        sets.insert(Arc::clone(&self.subject_set));
        sets
    }
}

pub(super) fn address_key(address: IpAddr) -> Key {
    Key::new(ResourceType::Address, address.to_string())
}

pub(super) fn fleet_key(all_addresses: bool) -> Key {
    Key::new(ResourceType::Fleet, crate::fleet_config::NAME).variant(u32::from(all_addresses))
}

pub(super) fn member_key(set: &str, identity: u32) -> Key {
    Key::new(ResourceType::IdentitySetMember, format!("{set}/{identity}"))
}

/// The selectors that a policy's peers are, by the names of their sets.
pub(super) fn peer_selectors(policy: &Policy) -> BTreeMap<Arc<str>, Selector> {
    let selectors = policy.peers().filter_map(|peer| match peer {
        Peer::Endpoints(selector) => Some(selector),
        _ => None,
    });
    selectors.map(|selector| (Arc::from(selector.set_name()), selector.clone())).collect()
}

/// Whether it tells *fleet* from *unmanaged*, or denies by labels: then a node must know every used address, so that
/// what remains is unmanaged.
pub(super) fn needs_all_addresses(policy: &Policy) -> bool {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    rules.into_iter().any(|rule| {
        rule.may_deny_endpoints() || rule.names_class(Class::Fleet) || rule.names_class(Class::Unmanaged)
    })
}
