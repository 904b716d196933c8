//! Compiled = oracle, for every flow: random policies take the whole way that they take on a node (the form they are sent
//! in, the desired state, the planner, the kernel's maps), and the real programs judge real packets by them.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use proptest::{prelude::*, sample::Index};
use weft_noded::desired::attachments::Attachments;
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::{Event, Reason},
    policy::{
        arbitrary::{self, Fleet},
        case::{self, Wrong},
        model::{
            Class, Direction, FleetConfig, FlowPort, Labels, Mode, Party, Peer, Policy, Rule, RuleAction,
            Selector, Subject, Tier,
        },
        oracle,
    },
};

use crate::{
    harness::{Place, Verdict, from_endpoint, to_endpoint},
    packets::{SYN, Way},
    random::{self, Said, Sent, attachment, endpoint_identity, node_identity},
    world::{self, gateway_mac, mac},
};

const OWN: (&str, &str) = ("192.0.2.1", "2001:db8:77::1");
/// Of the node as well, but not of its underlay.
const BRIDGE: (&str, &str) = ("172.17.0.1", "2001:db8:17::1");
const OTHER: (&str, &str) = ("192.0.2.2", "2001:db8:77::2");
/// Random fleets, and flows through each: 100,000 flows. `WEFT_ORACLE_FLEETS` says how many fleets where there is more time.
const FLEETS: u32 = 500;
const FLOWS: usize = 200;
/// Interface of the first endpoint; the others follow.
const FIRST_INTERFACE: u32 = 70;

/// The other end of a random flow.
#[derive(Clone, Debug)]
enum Other {
    /// An endpoint of this node, or of another one, with one of the label sets.
    Local(usize),
    Remote(usize),
    Host,
    RemoteNode,
    Unmanaged,
    World(IpAddr),
}

/// Labels of this node and of the other one.
#[derive(Clone, Debug)]
struct Nodes {
    own: Labels,
    other: Labels,
}

fn nodes() -> impl Strategy<Value = Nodes> {
    let labels = || proptest::sample::select(arbitrary::node_label_sets());
    (labels(), labels()).prop_map(|(own, other)| Nodes { own, other })
}

/// A fleet whose policies are all about endpoints.
fn fleet() -> impl Strategy<Value = Fleet> {
    arbitrary::fleet().prop_map(|mut fleet| {
        fleet.policies.retain(|policy| !policy.subject.is_nodes());
        fleet
    })
}

#[derive(Clone, Debug)]
struct Flow {
    subject: usize,
    other: Other,
    ingress: bool,
    v6: bool,
    port: FlowPort,
}

fn address(v6: bool, node: u8, host: usize) -> IpAddr {
    let host = u8::try_from(host).expect("few endpoints");
    if v6 {
        Ipv6Addr::new(0xfd00, 0x77, 0, node.into(), 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(10, 200, node, host).into()
    }
}

fn of_family((v4, v6): (&str, &str), want_v6: bool) -> IpAddr {
    if want_v6 { v6 } else { v4 }.parse().expect("a constant")
}

impl Other {
    fn address(&self, v6: bool) -> IpAddr {
        match self {
            Self::Local(place) => address(v6, 1, 10 + place),
            Self::Remote(place) => address(v6, 2, 10 + place),
            Self::Host => of_family(BRIDGE, v6),
            Self::RemoteNode => of_family(OTHER, v6),
            Self::Unmanaged => address(v6, 2, 200),
            Self::World(address) => *address,
        }
    }

    fn party(&self, v6: bool, nodes: &Nodes) -> Party {
        let (class, labels) = match self {
            Self::Local(place) | Self::Remote(place) => {
                (Class::Fleet, arbitrary::label_sets()[*place].clone())
            }
            Self::Host => (Class::Host, nodes.own.clone()),
            Self::RemoteNode => (Class::RemoteNode, nodes.other.clone()),
            Self::Unmanaged => (Class::Unmanaged, Labels::new()),
            Self::World(_) => (Class::World, Labels::new()),
        };
        Party { class, labels, address: Some(self.address(v6)), local: matches!(self, Self::Local(_)) }
    }
}

impl Flow {
    /// Source and destination.
    fn ends(&self) -> [Other; 2] {
        let (subject, other) = (Other::Local(self.subject), self.other.clone());
        if self.ingress { [other, subject] } else { [subject, other] }
    }

    fn case(&self, nodes: &Nodes) -> case::Flow {
        let [source, destination] = self.ends().map(|end| end.party(self.v6, nodes));
        case::Flow { node: nodes.own.clone(), source, destination, port: self.port }
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    let place = || any::<Index>().prop_map(|index| index.index(arbitrary::label_sets().len()));
    let world = proptest::sample::select(arbitrary::ADDRESSES.to_vec())
        .prop_map(|text| Other::World(text.parse().expect("a constant")));
    let other = prop_oneof![
        3 => place().prop_map(Other::Local),
        3 => place().prop_map(Other::Remote),
        1 => Just(Other::Host),
        1 => Just(Other::RemoteNode),
        1 => Just(Other::Unmanaged),
        4 => world,
    ];
    (place(), other, any::<bool>(), any::<bool>(), arbitrary::flow_port())
        .prop_map(|(subject, other, ingress, v6, port)| {
            let v6 = match &other {
                Other::World(address) => address.is_ipv6(),
                _ => v6,
            };
            // Each family has an ICMP of its own.
            let to_a_node = matches!(other, Other::Host | Other::RemoteNode);
            let protocol = match (port.protocol, v6) {
                // Of IPv6 it is no protocol.
                (0, _) => 255,
                // Nobody may send tunnels to nodes.
                (47 | 50, _) if to_a_node => 255,
                (1 | 58, true) => 58,
                (1 | 58, false) => 1,
                (other, _) => other,
            };
            Flow { subject, other, ingress, v6, port: FlowPort { protocol, ..port } }
        })
        .prop_filter("neighbour discovery and tunnels are not for policy to judge", |flow| {
            let FlowPort { protocol, port } = flow.port;
            let discovery = protocol == 58 && (133..=137).contains(&(port >> 8));
            let tunnel = protocol == 17 && [4789, 8472].contains(&port);
            !discovery && !tunnel
        })
}

/// The whole state of a node that hosts an endpoint of each label set, beside a node that does, too.
fn sent(random: &Fleet, nodes: &Nodes) -> Sent {
    let mut sent = Sent::of(random);
    for (name, number, addresses, labels) in [("own", 1, OWN, &nodes.own), ("other", 2, OTHER, &nodes.other)]
    {
        let route = v1::NodeRoute {
            addresses: vec![addresses.0.to_owned(), addresses.1.to_owned()],
            endpoint_cidrs: vec![format!("10.200.{number}.0/24"), format!("fd00:77:0:{number}::/64")],
            identity: node_identity(labels),
        };
        sent.add(ResourceType::Node, name, &route);
    }
    for place in 0..arbitrary::label_sets().len() {
        for v6 in [false, true] {
            let address = v1::NodeAddress { identity: endpoint_identity(place), node: "other".to_owned() };
            sent.add(ResourceType::Address, &Other::Remote(place).address(v6).to_string(), &address);
        }
        sent.add_endpoint(&format!("e{place}"), place);
    }
    sent
}

fn interface(place: usize) -> u32 {
    FIRST_INTERFACE + u32::try_from(place).expect("few label sets")
}

fn attachments() -> Attachments {
    let attached = |place: usize| {
        let local = Other::Local(place);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (local.address(false), local.address(true)) else {
            panic!("an address of each family");
        };
        let name = format!("e{place}");
        (name.clone(), attachment(&name, place, interface(place), (v4, v6)))
    };
    let endpoints = (0..arbitrary::label_sets().len()).map(attached);
    Attachments { endpoints: endpoints.collect(), ..Attachments::default() }
}

/// The node, with an endpoint of each label set.
fn node() -> random::Node {
    let node = random::Node::new();
    for place in 0..arbitrary::label_sets().len() {
        let index = interface(place).to_string();
        let status = Command::new("ip")
            .args(["link", "add", &format!("e{place}"), "index", &index, "type", "veth"])
            .args(["peer", "name", &format!("w{place}")])
            .status()
            .expect("ip (iproute2)");
        assert!(status.success(), "ip link add e{place}");
    }
    node
}

fn enforce(node: &mut random::Node, fleet: &Fleet, nodes: &Nodes) {
    let own = [of_family(OWN, false), of_family(OWN, true)];
    let bridge = [of_family(BRIDGE, false), of_family(BRIDGE, true)];
    node.enforce(sent(fleet, nodes), &own, &bridge, &attachments());
}

fn try_flow(node: &mut random::Node, flow: &Flow) -> Result<Verdict, Event> {
    if !matches!(flow.port.protocol, 1 | 6 | 17 | 58 | 132) {
        // Without ports, all packets between two parties are one flow.
        node.datapath.forget_flows();
    }
    let own = interface(flow.subject);
    let place: Place = if flow.ingress {
        let came_by = match flow.other {
            Other::Local(place) => interface(place),
            Other::Remote(_) | Other::Unmanaged => world::OVERLAY,
            Other::RemoteNode | Other::World(_) => world::UPLINK,
            Other::Host => 0,
        };
        to_endpoint(own, came_by)
    } else {
        from_endpoint(own)
    };
    let [from, to] = flow.ends();
    let way = Way {
        from: from.address(flow.v6),
        to: to.address(flow.v6),
        source_mac: mac(own),
        destination_mac: gateway_mac(own),
        hops: 64,
    };
    let packet = packet(&way, flow.port, node.fresh());
    node.datapath.judge(place, &packet).map(|outcome| outcome.verdict)
}

/// The first packet of a flow.
pub(crate) fn packet(way: &Way, to: FlowPort, fresh: u16) -> Vec<u8> {
    let [kind, code] = to.port.to_be_bytes();
    match (to.protocol, to.port) {
        (6, port) => way.tcp(fresh, port, SYN),
        (17, port) => way.udp(fresh, port),
        (1, 0x0800) | (58, 0x8000) => way.ping(fresh),
        (1, 0) | (58, 0x8100) => way.pong(fresh),
        (1 | 58, _) => way.icmp(kind, code),
        (132, port) => way.protocol(
            132,
            &[fresh.to_be_bytes(), port.to_be_bytes(), [0; 2], [0; 2], [0; 2], [0; 2]].concat(),
        ),
        (other, _) => way.protocol(other, &[0; 32]),
    }
}

fn expected(fleet: &Fleet, nodes: &Nodes, flow: &Flow) -> Said {
    let [from, to] = flow.ends();
    let (source, destination) = (from.party(flow.v6, nodes), to.party(flow.v6, nodes));
    let to_itself = source.address == destination.address;
    let ends =
        [(&from, &source, &destination, Direction::Egress), (&to, &destination, &source, Direction::Ingress)];
    let judged = ends.into_iter().filter(|(judged, ..)| matches!(judged, Other::Local(_)) && !to_itself);
    Said::by_rules(judged.map(|(_, subject, peer, direction)| {
        (direction, oracle::judge(fleet.context(), subject, peer, direction, flow.port))
    }))
}

/// Sends a flow's first packet, and compares what the programs do with what the rules say.
fn check(node: &mut random::Node, fleet: &Fleet, nodes: &Nodes, flow: &Flow) -> Result<(), Wrong> {
    let found = try_flow(node, flow);
    let wanted = match (flow.ingress, &flow.other) {
        (false, Other::Local(_) | Other::Remote(_) | Other::Unmanaged | Other::RemoteNode) => {
            Verdict::Redirect
        }
        _ => Verdict::Ok,
    };
    let expected = expected(fleet, nodes, flow);
    Said::same(fleet, expected, Said::by_programs(&found, node.datapath.audited))?;
    match found {
        Ok(sent) if sent != wanted => {
            Err(Wrong { expected: format!("allow, by {wanted:?}"), seen: format!("allow, by {sent:?}") })
        }
        _ => Ok(()),
    }
}

#[test]
fn the_programs_give_the_oracles_verdict_on_random_flows_through_random_policies() {
    let node = RefCell::new(node());
    let fleets =
        std::env::var("WEFT_ORACLE_FLEETS").ok().and_then(|text| text.parse().ok()).unwrap_or(FLEETS);
    let random = (fleet(), nodes(), proptest::collection::vec(flow(), FLOWS));
    let tried = Cell::new((0, 0));
    case::hold(fleets, &random, |(fleet, nodes, flows)| {
        let mut node = node.borrow_mut();
        enforce(&mut node, &fleet, &nodes);
        for flow in &flows {
            let (allowed, denied) = tried.get();
            let allows = expected(&fleet, &nodes, flow).verdict.is_ok();
            tried.set(if allows { (allowed + 1, denied) } else { (allowed, denied + 1) });
            let Err(wrong) = check(&mut node, &fleet, &nodes, flow) else { continue };
            let again = |fleet: &Fleet| {
                enforce(&mut node, fleet, &nodes);
                check(&mut node, fleet, &nodes, flow)
            };
            return case::fail(&fleet, &flow.case(&nodes), wrong, again);
        }
        Ok(())
    });
    let (allowed, denied) = tried.get();
    println!("{allowed} flows allowed, {denied} denied, as the rules say");
    assert!(allowed > FLEETS * 20 && denied > FLEETS * 20, "a lopsided sample: {allowed}, {denied}");
}

#[test]
fn a_prefix_of_all_ipv6_says_nothing_of_ipv4() {
    let everything = Rule {
        name: "0".to_owned(),
        action: RuleAction::Allow,
        peers: Some(vec![Peer::Cidr { cidr: "::/0".parse().expect("a constant"), except: Vec::new() }]),
        ports: None,
    };
    let policy = Policy {
        name: "all-of-ipv6".to_owned(),
        tier: Tier::Application { default_deny_ingress: false, default_deny_egress: true },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(Selector::default()),
        ingress: None,
        egress: Some(vec![everything]),
    };
    let mut node = node();
    let config = FleetConfig::of_pools(Vec::new());
    let fleet = Fleet { policies: vec![policy], cidr_sets: Vec::new(), config };
    enforce(&mut node, &fleet, &Nodes { own: Labels::new(), other: Labels::new() });
    let world = |v6| Flow {
        subject: 0,
        other: Other::World(if v6 { "2001:db9::1" } else { "198.51.100.7" }.parse().expect("a constant")),
        ingress: false,
        v6,
        port: FlowPort { protocol: 6, port: 443 },
    };
    let mut reason = |v6| try_flow(&mut node, &world(v6)).map_err(|event| event.reason);
    assert_eq!(reason(true), Ok(Verdict::Ok));
    assert_eq!(reason(false), Err(Reason::PolicyDenied as u32));
}
