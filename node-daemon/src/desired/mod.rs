//! What the controllers last said this node should enforce: resources by type and name, parsed once when they come.
//! Applying a batch is pure; [`disk`] keeps the result, so that a restart without a controller enforces it.

pub mod attachments;
pub mod digests;
pub mod disk;
pub mod journal;
mod resource;
mod touched;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    features,
    policy::{compile::IdentitySets, model::NodePolicy},
};

use crate::{balance, prefilter, shaping};

pub use resource::{EndpointWord, Fleet, ParseError, Resource, Route};
pub use touched::Touched;

/// Features that a resource may require of this daemon, by the names of [`weft_shared::features`]. A resource that requires
/// any other is rejected.
pub const FEATURES: &[&str] = &[
    features::POLICY_TIERS,
    features::POLICY_AUDIT,
    features::HOST_POLICIES,
    features::NODE_PEERS,
    features::CIDR_SETS,
    features::HOST_TO_ENDPOINT,
    features::SERVICES,
    features::SERVICE_HEALTH,
    features::SERVICE_END_CONNECTIONS,
    features::PREFILTER,
    features::SHAPING,
];

/// Names a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: ResourceType,
    pub name: String,
}

/// A resource as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    bytes: Box<[u8]>,
    requires: Box<[String]>,
}

impl Held {
    fn to_upsert(&self, key: &Key) -> v1::Upsert {
        v1::Upsert {
            r#type: key.kind.into(),
            name: key.name.clone(),
            requires: self.requires.to_vec(),
            bytes: self.bytes.to_vec().into(),
        }
    }
}

/// One whole delta: all its messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub nonce: u64,
    pub revision: u64,
    pub identities_through: u32,
    pub upserts: Vec<v1::Upsert>,
    pub removes: Vec<v1::Remove>,
    /// Everything as of `revision` has been sent.
    pub in_sync: bool,
    /// At the end of a full sync: all names that were sent in it; others are gone.
    pub listed: Option<BTreeSet<Key>>,
    /// At the end of a resume: digests of what is to be held then ([`Desired::agrees`]).
    pub expected: Vec<v1::TypeDigest>,
}

impl Batch {
    /// Whether it says nothing of any resource: only how far this node knows.
    pub fn is_only_progress(&self) -> bool {
        self.upserts.is_empty() && self.removes.is_empty() && self.listed.is_none() && !self.in_sync
    }
}

/// The state. Typed views stand beside the bytes; [`Desired::apply`] is the only way to change either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Empty: none yet.
    pub store_id: String,
    /// Of the last batch that was applied, whole or with rejections.
    pub revision: u64,
    /// Last revision at which nothing was rejected.
    pub realised: u64,
    pub identities_through: u32,
    /// A controller has said once that all was sent: before that, parts may be missing.
    pub complete: bool,
    held: BTreeMap<Key, Held>,
    rejected: BTreeMap<Key, String>,
    fleet: Option<Fleet>,
    nodes: BTreeMap<String, Route>,
    sets: IdentitySets,
    policies: BTreeMap<String, NodePolicy>,
    cidr_sets: BTreeMap<String, Vec<IpNet>>,
    addresses: BTreeMap<IpAddr, (u32, String)>,
    endpoints: BTreeMap<String, EndpointWord>,
    services: balance::Desired,
    prefilters: prefilter::Desired,
    shapings: shaping::Desired,
}

impl Desired {
    /// Applies a batch. A resource that this daemon does not understand keeps its last good form and is remembered as
    /// rejected until it comes in a good form or goes.
    pub fn apply(&mut self, batch: Batch) {
        for upsert in batch.upserts {
            let Some(kind) = known_type(upsert.r#type) else {
                let key = Key {
                    kind: ResourceType::Unspecified,
                    name: format!("{}/{}", upsert.r#type, upsert.name),
                };
                self.rejected.insert(key, "this version does not know the type".to_owned());
                continue;
            };
            let key = Key { kind, name: upsert.name };
            match self.upsert(&key, &upsert.requires, &upsert.bytes, batch.revision) {
                Ok(()) => drop(self.rejected.remove(&key)),
                Err(error) => drop(self.rejected.insert(key, error.to_string())),
            }
        }
        for remove in batch.removes {
            let kind = known_type(remove.r#type).unwrap_or_default();
            self.remove(&Key { kind, name: remove.name });
        }
        if let Some(listed) = batch.listed {
            let held = self.held.keys().chain(self.rejected.keys());
            let gone: Vec<Key> = held.filter(|key| !listed.contains(key)).cloned().collect();
            for key in &gone {
                self.remove(key);
            }
        }
        self.revision = batch.revision;
        self.identities_through = self.identities_through.max(batch.identities_through);
        self.complete |= batch.in_sync;
        if self.complete && self.rejected.is_empty() {
            self.realised = self.revision;
        }
    }

    /// Another store's word counts from here on: what comes next is all of it, and its numbers begin elsewhere.
    pub fn begin_anew(&mut self, store_id: String) {
        self.store_id = store_id;
        (self.revision, self.realised, self.identities_through) = (0, 0, 0);
    }

    fn upsert(
        &mut self,
        key: &Key,
        requires: &[String],
        bytes: &[u8],
        revision: u64,
    ) -> Result<(), ParseError> {
        if let Some(feature) = requires.iter().find(|feature| !FEATURES.contains(&feature.as_str())) {
            return Err(ParseError::Requires(feature.clone()));
        }
        let parsed = Resource::parse(key, bytes, revision)?;
        self.forget_view(key);
        self.set_view(key, parsed);
        self.held.insert(key.clone(), Held { bytes: bytes.into(), requires: requires.into() });
        Ok(())
    }

    fn remove(&mut self, key: &Key) {
        self.rejected.remove(key);
        if self.held.remove(key).is_some() {
            self.forget_view(key);
        }
    }

    fn set_view(&mut self, key: &Key, resource: Resource) {
        let name = || key.name.clone();
        match resource {
            Resource::Fleet(fleet) => self.fleet = Some(fleet),
            Resource::Node(route) => drop(self.nodes.insert(name(), route)),
            Resource::Member { set, identity } => drop(self.sets.entry(set).or_default().insert(identity)),
            Resource::Policy(policy) => drop(self.policies.insert(name(), policy)),
            Resource::CidrSet(cidrs) => drop(self.cidr_sets.insert(name(), cidrs)),
            Resource::Address { address, identity, node } => {
                self.addresses.insert(address, (identity, node));
            }
            Resource::Endpoint(word) => drop(self.endpoints.insert(name(), word)),
            Resource::Service(service) => drop(self.services.insert(name(), Arc::new(service))),
            Resource::Prefilter(prefilter) => drop(self.prefilters.insert(name(), Arc::new(prefilter))),
            Resource::Shaping(shaping) => drop(self.shapings.insert(name(), shaping)),
        }
    }

    fn forget_view(&mut self, key: &Key) {
        match key.kind {
            ResourceType::Fleet => self.fleet = None,
            ResourceType::Node => drop(self.nodes.remove(&key.name)),
            ResourceType::IdentitySetMember => {
                let Ok((set, identity)) = resource::member(&key.name) else { return };
                if let Some(members) = self.sets.get_mut(set) {
                    members.remove(&identity);
                    if members.is_empty() {
                        self.sets.remove(set);
                    }
                }
            }
            ResourceType::Policy => drop(self.policies.remove(&key.name)),
            ResourceType::CidrSet => drop(self.cidr_sets.remove(&key.name)),
            ResourceType::Address => {
                if let Ok(address) = key.name.parse::<IpAddr>() {
                    self.addresses.remove(&address);
                }
            }
            ResourceType::Endpoint => drop(self.endpoints.remove(&key.name)),
            ResourceType::Service => drop(self.services.remove(&key.name)),
            ResourceType::Prefilter => drop(self.prefilters.remove(&key.name)),
            ResourceType::Shaping => drop(self.shapings.remove(&key.name)),
            _ => {}
        }
    }

    pub fn fleet(&self) -> Option<&Fleet> {
        self.fleet.as_ref()
    }

    pub fn nodes(&self) -> &BTreeMap<String, Route> {
        &self.nodes
    }

    pub fn sets(&self) -> &IdentitySets {
        &self.sets
    }

    pub fn policies(&self) -> &BTreeMap<String, NodePolicy> {
        &self.policies
    }

    /// Prefixes of each CIDR set, by its name. A policy may name one that is not here (it was rejected, or is still to
    /// come): what such a policy says is not known then, and must not open anything.
    pub fn cidr_sets(&self) -> &BTreeMap<String, Vec<IpNet>> {
        &self.cidr_sets
    }

    /// Address → identity and node.
    pub fn addresses(&self) -> &BTreeMap<IpAddr, (u32, String)> {
        &self.addresses
    }

    pub fn endpoints(&self) -> &BTreeMap<String, EndpointWord> {
        &self.endpoints
    }

    pub fn services(&self) -> &balance::Desired {
        &self.services
    }

    pub fn prefilters(&self) -> &prefilter::Desired {
        &self.prefilters
    }

    pub fn shapings(&self) -> &shaping::Desired {
        &self.shapings
    }

    /// Resources that came in a form that is not understood, with the reason.
    pub fn rejected(&self) -> impl Iterator<Item = v1::RejectedResource> + '_ {
        self.rejected.iter().map(|(key, reason)| v1::RejectedResource {
            r#type: key.kind.into(),
            name: key.name.clone(),
            reason: reason.clone(),
        })
    }

    /// As [`disk`] keeps it.
    fn to_upserts(&self) -> impl Iterator<Item = v1::Upsert> + '_ {
        self.held.iter().map(|(key, held)| held.to_upsert(key))
    }

    /// The same of some; those that are not held are passed over.
    fn upserts_of<'a>(&'a self, keys: &'a BTreeSet<Key>) -> impl Iterator<Item = v1::Upsert> + 'a {
        keys.iter().filter_map(|key| Some(self.held.get(key)?.to_upsert(key)))
    }
}

fn known_type(number: i32) -> Option<ResourceType> {
    ResourceType::try_from(number).ok().filter(|kind| *kind != ResourceType::Unspecified)
}

#[cfg(test)]
mod tests;
