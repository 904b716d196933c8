//! What probes say of services' backends, and which nodes probe those that are outside of the fleet.
//!
//! Probes take backends out, and never keep one from answering of which nothing is known: a prober that fails takes no service
//! down. A backend on a node is probed by that node, and its word counts. One outside of the fleet is probed by a few nodes
//! that are chosen by hash among those not away; it is broken if more of them say so than say that it answers. What was said
//! last holds for as long as nothing else is said.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    time::SystemTime,
};

use weft_proto::v1;
use weft_shared::service::{
    model::{BackendState, Backends, Service},
    probers::Probers,
    wire::Resolved,
};

use super::{Aftermath, Fleet, index::Index};

/// A backend of a service; `None`: the frontend's port.
pub type BackendPlace = (IpAddr, Option<NonZeroU16>);

/// What one node says of the backends of a service that it probes.
pub type Words = BTreeMap<BackendPlace, Word>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub healthy: bool,
    /// By the node's clock.
    pub since: Option<SystemTime>,
    /// Why the last probe before that failed; of a healthy one none.
    pub error: String,
}

/// One that probes a backend, and what it says; `None`: nothing yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub node: String,
    pub word: Option<Word>,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    /// Service → node → its words.
    words: BTreeMap<String, BTreeMap<String, Words>>,
    /// Node → services that it has words of.
    by_node: BTreeMap<String, BTreeSet<String>>,
    /// Nodes that were not heard of for so long that others probe.
    away: BTreeSet<String>,
    /// Service with a check → who probes each of its listed backends, if that is outside of the fleet.
    probers: BTreeMap<String, BTreeMap<BackendPlace, Probers>>,
}

impl Health {
    /// `false`: nothing has changed.
    fn set(&mut self, node: &str, service: &str, words: Option<Words>) -> bool {
        let Some(words) = words else {
            remove(&mut self.by_node, node, |services| services.remove(service), BTreeSet::is_empty);
            return remove(
                &mut self.words,
                service,
                |nodes| nodes.remove(node).is_some(),
                BTreeMap::is_empty,
            );
        };
        self.by_node.entry(node.to_owned()).or_default().insert(service.to_owned());
        let of_service = self.words.entry(service.to_owned()).or_default();
        let former = of_service.insert(node.to_owned(), words);
        former.as_ref() != of_service.get(node)
    }

    fn word(&self, service: &str, node: &str, place: BackendPlace) -> Option<&Word> {
        self.words.get(service)?.get(node)?.get(&place)
    }

    /// Whether the backend answers, as far as anybody knows.
    fn is_healthy<'a>(
        &self,
        service: &str,
        place: BackendPlace,
        probers: impl Iterator<Item = &'a str>,
    ) -> Option<bool> {
        let words = probers.filter_map(|node| self.word(service, node, place));
        let (healthy, unhealthy): (Vec<&Word>, Vec<&Word>) = words.partition(|word| word.healthy);
        match (healthy.len(), unhealthy.len()) {
            (0, 0) => None,
            (healthy, unhealthy) => Some(unhealthy <= healthy),
        }
    }

    pub(super) fn probers_of(&self, service: &str, place: BackendPlace) -> Vec<String> {
        let probers = self.probers.get(service).and_then(|places| places.get(&place));
        probers.map(Probers::names).unwrap_or_default()
    }
}

/// Acts on what a key has, and forgets the key if nothing is left.
fn remove<V>(
    map: &mut BTreeMap<String, V>,
    key: &str,
    act: impl FnOnce(&mut V) -> bool,
    is_empty: impl FnOnce(&V) -> bool,
) -> bool {
    let Some(value) = map.get_mut(key) else { return false };
    let acted = act(value);
    if is_empty(value) {
        map.remove(key);
    }
    acted
}

/// Nodes that say what they find of a backend that is resolved so.
fn probers(resolved: &Resolved) -> impl Iterator<Item = &str> {
    let own = Some(resolved.node.as_str()).filter(|node| !node.is_empty());
    own.into_iter().chain(resolved.probed_by.iter().map(String::as_str))
}

impl Index {
    /// Puts a backend that would get connections, and is broken, into quarantine.
    pub(super) fn judge(&self, service: &Service, place: BackendPlace, resolved: &mut Resolved) {
        if service.health_check.is_some()
            && resolved.state == BackendState::Active
            && self.health.is_healthy(&service.name, place, probers(resolved)) == Some(false)
        {
            resolved.state = BackendState::Quarantined;
        }
    }

    /// Nodes that may be chosen.
    fn candidates(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str).filter(|node| !self.health.away.contains(*node))
    }

    fn may_probe(&self, node: &str) -> bool {
        self.nodes.contains_key(node) && !self.health.away.contains(node)
    }
}

impl Fleet {
    pub(super) fn change_words(
        &mut self,
        node: &str,
        service: &str,
        words: Option<Words>,
        aftermath: &mut Aftermath,
    ) {
        if self.index.health.set(node, service, words) {
            aftermath.services.insert(service.to_owned());
        }
    }

    pub(super) fn change_away(&mut self, node: &str, away: bool, aftermath: &mut Aftermath) {
        let before = self.index.may_probe(node);
        if away {
            self.index.health.away.insert(node.to_owned());
        } else {
            self.index.health.away.remove(node);
        }
        self.choose_after(node, before, aftermath);
    }

    /// Whether it may be chosen as a prober: to be compared with what it is after a change.
    pub(super) fn may_probe(&self, node: &str) -> bool {
        self.index.may_probe(node)
    }

    /// A node may be chosen now, or may not any more.
    pub(super) fn choose_after(&mut self, node: &str, before: bool, aftermath: &mut Aftermath) {
        let now = self.index.may_probe(node);
        if before == now {
            return;
        }
        let mut all = std::mem::take(&mut self.index.health.probers);
        for (service, places) in &mut all {
            for (place, probers) in places {
                let changed = if now {
                    probers.offer(node)
                } else if probers.contains(node) {
                    *probers = Probers::among(self.index.candidates(), *place);
                    true
                } else {
                    false
                };
                if changed {
                    aftermath.services.insert(service.clone());
                }
            }
        }
        self.index.health.probers = all;
    }

    /// The service is new, another one, or is no more.
    pub(super) fn choose_probers(&mut self, name: &str) {
        let service = self.index.services.get(name).filter(|service| service.health_check.is_some());
        let Some(Backends::Listed(backends)) = service.map(|service| &service.backends) else {
            self.index.health.probers.remove(name);
            return;
        };
        let mut former = self.index.health.probers.remove(name).unwrap_or_default();
        let places = backends.iter().map(|backend| (backend.address, backend.port));
        let chosen = places.map(|place| {
            let probers = former.remove(&place);
            (place, probers.unwrap_or_else(|| Probers::among(self.index.candidates(), place)))
        });
        let chosen = chosen.collect();
        self.index.health.probers.insert(name.to_owned(), chosen);
    }

    // ---- Asking ----

    /// Who probes the backend, and what they say.
    pub fn probes(&self, service: &Service, place: BackendPlace, resolved: &Resolved) -> Vec<Probe> {
        let word = |node| self.index.health.word(&service.name, node, place).cloned();
        let probers = probers(resolved).filter(|_| service.health_check.is_some());
        probers.map(|node| Probe { node: node.to_owned(), word: word(node) }).collect()
    }

    /// What follows from that; `None`: nobody knows, or asks.
    pub fn is_healthy(&self, service: &Service, place: BackendPlace, resolved: &Resolved) -> Option<bool> {
        service.health_check.as_ref()?;
        self.index.health.is_healthy(&service.name, place, probers(resolved))
    }

    /// What a node has said last of a service.
    pub fn words(&self, node: &str, service: &str) -> Option<&Words> {
        self.index.health.words.get(service)?.get(node)
    }

    /// All words that there are, each as its node and the service that it is about.
    pub fn all_words(&self) -> impl Iterator<Item = (&str, &str)> {
        let by_node = self.index.health.by_node.iter();
        by_node.flat_map(|(node, services)| {
            services.iter().map(move |service| (node.as_str(), service.as_str()))
        })
    }

    /// Services of which the node has words.
    pub fn services_probed_by(&self, node: &str) -> impl Iterator<Item = &str> {
        self.index.health.by_node.get(node).into_iter().flatten().map(String::as_str)
    }

    /// Nodes that are taken for away by whoever probes.
    pub fn away(&self) -> impl Iterator<Item = &str> {
        self.index.health.away.iter().map(String::as_str)
    }

    /// Nodes that probe some backend outside of the fleet.
    pub fn probers_outside(&self) -> BTreeSet<String> {
        let all = self.index.health.probers.values().flat_map(BTreeMap::values);
        all.flat_map(Probers::names).collect()
    }
}

/// As it is stored.
pub fn from_message(message: &v1::ServiceHealth) -> Words {
    let words = message.backends.iter().filter_map(|backend| {
        let address = backend.address.parse().ok()?;
        let port = NonZeroU16::new(u16::try_from(backend.port).ok()?);
        let healthy = match backend.health() {
            v1::Health::Healthy => true,
            v1::Health::Unhealthy => false,
            v1::Health::Unspecified => return None,
        };
        let since = backend.since.and_then(|since| SystemTime::try_from(since).ok());
        Some(((address, port), Word { healthy, since, error: backend.error.clone() }))
    });
    words.collect()
}

pub fn to_message(service: &str, words: &Words) -> v1::ServiceHealth {
    let backends = words.iter().map(|((address, port), word)| v1::BackendHealth {
        address: address.to_string(),
        port: port.map_or(0, |port| port.get().into()),
        health: in_words(Some(word.healthy)).into(),
        since: word.since.map(Into::into),
        error: word.error.clone(),
    });
    v1::ServiceHealth { service: service.to_owned(), backends: backends.collect() }
}

/// As messages have it.
pub fn in_words(healthy: Option<bool>) -> v1::Health {
    match healthy {
        None => v1::Health::Unspecified,
        Some(true) => v1::Health::Healthy,
        Some(false) => v1::Health::Unhealthy,
    }
}
