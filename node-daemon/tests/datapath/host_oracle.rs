//! Compiled = oracle for the node itself: random host policies take the whole way that they take on a node, and the real
//! programs judge real packets by them, at the uplinks and between the node and an endpoint of its.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::IpAddr,
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestCaseError, TestRunner},
};
use prost::Message as _;
use weft_noded::{
    desired::{
        Batch, Desired,
        attachments::{Attachment, Attachments},
    },
    plan::{
        compile::{Input, Stale, compile},
        diff::{Sweep, diff},
        tables::Tables,
    },
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::Reason,
    policy::{
        arbitrary::{self, Fleet},
        compile::IdentitySets,
        model::{Action, Class, Direction, FlowPort, HostToEndpoint, Labels, Party, Peer, needs_of_the_link},
        oracle, wire,
    },
};

use crate::{
    harness::{Datapath, FROM_UPLINK, Place, TO_UPLINK, from_endpoint, to_endpoint},
    oracle::packet,
    packets::Way,
    world::{self, Family, HOST_PARTY, WEB, WEB_PARTY, gateway_mac, mac},
};

const FLEETS: u32 = 150;
const FLOWS: usize = 60;

/// The other end of one of the node's flows.
#[derive(Clone, Debug)]
enum Other {
    OwnEndpoint,
    /// With one of the label sets.
    Node(usize),
    World(IpAddr),
}

#[derive(Clone, Debug)]
struct Flow {
    other: Other,
    ingress: bool,
    v6: bool,
    port: FlowPort,
}

fn flow() -> impl Strategy<Value = Flow> {
    let world = select(arbitrary::ADDRESSES.to_vec());
    let nodes = 0..arbitrary::node_label_sets().len();
    let other = prop_oneof![
        2 => Just(Other::OwnEndpoint),
        2 => nodes.prop_map(Other::Node),
        3 => world.prop_map(|text| Other::World(text.parse().unwrap())),
    ];
    let needed = Direction::ALL.into_iter().flat_map(needs_of_the_link);
    let needed: Vec<FlowPort> = needed
        .flat_map(|range| {
            [range.first - 1, range.first, range.last, range.last + 1]
                .map(|port| FlowPort { protocol: range.protocol, port })
        })
        .collect();
    let port = prop_oneof![3 => arbitrary::flow_port(), 1 => select(needed)];
    (other, any::<(bool, bool)>(), port)
        .prop_map(|(other, (ingress, v6), port)| {
            let v6 = if let Other::World(address) = &other { address.is_ipv6() } else { v6 };
            let protocol = match (port.protocol, v6) {
                (0 | 47 | 50 | 255, _) => 6,
                (1 | 58, true) => 58,
                (1 | 58, false) => 1,
                (other, _) => other,
            };
            Flow { other, ingress, v6, port: FlowPort { protocol, ..port } }
        })
        .prop_filter("an endpoint's discovery and tunnels are not for policy to judge", |flow| {
            let FlowPort { protocol, port } = flow.port;
            let discovery = protocol == 58 && (133..=137).contains(&(port >> 8));
            let tunnel = protocol == 17 && [4789, 8472].contains(&port);
            !matches!(flow.other, Other::OwnEndpoint) || (!discovery && !tunnel)
        })
}

fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

/// Labels of the node and of its endpoint, by their places.
#[derive(Clone, Copy, Debug)]
struct Own {
    node: usize,
    endpoint: usize,
}

impl Own {
    fn node(self, v6: bool) -> Party {
        let labels = arbitrary::node_label_sets()[self.node].clone();
        let address = Some(HOST_PARTY.address(family(v6)));
        Party { class: Class::Host, labels, address, local: true }
    }

    fn other(self, flow: &Flow) -> Party {
        let (class, labels) = match &flow.other {
            Other::OwnEndpoint => (Class::Fleet, arbitrary::label_sets()[self.endpoint].clone()),
            Other::Node(place) => (Class::RemoteNode, arbitrary::node_label_sets()[*place].clone()),
            Other::World(_) => (Class::World, Labels::new()),
        };
        Party { class, labels, address: Some(address(&flow.other, flow.v6)), local: class == Class::Fleet }
    }

    /// Allowed, or denied in a direction.
    fn expected(self, fleet: &Fleet, flow: &Flow) -> Result<(), Direction> {
        let (node, other) = (self.node(flow.v6), self.other(flow));
        let (source, destination) = if flow.ingress { (&other, &node) } else { (&node, &other) };
        for (subject, peer, direction) in
            [(source, destination, Direction::Egress), (destination, source, Direction::Ingress)]
        {
            if subject.local {
                let verdict = oracle::judge(fleet.context(), subject, peer, direction, flow.port);
                if verdict.action == Action::Deny {
                    return Err(direction);
                }
            }
        }
        Ok(())
    }
}

fn address(other: &Other, v6: bool) -> IpAddr {
    match other {
        Other::OwnEndpoint => WEB_PARTY.address(family(v6)),
        Other::Node(place) if v6 => format!("2001:db8:77::{}", 10 + place).parse().unwrap(),
        Other::Node(place) => format!("192.0.2.{}", 10 + place).parse().unwrap(),
        Other::World(address) => *address,
    }
}

fn identity(is_node: bool, place: usize) -> u32 {
    (if is_node { 300 } else { 256 }) + u32::try_from(place).unwrap()
}

/// What the controller sends to such a node.
fn batch(fleet: &Fleet, own: Own) -> Batch {
    let mut upserts = Vec::new();
    let mut upsert = |kind: ResourceType, name: &str, bytes: Vec<u8>| {
        let name = name.to_owned();
        upserts.push(v1::Upsert { r#type: kind.into(), name, requires: Vec::new(), bytes: bytes.into() });
    };
    let config = v1::NodeFleet {
        pools: arbitrary::POOLS.map(str::to_owned).to_vec(),
        default_action: match fleet.config.default_action {
            Action::Allow => v1::DefaultAction::Allow.into(),
            Action::Deny => v1::DefaultAction::Deny.into(),
        },
        host_to_endpoint: match fleet.config.host_to_endpoint {
            HostToEndpoint::Allow => v1::HostToEndpoint::Allow.into(),
            HostToEndpoint::Policy => v1::HostToEndpoint::Policy.into(),
        },
        failsafe: wire::failsafe_to_node(&fleet.config.failsafe),
        ..v1::NodeFleet::default()
    };
    upsert(ResourceType::Fleet, "fleet", config.encode_to_vec());
    for (place, _) in arbitrary::node_label_sets().iter().enumerate() {
        let node = Other::Node(place);
        let addresses = [false, true].map(|v6| address(&node, v6).to_string()).to_vec();
        let route = v1::NodeRoute { addresses, identity: identity(true, place), ..v1::NodeRoute::default() };
        upsert(ResourceType::Node, &format!("n{place}"), route.encode_to_vec());
    }
    let route = v1::NodeRoute {
        addresses: vec![HOST_PARTY.v4.to_string(), HOST_PARTY.v6.to_string()],
        identity: identity(true, own.node),
        ..v1::NodeRoute::default()
    };
    upsert(ResourceType::Node, "own", route.encode_to_vec());
    let mut members = BTreeSet::new();
    for policy in &fleet.policies {
        let subject = policy.subject.named();
        let peers = policy.peers().filter_map(|peer| match peer {
            Peer::Endpoints(selector) => Some((selector, false)),
            Peer::Nodes(selector) => Some((selector, true)),
            Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => None,
        });
        for (selector, is_node) in peers.chain([(subject, policy.subject.is_nodes())]) {
            let (set, all) = if is_node {
                (wire::node_set(selector), arbitrary::node_label_sets())
            } else {
                (wire::endpoint_set(selector), arbitrary::label_sets())
            };
            let places = all.iter().enumerate().filter(|(_, labels)| selector.matches(labels));
            members.extend(places.map(|(place, _)| format!("{set}/{}", identity(is_node, place))));
        }
        let node = wire::to_node(policy, |meant| fleet.cidr_set_names(meant));
        upsert(ResourceType::Policy, &policy.name, node.encode_to_vec());
    }
    for name in members {
        upsert(ResourceType::IdentitySetMember, &name, Vec::new());
    }
    for set in &fleet.cidr_sets {
        let cidrs = v1::NodeCidrSet { cidrs: set.cidrs.iter().map(ToString::to_string).collect() };
        upsert(ResourceType::CidrSet, &set.name, cidrs.encode_to_vec());
    }
    let endpoint = v1::NodeEndpoint {
        identity: identity(false, own.endpoint),
        open: true,
        ..v1::NodeEndpoint::default()
    };
    upsert(ResourceType::Endpoint, "web", endpoint.encode_to_vec());
    Batch { revision: 1, identities_through: 1000, upserts, in_sync: true, ..Batch::default() }
}

fn attachments(own: Own) -> Attachments {
    let web = Attachment {
        name: "web".to_owned(),
        instance: String::new(),
        labels: arbitrary::label_sets()[own.endpoint].clone(),
        interface: format!("t{WEB}"),
        ifindex: WEB,
        netns: String::new(),
        ours: false,
        peer: true,
        container_id: String::new(),
        address4: Some(WEB_PARTY.v4),
        address6: Some(WEB_PARTY.v6),
        mac: mac(WEB),
        gateway_mac: gateway_mac(WEB),
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
        accepted: Some(0),
        lent_identity: None,
    };
    Attachments { endpoints: [("web".to_owned(), web)].into(), ..Attachments::default() }
}

/// A node whose kernel enforces one random fleet's policies after the other's.
struct Node {
    datapath: Datapath,
    tables: Tables,
    former_sets: IdentitySets,
    /// Source port or echo identifier: each flow is new.
    fresh: u16,
}

impl Node {
    fn enforce(&mut self, fleet: &Fleet, own: Own) {
        let mut desired = Desired::default();
        desired.apply(batch(fleet, own));
        assert_eq!(desired.rejected().next(), None);
        let addresses = [IpAddr::from(HOST_PARTY.v4), HOST_PARTY.v6.into()];
        let attachments = attachments(own);
        for stale in [Stale::Keep, Stale::Drop] {
            let input = Input {
                node: "own",
                own_addresses: &addresses,
                host_addresses: &addresses,
                desired: &desired,
                attachments: &attachments,
                former_sets: &self.former_sets,
            };
            let compiled = compile(input, &self.tables, stale);
            assert_eq!((compiled.unfit, compiled.problems), (Vec::new(), Vec::new()));
            let steps = diff(&self.tables, &compiled.tables, Sweep::Remove);
            self.datapath.write(&steps);
            self.tables.apply_all(&steps);
        }
        self.former_sets.clone_from(desired.sets());
    }

    /// Passed, or denied in a direction.
    fn try_flow(&mut self, flow: &Flow) -> Result<(), u8> {
        self.fresh = self.fresh.wrapping_add(1);
        let place: Place = match (&flow.other, flow.ingress) {
            (Other::OwnEndpoint, true) => from_endpoint(WEB),
            (Other::OwnEndpoint, false) => to_endpoint(WEB, 0),
            (_, true) => FROM_UPLINK,
            (_, false) => TO_UPLINK,
        };
        let (host, other) = (HOST_PARTY.address(family(flow.v6)), address(&flow.other, flow.v6));
        let (from, to) = if flow.ingress { (other, host) } else { (host, other) };
        let way = Way { from, to, source_mac: mac(WEB), destination_mac: gateway_mac(WEB), hops: 64 };
        match self.datapath.judge(place, &packet(&way, flow.port, self.fresh)) {
            Ok(_) => Ok(()),
            Err(event) => {
                assert_eq!(event.reason, Reason::PolicyDenied as u32, "{flow:?} {event:?}");
                Err(event.direction)
            }
        }
    }
}

#[test]
fn the_programs_give_the_oracles_verdict_on_random_flows_of_the_node_itself() {
    let node = RefCell::new(Node {
        datapath: Datapath::new(),
        tables: world::tables(),
        former_sets: IdentitySets::new(),
        fresh: 0,
    });
    let config = Config { failure_persistence: None, ..Config::with_cases(FLEETS) };
    let own = (0..arbitrary::node_label_sets().len(), 0..arbitrary::label_sets().len());
    let own = own.prop_map(|(node, endpoint)| Own { node, endpoint });
    let tried = Cell::new((0, 0, 0));
    let random = (arbitrary::fleet(), own, vec(flow(), FLOWS));
    let result = TestRunner::new(config).run(&random, |(fleet, own, flows)| {
        let mut node = node.borrow_mut();
        node.enforce(&fleet, own);
        let judged = u32::from(node.tables.host.is_some());
        for flow in &flows {
            let expected = own.expected(&fleet, flow).map_err(|direction| direction as u8);
            let (judging, allowed, denied) = tried.get();
            let counted =
                if expected.is_ok() { (allowed + judged, denied) } else { (allowed, denied + judged) };
            tried.set((judging + judged, counted.0, counted.1));
            let found = node.try_flow(flow);
            if found != expected {
                let what = format!("expected {expected:?}, found {found:?} of {flow:?} with {own:?}");
                return Err(TestCaseError::fail(what));
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let (judging, allowed, denied) = tried.get();
    println!("{judging} flows of judged nodes: {allowed} allowed, {denied} denied, as the rules say");
    assert!(allowed > 1000 && denied > 500, "a lopsided sample: {allowed}, {denied}");
}
