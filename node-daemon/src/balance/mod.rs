//! Services on this node: what the controllers say of one becomes tables and frontends ([`view`]), those get slots
//! ([`place`]), and what differs from the kernel becomes steps. Pure.

pub mod choice;
mod place;
pub mod ports;
pub mod service;
pub mod sources;
pub mod tables;
pub mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_shared::{
    balance::table::Table,
    layout::{
        Address,
        maps::FRONTENDS_MAX,
        service::{Frontend, FrontendKey, SocketPeer, TCP},
    },
};

use self::{
    service::Service,
    sources::{Addresses, Numbering, Numbers, Set},
    tables::{Services, Step},
    view::{Here, Scope, Share},
};
use crate::plan::diff::Sweep;

/// Services by their names.
pub type Desired = BTreeMap<String, Arc<Service>>;

/// Makes plans, and remembers what it has made of each service: of thousands, few change at once.
#[derive(Debug, Default)]
pub struct Balancer {
    here: Here,
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    /// Of its sets of sources.
    numbers: Numbers,
    shares: Vec<Share>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Services that can't be what they should be, and why.
    pub unrealised: Vec<(String, String)>,
}

impl Balancer {
    pub fn new(here: Here) -> Self {
        Self { here, known: BTreeMap::new() }
    }

    /// The steps from what is to what shall be, and with [`Sweep::Keep`] to something that holds more.
    ///
    /// Order: sets of sources, the tables that name them, then the frontends that lead to those; frontends that go, then the tables
    /// to which nothing leads any more, then the sets that none names. So a frontend always leads to a table that is its own.
    pub fn plan(&mut self, desired: &Desired, actual: &Services, sweep: Sweep) -> Plan {
        let mut plan = Plan::default();
        let mut sets = Numbering::new(&actual.sources);
        self.look_at(desired, &mut sets, &mut plan);
        let owners = Self::owners(desired, &mut plan.unrealised);
        // A frontend that another service has leads nowhere here.
        let shares: Vec<Share> =
            self.known.iter().flat_map(|(name, known)| own(name, known, &owners)).collect();
        let placed = place::place(&shares.iter().collect::<Vec<_>>(), actual);
        let (mut tables, mut slots) = (BTreeMap::new(), BTreeMap::new());
        for (share, slot) in shares.iter().zip(&placed) {
            let Some(slot) = slot else { continue };
            tables.insert(*slot, Arc::clone(&share.table));
            slots.extend(share.references.iter().map(|reference| (*reference, *slot)));
        }
        let mut frontends = BTreeMap::new();
        for (key, owner) in &owners {
            let slot = |scope| slots.get(&(*key, scope)).copied();
            match (slot(Scope::Inside), slot(Scope::Outside)) {
                (Some(inside), Some(outside)) if frontends.len() < FRONTENDS_MAX => {
                    frontends.insert(*key, Frontend { inside, outside, flags: owner.flags });
                }
                (Some(_), Some(_)) => plan.fails(owner.service, "the table of frontends is full"),
                _ => plan.fails(owner.service, "the table of services is full"),
            }
        }
        let wanted = Wanted { sets: sets.sets, tables, frontends };
        plan.steps = steps(actual, &wanted, sweep);
        plan
    }

    /// The node has these addresses from now on.
    pub fn follow_addresses(&mut self, addresses: Addresses) {
        if self.here.addresses != addresses {
            self.here.addresses = addresses;
            self.known.retain(|_, known| known.service.sources.is_none());
        }
    }

    /// Whether these are the services of the last plan.
    pub fn knows(&self, desired: &Desired) -> bool {
        let same = |((name, service), (known_name, known)): ((&String, &Arc<Service>), (&String, &Known))| {
            Arc::ptr_eq(service, &known.service) && name == known_name
        };
        desired.len() == self.known.len() && desired.iter().zip(&self.known).all(same)
    }

    /// Which backends the services of the last plan have, for flows that begin on this node.
    pub fn serving(&self) -> Serving<'_> {
        let mut tables = BTreeMap::new();
        for share in self.known.values().flat_map(|known| &known.shares) {
            for (key, _) in share.references.iter().filter(|(_, scope)| *scope == Scope::Inside) {
                tables.entry(*key).or_insert(&*share.table);
            }
        }
        Serving { tables }
    }

    fn look_at(&mut self, desired: &Desired, sets: &mut Numbering<'_>, plan: &mut Plan) {
        let mut numbers = BTreeMap::new();
        for (name, service) in desired {
            let given = service.sources.as_ref().map_or(Some(Numbers::default()), |sources| sets.of(sources));
            match given {
                Some(given) => drop(numbers.insert(name, given)),
                None => plan.fails(name, "the table of source ranges is full"),
            }
        }
        self.known.retain(|name, known| {
            desired.get(name).is_some_and(|service| Arc::ptr_eq(service, &known.service))
                && numbers.get(name) == Some(&known.numbers)
        });
        for (name, service) in desired {
            let Some(numbers) = numbers.get(name).copied() else {
                // Nobody finds it: who may come is not known.
                let known =
                    Known { service: Arc::clone(service), numbers: Numbers::default(), shares: Vec::new() };
                self.known.insert(name.clone(), known);
                continue;
            };
            if !self.known.contains_key(name) {
                let shares = view::shares(service, &self.here, numbers);
                let known = Known { service: Arc::clone(service), numbers, shares };
                self.known.insert(name.clone(), known);
            }
        }
    }

    /// Whose each frontend is: of two services that claim one, the first by name's.
    fn owners<'a>(
        desired: &'a Desired,
        unrealised: &mut Vec<(String, String)>,
    ) -> BTreeMap<FrontendKey, Owner<'a>> {
        let mut owners: BTreeMap<FrontendKey, Owner<'a>> = BTreeMap::new();
        for (name, service) in desired {
            for frontend in &service.frontends {
                for key in [true, false].into_iter().filter_map(|v4| view::key(frontend, v4)) {
                    if let Some(other) = owners.get(&key) {
                        let address = frontend.address.map(|address| format!("{address} "));
                        let address = address.unwrap_or_default();
                        let why =
                            format!("{address}port {} is the service {}'s", frontend.port, other.service);
                        unrealised.push((name.clone(), why));
                        continue;
                    }
                    owners.insert(key, Owner { service: name, flags: view::flags(frontend) });
                }
            }
        }
        owners
    }
}

/// See [`Balancer::serving`].
#[derive(Debug)]
pub struct Serving<'a> {
    tables: BTreeMap<FrontendKey, &'a Table>,
}

impl Serving<'_> {
    /// Whether a service asks for TCP connections to be ended.
    pub fn ends_connections(&self) -> bool {
        self.tables.iter().any(|(key, table)| key.protocol == TCP && table.ends_connections())
    }

    /// Whether a socket of the protocol may stay connected: the service that it called still has the backend, or does not ask any
    /// more for connections to be ended.
    pub fn serves(&self, protocol: u8, peer: &SocketPeer) -> bool {
        let SocketPeer { frontend, backend } = peer;
        let exact = FrontendKey::address(frontend.address, frontend.port, protocol);
        let node_port = FrontendKey::node_port(frontend.address.is_v4(), frontend.port, protocol);
        let Some(table) = self.tables.get(&exact).or_else(|| self.tables.get(&node_port)) else {
            return false;
        };
        if protocol == TCP && !table.ends_connections() {
            return true;
        }
        table.backends().iter().any(|has| {
            let port = if has.port == 0 { frontend.port } else { has.port.to_be() };
            Address::from(has.address) == backend.address && port == backend.port
        })
    }
}

struct Owner<'a> {
    service: &'a str,
    flags: u32,
}

impl Plan {
    fn fails(&mut self, service: &str, why: &str) {
        let failed = (service.to_owned(), why.to_owned());
        if self.unrealised.last() != Some(&failed) {
            self.unrealised.push(failed);
        }
    }
}

/// A service's shares without what is another's.
fn own(name: &str, known: &Known, owners: &BTreeMap<FrontendKey, Owner<'_>>) -> Vec<Share> {
    let is_own = |key: &FrontendKey| owners.get(key).is_some_and(|owner| owner.service == name);
    let own = known.shares.iter().map(|Share { table, references }| Share {
        table: Arc::clone(table),
        references: references.iter().filter(|(key, _)| is_own(key)).copied().collect(),
    });
    own.filter(|share| !share.references.is_empty()).collect()
}

/// What is to be in the kernel.
struct Wanted {
    sets: BTreeMap<u32, Arc<Set>>,
    tables: BTreeMap<u32, Arc<Table>>,
    frontends: BTreeMap<FrontendKey, Frontend>,
}

fn steps(actual: &Services, wanted: &Wanted, sweep: Sweep) -> Vec<Step> {
    let Wanted { sets, tables, frontends } = wanted;
    let new = sets.iter().filter(|(number, _)| !actual.sources.contains_key(number));
    let mut steps: Vec<Step> =
        new.map(|(number, set)| Step::Sources { number: *number, set: Some(Arc::clone(set)) }).collect();
    let changed: Vec<_> = tables
        .iter()
        .filter(|(slot, table)| actual.tables.get(slot) != Some(&table.digest()))
        .map(|(slot, table)| (*slot, Some(Arc::clone(table))))
        .collect();
    if !changed.is_empty() {
        steps.push(Step::Tables { tables: changed });
    }
    for (key, frontend) in frontends {
        if actual.frontends.get(key) != Some(frontend) {
            steps.push(Step::Frontend { key: *key, frontend: Some(*frontend) });
        }
    }
    if sweep == Sweep::Keep {
        return steps;
    }
    let gone = actual.frontends.keys().filter(|key| !frontends.contains_key(key));
    steps.extend(gone.map(|key| Step::Frontend { key: *key, frontend: None }));
    let unused: BTreeSet<u32> =
        actual.tables.keys().filter(|slot| !tables.contains_key(slot)).copied().collect();
    if !unused.is_empty() {
        steps.push(Step::Tables { tables: unused.into_iter().map(|slot| (slot, None)).collect() });
    }
    let unnamed = actual.sources.keys().filter(|number| !sets.contains_key(number));
    steps.extend(unnamed.map(|number| Step::Sources { number: *number, set: None }));
    steps
}

#[cfg(test)]
mod tests;
