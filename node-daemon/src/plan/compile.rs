//! Desired state and attachments become the rows that the kernel's tables should hold.
//!
//! Slots of subjects and nodes, and numbers of prefixes, are taken over from what the kernel holds now, so that a
//! restart changes nothing there.

mod host;
mod policies;
mod prefixes;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_shared::{
    layout::{Address, Class, Endpoint, Peer, endpoint_flags, maps::NODES_MAX},
    names::Identity,
    policy::{
        compile::{self, Kind, Surroundings},
        model::NodePolicy,
        prefix::PrefixIdentities,
    },
};

pub use host::{node_is_judged, policies_of as host_policies_of};
pub use prefixes::{prefix_key, prefix_of};

use super::tables::{NodeRow, Tables};
use crate::{
    desired::{
        Desired, Fleet, Route,
        attachments::{Attachment, Attachments},
    },
    shaping,
};

/// What is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// This node's name.
    pub node: &'a str,
    /// Its underlay addresses.
    pub own_addresses: &'a [IpAddr],
    /// All addresses of the host, those among them or not: a workload that reaches one of them reaches the host.
    pub host_addresses: &'a [IpAddr],
    pub desired: &'a Desired,
    pub attachments: &'a Attachments,
    /// Whether the uplinks' queues keep to packets' times of departure.
    pub departures: bool,
    /// The members that sets had when the kernel's tables were last brought to rest.
    pub former_sets: &'a compile::IdentitySets,
}

/// What comes out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub tables: Tables,
    /// Subjects whose policy can't be used, and are closed therefore.
    pub unfit: Vec<compile::Unfit>,
    /// Something stale was kept: it goes in a second pass.
    pub unfinished: bool,
    /// What else could not be done, for people.
    pub problems: Vec<String>,
}

/// What no policy names any more while addresses still carry it: prefixes, and identities that have left their sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// It stays, with rows that say what the policies now say of it: the first half of a change. Without rows of their
    /// own, addresses that still carry it would be judged by neither revision.
    Keep,
    /// It goes: the second half. By now prefixes around it have rows that say the same, and no address carries the
    /// identity.
    Drop,
}

/// Compiles from scratch; equal inputs give equal tables, whatever happened before.
pub fn compile(input: Input<'_>, actual: &Tables, stale: Stale) -> Compiled {
    let mut compiled = Compiled::default();
    // Without the whole word of a controller nobody is opened, and what runs is left as it is.
    let Some(fleet) = input.desired.fleet().filter(|_| input.desired.complete) else {
        return untouched(input, actual);
    };
    let slots = add_nodes(&mut compiled, input, actual);
    prefixes::add_pools(&mut compiled.tables, input, fleet, &slots);
    let numbers = prefixes::add_policy_prefixes(&mut compiled, input, fleet, actual, stale);
    add_addresses(&mut compiled.tables, input, &slots);
    let hosts = host::identities(&mut compiled, input, actual, stale);
    let subjects = policies::slots(&mut compiled, input, &hosts, actual, stale);
    add_endpoints(&mut compiled.tables, input, &subjects);
    let mut sets = Cow::Borrowed(input.desired.sets());
    if stale == Stale::Keep {
        policies::keep_members(&mut compiled, &mut sets, input, actual, &subjects);
    }
    let surroundings = surroundings(input, fleet, &sets, &numbers);
    let mut books = policies::Numbers::of(actual);
    policies::add_policies(&mut compiled, input, &mut books, surroundings, (&subjects, &hosts));
    host::add(&mut compiled, input, fleet, &mut books, &subjects);
    compiled.tables.identities_through = input.desired.identities_through;
    compiled
}

/// What does not change while only members and addresses do.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    /// By the nodes' names.
    pub(super) node_slots: BTreeMap<String, u32>,
    pub(super) prefixes: PrefixIdentities,
    /// The identities that the node itself is judged as.
    pub(super) hosts: BTreeSet<u32>,
}

impl Constant {
    /// Of tables in which nothing stale is kept. `None`: there is no whole word of a controller.
    pub(super) fn of(input: Input<'_>, actual: &Tables) -> Option<Self> {
        let fleet = input.desired.fleet().filter(|_| input.desired.complete)?;
        let mut aside = Compiled::default();
        let slots = add_nodes(&mut aside, input, actual);
        let node_slots = slots.into_iter().map(|(name, slot)| (name.to_owned(), slot)).collect();
        let prefixes = prefixes::add_policy_prefixes(&mut aside, input, fleet, actual, Stale::Drop);
        let hosts = host::identities(&mut aside, input, actual, Stale::Drop);
        Some(Self { node_slots, prefixes, hosts })
    }
}

/// The row of an address of the fleet; `None`: there is none. Only attachments say what this node has, and an address
/// behind a node that is not known yet leads nowhere.
pub(super) fn fleet_peer(
    input: Input<'_>,
    (identity, node): &(u32, String),
    slot: impl FnOnce(&str) -> Option<u32>,
) -> Option<Peer> {
    let slot = slot(node).filter(|_| node != input.node)?;
    Some(peer(*identity, Class::Fleet, slot, 0))
}

/// What policies are compiled with, of these members and numbers of prefixes.
pub(super) fn surroundings<'a>(
    input: Input<'a>,
    fleet: &Fleet,
    sets: &'a compile::IdentitySets,
    prefixes: &'a PrefixIdentities,
) -> Surroundings<'a> {
    Surroundings {
        sets,
        cidr_sets: input.desired.cidr_sets(),
        prefixes,
        default_action: fleet.default_action,
        host_to_endpoint: fleet.host_to_endpoint,
        own_node: input.desired.nodes().get(input.node).map(|route| route.identity),
    }
}

fn untouched(input: Input<'_>, actual: &Tables) -> Compiled {
    let mut tables =
        Tables { identities_through: actual.identities_through, host: actual.host, ..Tables::default() };
    for attachment in input.attachments.endpoints.values() {
        let closed = endpoint_row(attachment, input, 0, 0, 0);
        let row = actual.endpoints.get(&attachment.ifindex).filter(|row| row.mac == closed.mac);
        tables.endpoints.insert(attachment.ifindex, row.copied().unwrap_or(closed));
    }
    Compiled { tables, ..Compiled::default() }
}

/// The node's address that carries the overlay: of the family that both have, IPv4 if both have both.
fn overlay_address(own: &[IpAddr], other: &[IpAddr]) -> Option<IpAddr> {
    let shared = |v4: bool| {
        let own = own.is_empty() || own.iter().any(|address| address.is_ipv4() == v4);
        other.iter().find(|address| own && address.is_ipv4() == v4).copied()
    };
    shared(true).or_else(|| shared(false))
}

/// By which address of another node packets get there from this one.
pub fn underlay_address(input: Input<'_>, node: &str) -> Option<IpAddr> {
    overlay_address(own_underlay(input), &input.desired.nodes().get(node)?.addresses)
}

/// As the fleet knows them, if it does.
fn own_underlay(input: Input<'_>) -> &[IpAddr] {
    input.desired.nodes().get(input.node).map_or(input.own_addresses, |route| &route.addresses)
}

/// Rows of nodes, and node name → slot.
fn add_nodes<'a>(compiled: &mut Compiled, input: Input<'a>, actual: &Tables) -> BTreeMap<&'a str, u32> {
    let tables = &mut compiled.tables;
    let own_route = input.desired.nodes().get(input.node);
    let own = own_underlay(input);
    let mut slots = BTreeMap::new();
    let mut taken: BTreeSet<u32> = actual.nodes.keys().copied().chain([0]).collect();
    let by_address: BTreeMap<Address, u32> =
        actual.nodes.iter().map(|(slot, row)| (row.address, *slot)).collect();
    for (name, route) in input.desired.nodes() {
        let mine = name == input.node;
        let Some(overlay) = overlay_address(own, &route.addresses) else {
            compiled
                .problems
                .push(format!("node {name}: no underlay address of a family that this node has"));
            continue;
        };
        let kept = by_address.get(&overlay.into()).copied().filter(|slot| *slot != 0);
        let slot = if mine { 0 } else { kept.unwrap_or_else(|| lowest_free(&mut taken)) };
        if slot as usize >= NODES_MAX {
            compiled.problems.push(format!("node {name}: there are more than {NODES_MAX} nodes"));
            continue;
        }
        slots.insert(name.as_str(), slot);
        tables.nodes.insert(slot, NodeRow { address: overlay.into(), identity: route.identity });
        add_node_addresses(tables, route, slot, if mine { Class::Host } else { Class::RemoteNode });
    }
    for address in input.own_addresses.iter().chain(input.host_addresses) {
        let identity = own_route.map_or(0, |route| route.identity);
        tables.ipcache.insert((*address).into(), peer(identity, Class::Host, 0, 0));
    }
    slots
}

fn add_node_addresses(tables: &mut Tables, route: &Route, slot: u32, class: Class) {
    for address in &route.addresses {
        tables.node_addresses.insert((*address).into(), slot);
        // Nodes talk with each other through the underlay; endpoints and nodes through the overlay.
        tables.ipcache.insert((*address).into(), peer(route.identity, class, slot, 0));
    }
}

fn lowest_free(taken: &mut BTreeSet<u32>) -> u32 {
    let slot = (1..u32::MAX).find(|slot| !taken.contains(slot)).unwrap_or(u32::MAX);
    taken.insert(slot);
    slot
}

fn peer(identity: u32, class: Class, node: u32, ifindex: u32) -> Peer {
    let class = class as u32;
    Peer { identity: if identity == 0 { class } else { identity }, class, node, ifindex }
}

/// The policies that select an endpoint's identity.
pub fn policies_of<'a>(
    subject: Identity,
    desired: &'a Desired,
    sets: &compile::IdentitySets,
) -> impl Iterator<Item = &'a NodePolicy> {
    let selects = move |policy: &&NodePolicy| {
        !policy.subject.is_nodes()
            && sets.get(policy.subject.named()).is_some_and(|members| members.contains(&subject.0))
    };
    desired.policies().values().filter(selects)
}

/// The policies that select a subject.
#[derive(Clone, Debug, Default)]
pub(super) struct Selecting<'a> {
    pub(super) kind: Kind,
    pub(super) policies: Vec<&'a NodePolicy>,
}

/// Of many subjects at once, of which `hosts` are the node itself; who is selected by none may be missing.
pub(super) fn policies_of_all<'a>(
    subjects: impl IntoIterator<Item = u32>,
    hosts: &BTreeSet<u32>,
    desired: &'a Desired,
    sets: &compile::IdentitySets,
) -> BTreeMap<u32, Selecting<'a>> {
    let endpoints: BTreeSet<u32> =
        subjects.into_iter().filter(|identity| !hosts.contains(identity)).collect();
    let mut found: BTreeMap<u32, Selecting<'a>> = BTreeMap::new();
    for policy in desired.policies().values().filter(|policy| !policy.subject.is_nodes()) {
        let Some(members) = sets.get(policy.subject.named()) else { continue };
        // Of most sets of subjects a node is told only its own.
        let (few, many) =
            if members.len() < endpoints.len() { (members, &endpoints) } else { (&endpoints, members) };
        for identity in few.iter().filter(|identity| many.contains(identity)) {
            found.entry(*identity).or_default().policies.push(policy);
        }
    }
    for identity in hosts {
        let policies = host::policies_of(*identity, desired, sets).collect();
        found.insert(*identity, Selecting { kind: Kind::Node, policies });
    }
    found
}

fn add_addresses(tables: &mut Tables, input: Input<'_>, slots: &BTreeMap<&str, u32>) {
    for (address, said) in input.desired.addresses() {
        let Some(peer) = fleet_peer(input, said, |node| slots.get(node).copied()) else { continue };
        tables.ipcache.entry((*address).into()).or_insert(peer);
    }
}

fn add_endpoints(tables: &mut Tables, input: Input<'_>, subjects: &policies::Slots) {
    let slots: BTreeMap<u32, u32> = subjects.iter().map(|(slot, identity)| (*identity, *slot)).collect();
    for attachment in input.attachments.endpoints.values() {
        let standing = input.attachments.standing(attachment, input.desired.endpoints());
        let (identity, may_open) = standing.unwrap_or((0, false));
        let subject = slots.get(&identity).copied().unwrap_or(0);
        let open = may_open && subject != 0;
        let flags = if open { endpoint_flags::OPEN } else { 0 };
        tables
            .endpoints
            .insert(attachment.ifindex, endpoint_row(attachment, input, identity, subject, flags));
        if subject != 0 {
            for address in attachment.addresses() {
                let own = peer(identity, Class::Fleet, 0, attachment.ifindex);
                tables.ipcache.insert(address.into(), own);
            }
        }
    }
}

fn endpoint_row(
    attachment: &Attachment,
    input: Input<'_>,
    identity: u32,
    subject: u32,
    flags: u32,
) -> Endpoint {
    let rates = shaping::of_endpoint(input.desired.shapings(), attachment);
    let peer = if attachment.peer { endpoint_flags::PEER } else { 0 };
    let departures = if input.departures && rates.egress != 0 { endpoint_flags::DEPARTURES } else { 0 };
    let address = |address: Option<IpAddr>| address.map_or(Address::UNSPECIFIED, Address::from);
    Endpoint {
        address4: address(attachment.address4.map(IpAddr::V4)),
        address6: address(attachment.address6.map(IpAddr::V6)),
        identity,
        subject,
        flags: flags | peer | departures,
        mac: attachment.mac,
        gateway_mac: attachment.gateway_mac,
        ingress_rate: rates.ingress,
        egress_rate: rates.egress,
        connection_rate: rates.connection,
        zero: 0,
    }
}
