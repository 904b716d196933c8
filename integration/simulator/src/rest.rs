//! What a fleet must be like once it has come to rest.
use std::net::IpAddr;

use weft_controller::{fleet_config, resource, store::Store};
use weft_noded::{
    daemon::{Core, EndpointState},
    plan::{
        tables::Tables,
        who::{Lengths, Who},
    },
};
use weft_shared::{
    layout::{Address, Class, Direction},
    policy::{
        model::{FleetConfig, Labels, Party},
        parse,
    },
};

use crate::{
    inspect::PORTS,
    node::Node,
    scratch,
    store::Ledger,
    verdict::{self, Question, Rules},
    ways,
    world::World,
};

/// Whether every node's tables are those of the store's contents, and every workload is open as what it is.
pub(crate) async fn at_rest(world: &World) -> Result<(), String> {
    let fleet = scratch::fleet(&world.shared.memory, None).await;
    let mut fleet = fleet.ok_or("the store cannot be read")?;
    for node in &world.nodes {
        let daemon = node.daemon.as_ref().ok_or_else(|| format!("{} has no daemon", node.name))?;
        let found = node.twin.with(|state| state.tables.clone());
        let desired = scratch::desired(&mut fleet, &node.name);
        let desired = desired.ok_or_else(|| format!("{} is not in the store", node.name))?;
        ways::at_rest(world, node, &desired).map_err(|what| format!("{}: {what}", node.name))?;
        let identities = world.shared.ledger().identities.clone();
        let expected = scratch::tables(desired, &node.name, node.address, &found, &identities);
        if let Some(difference) = scratch::difference(&found, &expected) {
            return Err(format!("{} holds something else than the store:\n    {difference}", node.name));
        }
        ways::rates_of_all(&found, &fleet, &identities).map_err(|what| format!("{}: {what}", node.name))?;
        own_workloads(world, &node.name, &daemon.core).await?;
    }
    Ok(())
}

async fn own_workloads(world: &World, node: &str, core: &Core) -> Result<(), String> {
    let own = core.endpoints().await.map_err(|error| error.to_string())?;
    let mut names = Vec::new();
    for endpoint in own {
        let name = endpoint.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let state = core.endpoint(name.clone()).await.map_err(|error| error.to_string())?;
        if !matches!(state, EndpointState::Ready(_)) {
            return Err(format!("{node}: {name} is not open: {state:?}"));
        }
        let ledger = world.shared.ledger();
        let stored = ledger.endpoints.get(&name).filter(|stored| stored.node == node);
        let identity = endpoint.status.as_ref().map(|status| status.identity);
        let theirs = stored.and_then(|stored| stored.status.as_ref()).map(|status| status.identity);
        let labels = endpoint.metadata.as_ref().map(|metadata| metadata.labels.clone());
        let of_identity = identity.and_then(|identity| ledger.identities.get(&identity));
        if theirs.is_none() || theirs != identity || labels.as_ref() != of_identity {
            return Err(format!(
                "{node}: {name} is {labels:?} as identity {identity:?}; the store has {stored:?}"
            ));
        }
        names.push(name);
    }
    let stored = world.workloads();
    let lost = stored.iter().find(|(name, of)| *of == node && !names.contains(name));
    lost.map_or(Ok(()), |(name, _)| Err(format!("the store has {name} on {node}, which has not")))
}

/// Every workload against everybody: what the tables say is what the rules say.
pub(crate) async fn right_verdicts(world: &World) -> Result<(), String> {
    let fleet = scratch::fleet(&world.shared.memory, None).await.ok_or("the store cannot be read")?;
    let rules = Rules {
        policies: fleet.policies().cloned().collect(),
        cidr_sets: fleet.cidr_sets().cloned().collect(),
        config: config(world).await?,
    };
    let ledger = world.shared.ledger();
    for node in &world.nodes {
        let peers = everybody(world, &ledger, node);
        let tables = node.twin.with(|state| state.tables.clone());
        for (slot, subject) in &tables.subjects {
            if let Some(labels) = ledger.identities.get(&subject.identity) {
                let judged = right_for(world, &tables, *slot, &verdict::subject(labels), &peers, &rules);
                judged.map_err(|what| format!("{}: {what}", node.name))?;
            }
        }
    }
    Ok(())
}

/// All endpoints and nodes as one node sees them, and addresses of which nobody knows anything.
fn everybody(world: &World, ledger: &Ledger, own: &Node) -> Vec<(IpAddr, Party)> {
    let endpoints = ledger.endpoints.values().flat_map(|endpoint| {
        let identity = endpoint.status.as_ref().map_or(0, |status| status.identity);
        let labels = ledger.identities.get(&identity);
        let local = endpoint.node == own.name;
        endpoint.addresses.iter().filter_map(move |text| {
            let (address, labels): (IpAddr, _) = (text.parse().ok()?, labels?.clone());
            Some((address, Party { class: Class::Fleet, labels, address: Some(address), local }))
        })
    });
    let nodes = world.nodes.iter().map(|node| {
        let class = if node.name == own.name { Class::Host } else { Class::RemoteNode };
        let (labels, address) = (node.labels.clone(), Some(node.address));
        (node.address, Party { class, labels, address, local: false })
    });
    let unknown = [
        ("203.0.113.1", Class::World),
        ("203.0.113.200", Class::World),
        ("2001:db8::9", Class::World),
        ("192.0.2.77", Class::World),
        ("10.200.255.77", Class::Unmanaged),
    ];
    let unknown = unknown.into_iter().filter_map(|(text, class)| {
        let address: IpAddr = text.parse().ok()?;
        Some((address, Party { class, labels: Labels::new(), address: Some(address), local: false }))
    });
    endpoints.chain(nodes).chain(unknown).collect()
}

fn right_for(
    world: &World,
    tables: &Tables,
    slot: u32,
    subject: &Party,
    peers: &[(IpAddr, Party)],
    rules: &Rules,
) -> Result<(), String> {
    let lengths = Lengths::of([tables]);
    for (address, peer) in peers {
        let found = Who::new(tables, &lengths).is(Address::from(*address));
        let class = Class::ALL.into_iter().find(|class| *class as u32 == found.class);
        let class = class.ok_or_else(|| format!("{address} is of class {}", found.class))?;
        for direction in [Direction::Ingress, Direction::Egress] {
            let Some(port) = world.chance.pick(&PORTS).copied() else { continue };
            let question = Question { direction, identity: found.identity, class, port };
            let allowed = if subject.class == Class::Host {
                verdict::node_allows(tables, slot, question, *address, found.ifindex != 0)
            } else {
                verdict::allows(tables, slot, question)
            };
            let by_rules = rules.allow(subject, peer, direction, port);
            if allowed != by_rules {
                return Err(format!(
                    "the tables say {allowed} and the rules {by_rules}: subject {subject:?}, peer {peer:?}, {question:?}"
                ));
            }
        }
    }
    Ok(())
}

async fn config(world: &World) -> Result<FleetConfig, String> {
    let key = fleet_config::key();
    let (item, _) = world.shared.memory.get(&key).await.map_err(|error| error.to_string())?;
    let config = item.ok_or("there is no configuration")?;
    let config = resource::decode_fleet_config(&config).map_err(|error| error.to_string())?;
    parse::fleet_config(&config).map_err(|errors| format!("{errors:?}"))
}
