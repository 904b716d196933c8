//! Compiled = oracle, for every flow: random policies take the whole way that they take on a node (the form they are sent
//! in, the desired state, the planner, the kernel's maps), and the real programs judge real packets by them.

use std::{
    collections::BTreeSet,
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
        arbitrary,
        compile::{IdentitySets, rule_number},
        model::{
            Action, Class, Direction, FleetConfig, FlowPort, Labels, Mode, Party, Peer, Policy, Rule,
            RuleAction, Selector, Subject, Tier,
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
/// Random fleets, and flows through each: 12,000 flows. Tables are swapped once for each fleet, which costs a grace period
/// of the kernel for every subject.
const FLEETS: u32 = 150;
const FLOWS: usize = 80;
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

    fn party(&self, v6: bool) -> Party {
        let (class, labels) = match self {
            Self::Local(place) | Self::Remote(place) => {
                (Class::Fleet, arbitrary::label_sets()[*place].clone())
            }
            Self::Host => (Class::Host, Labels::new()),
            Self::RemoteNode => (Class::RemoteNode, Labels::new()),
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
            let protocol = match (port.protocol, v6) {
                (0 | 47 | 50 | 255, _) => 6,
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
fn batch(policies: &[Policy], default_action: Action) -> Batch {
    let upsert = |kind: ResourceType, name: &str, bytes: Vec<u8>| v1::Upsert {
        r#type: kind.into(),
        name: name.to_owned(),
        requires: Vec::new(),
        bytes: bytes.into(),
    };
    let fleet = v1::NodeFleet {
        pools: arbitrary::POOLS.map(str::to_owned).to_vec(),
        default_action: match default_action {
            Action::Allow => v1::DefaultAction::Allow,
            Action::Deny => v1::DefaultAction::Deny,
        }
        .into(),
        unknown_pool_address: v1::Entity::Unmanaged.into(),
        ..Default::default()
    };
    let mut upserts = vec![upsert(ResourceType::Fleet, "fleet", fleet.encode_to_vec())];
    for (name, number, addresses) in [("own", 1, OWN), ("other", 2, OTHER)] {
        let route = v1::NodeRoute {
            addresses: vec![addresses.0.to_owned(), addresses.1.to_owned()],
            endpoint_cidrs: vec![format!("10.200.{number}.0/24"), format!("fd00:77:0:{number}::/64")],
            identity: 1000 + number,
        };
        upserts.push(upsert(ResourceType::Node, name, route.encode_to_vec()));
    }
    let selectors = policies.iter().flat_map(|policy| {
        let peers = policy.peers().filter_map(|peer| match peer {
            Peer::Endpoints(selector) => Some(selector),
            _ => None,
        });
        peers.chain([policy.subject.named()])
    });
    for selector in selectors.collect::<BTreeSet<&Selector>>() {
        for (place, labels) in arbitrary::label_sets().iter().enumerate() {
            if selector.matches(labels) {
                let name = format!("{}/{}", selector.set_name(), identity(place));
                upserts.push(upsert(ResourceType::IdentitySetMember, &name, Vec::new()));
            }
        }
    }
    for policy in policies {
        upserts.push(upsert(
            ResourceType::Policy,
            &policy.name,
            wire::to_node(policy, |_| Vec::new()).encode_to_vec(),
        ));
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

    fn enforce(&mut self, policies: &[Policy], default_action: Action) {
        let mut desired = Desired::default();
        desired.apply(batch(policies, default_action));
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
            assert_eq!((compiled.overflows, compiled.problems), (Vec::new(), Vec::new()));
            let steps: Vec<Step> = diff(&self.tables, &compiled.tables, Sweep::Remove);
            self.datapath.write(&steps);
            self.tables.apply_all(&steps);
        }
        self.former_sets.clone_from(desired.sets());
    }

    fn try_flow(&mut self, flow: &Flow) -> Result<Verdict, Event> {
        self.fresh = self.fresh.wrapping_add(1);
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
        (other, _) => panic!("protocol {other} is not in the random flows"),
    }
}

/// What the rules say of a flow: allowed, or denied in a direction, with the numbers of the rules that may be named for it.
fn expected(
    policies: &[Policy],
    default_action: Action,
    flow: &Flow,
) -> Result<(), (Direction, BTreeSet<u32>)> {
    let subject = Other::Local(flow.subject);
    let (from, to) = if flow.ingress { (&flow.other, &subject) } else { (&subject, &flow.other) };
    if from.address(flow.v6) == to.address(flow.v6) {
        return Ok(());
    }
    let (source, destination) = (from.party(flow.v6), to.party(flow.v6));
    for (judged, judge, peer, direction) in
        [(from, &source, &destination, Direction::Egress), (to, &destination, &source, Direction::Ingress)]
    {
        if !matches!(judged, Other::Local(_)) {
            continue;
        }
        let config = FleetConfig { default_action, ..FleetConfig::of_pools(Vec::new()) };
        let context = oracle::Context { policies, cidr_sets: &[], config: &config };
        let verdict = oracle::judge(context, judge, peer, direction, flow.port);
        if verdict.action == Action::Deny {
            return Err((direction, numbers(policies, &verdict, judge, peer, direction, flow.port)));
        }
    }
    Ok(())
}

/// Of the deny rules that match, or of the default that denied.
fn numbers(
    policies: &[Policy],
    verdict: &oracle::Verdict,
    subject: &Party,
    peer: &Party,
    direction: Direction,
    port: FlowPort,
) -> BTreeSet<u32> {
    let last = verdict.steps.last().expect("something decided");
    if last.rule.is_empty() {
        return [if last.policy.is_empty() { 0 } else { rule_number(&last.policy, direction, "") }].into();
    }
    let selecting = policies.iter().filter(|policy| policy.selects(subject));
    let rules = selecting.flat_map(|policy| policy.rules(direction).iter().map(move |rule| (policy, rule)));
    rules
        .filter(|(_, rule)| rule.action == RuleAction::Deny && rule.matches(&[], peer, port))
        .map(|(policy, rule)| rule_number(&policy.name, direction, &rule.name))
        .collect()
}

fn check(
    flow: &Flow,
    expected: &Result<(), (Direction, BTreeSet<u32>)>,
    found: &Result<Verdict, Event>,
) -> Result<(), String> {
    match (expected, found) {
        (Ok(()), Ok(verdict)) => {
            let wanted = match (flow.ingress, &flow.other) {
                (false, Other::Local(_) | Other::Remote(_) | Other::Unmanaged) => Verdict::Redirect,
                _ => Verdict::Ok,
            };
            if *verdict == wanted { Ok(()) } else { Err(format!("allowed, but sent by {verdict:?}")) }
        }
        (Err((direction, rules)), Err(event)) => {
            let denied = event.reason == Reason::PolicyDenied as u32
                && event.direction == *direction as u8
                && rules.contains(&event.rule);
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
    let config = Config { failure_persistence: None, ..Config::with_cases(FLEETS) };
    let random = (arbitrary::application_policies(), any::<bool>(), proptest::collection::vec(flow(), FLOWS));
    let tried = std::cell::Cell::new((0, 0));
    let result = TestRunner::new(config).run(&random, |(policies, default_allow, flows)| {
        let default_action = if default_allow { Action::Allow } else { Action::Deny };
        let mut node = node.borrow_mut();
        node.enforce(&policies, default_action);
        for flow in &flows {
            let expected = expected(&policies, default_action, flow);
            let found = node.try_flow(flow);
            let (allowed, denied) = tried.get();
            tried.set(if expected.is_ok() { (allowed + 1, denied) } else { (allowed, denied + 1) });
            check(flow, &expected, &found)
                .map_err(|what| TestCaseError::fail(format!("{what}\n{flow:?}")))?;
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let (allowed, denied) = tried.get();
    println!("{allowed} flows allowed, {denied} denied, as the rules say");
    assert!(
        allowed + denied >= 10_000 && allowed > 1000 && denied > 1000,
        "a lopsided sample: {allowed}, {denied}"
    );
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
    node.enforce(&[policy], Action::Allow);
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
