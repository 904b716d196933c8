//! Explain: the verdict on a flow, from the evaluator of the rules.
mod service;

use std::net::IpAddr;

use ipnet::IpNet;
use tonic::Status;
use weft_proto::v1;
use weft_shared::policy::{
    model::{Action, CidrSet, Class, Direction, FleetConfig, FlowPort, Labels, Party, Policy},
    oracle::{self, TierName},
    parse,
};

use super::{Operator, errors};
use crate::{
    fleet::{EndpointFacts, Fleet, NodeFacts},
    fleet_config, identity, nodes,
    plan::Plan,
};

/// A party as far as it was found.
struct Found {
    /// For people.
    text: String,
    what: What,
}

enum What {
    /// Without a name: one with such labels, somewhere.
    Endpoint {
        name: Option<String>,
        labels: Labels,
        node: Option<String>,
        address: Option<IpAddr>,
    },
    /// Without a name: one with such labels.
    Node {
        name: Option<String>,
        labels: Labels,
        address: Option<IpAddr>,
    },
    Address(IpAddr),
}

impl Operator {
    pub(super) async fn explain_flow(
        &self,
        request: &v1::ExplainRequest,
    ) -> Result<v1::ExplainResponse, Status> {
        self.caught_up().await?;
        let config =
            fleet_config::read(self.store.as_ref(), &mut Plan::default()).await.map_err(errors::store)?;
        let family = family(request)?.or_else(|| family_of([&request.from, &request.to]));
        let port = flow_port(request.port.as_ref())?;
        self.hub.ask(|fleet| {
            let from = find(fleet, &config, request.from.as_ref(), "from", family)?;
            let to = find(fleet, &config, request.to.as_ref(), "to", family)?;
            let policies: Vec<Policy> = fleet.policies().cloned().collect();
            let cidr_sets: Vec<CidrSet> = fleet.cidr_sets().cloned().collect();
            let judge = Judge { fleet, config: &config, policies: &policies, cidr_sets: &cidr_sets };
            let called = service::called(&judge, &from, &to, port, family);
            let (directions, verdict) = match &called {
                Some((_, verdict)) => (Vec::new(), *verdict),
                None => judge.flow(&from, &to, port),
            };
            let failsafe = (judge.is_of_host_policy(&from) || judge.is_of_host_policy(&to))
                .then(|| parse::failsafe_to_proto(&config.failsafe));
            Ok(v1::ExplainResponse {
                verdict: verdict.into(),
                directions,
                from_address: from.address().map(|address| address.to_string()).unwrap_or_default(),
                to_address: to.address().map(|address| address.to_string()).unwrap_or_default(),
                from: from.text,
                to: to.text,
                revision: fleet.revision(),
                failsafe,
                service: called.map(|(service, _)| service),
            })
        })
    }
}

/// What flows are judged by.
struct Judge<'a> {
    fleet: &'a Fleet,
    config: &'a FleetConfig,
    policies: &'a [Policy],
    cidr_sets: &'a [CidrSet],
}

impl Judge<'_> {
    /// Both ends' verdicts, and that of both together.
    fn flow(&self, from: &Found, to: &Found, port: FlowPort) -> (Vec<v1::DirectionVerdict>, v1::Verdict) {
        let Self { fleet, config, policies, cidr_sets } = *self;
        let context = oracle::Context { policies, cidr_sets, config };
        let mut directions = Vec::new();
        for (direction, subject, peer) in [(Direction::Egress, from, to), (Direction::Ingress, to, from)] {
            // An endpoint may always reach itself.
            if subject.is_judged() && !same_endpoint(from, to) {
                let subject_party = subject_party(subject);
                let peer_party = party(fleet, config, peer, subject.node());
                let verdict = oracle::judge(context, &subject_party, &peer_party, direction, port);
                directions.push(direction_verdict(direction, verdict));
            }
        }
        let verdict = together(&directions);
        (directions, verdict)
    }

    fn is_of_host_policy(&self, found: &Found) -> bool {
        matches!(found.what, What::Node { .. })
            && self.policies.iter().any(|policy| policy.selects(&subject_party(found)))
    }
}

impl Found {
    fn is_judged(&self) -> bool {
        !matches!(self.what, What::Address(_))
    }

    fn address(&self) -> Option<IpAddr> {
        match self.what {
            What::Endpoint { address, .. } | What::Node { address, .. } => address,
            What::Address(address) => Some(address),
        }
    }

    /// The node that it is, or is on.
    fn node(&self) -> Option<&str> {
        match &self.what {
            What::Endpoint { node, .. } => node.as_deref(),
            What::Node { name, .. } => name.as_deref(),
            What::Address(_) => None,
        }
    }
}

fn together(directions: &[v1::DirectionVerdict]) -> v1::Verdict {
    let denied = directions.iter().any(|direction| direction.verdict() == v1::Verdict::Deny);
    if denied { v1::Verdict::Deny } else { v1::Verdict::Allow }
}

fn same_endpoint(from: &Found, to: &Found) -> bool {
    match (&from.what, &to.what) {
        (What::Endpoint { name: Some(from), .. }, What::Endpoint { name: Some(to), .. }) => from == to,
        _ => false,
    }
}

/// The party as the one that is judged.
fn subject_party(found: &Found) -> Party {
    let (class, labels, address) = match &found.what {
        What::Endpoint { labels, address, .. } => (Class::Fleet, labels.clone(), *address),
        What::Node { labels, address, .. } => (Class::Host, labels.clone(), *address),
        What::Address(address) => (Class::World, Labels::new(), Some(*address)),
    };
    Party { class, labels, address, local: true }
}

fn family(request: &v1::ExplainRequest) -> Result<Option<u32>, Status> {
    match request.family {
        0 => Ok(None),
        4 | 6 => Ok(Some(request.family)),
        other => Err(errors::bad_field("family", format!("{other}, expected 4 or 6"))),
    }
}

/// Of an end that is an address: the other end has one of that family.
fn family_of(parties: [&Option<v1::Party>; 2]) -> Option<u32> {
    let address = |party: &Option<v1::Party>| match party.as_ref()?.party.as_ref()? {
        v1::party::Party::Name(name) => name.parse::<IpAddr>().ok(),
        v1::party::Party::Labels(_) => None,
    };
    let address = parties.into_iter().find_map(address)?;
    Some(if address.is_ipv4() { 4 } else { 6 })
}

fn flow_port(port: Option<&v1::FlowPort>) -> Result<FlowPort, Status> {
    let port = port.ok_or_else(|| errors::bad_field("port", "expected a protocol and port"))?;
    let protocol = u8::try_from(port.protocol_number).map_err(|_| {
        errors::bad_field("port.protocolNumber", format!("{}, expected 0 to 255", port.protocol_number))
    })?;
    let number = u16::try_from(port.port)
        .map_err(|_| errors::bad_field("port.port", format!("{}, expected 0 to 65535", port.port)))?;
    Ok(FlowPort { protocol, port: number })
}

fn find(
    fleet: &Fleet,
    config: &FleetConfig,
    party: Option<&v1::Party>,
    path: &str,
    family: Option<u32>,
) -> Result<Found, Status> {
    match party.and_then(|party| party.party.as_ref()) {
        None => Err(errors::bad_field(path, "expected a name, an address or labels")),
        Some(v1::party::Party::Labels(set)) => {
            parse::labels(&set.labels, path).map_err(|wrong| errors::bad_request(&wrong))?;
            let labels = config.security_labels(&set.labels);
            if set.node {
                let text = format!("a node with {}", label_text(&labels));
                return Ok(Found { text, what: What::Node { name: None, labels, address: None } });
            }
            let text = format!("an endpoint with {}", label_text(&labels));
            Ok(Found { text, what: What::Endpoint { name: None, labels, node: None, address: None } })
        }
        Some(v1::party::Party::Name(name)) => {
            if let Ok(address) = name.parse::<IpAddr>() {
                return Ok(by_address(fleet, address));
            }
            if let Some(facts) = fleet.endpoint(name) {
                return Ok(endpoint(fleet, name, facts, pick(facts.addresses.clone(), family)));
            }
            if let Some(facts) = fleet.node(name) {
                return Ok(node(fleet, name, facts, pick(nodes::parse_all(&facts.addresses), family)));
            }
            Err(Status::not_found(format!("{path}: \"{name}\" is no endpoint, no node and no address")))
        }
    }
}

fn by_address(fleet: &Fleet, address: IpAddr) -> Found {
    if let Some((name, facts)) = fleet.endpoint_by_address(address) {
        return endpoint(fleet, name, facts, Some(address));
    }
    let mut nodes = fleet.nodes();
    let found = nodes.find(|(_, facts)| nodes::parse_all(&facts.addresses).contains(&address));
    match found {
        Some((name, facts)) => node(fleet, name, facts, Some(address)),
        None => Found { text: format!("address {address}"), what: What::Address(address) },
    }
}

fn endpoint(fleet: &Fleet, name: &str, facts: &EndpointFacts, address: Option<IpAddr>) -> Found {
    let labels = fleet.labels(facts.identity).cloned().unwrap_or_default();
    let text = format!("endpoint {name} ({}) on node {}", label_text(&labels), facts.node);
    let (name, node) = (Some(name.to_owned()), Some(facts.node.clone()));
    Found { text, what: What::Endpoint { name, labels, node, address } }
}

fn node(fleet: &Fleet, name: &str, facts: &NodeFacts, address: Option<IpAddr>) -> Found {
    let labels = fleet.labels(facts.identity).map(identity::without_mark).unwrap_or_default();
    let text = format!("node {name} ({})", label_text(&labels));
    Found { text, what: What::Node { name: Some(name.to_owned()), labels, address } }
}

/// The party as seen from the subject's node.
fn party(fleet: &Fleet, config: &FleetConfig, found: &Found, subject_node: Option<&str>) -> Party {
    match &found.what {
        What::Endpoint { labels, node, address, .. } => {
            let local = node.is_some() && node.as_deref() == subject_node;
            Party { class: Class::Fleet, labels: labels.clone(), address: *address, local }
        }
        What::Node { name, labels, address } => {
            let own = name.is_some() && name.as_deref() == subject_node;
            let class = if own { Class::Host } else { Class::RemoteNode };
            Party { class, labels: labels.clone(), address: *address, local: false }
        }
        What::Address(address) => {
            let class = class_of(fleet, config, *address);
            Party { class, labels: Labels::new(), address: Some(*address), local: false }
        }
    }
}

/// Of an address that no endpoint and no node has.
fn class_of(fleet: &Fleet, config: &FleetConfig, address: IpAddr) -> Class {
    let given = fleet.nodes().any(|(_, facts)| {
        nodes::parse_all::<IpNet>(&facts.endpoint_cidrs).iter().any(|cidr| cidr.contains(&address))
    });
    if given || config.in_pools(address) { Class::Unmanaged } else { Class::World }
}

fn pick(addresses: Vec<IpAddr>, family: Option<u32>) -> Option<IpAddr> {
    let wanted = |address: &IpAddr| family.is_none_or(|family| (family == 4) == address.is_ipv4());
    addresses.into_iter().filter(wanted).min_by_key(IpAddr::is_ipv6)
}

fn label_text(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { "no labels".to_owned() } else { pairs.join(",") }
}

fn direction_verdict(direction: Direction, verdict: oracle::Verdict) -> v1::DirectionVerdict {
    let direction = match direction {
        Direction::Ingress => v1::Direction::Ingress,
        Direction::Egress => v1::Direction::Egress,
    };
    let audit = verdict.audit.map(|audit| v1::AuditVerdict {
        verdict: verdict_number(audit.action).into(),
        step: Some(step_message(audit.step)),
    });
    v1::DirectionVerdict {
        direction: direction.into(),
        verdict: verdict_number(verdict.action).into(),
        steps: verdict.steps.into_iter().map(step_message).collect(),
        audit,
        subject: String::new(),
    }
}

pub(super) fn verdict_number(action: Action) -> v1::Verdict {
    match action {
        Action::Allow => v1::Verdict::Allow,
        Action::Deny => v1::Verdict::Deny,
    }
}

pub(super) fn step_message(step: oracle::Step) -> v1::VerdictStep {
    let tier = match step.tier {
        // No policy: what holds whatever they say, or the configuration.
        None => v1::Tier::Unspecified,
        Some(TierName::Admin) => v1::Tier::Admin,
        Some(TierName::Application) => v1::Tier::Application,
        Some(TierName::Baseline) => v1::Tier::Baseline,
    };
    v1::VerdictStep {
        tier: tier.into(),
        policy: step.policy,
        rule: step.rule,
        text: step.text,
        decided: step.decided,
    }
}
