//! The facts of the fleet and the indices between them: which sets an identity is in, where it has endpoints, what their
//! addresses are.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use roaring::RoaringBitmap;
use weft_proto::v1::ResourceType;
use weft_shared::policy::{
    model::{CidrSet, CidrSetSelector, Class, IdentityLabels, Labels, Peer, Policy, Selector, Subject},
    wire,
};

use super::{
    event::{EndpointFacts, NodeFacts},
    health::Health,
    labelled::Labelled,
    prefilters::Prefilters,
    resources::{Id, Key, Resources},
    services::Services,
    sets::{Selected, Sets},
    shapings::Shapings,
};

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) resources: Resources,
    pub(super) nodes: BTreeMap<String, NodeFacts>,
    pub(super) endpoints: BTreeMap<String, EndpointFacts>,
    pub(super) policies: BTreeMap<String, PolicyEntry>,
    pub(super) cidr_sets: BTreeMap<String, CidrSetEntry>,
    pub(super) services: Services,
    pub(super) health: Health,
    pub(super) prefilters: Prefilters,
    pub(super) shapings: Shapings,
    /// Which labels make identities.
    pub(super) identity_labels: IdentityLabels,
    pub(super) identities: Labelled,
    highest_identity: u32,
    pub(super) sets: Sets,
    pub(super) used: HashMap<u32, Use>,
    /// Which endpoint has an address.
    pub(super) owners: HashMap<IpAddr, String>,
    /// Node → names of its endpoints.
    pub(super) by_node: BTreeMap<String, BTreeSet<String>>,
    /// Node → identities of its endpoints and its own, and of how many.
    pub(super) local: BTreeMap<String, BTreeMap<u32, usize>>,
    pub(super) node_ids: RoaringBitmap,
    pub(super) address_ids: RoaringBitmap,
}

#[derive(Debug)]
pub(super) struct CidrSetEntry {
    pub(super) set: CidrSet,
    pub(super) id: Id,
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
    /// Names of the CIDR sets that it means, as nodes are told; one that is meant by name may not be there.
    pub(super) cidr_sets: BTreeSet<String>,
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

    /// Nodes that are of the set's members, or have endpoints that are: those to whom a policy with this subject matters.
    pub(super) fn nodes_of_set(&self, set: &str) -> BTreeSet<String> {
        let members = self.sets.get(set).into_iter().flat_map(|set| set.members.keys());
        let uses = members.filter_map(|identity| self.used.get(identity));
        uses.flat_map(|used| used.nodes.keys().cloned()).collect()
    }

    /// A node has an endpoint of the identity more, or is of it. `true`: it is the first there.
    pub(super) fn add_bearer(&mut self, node: &str, identity: u32) -> bool {
        *self.used.entry(identity).or_default().nodes.entry(node.to_owned()).or_default() += 1;
        let count = self.local.entry(node.to_owned()).or_default().entry(identity).or_default();
        *count += 1;
        *count == 1
    }

    /// `true`: it was the last there.
    pub(super) fn remove_bearer(&mut self, node: &str, identity: u32) -> bool {
        if let Some(used) = self.used.get_mut(&identity) {
            decrement(&mut used.nodes, node);
        }
        self.forget_if_unused(identity);
        let Some(local) = self.local.get_mut(node) else { return false };
        let last = decrement(local, &identity);
        if local.is_empty() {
            self.local.remove(node);
        }
        last
    }

    /// Identities that no endpoint and no node has.
    pub(super) fn without_bearer(&self) -> impl Iterator<Item = (u32, &Labels)> {
        let borne = |number: u32| self.used.get(&number).is_some_and(|used| !used.nodes.is_empty());
        self.identities.iter().filter(move |(number, _)| !borne(*number))
    }

    /// Names of the CIDR sets that a policy means. One that is named is meant also while it is not there: nodes then treat
    /// the policy as one that they don't understand.
    pub(super) fn cidr_sets_meant(&self, meant: &CidrSetSelector) -> Vec<String> {
        if let CidrSetSelector::Name(name) = meant {
            return vec![name.clone()];
        }
        let selected = self.cidr_sets.values().filter(|entry| meant.selects(&entry.set));
        selected.map(|entry| entry.set.name.clone()).collect()
    }

    /// Of all its peers.
    pub(super) fn cidr_sets_of(&self, policy: &Policy) -> BTreeSet<String> {
        cidr_set_selectors(policy).flat_map(|meant| self.cidr_sets_meant(meant)).collect()
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

pub(super) fn cidr_set_key(name: &str) -> Key {
    Key::new(ResourceType::CidrSet, name)
}

/// The set that the policy's subject is, with its name.
pub(super) fn subject_set(policy: &Policy) -> (Arc<str>, Selected) {
    match &policy.subject {
        Subject::Endpoints(selector) => named(wire::endpoint_set(selector), selector, false),
        Subject::Nodes(selector) => named(wire::node_set(selector), selector, true),
    }
}

/// The sets that a policy's peers are, by their names.
pub(super) fn peer_sets(policy: &Policy) -> BTreeMap<Arc<str>, Selected> {
    let sets = policy.peers().filter_map(|peer| match peer {
        Peer::Endpoints(selector) => Some(named(wire::endpoint_set(selector), selector, false)),
        Peer::Nodes(selector) => Some(named(wire::node_set(selector), selector, true)),
        Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => None,
    });
    sets.collect()
}

fn named(name: String, selector: &Selector, of_nodes: bool) -> (Arc<str>, Selected) {
    (Arc::from(name), Selected { selector: selector.clone(), of_nodes })
}

/// The CIDR sets that a policy names, as it names them.
pub(super) fn cidr_set_selectors(policy: &Policy) -> impl Iterator<Item = &CidrSetSelector> {
    policy.peers().filter_map(|peer| match peer {
        Peer::CidrSet(meant) => Some(meant),
        Peer::Endpoints(_) | Peer::Nodes(_) | Peer::Cidr { .. } | Peer::Entity(_) => None,
    })
}

/// `true`: that was the last.
fn decrement<K: Ord + std::borrow::Borrow<Q>, Q: Ord + ?Sized>(
    counts: &mut BTreeMap<K, usize>,
    key: &Q,
) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    if *count > 0 {
        return false;
    }
    counts.remove(key);
    true
}

/// Whether it tells *fleet* from *unmanaged*, or denies by labels: then a node must know every used address, so that
/// what remains is unmanaged.
pub(super) fn needs_all_addresses(policy: &Policy) -> bool {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    rules.into_iter().any(|rule| {
        rule.may_deny_endpoints() || rule.names_class(Class::Fleet) || rule.names_class(Class::Unmanaged)
    })
}
