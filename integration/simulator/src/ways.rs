//! What a node's kernel must hold of services, prefilters and shapings once a fleet has come to rest: made from nothing, with
//! slots and numbers of its own, and compared by what these stand for.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use weft_controller::fleet::Fleet;
use weft_noded::{
    balance::{
        Balancer,
        sources::Addresses,
        tables::{OwnAddresses, Services, Step},
        view::Here,
    },
    desired::Desired,
    kernel::twin::TwinState,
    plan::{diff::Sweep, tables::Tables},
    prefilter::{self, LIMITS, lists::Lists},
    shaping::{self, ByteRates},
};
use weft_shared::{
    balance::table::Table,
    layout::{endpoint_flags, service::FrontendKey},
    policy::model::Labels,
    service::model::{Rates, Shaped},
};

use crate::{
    node::{CGROUP, Node},
    operator,
    scratch::rows,
    world::World,
};

type Digest = [u64; 2];

pub(crate) fn at_rest(world: &World, node: &Node, desired: &Desired) -> Result<(), String> {
    let known = world.shared.ledger().addresses(|_| true).map(|(address, _)| address).collect();
    node.twin.with(|state| {
        services(&state.services, node, desired)?;
        own_tables(&state.services, desired)?;
        known_backends(state, &known)?;
        prefilters(&state.prefilters, desired)?;
        rates(&state.paced_cgroups, desired)
    })
}

fn services(found: &Services, node: &Node, desired: &Desired) -> Result<(), String> {
    let own = vec![node.address];
    let here = Here {
        node: node.name.clone(),
        labels: node.labels.clone(),
        addresses: Addresses { known: own.clone(), others: own },
    };
    let plan = Balancer::new(here).plan(desired.services(), &Services::default(), Sweep::Remove);
    let mut expected = Services::default();
    plan.steps.iter().for_each(|step| expected.apply(step));
    if !desired.services().is_empty() {
        expected.own = OwnAddresses::of(&[node.address]);
    }
    if found.own != expected.own {
        return Err(format!("sends as {:?}, expected {:?}", found.own, expected.own));
    }
    let (idle, expected_idle) = (idle(found), idle(&expected));
    if idle != expected_idle {
        return Err(format!("tables in slots {idle:?} are led to by no frontend"));
    }
    none(&rows("frontend", &led(found), &led(&expected)))
}

/// Each frontend's flags, and the tables to which it leads.
fn led(services: &Services) -> BTreeMap<FrontendKey, (u32, [Option<Digest>; 2])> {
    let led = services.frontends.iter().map(|(key, frontend)| {
        let tables = [frontend.inside, frontend.outside].map(|slot| services.tables.get(&slot).copied());
        (*key, (frontend.flags, tables))
    });
    led.collect()
}

fn idle(services: &Services) -> BTreeSet<u32> {
    let led = services.frontends.values().flat_map(|frontend| [frontend.inside, frontend.outside]);
    let led: BTreeSet<u32> = led.collect();
    services.tables.keys().filter(|slot| !led.contains(slot)).copied().collect()
}

/// Frontends of two services never lead to one table: what changes one would change the other.
fn own_tables(found: &Services, desired: &Desired) -> Result<(), String> {
    let mut owners: BTreeMap<u32, &str> = BTreeMap::new();
    for (name, service) in desired.services() {
        let keys = service.frontends.iter().flat_map(|frontend| {
            [true, false].into_iter().filter_map(|v4| weft_noded::balance::view::key(frontend, v4))
        });
        let rows = keys.filter_map(|key| found.frontends.get(&key));
        for slot in rows.flat_map(|row| [row.inside, row.outside]) {
            let owner = *owners.entry(slot).or_insert(name);
            if owner != name {
                return Err(format!("frontends of the services {owner} and {name} lead to slot {slot}"));
            }
        }
    }
    Ok(())
}

/// No table has a backend that is neither an endpoint's address nor listed.
fn known_backends(state: &TwinState, known: &BTreeSet<IpAddr>) -> Result<(), String> {
    let mut tables: BTreeMap<u32, &Table> = BTreeMap::new();
    for step in &state.service_steps {
        if let Step::Tables { tables: written } = step {
            tables.extend(written.iter().filter_map(|(slot, table)| Some((*slot, table.as_deref()?))));
        }
    }
    let there = tables.iter().filter(|(slot, _)| state.services.tables.contains_key(slot));
    let mut backends = there.flat_map(|(slot, table)| table.backends().iter().map(move |one| (slot, one)));
    let unknown =
        backends.find(|(_, one)| !known.contains(&one.address) && !operator::is_listed(one.address));
    unknown.map_or(Ok(()), |(slot, one)| {
        Err(format!("the table in slot {slot} has the backend {}, which the fleet has not", one.address))
    })
}

fn prefilters(found: &Lists, desired: &Desired) -> Result<(), String> {
    let failsafe = desired.fleet().map_or(&[][..], |fleet| &fleet.failsafe);
    let plan = prefilter::plan(desired.prefilters(), failsafe, &Lists::default(), Sweep::Remove, LIMITS);
    let mut expected = Lists::default();
    plan.steps.iter().for_each(|step| expected.apply(step));
    let ((nets, senders), (expected_nets, expected_senders)) = (dropped(found), dropped(&expected));
    let mut lines = rows("dropped source", &nets, &expected_nets);
    lines.extend(rows("dropped sender", &senders, &expected_senders));
    lines.extend(rows("word of blocks", &found.blocks, &expected.blocks));
    lines.extend(rows("word of what is open", &found.open, &expected.open));
    let lists = |lists: &Lists| lists.slots.values().copied().collect::<BTreeSet<Digest>>();
    if lists(found) != lists(&expected) || found.slots.len() != expected.slots.len() {
        lines.push(format!("lists {:?}, expected {:?}", found.slots, expected.slots));
    }
    none(&lines)
}

type Dropped = (BTreeMap<IpNet, Option<Digest>>, BTreeMap<Ipv4Addr, Option<Digest>>);

/// What is dropped, and for which list that counts.
fn dropped(lists: &Lists) -> Dropped {
    let list = |slot: &u32| lists.slots.get(slot).copied();
    (
        lists.prefixes.iter().map(|(net, slot)| (*net, list(slot))).collect(),
        lists.senders.iter().map(|(sender, slot)| (*sender, list(slot))).collect(),
    )
}

/// Of each open endpoint: what all shapings of the fleet make of it, whichever of them its node was told of.
pub(crate) fn rates_of_all(
    tables: &Tables,
    fleet: &Fleet,
    identities: &BTreeMap<u32, Labels>,
) -> Result<(), String> {
    let open = tables.endpoints.iter().filter(|(_, row)| row.flags & endpoint_flags::OPEN != 0);
    let (mut found, mut expected) = (BTreeMap::new(), BTreeMap::new());
    for (ifindex, row) in open {
        let labels = identities.get(&row.identity).ok_or("an endpoint is open as what nobody knows")?;
        let selecting = fleet.shapings().filter(
            |shaping| matches!(&shaping.shaped, Shaped::Endpoints(selector) if selector.matches(labels)),
        );
        let least = selecting.fold(Rates::default(), |least, shaping| least.and(shaping.rates));
        expected.insert(*ifindex, ByteRates::from(least));
        let (ingress, egress) = (row.ingress_rate, row.egress_rate);
        found.insert(*ifindex, ByteRates { connection: row.connection_rate, ingress, egress });
    }
    none(&rows("rates of endpoint", &found, &expected))
}

/// Those of endpoints are in their rows.
fn rates(found: &BTreeMap<PathBuf, u32>, desired: &Desired) -> Result<(), String> {
    let expected = shaping::of_cgroups(desired.shapings()).into_iter();
    let expected = expected.map(|(path, rate)| (Path::new(CGROUP).join(path), rate)).collect();
    none(&rows("rate of a cgroup", found, &expected))
}

fn none(lines: &[String]) -> Result<(), String> {
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n    ")) }
}
