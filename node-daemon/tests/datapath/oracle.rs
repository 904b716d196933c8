//! Compiled = oracle, for every flow: random policies take the whole way that they take on a node (the form they are sent
//! in, the desired state, the planner, the kernel's maps), and the real programs judge real packets by them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestCaseError, TestRunner},
};
use prost::Message as _;
use weft_noded::{
    desired::{
        Batch, Desired, Key,
        attachments::{Attachment, Attachments},
    },
    plan::{
        compile::{Input, Stale, compile},
        diff::{Sweep, diff},
        tables::{Step, Tables},
    },
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::{Event, Reason},
    policy::{
        arbitrary::{self, Fleet},
        compile::{IdentitySets, rule_number},
        model::{
            Action, Class, Direction, FleetConfig, FlowPort, HostToEndpoint, Labels, Mode, Party, Peer,
            Policy, Rule, RuleAction, Selector, Subject, Tier,
        },
        oracle, wire,
    },
};

use crate::{
    harness::{Datapath, Place, Verdict, from_endpoint, to_endpoint},
    packets::{SYN, Way},
    world::{self, gateway_mac, mac},
};

const OWN: (&str, &str) = ("192.0.2.1", "2001:db8:77::1");
/// Of the node as well, but not of its underlay.
const BRIDGE: (&str, &str) = ("172.17.0.1", "2001:db8:17::1");
const OTHER: (&str, &str) = ("192.0.2.2", "2001:db8:77::2");
const FIRST_IDENTITY: u32 = 256;
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
fn batch(random: &Fleet, nodes: &Nodes) -> Batch {
    let upsert = |kind: ResourceType, name: &str, bytes: Vec<u8>| v1::Upsert {
        r#type: kind.into(),
        name: name.to_owned(),
        requires: Vec::new(),
        bytes: bytes.into(),
    };
    let fleet = v1::NodeFleet {
        pools: arbitrary::POOLS.map(str::to_owned).to_vec(),
        default_action: match random.config.default_action {
            Action::Allow => v1::DefaultAction::Allow,
            Action::Deny => v1::DefaultAction::Deny,
        }
        .into(),
        host_to_endpoint: match random.config.host_to_endpoint {
            HostToEndpoint::Allow => v1::HostToEndpoint::Allow,
            HostToEndpoint::Policy => v1::HostToEndpoint::Policy,
        }
        .into(),
        unknown_pool_address: v1::Entity::Unmanaged.into(),
        ..Default::default()
    };
    let mut upserts = vec![upsert(ResourceType::Fleet, "fleet", fleet.encode_to_vec())];
    for (name, number, addresses, labels) in [("own", 1, OWN, &nodes.own), ("other", 2, OTHER, &nodes.other)]
    {
        let route = v1::NodeRoute {
            addresses: vec![addresses.0.to_owned(), addresses.1.to_owned()],
            endpoint_cidrs: vec![format!("10.200.{number}.0/24"), format!("fd00:77:0:{number}::/64")],
            identity: node_identity(labels),
        };
        upserts.push(upsert(ResourceType::Node, name, route.encode_to_vec()));
    }
    for (set, members) in sets(random) {
        for member in members {
            upserts.push(upsert(ResourceType::IdentitySetMember, &format!("{set}/{member}"), Vec::new()));
        }
    }
    for set in &random.cidr_sets {
        let message = v1::NodeCidrSet { cidrs: set.cidrs.iter().map(ToString::to_string).collect() };
        upserts.push(upsert(ResourceType::CidrSet, &set.name, message.encode_to_vec()));
    }
    for policy in &random.policies {
        let message = wire::to_node(policy, |meant| random.cidr_set_names(meant));
        upserts.push(upsert(ResourceType::Policy, &policy.name, message.encode_to_vec()));
    }
    for place in 0..arbitrary::label_sets().len() {
        for v6 in [false, true] {
            let message = v1::NodeAddress { identity: identity(place), node: "other".to_owned() };
            let name = Other::Remote(place).address(v6).to_string();
            upserts.push(upsert(ResourceType::Address, &name, message.encode_to_vec()));
        }
        let message =
            v1::NodeEndpoint { identity: identity(place), open: true, ..v1::NodeEndpoint::default() };
        upserts.push(upsert(ResourceType::Endpoint, &format!("e{place}"), message.encode_to_vec()));
    }
    let listed =
        upserts.iter().map(|upsert| Key { kind: upsert.r#type(), name: upsert.name.clone() }).collect();
    Batch {
        expected: Vec::new(),
        nonce: 1,
        revision: 1,
        identities_through: 10_000,
        upserts,
        removes: Vec::new(),
        in_sync: true,
        listed: Some(listed),
    }
}

/// Members of the sets that policies name.
fn sets(random: &Fleet) -> IdentitySets {
    let endpoints = arbitrary::label_sets();
    let of_endpoints = |selector: &Selector| {
        let members = endpoints.iter().enumerate().filter(|(_, labels)| selector.matches(labels));
        (wire::endpoint_set(selector), members.map(|(place, _)| identity(place)).collect())
    };
    let all_nodes = arbitrary::node_label_sets();
    let of_nodes = |selector: &Selector| {
        let members = all_nodes.iter().filter(|labels| selector.matches(labels));
        (wire::node_set(selector), members.map(node_identity).collect())
    };
    let peers = random.policies.iter().flat_map(Policy::peers).filter_map(|peer| match peer {
        Peer::Endpoints(selector) => Some(of_endpoints(selector)),
        Peer::Nodes(selector) => Some(of_nodes(selector)),
        Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => None,
    });
    peers.chain(random.policies.iter().map(|policy| of_endpoints(policy.subject.named()))).collect()
}

fn node_identity(labels: &Labels) -> u32 {
    let place = arbitrary::node_label_sets().iter().position(|set| set == labels).expect("one of them");
    1000 + u32::try_from(place).expect("few label sets")
}

fn identity(place: usize) -> u32 {
    FIRST_IDENTITY + u32::try_from(place).expect("few label sets")
}

fn interface(place: usize) -> u32 {
    FIRST_INTERFACE + u32::try_from(place).expect("few label sets")
}

fn attachments() -> Attachments {
    let attachment = |place: usize| {
        let (IpAddr::V4(address4), IpAddr::V6(address6)) =
            (Other::Local(place).address(false), Other::Local(place).address(true))
        else {
            panic!("an address of each family");
        };
        Attachment {
            name: format!("e{place}"),
            instance: String::new(),
            labels: arbitrary::label_sets()[place].clone(),
            interface: format!("t{place}"),
            ifindex: interface(place),
            netns: String::new(),
            ours: false,
            peer: true,
            container_id: String::new(),
            address4: Some(address4),
            address6: Some(address6),
            mac: mac(interface(place)),
            gateway_mac: gateway_mac(interface(place)),
            ingress_bits_per_second: None,
            egress_bits_per_second: None,
            accepted: Some(0),
            lent_identity: None,
        }
    };
    let endpoints = (0..arbitrary::label_sets().len()).map(|place| (format!("e{place}"), attachment(place)));
    Attachments { endpoints: endpoints.collect(), ..Attachments::default() }
}

/// A node whose kernel enforces one random fleet's policies after the other's.
struct Node {
    datapath: Datapath,
    tables: Tables,
    attachments: Attachments,
    former_sets: IdentitySets,
    /// Source port or echo identifier: each flow is new.
    fresh: u16,
}

impl Node {
    fn new() -> Self {
        let datapath = Datapath::new();
        for place in 0..arbitrary::label_sets().len() {
            let index = interface(place).to_string();
            let status = Command::new("ip")
                .args(["link", "add", &format!("e{place}"), "index", &index, "type", "veth"])
                .args(["peer", "name", &format!("w{place}")])
                .status()
                .expect("ip (iproute2)");
            assert!(status.success(), "ip link add e{place}");
        }
        Self {
            datapath,
            tables: world::tables(),
            attachments: attachments(),
            former_sets: IdentitySets::new(),
            fresh: 0,
        }
    }

    fn enforce(&mut self, fleet: &Fleet, nodes: &Nodes) {
        let mut desired = Desired::default();
        desired.apply(batch(fleet, nodes));
        assert_eq!(desired.rejected().next(), None);
        let own = [of_family(OWN, false), of_family(OWN, true)];
        let bridge = [of_family(BRIDGE, false), of_family(BRIDGE, true)];
        for stale in [Stale::Keep, Stale::Drop] {
            let input = Input {
                node: "own",
                own_addresses: &own,
                host_addresses: &bridge,
                desired: &desired,
                attachments: &self.attachments,
                former_sets: &self.former_sets,
            };
            let compiled = compile(input, &self.tables, stale);
            assert_eq!((compiled.unfit, compiled.problems), (Vec::new(), Vec::new()));
            let steps: Vec<Step> = diff(&self.tables, &compiled.tables, Sweep::Remove);
            self.datapath.write(&steps);
            self.tables.apply_all(&steps);
        }
        self.former_sets.clone_from(desired.sets());
        self.datapath.forget_flows();
    }

    fn try_flow(&mut self, flow: &Flow) -> Result<Verdict, Event> {
        self.fresh = self.fresh.wrapping_add(1);
        if !matches!(flow.port.protocol, 1 | 6 | 17 | 58 | 132) {
            // Without ports, all packets between two parties are one flow.
            self.datapath.forget_flows();
        }
        let subject = Other::Local(flow.subject);
        let own = interface(flow.subject);
        let (place, from, to): (Place, _, _) = if flow.ingress {
            let came_by = match flow.other {
                Other::Local(place) => interface(place),
                Other::Remote(_) | Other::Unmanaged => world::OVERLAY,
                Other::RemoteNode | Other::World(_) => world::UPLINK,
                Other::Host => 0,
            };
            (to_endpoint(own, came_by), &flow.other, &subject)
        } else {
            (from_endpoint(own), &subject, &flow.other)
        };
        let way = Way {
            from: from.address(flow.v6),
            to: to.address(flow.v6),
            source_mac: mac(own),
            destination_mac: gateway_mac(own),
            hops: 64,
        };
        self.datapath.judge(place, &packet(&way, flow.port, self.fresh)).map(|outcome| outcome.verdict)
    }
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

/// What the rules say of a flow.
#[derive(Clone, Copy, Debug)]
struct Expected {
    /// Allowed, or denied in a direction, with the number of the rule that decides.
    verdict: Result<(), (Direction, u32)>,
    /// Where audited policies would decide otherwise: what, in which direction, and by which rule.
    audit: Option<(Action, Direction, u32)>,
}

fn number(step: &oracle::Step, direction: Direction) -> u32 {
    if step.policy.is_empty() { 0 } else { rule_number(&step.policy, direction, &step.rule) }
}

fn expected(fleet: &Fleet, nodes: &Nodes, flow: &Flow) -> Expected {
    let subject = Other::Local(flow.subject);
    let (from, to) = if flow.ingress { (&flow.other, &subject) } else { (&subject, &flow.other) };
    let mut expected = Expected { verdict: Ok(()), audit: None };
    if from.address(flow.v6) == to.address(flow.v6) {
        return expected;
    }
    let (source, destination) = (from.party(flow.v6, nodes), to.party(flow.v6, nodes));
    for (judged, judge, peer, direction) in
        [(from, &source, &destination, Direction::Egress), (to, &destination, &source, Direction::Ingress)]
    {
        if !matches!(judged, Other::Local(_)) || expected.verdict.is_err() {
            continue;
        }
        let verdict = oracle::judge(fleet.context(), judge, peer, direction, flow.port);
        let audit = verdict.audit.as_ref();
        let audit = audit.map(|audit| (audit.action, direction, number(&audit.step, direction)));
        expected.audit = expected.audit.or(audit);
        if verdict.action == Action::Deny {
            let decision = verdict.decision().expect("something decided");
            expected.verdict = Err((direction, number(decision, direction)));
        }
    }
    // What would be dropped at the one end and is dropped at the other makes no difference.
    let is = if expected.verdict.is_ok() { Action::Allow } else { Action::Deny };
    expected.audit = expected.audit.filter(|(action, ..)| *action != is);
    expected
}

fn check_audit(expected: Expected, found: Option<Event>) -> Result<(), String> {
    let found = found.map(|event| (u32::from(event.audit_action), event.audit_direction, event.audit_rule));
    let wanted = expected.audit.map(|(action, direction, rule)| (action as u32, direction as u8, rule));
    if found == wanted { Ok(()) } else { Err(format!("audited as {found:?} and not as {wanted:?}")) }
}

fn check(flow: &Flow, expected: Expected, found: &Result<Verdict, Event>) -> Result<(), String> {
    match (expected.verdict, found) {
        (Ok(()), Ok(verdict)) => {
            let wanted = match (flow.ingress, &flow.other) {
                (false, Other::Local(_) | Other::Remote(_) | Other::Unmanaged) => Verdict::Redirect,
                _ => Verdict::Ok,
            };
            if *verdict == wanted { Ok(()) } else { Err(format!("allowed, but sent by {verdict:?}")) }
        }
        (Err((direction, rule)), Err(event)) => {
            let denied = event.reason == Reason::PolicyDenied as u32
                && event.direction == direction as u8
                && event.rule == rule;
            if denied {
                Ok(())
            } else {
                Err(format!("denied for another reason: {:?} {event:?}", Reason::from_number(event.reason)))
            }
        }
        (Ok(()), Err(event)) => {
            Err(format!("the rules allow, dropped: {:?} {event:?}", Reason::from_number(event.reason)))
        }
        (Err(_), Ok(_)) => Err("THE RULES DENY, IT PASSED".to_owned()),
    }
}

#[test]
fn the_programs_give_the_oracles_verdict_on_random_flows_through_random_policies() {
    let node = std::cell::RefCell::new(Node::new());
    let fleets =
        std::env::var("WEFT_ORACLE_FLEETS").ok().and_then(|text| text.parse().ok()).unwrap_or(FLEETS);
    let config = Config { failure_persistence: None, ..Config::with_cases(fleets) };
    let random = (fleet(), nodes(), proptest::collection::vec(flow(), FLOWS));
    let tried = std::cell::Cell::new((0, 0));
    let result = TestRunner::new(config).run(&random, |(fleet, nodes, flows)| {
        let mut node = node.borrow_mut();
        node.enforce(&fleet, &nodes);
        for flow in &flows {
            let expected = expected(&fleet, &nodes, flow);
            let found = node.try_flow(flow);
            let (allowed, denied) = tried.get();
            tried.set(if expected.verdict.is_ok() { (allowed + 1, denied) } else { (allowed, denied + 1) });
            check(flow, expected, &found)
                .and_then(|()| check_audit(expected, node.datapath.audited))
                .map_err(|what| TestCaseError::fail(format!("{what}\n{expected:?}\n{flow:?}")))?;
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
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
    let mut node = Node::new();
    let config = FleetConfig::of_pools(Vec::new());
    let fleet = Fleet { policies: vec![policy], cidr_sets: Vec::new(), config };
    node.enforce(&fleet, &Nodes { own: Labels::new(), other: Labels::new() });
    let world = |v6| Flow {
        subject: 0,
        other: Other::World(if v6 { "2001:db9::1" } else { "198.51.100.7" }.parse().expect("a constant")),
        ingress: false,
        v6,
        port: FlowPort { protocol: 6, port: 443 },
    };
    assert_eq!(node.try_flow(&world(true)).map_err(|event| event.reason), Ok(Verdict::Ok));
    assert_eq!(node.try_flow(&world(false)).map_err(|event| event.reason), Err(Reason::PolicyDenied as u32));
}
