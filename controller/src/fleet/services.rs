//! Services: from selectors and listed addresses to backends on nodes. A service is encoded once, for all nodes, at the end of
//! each revision that concerns it.
//!
//! An endpoint is a backend while it is *ready*: its node has said that its policy is enforced and it is open. So is a listed
//! address inside the pools; one outside of them is a backend as it is written.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    num::NonZeroU16,
    ops::Bound,
};

use ipnet::IpNet;
use prost::Message as _;
use roaring::RoaringBitmap;
use weft_proto::v1::{self, ResourceType};
use weft_shared::service::{
    model::{BackendState, Backends, Place, Prefilter, Protocol, Service},
    wire::{self, Resolved, ResolvedBackends},
};

use super::{
    Aftermath, Fleet,
    anchored::Anchored,
    event::EndpointFacts,
    index::Index,
    resources::{Id, Key},
};
use crate::{identity, nodes};

#[derive(Debug, Default)]
pub(super) struct Services {
    by_name: BTreeMap<String, Entry>,
    selectors: Anchored<String>,
    /// Listed address → services that list it.
    listing: HashMap<IpAddr, BTreeSet<String>>,
    /// Who has a frontend.
    places: BTreeMap<Place, String>,
    /// All services' resources.
    pub(super) ids: RoaringBitmap,
    pools: Vec<IpNet>,
}

#[derive(Debug)]
struct Entry {
    service: Service,
    /// `None`: it was not encoded yet.
    id: Option<Id>,
}

/// Who answers for a service now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answering {
    pub backends: ResolvedBackends,
    /// Listed addresses inside the pools that no ready endpoint has.
    pub absent: BTreeMap<(IpAddr, Option<NonZeroU16>), u16>,
    /// Selected beyond the limit.
    pub left_out: usize,
}

impl Services {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.by_name.values().map(|entry| &entry.service)
    }

    /// Of this name and behind, by name.
    pub(super) fn behind(&self, name: &str) -> impl Iterator<Item = &Service> {
        let range = (Bound::Excluded(name), Bound::Unbounded);
        self.by_name.range::<str, _>(range).map(|(_, entry)| &entry.service)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Service> {
        self.by_name.get(name).map(|entry| &entry.service)
    }

    pub(super) fn at(&self, place: &Place) -> Option<&str> {
        self.places.get(place).map(String::as_str)
    }

    /// A service with a frontend on this address.
    pub(super) fn on(&self, address: IpAddr) -> Option<(&Place, &str)> {
        let first = Place { address: Some(address), port: NonZeroU16::MIN, protocol: Protocol::Tcp };
        let (place, name) = self.places.range(first..).next()?;
        (place.address == Some(address)).then_some((place, name.as_str()))
    }

    fn insert(&mut self, service: Service, id: Option<Id>) {
        let name = &service.name;
        match &service.backends {
            Backends::Selected { selector, .. } => self.selectors.insert(name, selector),
            Backends::Listed(backends) => {
                for backend in backends {
                    self.listing.entry(backend.address).or_default().insert(name.clone());
                }
            }
        }
        for frontend in &service.frontends {
            self.places.insert(frontend.at, name.clone());
        }
        self.by_name.insert(name.clone(), Entry { service, id });
    }

    fn remove(&mut self, name: &str) -> Option<Entry> {
        let entry = self.by_name.remove(name)?;
        match &entry.service.backends {
            Backends::Selected { selector, .. } => self.selectors.remove(name, selector),
            Backends::Listed(backends) => {
                for backend in backends {
                    if let Some(names) = self.listing.get_mut(&backend.address) {
                        names.remove(name);
                        if names.is_empty() {
                            self.listing.remove(&backend.address);
                        }
                    }
                }
            }
        }
        for frontend in &entry.service.frontends {
            // In one revision a frontend can pass from one service to another.
            if self.places.get(&frontend.at).is_some_and(|owner| owner == name) {
                self.places.remove(&frontend.at);
            }
        }
        Some(entry)
    }
}

impl Fleet {
    pub(super) fn change_service(&mut self, name: &str, service: Option<Service>, aftermath: &mut Aftermath) {
        let id = self.index.services.remove(name).and_then(|entry| entry.id);
        match (service, id) {
            (Some(service), _) => {
                self.index.services.insert(service, id);
                aftermath.services.insert(name.to_owned());
            }
            (None, Some(id)) => {
                self.index.services.ids.remove(id);
                self.delete(id);
            }
            (None, None) => {}
        }
        self.choose_probers(name);
    }

    /// Of a configuration: which listed addresses are endpoints'.
    pub(super) fn change_pools(&mut self, config: Option<&v1::FleetConfig>, aftermath: &mut Aftermath) {
        let cidrs = config.into_iter().flat_map(|config| &config.pools);
        let pools = cidrs.filter_map(|pool| pool.cidr.parse().ok()).collect();
        if self.index.services.pools != pools {
            self.index.services.pools = pools;
            aftermath.services.extend(self.index.services.listing.values().flatten().cloned());
        }
    }

    /// Whether services see no difference in what is said of an endpoint.
    pub(super) fn is_same_backend(&self, name: &str, new: Option<&EndpointFacts>) -> bool {
        match (self.index.endpoints.get(name), new) {
            (Some(old), Some(new)) => {
                (old.ready, old.identity, &old.node, &old.addresses)
                    == (new.ready, new.identity, &new.node, &new.addresses)
            }
            (None, None) => true,
            _ => false,
        }
    }

    /// Services that the endpoint is a backend of, or is not yet: a listed address is nobody else's while an endpoint has it.
    pub(super) fn note_endpoint(&self, name: &str, aftermath: &mut Aftermath) {
        let Some(facts) = self.index.endpoints.get(name) else { return };
        let services = &self.index.services;
        let listing = facts.addresses.iter().filter_map(|address| services.listing.get(address)).flatten();
        aftermath.services.extend(listing.cloned());
        if facts.ready {
            self.note_identity(facts.identity, aftermath);
        }
    }

    /// Services that select the identity, as its labels are now.
    pub(super) fn note_identity(&self, number: u32, aftermath: &mut Aftermath) {
        let Some(labels) = self.index.identities.get(number) else { return };
        if identity::is_of_node(labels) {
            // Where its nodes are has changed.
            let nodes = self.index.used.get(&number).into_iter().flat_map(|used| used.nodes.keys());
            nodes.for_each(|node| self.note_node(node, aftermath));
            return;
        }
        let services = &self.index.services;
        let selecting = services.selectors.candidates(labels).filter(|name| {
            let backends = services.by_name.get(*name).map(|entry| &entry.service.backends);
            matches!(backends, Some(Backends::Selected { selector, .. }) if selector.matches(labels))
        });
        aftermath.services.extend(selecting.cloned());
    }

    /// Services with backends on the node.
    pub(super) fn note_node(&self, node: &str, aftermath: &mut Aftermath) {
        for endpoint in self.index.by_node.get(node).into_iter().flatten() {
            self.note_endpoint(endpoint, aftermath);
        }
    }

    /// Encodes what has changed.
    pub(super) fn encode_services(&mut self, names: &BTreeSet<String>) {
        for name in names {
            let Some(service) = self.index.services.get(name) else { continue };
            let answering = self.index.answering(service);
            let message = wire::to_node(service, &answering.backends);
            let id = self.put(Key::new(ResourceType::Service, name.as_str()), message.encode_to_vec());
            self.index.services.ids.insert(id);
            if let Some(entry) = self.index.services.by_name.get_mut(name) {
                entry.id = Some(id);
            }
            for (_, view) in self.views.iter_mut() {
                view.want(id, self.revision);
            }
        }
    }

    // ---- Asking ----

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.index.services.iter()
    }

    /// Those whose names are behind this one, by name.
    pub fn services_behind(&self, name: &str) -> impl Iterator<Item = &Service> {
        self.index.services.behind(name)
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.index.services.get(name)
    }

    /// The service that has this frontend.
    pub fn service_at(&self, place: &Place) -> Option<&str> {
        self.index.services.at(place)
    }

    /// A service with a frontend on this address, and which.
    pub fn service_on(&self, address: IpAddr) -> Option<(&Place, &str)> {
        self.index.services.on(address)
    }

    /// All nodes' addresses, each with its node's name.
    pub fn node_addresses(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.index.nodes.iter().flat_map(|(name, facts)| {
            let addresses = nodes::parse_all::<IpAddr>(&facts.addresses);
            addresses.into_iter().map(move |address| (address, name.as_str()))
        })
    }

    /// Why no node can have this address: a service or a prefilter has spoken for it.
    pub fn spoken_for(&self, address: IpAddr) -> Option<String> {
        if let Some((place, name)) = self.service_on(address) {
            return Some(format!("{place} is a frontend of service {name}"));
        }
        let drops = |one: &&Prefilter| {
            one.cidrs.iter().any(|cidr| cidr.contains(&address))
                || one.arp_senders.iter().any(|sender| IpAddr::V4(*sender) == address)
        };
        self.prefilters().find(drops).map(|one| format!("prefilter {} drops {address}", one.name))
    }

    /// Who answers for the service now.
    pub fn answering(&self, service: &Service) -> Answering {
        self.index.answering(service)
    }
}

impl Index {
    fn answering(&self, service: &Service) -> Answering {
        let mut answering = Answering::default();
        match &service.backends {
            Backends::Selected { selector, port } => {
                let candidates = self.identities.candidates(selector).into_iter();
                let selected = candidates
                    .filter(|(_, labels)| !identity::is_of_node(labels) && selector.matches(labels));
                for (number, _) in selected {
                    for (address, facts) in self.ready_with(number) {
                        if service.serves(address.into()) {
                            let mut resolved = self.resolved(service, facts, 1, BackendState::Active);
                            self.judge(service, (address, *port), &mut resolved);
                            answering.backends.insert((address, *port), resolved);
                        }
                    }
                }
                answering.left_out = wire::leave_out(&mut answering.backends);
            }
            Backends::Listed(backends) => {
                for backend in backends {
                    let place = (backend.address, backend.port);
                    let owner = self.owners.get(&backend.address).and_then(|name| self.endpoints.get(name));
                    let inside = self.services.pools.iter().any(|pool| pool.contains(&backend.address));
                    let mut resolved = match owner {
                        Some(facts) if facts.ready => {
                            self.resolved(service, facts, backend.weight, backend.state)
                        }
                        None if !inside => Resolved {
                            weight: backend.weight,
                            state: backend.state,
                            node: String::new(),
                            topology: String::new(),
                            probed_by: self.health.probers_of(&service.name, place),
                        },
                        _ => {
                            answering.absent.insert(place, backend.weight);
                            continue;
                        }
                    };
                    self.judge(service, place, &mut resolved);
                    answering.backends.insert(place, resolved);
                }
            }
        }
        answering
    }

    /// Addresses of ready endpoints of the identity.
    fn ready_with(&self, number: u32) -> impl Iterator<Item = (IpAddr, &EndpointFacts)> {
        let ids = self.used.get(&number).into_iter().flat_map(|used| &used.addresses);
        let addresses = ids.filter_map(|id| self.resources.key(id)?.name.parse::<IpAddr>().ok());
        let owned = addresses.filter_map(|address| {
            let facts = self.endpoints.get(self.owners.get(&address)?)?;
            Some((address, facts))
        });
        owned.filter(move |(_, facts)| facts.ready && facts.identity == number)
    }

    fn resolved(
        &self,
        service: &Service,
        facts: &EndpointFacts,
        weight: u16,
        state: BackendState,
    ) -> Resolved {
        let label = service.topology_label.as_ref();
        let topology = label.and_then(|label| self.node_labels(&facts.node)?.get(label).cloned());
        Resolved {
            weight,
            state,
            node: facts.node.clone(),
            topology: topology.unwrap_or_default(),
            probed_by: Vec::new(),
        }
    }
}
