//! Compiled = oracle for the node itself: random host policies take the whole way that they take on a node, and the real
//! programs judge real packets by them, at the uplinks, at the overlay, and between the node and an endpoint of its.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
};

use proptest::{collection::vec, prelude::*, sample::select};
use weft_noded::desired::attachments::Attachments;
use weft_proto::v1::{self, ResourceType};
use weft_shared::policy::{
    arbitrary::{self, Fleet},
    case::{self, Wrong},
    model::{Class, Direction, FlowPort, Labels, Party},
    oracle,
};

use crate::{
    harness::{FROM_UPLINK, Place, TO_OVERLAY, TO_UPLINK, from_endpoint, to_endpoint},
    oracle::packet,
    packets::Way,
    random::{self, Said, Sent, attachment, endpoint_identity, node_identity},
    tunnel::Tunnel,
    world::{DB_NODE_PARTY, FAMILIES, Family, HOST_PARTY, WEB, WEB_PARTY, gateway_mac, mac},
};

const FLEETS: u32 = 150;
const FLOWS: usize = 60;

/// The other end of one of the node's flows.
#[derive(Clone, Debug)]
enum Other {
    OwnEndpoint,
    /// Of another node, with one of the label sets.
    Endpoint(usize),
    /// With one of the label sets.
    Node(usize),
    World(IpAddr),
    /// Beside the node, by an address that means something on the link alone: a neighbour, or a group of that scope.
    Link(IpAddr),
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
        2 => (0..arbitrary::label_sets().len()).prop_map(Other::Endpoint),
        2 => nodes.prop_map(Other::Node),
        3 => world.prop_map(|text| Other::World(text.parse().unwrap())),
        1 => select(arbitrary::LINK_ADDRESSES.to_vec())
            .prop_map(|text| Other::Link(text.parse().unwrap())),
    ];
    let port = prop_oneof![3 => arbitrary::flow_port(), 1 => arbitrary::needed_port()];
    (other, any::<(bool, bool)>(), port)
        .prop_map(|(other, (ingress, v6), port)| {
            let v6 = match &other {
                Other::World(address) | Other::Link(address) => address.is_ipv6(),
                Other::OwnEndpoint | Other::Endpoint(_) | Other::Node(_) => v6,
            };
            // Nobody sends from a group.
            let ingress = ingress && !matches!(&other, Other::Link(address) if address.is_multicast());
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
            Other::Endpoint(place) => (Class::Fleet, arbitrary::label_sets()[*place].clone()),
            Other::Node(place) => (Class::RemoteNode, arbitrary::node_label_sets()[*place].clone()),
            Other::World(_) | Other::Link(_) => (Class::World, Labels::new()),
        };
        let local = matches!(flow.other, Other::OwnEndpoint);
        Party { class, labels, address: Some(address(&flow.other, flow.v6)), local }
    }

    /// Source and destination.
    fn ends(self, flow: &Flow) -> [Party; 2] {
        let (node, other) = (self.node(flow.v6), self.other(flow));
        if flow.ingress { [other, node] } else { [node, other] }
    }

    fn expected(self, fleet: &Fleet, flow: &Flow) -> Said {
        let [source, destination] = self.ends(flow);
        let ends = [(&source, &destination, Direction::Egress), (&destination, &source, Direction::Ingress)];
        let judged = ends.into_iter().filter(|(subject, ..)| subject.local);
        Said::by_rules(judged.map(|(subject, peer, direction)| {
            (direction, oracle::judge(fleet.context(), subject, peer, direction, flow.port))
        }))
    }

    fn case(self, flow: &Flow) -> case::Flow {
        let [source, destination] = self.ends(flow);
        let node = arbitrary::node_label_sets()[self.node].clone();
        case::Flow { node, source, destination, port: flow.port }
    }
}

fn address(other: &Other, v6: bool) -> IpAddr {
    match other {
        Other::OwnEndpoint => WEB_PARTY.address(family(v6)),
        Other::Endpoint(place) if v6 => format!("fd00:77:0:2::{}", 10 + place).parse().unwrap(),
        Other::Endpoint(place) => format!("10.200.2.{}", 10 + place).parse().unwrap(),
        Other::Node(place) if v6 => format!("2001:db8:77::{}", 10 + place).parse().unwrap(),
        Other::Node(place) => format!("192.0.2.{}", 10 + place).parse().unwrap(),
        Other::World(address) | Other::Link(address) => *address,
    }
}

/// What the controller sends to such a node.
fn sent(fleet: &Fleet, own: Own) -> Sent {
    let mut sent = Sent::of(fleet);
    let labels = arbitrary::node_label_sets();
    for (place, labels) in labels.iter().enumerate() {
        let node = Other::Node(place);
        let addresses = [false, true].map(|v6| address(&node, v6).to_string()).to_vec();
        let route = v1::NodeRoute { addresses, identity: node_identity(labels), ..v1::NodeRoute::default() };
        sent.add(ResourceType::Node, &format!("n{place}"), &route);
    }
    let route = v1::NodeRoute {
        addresses: vec![HOST_PARTY.v4.to_string(), HOST_PARTY.v6.to_string()],
        identity: node_identity(&labels[own.node]),
        ..v1::NodeRoute::default()
    };
    sent.add(ResourceType::Node, "own", &route);
    sent.add_endpoint("web", own.endpoint);
    for place in 0..arbitrary::label_sets().len() {
        let word = v1::NodeAddress { identity: endpoint_identity(place), node: "beside".to_owned() };
        for v6 in [false, true] {
            let address = address(&Other::Endpoint(place), v6).to_string();
            sent.add(ResourceType::Address, &address, &word);
        }
    }
    let beside = v1::NodeRoute {
        addresses: FAMILIES.map(|family| DB_NODE_PARTY.address(family).to_string()).to_vec(),
        endpoint_cidrs: vec!["10.200.2.0/24".to_owned(), "fd00:77:0:2::/64".to_owned()],
        identity: node_identity(&labels[0]),
    };
    sent.add(ResourceType::Node, "beside", &beside);
    sent
}

fn enforce(node: &mut random::Node, fleet: &Fleet, own: Own) {
    let addresses = [IpAddr::from(HOST_PARTY.v4), HOST_PARTY.v6.into()];
    let web = attachment("web", own.endpoint, WEB, (WEB_PARTY.v4, WEB_PARTY.v6));
    let attachments = Attachments { endpoints: [("web".to_owned(), web)].into(), ..Attachments::default() };
    node.enforce(sent(fleet, own), &addresses, &addresses, &attachments);
}

/// Sends a flow's first packet, and compares what the programs do with what the rules say.
fn check(
    node: &mut random::Node,
    tunnel: &Tunnel,
    fleet: &Fleet,
    own: Own,
    flow: &Flow,
) -> Result<(), Wrong> {
    let (host, other) = (HOST_PARTY.address(family(flow.v6)), address(&flow.other, flow.v6));
    let (from, to) = if flow.ingress { (other, host) } else { (host, other) };
    let way = Way { from, to, source_mac: mac(WEB), destination_mac: gateway_mac(WEB), hops: 64 };
    let packet = packet(&way, flow.port, node.fresh());
    let mut judge = |place: Place| node.datapath.judge(place, &packet).map(drop);
    let found = match (&flow.other, flow.ingress) {
        (Other::OwnEndpoint, true) => judge(from_endpoint(WEB)),
        (Other::OwnEndpoint, false) => judge(to_endpoint(WEB, 0)),
        (Other::Endpoint(place), true) => {
            let vni = endpoint_identity(*place);
            tunnel.judge(&mut node.datapath, family(flow.v6), vni, &packet).1.map_or(Ok(()), Err)
        }
        (Other::Endpoint(_), false) => judge(TO_OVERLAY),
        (_, true) => judge(FROM_UPLINK),
        (_, false) => judge(TO_UPLINK),
    };
    let seen = Said::by_programs(&found, node.datapath.audited);
    Said::same(fleet, own.expected(fleet, flow), seen)
}

#[test]
fn the_programs_give_the_oracles_verdict_on_random_flows_of_the_node_itself() {
    let mut node = random::Node::new();
    let tunnel = Tunnel::new(&mut node.datapath);
    let node = RefCell::new(node);
    let own = (0..arbitrary::node_label_sets().len(), 0..arbitrary::label_sets().len());
    let own = own.prop_map(|(node, endpoint)| Own { node, endpoint });
    let tried = Cell::new((0, 0, 0));
    let random = (arbitrary::fleet(), own, vec(flow(), FLOWS));
    case::hold(FLEETS, &random, |(fleet, own, flows)| {
        let mut node = node.borrow_mut();
        enforce(&mut node, &fleet, own);
        let judged = u32::from(node.tables.host.is_some());
        for flow in &flows {
            let (judging, allowed, denied) = tried.get();
            let allows = own.expected(&fleet, flow).verdict.is_ok();
            let counted = if allows { (allowed + judged, denied) } else { (allowed, denied + judged) };
            tried.set((judging + judged, counted.0, counted.1));
            let Err(wrong) = check(&mut node, &tunnel, &fleet, own, flow) else { continue };
            let again = |fleet: &Fleet| {
                enforce(&mut node, fleet, own);
                check(&mut node, &tunnel, fleet, own, flow)
            };
            return case::fail(&fleet, &own.case(flow), wrong, again);
        }
        Ok(())
    });
    let (judging, allowed, denied) = tried.get();
    println!("{judging} flows of judged nodes: {allowed} allowed, {denied} denied, as the rules say");
    assert!(allowed > 1000 && denied > 500, "a lopsided sample: {allowed}, {denied}");
}
