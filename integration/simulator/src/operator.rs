//! What operators of a simulated fleet write: policies of endpoints and of nodes over few labels, so that they meet, the CIDR
//! sets that these mean, and the fleet's configuration.
use std::collections::BTreeMap;

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
