//! The fleet that the tests look at from one of its nodes: who has which address, and the tables that say so.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{Deref, DerefMut},
};

use weft_noded::plan::tables::{HostRow, NodeRow, Tables};
use weft_shared::{
    layout::{
        Action, Address, Class, Direction, Endpoint, Peer, PolicyRow, PortKey, PrefixKey, endpoint_flags,
    },
    policy::model::Failsafe,
};

use crate::policies::{self, Policies, PolicyTable, Row};

/// Interfaces of this node: host's sides of the endpoints, the overlay's device, an uplink. Each is a veth, whose other
/// end has an index [`PEER`] higher.
pub(crate) const WEB: u32 = 10;
pub(crate) const API: u32 = 12;
pub(crate) const INIT: u32 = 14;
/// An endpoint whose host's side has no peer elsewhere (a virtual machine's tap).
pub(crate) const TAP: u32 = 16;
pub(crate) const OVERLAY: u32 = 40;
pub(crate) const UPLINK: u32 = 50;
/// An interface that is nobody's.
pub(crate) const STRANGE: u32 = 60;
pub(crate) const INTERFACES: [u32; 7] = [WEB, API, INIT, TAP, OVERLAY, UPLINK, STRANGE];
pub(crate) const PEER: u32 = 100;

pub(crate) const WEB_IDENTITY: u32 = 256;
pub(crate) const API_IDENTITY: u32 = 257;
pub(crate) const DB_IDENTITY: u32 = 258;
pub(crate) const TAP_IDENTITY: u32 = 259;
pub(crate) const REMOTE_NODE_IDENTITY: u32 = 300;
/// This node's own.
pub(crate) const HOST_IDENTITY: u32 = 301;
pub(crate) const PARTNERS_IDENTITY: u32 = 1 << 24;

pub(crate) const WEB_SLOT: u32 = 1;
pub(crate) const API_SLOT: u32 = 2;
pub(crate) const TAP_SLOT: u32 = 3;
pub(crate) const HOST_SLOT: u32 = 4;

/// Of all nodes' slots: this one is 0.
pub(crate) const DB_NODE: u32 = 1;
/// Its underlay is IPv6.
pub(crate) const CACHE_NODE: u32 = 2;

/// Both addresses of a party.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Party {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Party {
    const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        Self {
            v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
            v6: Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], v6[4], v6[5], v6[6], v6[7]),
        }
    }

    pub(crate) fn address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub(crate) const WEB_PARTY: Party = Party::new([10, 200, 1, 2], [0xfd00, 0x77, 0, 1, 0, 0, 0, 2]);
pub(crate) const API_PARTY: Party = Party::new([10, 200, 1, 3], [0xfd00, 0x77, 0, 1, 0, 0, 0, 3]);
pub(crate) const INIT_PARTY: Party = Party::new([10, 200, 1, 4], [0xfd00, 0x77, 0, 1, 0, 0, 0, 4]);
pub(crate) const TAP_PARTY: Party = Party::new([10, 200, 1, 5], [0xfd00, 0x77, 0, 1, 0, 0, 0, 5]);
/// An endpoint of another node.
pub(crate) const DB_PARTY: Party = Party::new([10, 200, 2, 2], [0xfd00, 0x77, 0, 2, 0, 0, 0, 2]);
/// An endpoint behind a node with an IPv6 underlay.
pub(crate) const CACHE_PARTY: Party = Party::new([10, 200, 3, 2], [0xfd00, 0x77, 0, 3, 0, 0, 0, 2]);
/// Inside the pools and another node's prefix; no endpoint that this node was told of.
pub(crate) const UNTOLD_PARTY: Party = Party::new([10, 200, 2, 99], [0xfd00, 0x77, 0, 2, 0, 0, 0, 0x99]);
/// Inside the pools and this node's prefix; nobody.
pub(crate) const NOBODY_PARTY: Party = Party::new([10, 200, 1, 99], [0xfd00, 0x77, 0, 1, 0, 0, 0, 0x99]);
pub(crate) const HOST_PARTY: Party = Party::new([192, 0, 2, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
pub(crate) const DB_NODE_PARTY: Party = Party::new([192, 0, 2, 2], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]);
pub(crate) const WORLD_PARTY: Party = Party::new([203, 0, 113, 5], [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 5]);
/// In the world, and in a prefix that policies name.
pub(crate) const PARTNER_PARTY: Party = Party::new([198, 51, 100, 5], [0x2001, 0xdb8, 0xaaaa, 0, 0, 0, 0, 5]);

/// The workload's MAC and what it believes its gateway has.
pub(crate) const fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, ifindex.to_le_bytes()[0]]
}

pub(crate) const fn gateway_mac(ifindex: u32) -> [u8; 6] {
    [2, 0xff, 0, 0, 0, ifindex.to_le_bytes()[0]]
}

/// A row of the endpoints' table.
pub(crate) fn endpoint(ifindex: u32, party: Party, identity: u32, subject: u32, flags: u32) -> Endpoint {
    Endpoint {
        address4: IpAddr::V4(party.v4).into(),
        address6: IpAddr::V6(party.v6).into(),
        identity,
        subject,
        flags,
        mac: mac(ifindex),
        gateway_mac: gateway_mac(ifindex),
    }
}

fn prefix(address: IpAddr, bits: u32) -> PrefixKey {
    let mapping = if address.is_ipv4() { Address::MAPPED_PREFIX_BITS } else { 0 };
    PrefixKey { bits: bits + mapping, address: address.into() }
}

/// Tables, and the policies of their subjects as tests say them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    pub(crate) tables: Tables,
    /// By slot.
    pub(crate) policies: Policies,
    /// What no policy of the node's can stop.
    pub(crate) entries: Vec<Failsafe>,
}

impl Deref for World {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Tables {
        &mut self.tables
    }
}

impl World {
    /// The tables with the policies' rulebooks; those that `before` has keep their numbers.
    pub(crate) fn with_rulebooks(&self, before: &Tables) -> Tables {
        let mut tables = self.tables.clone();
        self.policies.write(&mut tables, before);
        policies::write_failsafe(&mut tables, before, &self.entries);
        tables
    }

    /// Lets the node itself be judged by this table.
    pub(crate) fn judge_host(&mut self, table: PolicyTable, own_endpoints_free: bool) {
        self.policies.subject(HOST_SLOT, HOST_IDENTITY);
        self.policies.insert(HOST_SLOT, table);
        self.host = Some(HostRow { subject: HOST_SLOT, own_endpoints_free });
        let host = Peer { identity: HOST_IDENTITY, class: Class::Host as u32, node: 0, ifindex: 0 };
        tell(self, HOST_PARTY, host);
    }
}

/// The tables of [`world`].
pub(crate) fn tables() -> Tables {
    world().with_rulebooks(&Tables::default())
}

/// Everyone may do everything.
pub(crate) fn world() -> World {
    const OPEN: u32 = endpoint_flags::OPEN | endpoint_flags::PEER;
    let tables = Tables { identities_through: 1000, ..Tables::default() };
    let mut tables = World { tables, ..World::default() };
    let own = [
        (WEB, WEB_PARTY, WEB_IDENTITY, WEB_SLOT, OPEN),
        (API, API_PARTY, API_IDENTITY, API_SLOT, OPEN),
        (INIT, INIT_PARTY, API_IDENTITY, API_SLOT, endpoint_flags::PEER),
        (TAP, TAP_PARTY, TAP_IDENTITY, TAP_SLOT, endpoint_flags::OPEN),
    ];
    for (ifindex, party, identity, subject, flags) in own {
        tables.endpoints.insert(ifindex, endpoint(ifindex, party, identity, subject, flags));
        tables.policies.subject(subject, identity);
        tell(&mut tables, party, Peer { identity, class: Class::Fleet as u32, node: 0, ifindex });
    }
    let fleet = |identity, node| Peer { identity, class: Class::Fleet as u32, node, ifindex: 0 };
    tell(&mut tables, DB_PARTY, fleet(DB_IDENTITY, DB_NODE));
    tell(&mut tables, CACHE_PARTY, fleet(DB_IDENTITY, CACHE_NODE));
    let node = |identity, class, node| Peer { identity, class: class as u32, node, ifindex: 0 };
    tell(&mut tables, HOST_PARTY, node(HOST_IDENTITY, Class::Host, 0));
    tell(&mut tables, DB_NODE_PARTY, node(REMOTE_NODE_IDENTITY, Class::RemoteNode, DB_NODE));
    nodes(&mut tables);
    prefixes(&mut tables);
    tables
}

fn tell(tables: &mut World, party: Party, peer: Peer) {
    for family in FAMILIES {
        tables.ipcache.insert(party.address(family).into(), peer);
    }
}

fn nodes(tables: &mut World) {
    let cache_node = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);
    let nodes: [(u32, IpAddr, u32); 3] = [
        (0, HOST_PARTY.v4.into(), HOST_IDENTITY),
        (DB_NODE, DB_NODE_PARTY.v4.into(), REMOTE_NODE_IDENTITY),
        (CACHE_NODE, cache_node.into(), REMOTE_NODE_IDENTITY),
    ];
    for (slot, address, identity) in nodes {
        tables.nodes.insert(slot, NodeRow { address: address.into(), identity });
        tables.node_addresses.insert(address.into(), slot);
    }
    tables.node_addresses.insert(IpAddr::V6(HOST_PARTY.v6).into(), 0);
    tables.node_addresses.insert(IpAddr::V6(DB_NODE_PARTY.v6).into(), DB_NODE);
}

fn prefixes(tables: &mut World) {
    let unmanaged =
        |node| Peer { identity: Class::Unmanaged as u32, class: Class::Unmanaged as u32, node, ifindex: 0 };
    let partners = Peer { identity: PARTNERS_IDENTITY, class: Class::World as u32, node: 0, ifindex: 0 };
    let rows: [(IpAddr, u32, Peer); 8] = [
        (Ipv4Addr::new(10, 200, 0, 0).into(), 16, unmanaged(0)),
        (Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0).into(), 48, unmanaged(0)),
        (Ipv4Addr::new(10, 200, 2, 0).into(), 24, unmanaged(DB_NODE)),
        (Ipv6Addr::new(0xfd00, 0x77, 0, 2, 0, 0, 0, 0).into(), 64, unmanaged(DB_NODE)),
        (Ipv4Addr::new(10, 200, 3, 0).into(), 24, unmanaged(CACHE_NODE)),
        (Ipv6Addr::new(0xfd00, 0x77, 0, 3, 0, 0, 0, 0).into(), 64, unmanaged(CACHE_NODE)),
        (Ipv4Addr::new(198, 51, 100, 0).into(), 24, partners),
        (Ipv6Addr::new(0x2001, 0xdb8, 0xaaaa, 0, 0, 0, 0, 0).into(), 48, partners),
    ];
    for (address, bits, peer) in rows {
        tables.prefixes.insert(prefix(address, bits), peer);
    }
}

pub(crate) fn allow_all() -> PolicyTable {
    PolicyTable::of(Action::Allow)
}

pub(crate) fn deny_all() -> PolicyTable {
    PolicyTable::of(Action::Deny)
}

/// A row for a peer (an identity or a class) and one port.
pub(crate) fn port_row(direction: Direction, peer: u32, protocol: u8, port: u16) -> Row {
    Row { direction, peer, ports: PortKey::exact(protocol, port) }
}

/// A row for a peer, whatever it sends.
pub(crate) fn peer_row(direction: Direction, peer: u32) -> Row {
    Row { direction, peer, ports: PortKey::EVERYTHING }
}

/// A rule's verdict.
pub(crate) fn rule(action: Action, number: u32) -> PolicyRow {
    PolicyRow::of(action, number)
}

/// All subjects get this table.
pub(crate) fn for_all(world: &mut World, table: &PolicyTable) {
    world.policies.for_all(table);
}
