//! What a service is on this node: its tables, and which flows of which frontends find them.
//!
//! A service has a table for each family that its frontends have, because a flow stays in its family, and another one for
//! flows that come from elsewhere where these are treated differently.
//!
//! Who takes new flows: of the backends that the traffic policy leaves, those that are active; of these, where a topology
//! label is set and flows begin here, those with this node's value, if there are any. If no backend is active, *all that are
//! quarantined* do: probes that fail everywhere say more about the probes than about the backends, and what is not there
//! refuses by itself. Backends that terminate or are in maintenance never do. They stay in the table without slots, as do
//! active ones that others are preferred to, and keep the flows that they have; a quarantined one does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_shared::{
    balance::table::{self, Manner, Table},
    layout::{
        Address,
        service::{FrontendKey, frontend_flags},
    },
    service::takers::takers,
};

use super::{
    service::{Algorithm, Backend, Forwarding, Frontend, Service, State},
    sources::{Addresses, Numbers},
};

/// The node itself, as far as services tell nodes apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    pub node: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Addresses,
}

/// Where a flow comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// It begins on this node.
    Inside,
    Outside,
}

impl Scope {
    pub const ALL: [Self; 2] = [Self::Inside, Self::Outside];
}

/// Flows to a frontend.
pub type Reference = (FrontendKey, Scope);

/// A table, and who finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub table: Arc<Table>,
    pub references: BTreeSet<Reference>,
}

/// The tables of a service on this node, whose sets of sources have these numbers.
pub fn shares(service: &Service, here: &Here, numbers: Numbers) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for v4 in [true, false] {
        let keys: Vec<FrontendKey> =
            service.frontends.iter().filter_map(|frontend| key(frontend, v4)).collect();
        if keys.is_empty() {
            continue;
        }
        let of_family = shares.len();
        for scope in Scope::ALL {
            let table = table(service, here, numbers, (v4, scope));
            let references = keys.iter().map(|key| (*key, scope));
            match shares[of_family..].iter_mut().find(|share| *share.table == table) {
                Some(share) => share.references.extend(references),
                None => shares.push(Share { table: Arc::new(table), references: references.collect() }),
            }
        }
    }
    shares
}

/// Backends to which XDP of this node sends what comes from outside: of `dsr` all that are elsewhere, of `snat` those outside of the
/// fleet.
pub fn sent_on<'a>(service: &'a Service, node: &'a str) -> impl Iterator<Item = &'a Backend> {
    let is_reached = !service.local_outside && service.frontends.iter().any(|frontend| !frontend.cluster);
    let backends = if is_reached { &service.backends[..] } else { &[] };
    let dsr = service.forwarding == Forwarding::Dsr;
    backends.iter().filter(move |backend| backend.node.is_empty() || (dsr && backend.node != node))
}

/// The key of a frontend in a family, if it is of that.
pub fn key(frontend: &Frontend, v4: bool) -> Option<FrontendKey> {
    let Frontend { address, port, protocol, .. } = *frontend;
    match address {
        Some(address) if address.is_ipv4() != v4 => None,
        Some(address) => Some(FrontendKey::address(Address::from(address), port.to_be(), protocol)),
        None => Some(FrontendKey::node_port(v4, port.to_be(), protocol)),
    }
}

/// The flags of a frontend's row.
pub fn flags(frontend: &Frontend) -> u32 {
    if frontend.cluster { frontend_flags::CLUSTER } else { 0 }
}

fn table(service: &Service, here: &Here, numbers: Numbers, (v4, scope): (bool, Scope)) -> Table {
    let only_local = match scope {
        Scope::Inside => service.local_inside,
        Scope::Outside => service.local_outside,
    };
    let candidates: Vec<&Backend> = service
        .backends
        .iter()
        .filter(|backend| backend.address.is_ipv4() == v4)
        .filter(|backend| !only_local || backend.node == here.node)
        .collect();
    let taking = taking(service, here, scope, &candidates);
    let backends = candidates.into_iter().filter_map(|backend| {
        let new_flows = taking.contains(&(backend.address, backend.port));
        let stays = new_flows || backend.state != State::Quarantined;
        stays.then(|| table::Backend {
            address: backend.address,
            port: backend.port,
            weight: backend.weight,
            new_flows,
            local: backend.node == here.node,
        })
    });
    let Service { algorithm, forwarding, affinity_seconds, slots, end_connections, .. } = *service;
    let sources = service.sources.as_ref().map(|sources| sources.of_family(v4, numbers, &here.addresses));
    let (random, dsr) = (algorithm == Algorithm::Random, forwarding == Forwarding::Dsr);
    let manner = Manner { random, dsr, sources, end_connections, affinity_seconds, slots };
    Table::new(manner, backends.collect())
}

type Place = (std::net::IpAddr, u16);

/// Who takes new flows.
fn taking(service: &Service, here: &Here, scope: Scope, candidates: &[&Backend]) -> BTreeSet<Place> {
    let label = service.topology_label.as_ref().filter(|_| scope == Scope::Inside);
    let preferred = label.and_then(|label| here.labels.get(label)).map(String::as_str);
    let takers = takers(candidates.iter().copied(), preferred, |backend| (backend.state, &backend.topology));
    takers.into_iter().map(|backend| (backend.address, backend.port)).collect()
}
