//! What operators of a simulated fleet write: policies of endpoints and of nodes over few labels, so that they meet, the CIDR
//! sets that these mean, services, prefilters and shapings, and the fleet's configuration.
use std::{collections::BTreeMap, net::IpAddr};

use weft_proto::v1::{self, object::Kind as Of};
use weft_shared::policy::model::Labels;

use crate::chance::Chance;

const APPS: [&str; 3] = ["web", "api", "db"];
const ENVIRONMENTS: [&str; 2] = ["prod", "dev"];
const CIDRS: [&str; 4] = ["0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25", "2001:db8::/32"];
const POLICIES: u64 = 6;
/// Names of CIDR sets; each has the label `kind` with one of the values.
const CIDR_SETS: [&str; 3] = ["partners", "offices", "scanners"];
const KINDS: [&str; 2] = ["good", "bad"];
const SERVICES: u64 = 3;
/// A frontend that now one service claims, now another.
const CONTESTED: &str = "10.96.0.99";
/// Backends outside of the fleet.
const LISTED: [&str; 3] = ["203.0.113.10", "203.0.113.11", "2001:db8::11"];
/// Prefilters and shapings, each.
const FEW: u64 = 3;
const DROPPED: [&str; 4] = ["192.88.99.0/24", "192.88.99.128/25", "192.88.98.7/32", "2620:fe::/48"];
const RATES: [&str; 3] = ["64kbit", "100Mbit", "1Gbit"];
/// What nodes have as their label `zone`.
pub(crate) const ZONES: [&str; 2] = ["a", "b"];

pub(crate) fn labels(chance: &Chance) -> Labels {
    let mut labels = Labels::new();
    if chance.percent(90) {
        labels.extend(chance.pick(&APPS).map(|app| ("app".to_owned(), (*app).to_owned())));
    }
    if chance.percent(60) {
        labels.extend(chance.pick(&ENVIRONMENTS).map(|env| ("env".to_owned(), (*env).to_owned())));
    }
    if chance.percent(30) {
        // So that there are always new identities.
        labels.insert("serial".to_owned(), chance.within(0..1000).to_string());
    }
    labels
}

pub(crate) fn policy_name(chance: &Chance) -> String {
    format!("policy-{}", chance.within(0..POLICIES))
}

pub(crate) fn cidr_set_name(chance: &Chance) -> String {
    chance.pick(&CIDR_SETS).copied().unwrap_or_default().to_owned()
}

/// What is sent at once: policies, at times with a set that they may mean.
pub(crate) fn objects(chance: &Chance) -> Vec<v1::Object> {
    let mut objects = Vec::new();
    if chance.percent(40) {
        objects.push(cidr_set(chance));
    }
    objects.extend((0..=chance.below(3)).map(|_| policy(chance)));
    objects
}

/// Kind and name of something to delete.
pub(crate) fn some_name(chance: &Chance) -> (v1::Kind, String) {
    match chance.within(0..10) {
        0..2 => (v1::Kind::CidrSet, cidr_set_name(chance)),
        2..5 => (v1::Kind::Service, format!("service-{}", chance.within(0..SERVICES))),
        5 => (v1::Kind::Prefilter, format!("prefilter-{}", chance.within(0..FEW))),
        6 => (v1::Kind::Shaping, format!("shaping-{}", chance.within(0..FEW))),
        _ => (v1::Kind::Policy, policy_name(chance)),
    }
}

/// Services, prefilters and shapings.
pub(crate) fn ways(chance: &Chance) -> Vec<v1::Object> {
    (0..=chance.below(2)).map(|_| way(chance)).collect()
}

fn way(chance: &Chance) -> v1::Object {
    let kind = match chance.within(0..10) {
        0..6 => Of::Service(service(chance)),
        6..8 => Of::Prefilter(prefilter(chance)),
        _ => Of::Shaping(shaping(chance)),
    };
    v1::Object { kind: Some(kind) }
}

fn named(name: String) -> v1::Metadata {
    v1::Metadata { name, ..v1::Metadata::default() }
}

fn service(chance: &Chance) -> v1::Service {
    let number = chance.within(0..SERVICES);
    let frontend = |address: String, kind: v1::FrontendType| v1::Frontend {
        address,
        port: 80,
        protocol: v1::Protocol::Tcp.into(),
        r#type: kind.into(),
    };
    let mut frontends = vec![frontend(format!("10.96.0.{number}"), v1::FrontendType::Cluster)];
    if chance.percent(25) {
        frontends.push(frontend(CONTESTED.to_owned(), v1::FrontendType::Cluster));
    }
    let v6 = chance.percent(40);
    if v6 {
        frontends.push(frontend(format!("2001:db8:96::{number}"), v1::FrontendType::External));
    }
    let policies = [v1::TrafficPolicy::Fleet, v1::TrafficPolicy::Local];
    let policy = || chance.pick(&policies).copied().unwrap_or_default().into();
    let selects = chance.percent(60);
    v1::Service {
        metadata: Some(named(format!("service-{number}"))),
        frontends,
        selector: selects.then(|| selector(chance)),
        backends: (!selects).then(|| v1::BackendList { items: backends(chance, v6) }),
        internal_traffic_policy: policy(),
        external_traffic_policy: policy(),
        health_check: chance.percent(60).then(v1::HealthCheck::default),
        target_port: selects.then_some(8080),
        topology_label: chance.percent(20).then(|| "zone".to_owned()),
        ..v1::Service::default()
    }
}

/// Of a family that has no frontend there may be none.
fn backends(chance: &Chance, v6: bool) -> Vec<v1::Backend> {
    let states = [v1::BackendState::Active, v1::BackendState::Terminating, v1::BackendState::Maintenance];
    let listed = LISTED.iter().filter(|address| (v6 || !address.contains(':')) && chance.percent(70));
    let backend = |address: &&str| v1::Backend {
        address: (*address).to_owned(),
        port: 8080,
        state: chance.pick(&states).copied().unwrap_or_default().into(),
        ..v1::Backend::default()
    };
    listed.map(backend).collect()
}

fn prefilter(chance: &Chance) -> v1::Prefilter {
    let cidrs = DROPPED.iter().filter(|_| chance.percent(50)).map(|cidr| (*cidr).to_owned());
    v1::Prefilter {
        metadata: Some(named(format!("prefilter-{}", chance.within(0..FEW)))),
        nodes: chance.percent(50).then(|| node_selector(chance)),
        cidrs: cidrs.collect(),
        arp_senders: vec!["192.0.2.66".to_owned()],
    }
}

fn shaping(chance: &Chance) -> v1::Shaping {
    let rate = || chance.pick(&RATES).copied().unwrap_or_default().to_owned();
    let metadata = Some(named(format!("shaping-{}", chance.within(0..FEW))));
    if chance.percent(50) {
        let (nodes, cgroup) = (Some(node_selector(chance)), "system.slice/backups.service".to_owned());
        return v1::Shaping { metadata, nodes, cgroup, connection_rate: rate(), ..v1::Shaping::default() };
    }
    let endpoints = Some(selector(chance));
    v1::Shaping { metadata, endpoints, ingress_rate: rate(), egress_rate: rate(), ..v1::Shaping::default() }
}

fn cidr_set(chance: &Chance) -> v1::Object {
    let kind = chance.pick(&KINDS).copied().unwrap_or_default();
    let metadata = v1::Metadata {
        name: cidr_set_name(chance),
        labels: BTreeMap::from([("kind".to_owned(), kind.to_owned())]),
        ..v1::Metadata::default()
    };
    let cidrs = CIDRS.iter().filter(|_| chance.percent(40)).map(|cidr| (*cidr).to_owned()).collect();
    v1::Object { kind: Some(Of::CidrSet(v1::CidrSet { metadata: Some(metadata), cidrs })) }
}

/// `config` with another default, and other words about nodes.
pub(crate) fn change_config(chance: &Chance, config: &mut v1::FleetConfig) {
    let action = if chance.percent(50) { v1::DefaultAction::Deny } else { v1::DefaultAction::Allow };
    config.default_action = action.into();
    let judged = if chance.percent(50) { v1::HostToEndpoint::Policy } else { v1::HostToEndpoint::Allow };
    config.host_to_endpoint = judged.into();
    let entry = |direction: v1::Direction| v1::Failsafe {
        protocol: v1::Protocol::Tcp.into(),
        port: Some(if chance.percent(50) { 22 } else { 80 }),
        direction: direction.into(),
        cidrs: CIDRS.iter().filter(|_| chance.percent(30)).map(|cidr| (*cidr).to_owned()).collect(),
        ..v1::Failsafe::default()
    };
    config.failsafe = chance.percent(70).then(|| {
        let both = [v1::Direction::Ingress, v1::Direction::Egress];
        v1::FailsafeList { items: both.into_iter().filter(|_| chance.percent(50)).map(entry).collect() }
    });
}

pub(crate) fn policy(chance: &Chance) -> v1::Object {
    let tier = match chance.within(0..10) {
        0..6 => v1::Tier::Application,
        6..8 => v1::Tier::Admin,
        _ => v1::Tier::Baseline,
    };
    let rules = |odds| chance.percent(odds).then(|| v1::RuleList { items: rules(chance, tier) });
    let (ingress, egress) = (rules(80), rules(50));
    let says_default = tier == v1::Tier::Application && chance.percent(40);
    let default_deny = says_default
        .then(|| v1::DefaultDeny { ingress: Some(chance.percent(50)), egress: Some(chance.percent(50)) });
    let ordered = tier != v1::Tier::Application && chance.percent(50);
    let order = ordered.then(|| u32::try_from(chance.within(0..4)).unwrap_or_default());
    let mode = if chance.percent(15) { v1::PolicyMode::Audit } else { v1::PolicyMode::Enforce };
    let default_deny = default_deny.map(|deny| v1::DefaultDeny {
        ingress: deny.ingress.filter(|_| ingress.is_some()),
        egress: deny.egress.filter(|_| egress.is_some()),
    });
    let policy = v1::Policy {
        metadata: Some(v1::Metadata { name: policy_name(chance), ..v1::Metadata::default() }),
        subject: Some(subject(chance)),
        ingress,
        egress,
        default_deny,
        tier: tier.into(),
        order,
        mode: mode.into(),
    };
    v1::Object { kind: Some(Of::Policy(policy)) }
}

fn subject(chance: &Chance) -> v1::Subject {
    if chance.percent(25) {
        v1::Subject { nodes: Some(node_selector(chance)), endpoints: None }
    } else {
        v1::Subject { endpoints: Some(selector(chance)), nodes: None }
    }
}

/// All nodes, or those of a zone.
fn node_selector(chance: &Chance) -> v1::Selector {
    let zone = chance.pick(&ZONES).filter(|_| chance.percent(60));
    let match_labels = zone.map(|zone| ("zone".to_owned(), (*zone).to_owned())).into_iter().collect();
    v1::Selector { match_labels, match_expressions: Vec::new() }
}

fn rules(chance: &Chance, tier: v1::Tier) -> Vec<v1::Rule> {
    (0..chance.within(0..4)).map(|_| rule(chance, tier)).collect()
}

fn rule(chance: &Chance, tier: v1::Tier) -> v1::Rule {
    let action = match chance.within(0..10) {
        0..6 => v1::Action::Allow,
        6..8 if tier == v1::Tier::Admin => v1::Action::Pass,
        _ => v1::Action::Deny,
    };
    let peers = chance
        .percent(90)
        .then(|| v1::PeerList { items: (0..chance.within(1..3)).map(|_| peer(chance)).collect() });
    let ports = chance.percent(40).then(|| v1::PortList { items: vec![port(chance)] });
    v1::Rule { name: String::new(), action: action.into(), peers, ports }
}

fn peer(chance: &Chance) -> v1::Peer {
    let entities = [
        v1::Entity::Host,
        v1::Entity::RemoteNode,
        v1::Entity::Fleet,
        v1::Entity::World,
        v1::Entity::Unmanaged,
        v1::Entity::All,
    ];
    match chance.within(0..12) {
        0..5 => v1::Peer { endpoints: Some(selector(chance)), ..v1::Peer::default() },
        5..6 => v1::Peer { nodes: Some(node_selector(chance)), ..v1::Peer::default() },
        6..8 => v1::Peer { cidr: chance.pick(&CIDRS).map(|cidr| (*cidr).to_owned()), ..v1::Peer::default() },
        8..10 => v1::Peer { cidr_set: Some(meant_sets(chance)), ..v1::Peer::default() },
        _ => {
            let entity = chance.pick(&entities).copied().unwrap_or_default();
            v1::Peer { entity: entity.into(), ..v1::Peer::default() }
        }
    }
}

fn meant_sets(chance: &Chance) -> v1::CidrSetReference {
    if chance.percent(50) {
        return v1::CidrSetReference { name: Some(cidr_set_name(chance)), ..v1::CidrSetReference::default() };
    }
    let kind = chance.pick(&KINDS).copied().unwrap_or_default();
    let match_labels = BTreeMap::from([("kind".to_owned(), kind.to_owned())]);
    v1::CidrSetReference { match_labels, ..v1::CidrSetReference::default() }
}

fn port(chance: &Chance) -> v1::Port {
    let (protocol, port, end_port) = match chance.within(0..3) {
        0 => (v1::Protocol::Tcp, 80, None),
        1 => (v1::Protocol::Tcp, 8000, Some(8090)),
        _ => (v1::Protocol::Udp, 53, None),
    };
    v1::Port { protocol: protocol.into(), port: Some(port), end_port, ..v1::Port::default() }
}

fn selector(chance: &Chance) -> v1::Selector {
    let mut match_labels = BTreeMap::new();
    let mut match_expressions = Vec::new();
    if chance.percent(70) {
        match_labels.extend(chance.pick(&APPS).map(|app| ("app".to_owned(), (*app).to_owned())));
    }
    if chance.percent(30) {
        let operators = [v1::LabelOperator::In, v1::LabelOperator::NotIn, v1::LabelOperator::Exists];
        let operator = chance.pick(&operators).copied().unwrap_or_default();
        let values = if operator == v1::LabelOperator::Exists {
            Vec::new()
        } else {
            chance.pick(&ENVIRONMENTS).map(|env| (*env).to_owned()).into_iter().collect()
        };
        match_expressions.push(v1::LabelRequirement {
            key: "env".to_owned(),
            operator: operator.into(),
            values,
        });
    }
    v1::Selector { match_labels, match_expressions }
}

/// Whether a service may list the address as a backend's.
pub(crate) fn is_listed(address: IpAddr) -> bool {
    LISTED.iter().any(|listed| *listed == address.to_string())
}
