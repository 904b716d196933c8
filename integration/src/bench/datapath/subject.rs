//! The kernel programs under test, with a node's tables: a policy of each size for each direction, and wrappers before
//! the programs.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use weft_noded::{
    kernel::{
        Datapath as _,
        object::{Object, Options},
    },
    plan::tables::{NodeRow, Step, SubjectRow},
};
use weft_shared::{
    layout::{
        Action, Address, CLASS_RULEBOOKS, Class, Config, Direction, Endpoint, FlowKey, Peer, PeerKey, Point,
        PolicyRow, PortKey, PrefixKey, Reason, endpoint_flags,
    },
    policy::compile::Rulebook,
};

use super::{
    packets::{GATEWAY_MAC, PEER, PORT, WORKLOAD_MAC, segment},
    reference::neighbour,
    wrapper::{Packet, Wrapper},
};

/// Rules of a subject's policy, each of an identity and a port; one subject for each.
pub(super) const ENTRIES: [u32; 3] = [1, 1000, 50_000];

pub(in crate::bench) const OVERLAY: u32 = 40;
const FIRST_INTERFACE: u32 = 10;
const NODE: u32 = 1;
/// Addresses of other nodes' endpoints that this node was told of, as many as the reference knows.
const PEERS: u32 = 10_000;
/// Identities of theirs; each has this many ports in the policies that are large enough.
const PEER_IDENTITIES: u32 = 5_000;
const PORTS_OF_IDENTITY: u32 = 10;
const PEER_IDENTITY: u32 = 300;
const TCP: u8 = 6;

/// Which program judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Way {
    /// From the workload into the overlay.
    Egress,
    /// From the host's side to the workload.
    Ingress,
}

impl Way {
    pub(super) const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// As figures are named.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Egress => "tc.egress.overlay",
            Self::Ingress => "tc.ingress",
        }
    }

    fn point(self) -> Point {
        match self {
            Self::Egress => Point::FromEndpoint,
            Self::Ingress => Point::ToEndpoint,
        }
    }

    fn direction(self) -> Direction {
        match self {
            Self::Egress => Direction::Egress,
            Self::Ingress => Direction::Ingress,
        }
    }

    fn delivered(self) -> Reason {
        match self {
            Self::Egress => Reason::DeliveredOverlay,
            Self::Ingress => Reason::DeliveredLocal,
        }
    }
}

/// An endpoint whose subject has a policy of one size, for one direction.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Place {
    way: Way,
    entries: u32,
    /// Its interface; its slot, identity and address are counted with it.
    ifindex: u32,
}

impl Place {
    fn all() -> impl Iterator<Item = Self> {
        let each = Way::ALL.into_iter().flat_map(|way| ENTRIES.map(|entries| (way, entries)));
        each.zip(FIRST_INTERFACE..).map(|((way, entries), ifindex)| Self { way, entries, ifindex })
    }

    pub(in crate::bench) fn of(way: Way, entries: u32) -> Result<Self> {
        let found = Self::all().find(|place| place.way == way && place.entries == entries);
        found.with_context(|| format!("no subject with {entries} rows"))
    }

    fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 1, 0)) + self.ifindex)
    }

    fn slot(self) -> u32 {
        self.ifindex
    }

    fn identity(self) -> u32 {
        256 + self.ifindex
    }

    fn packet(self, first_port: u16, ports: u16, begins: bool) -> Packet {
        let (from, to, ingress_ifindex) = match self.way {
            Way::Egress => (self.address(), PEER, self.ifindex),
            Way::Ingress => (PEER, self.address(), OVERLAY),
        };
        Packet { bytes: segment(from, to, begins), first_port, ports, ifindex: self.ifindex, ingress_ifindex }
    }

    /// From the workload to somebody else.
    pub(in crate::bench) fn packet_to(
        self,
        to: Ipv4Addr,
        first_port: u16,
        ports: u16,
        begins: bool,
    ) -> Packet {
        let bytes = segment(self.address(), to, begins);
        Packet { bytes, first_port, ports, ifindex: self.ifindex, ingress_ifindex: self.ifindex }
    }

    /// The flow of a source port.
    fn flow(self, port: u16) -> FlowKey {
        let (workload_port, peer_port) = match self.way {
            Way::Egress => (port, PORT),
            Way::Ingress => (PORT, port),
        };
        // The workloads' addresses are below the peer's.
        FlowKey {
            low: wide(self.address()),
            high: wide(PEER),
            low_port: workload_port.to_be(),
            high_port: peer_port.to_be(),
            protocol: TCP,
            asker: 0,
            zero: [0; 2],
        }
    }
}

/// The loaded programs, a wrapper before each.
#[derive(Debug)]
pub(super) struct Subjects {
    object: Object,
    egress: Wrapper,
    ingress: Wrapper,
}

impl Subjects {
    /// Loads and fills, in a network namespace of this thread's own.
    pub(super) fn load(bench_object: &Path) -> Result<Self> {
        enter_namespace()?;
        let timeouts = Config::DEFAULT.timeout_established;
        // No connection is ever answered here, and none may time out.
        let config = Config { overlay_ifindex: OVERLAY, timeout_syn: timeouts, ..Config::DEFAULT };
        let mut object = Object::load(&Options { directory: None, config, flows_max: None })?;
        object.write(&node())?;
        for place in Place::all() {
            object.write(&endpoint(place))?;
        }
        let mut behind = |way: Way| {
            let mut wrapper = Wrapper::load(bench_object)?;
            wrapper.aim(object.program(way.point().name())?.fd()?)?;
            anyhow::Ok(wrapper)
        };
        Ok(Self { egress: behind(Way::Egress)?, ingress: behind(Way::Ingress)?, object })
    }

    /// Makes flows known: those of these source ports.
    pub(super) fn establish(&mut self, way: Way, entries: u32, first_port: u16, ports: u16) -> Result<()> {
        self.new_flows(way, entries, first_port, ports).map(drop)
    }

    /// Nanoseconds of a packet of known flows.
    pub(super) fn established(
        &mut self,
        way: Way,
        entries: u32,
        (first_port, ports): (u16, u16),
        repeat: u32,
    ) -> Result<f64> {
        let packet = Place::of(way, entries)?.packet(first_port, ports, false);
        self.run(way, &packet, repeat)
    }

    /// Nanoseconds of a flow's first packet: one for each of the source ports, of which none may be known.
    pub(super) fn new_flows(&mut self, way: Way, entries: u32, first_port: u16, ports: u16) -> Result<f64> {
        let packet = Place::of(way, entries)?.packet(first_port, ports, true);
        self.run(way, &packet, ports.into())
    }

    /// Runs, and looks into the counters whether every packet went where it should.
    fn run(&mut self, way: Way, packet: &Packet, repeat: u32) -> Result<f64> {
        let before = self.object.counters()?;
        let wrapper = match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        };
        let run = wrapper.run(packet, repeat)?;
        let after = self.object.counters()?;
        let packets = |rows: &[(Point, Reason, _)], counted: (Point, Reason)| {
            let row = rows.iter().find(|(point, reason, _)| (*point, *reason) == counted);
            row.map_or(0, |(_, _, counter): &(_, _, weft_shared::layout::maps::Counter)| counter.packets)
        };
        for (point, reason, _) in &after {
            let grown = packets(&after, (*point, *reason)) - packets(&before, (*point, *reason));
            let expected = (*point, *reason) == (way.point(), way.delivered());
            ensure!(
                grown == if expected { u64::from(repeat) } else { 0 },
                "{grown} of {repeat} packets were counted as {} by {} ({run:?})",
                reason.name(),
                point.name()
            );
        }
        Ok(run.nanoseconds)
    }

    /// How many flows of these source ports are known.
    pub(super) fn known(&self, way: Way, entries: u32, first_port: u16, ports: u16) -> Result<usize> {
        let place = Place::of(way, entries)?;
        let wanted: std::collections::BTreeSet<FlowKey> =
            (first_port..first_port + ports).map(|port| place.flow(port)).collect();
        Ok(self.object.flows()?.iter().filter(|(key, _)| wanted.contains(key)).count())
    }

    /// Makes flows unknown again.
    pub(super) fn forget(&mut self, way: Way, entries: u32, first_port: u16, ports: u16) -> Result<()> {
        let place = Place::of(way, entries)?;
        for port in first_port..first_port + ports {
            self.object.forget_flow(&place.flow(port))?;
        }
        Ok(())
    }
}

fn wide(address: Ipv4Addr) -> Address {
    Address::from_v4(u32::from(address).to_be())
}

/// What this node was told of others.
pub(in crate::bench) fn node() -> Vec<Step> {
    let fleet = |number| Peer {
        identity: PEER_IDENTITY + number % PEER_IDENTITIES,
        class: Class::Fleet as u32,
        node: NODE,
        ifindex: 0,
    };
    let peer = |number| Step::Ipcache { address: wide(neighbour(number)), peer: Some(fleet(number)) };
    let unmanaged =
        Peer { identity: Class::Unmanaged as u32, class: Class::Unmanaged as u32, node: 0, ifindex: 0 };
    let pool = PrefixKey { bits: Address::MAPPED_PREFIX_BITS + 8, address: wide(Ipv4Addr::new(10, 0, 0, 0)) };
    let underlay = |host| wide(Ipv4Addr::new(192, 0, 2, host));
    let node = |slot, host| Step::Node { slot, node: Some(NodeRow { address: underlay(host), identity: 0 }) };
    let mut steps = vec![
        node(0, 1),
        node(NODE, 2),
        Step::NodeAddress { address: underlay(1), slot: Some(0) },
        Step::NodeAddress { address: underlay(2), slot: Some(NODE) },
        Step::Prefix { prefix: pool, peer: Some(unmanaged) },
        Step::IdentitiesThrough { identity: 1 << 20 },
    ];
    steps.extend((0..PEERS).map(peer));
    steps
}

/// An endpoint, its subject and its policy.
pub(in crate::bench) fn endpoint(place: Place) -> Vec<Step> {
    let endpoint = Endpoint {
        address4: wide(place.address()),
        address6: Address::UNSPECIFIED,
        identity: place.identity(),
        subject: place.slot(),
        flags: endpoint_flags::OPEN | endpoint_flags::PEER,
        mac: WORKLOAD_MAC,
        gateway_mac: GATEWAY_MAC,
        ingress_rate: 0,
        egress_rate: 0,
        connection_rate: 0,
        zero: 0,
    };
    let peer =
        Peer { identity: place.identity(), class: Class::Fleet as u32, node: 0, ifindex: place.ifindex };
    let subject = SubjectRow { identity: place.identity(), rulebooks: [DENY_ALL; CLASS_RULEBOOKS] };
    let rest = vec![
        Step::Subject { slot: place.slot(), subject: Some(subject) },
        Step::Bump { subjects: vec![place.slot()], nodes: Vec::new() },
        Step::Ipcache { address: wide(place.address()), peer: Some(peer) },
        Step::Endpoint { ifindex: place.ifindex, endpoint: Some(endpoint) },
    ];
    policy(place).into_iter().chain(rest).collect()
}

const DENY_ALL: u32 = 1;

/// The rulebook of each identity that rules are about: as many ports as the place wants in all, beside what denies.
fn rulebooks(place: Place) -> BTreeMap<u32, Rulebook> {
    let mut books: BTreeMap<u32, Rulebook> = BTreeMap::new();
    for number in 0..place.entries {
        let identity = PEER_IDENTITY + number / PORTS_OF_IDENTITY;
        // Less than ten: fits.
        let port = PORT + u16::try_from(number % PORTS_OF_IDENTITY).unwrap_or_default();
        let book = books.entry(identity).or_insert_with(deny_all);
        book.insert(PortKey::exact(TCP, port), PolicyRow::of(Action::Allow, number + 1));
    }
    books
}

fn deny_all() -> Rulebook {
    Rulebook::from([(PortKey::EVERYTHING, PolicyRow::of(Action::Deny, 0))])
}

fn policy(place: Place) -> Vec<Step> {
    let subject = place.identity();
    let mut steps = vec![Step::Rulebook { number: DENY_ALL, rows: Some(Arc::new(deny_all())) }];
    for (peer, book) in rulebooks(place) {
        let number = place.ifindex * PEER_IDENTITIES + peer;
        steps.push(Step::Rulebook { number, rows: Some(Arc::new(book)) });
        let key = PeerKey { subject, peer, direction: place.way.direction() as u32 };
        steps.push(Step::PeerRules { key, rulebook: Some(number) });
    }
    steps
}

/// The thread's own network namespace, with the interfaces that packets are said to be on.
pub(in crate::bench) fn enter_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (the bench needs root)")?;
    for index in Place::all().map(|place| place.ifindex).chain([OVERLAY]) {
        let status = Command::new("ip")
            .args(["link", "add", &format!("t{index}"), "index", &index.to_string(), "type", "veth"])
            .args(["peer", "name", &format!("p{index}"), "index", &(index + 100).to_string()])
            .status()
            .context("start ip (iproute2)")?;
        if !status.success() {
            bail!("ip link add t{index} failed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_has_the_rules_that_its_figure_names_and_allows_the_peer() {
        for place in Place::all() {
            let books = rulebooks(place);
            let rules: usize = books.values().map(|book| book.len() - 1).sum();
            assert_eq!(rules, place.entries as usize);
            let row = books[&PEER_IDENTITY][&PortKey::exact(TCP, PORT)];
            assert_eq!(row.action, Action::Allow as u32);
        }
    }

    #[test]
    fn the_flow_tables_key_has_the_lower_address_first() {
        for place in Place::all() {
            let key = place.flow(2000);
            assert!(place.address() < PEER);
            let ports = [key.low_port, key.high_port].map(u16::from_be);
            assert_eq!(ports, if place.way == Way::Egress { [2000, PORT] } else { [PORT, 2000] });
        }
    }
}
