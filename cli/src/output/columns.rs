//! What is worth a column, for each kind of resource.
use std::collections::BTreeMap;

use weft_proto::v1::{self, object::Kind as K};

use super::{count, table};
use crate::manifest;

/// A table of objects, all of one kind.
pub(crate) fn objects(objects: &[v1::Object]) -> String {
    let first = objects.first().and_then(|object| object.kind.as_ref());
    match first {
        None => String::new(),
        Some(K::Policy(_)) => policies(objects),
        Some(K::Endpoint(_)) => {
            let endpoints = objects.iter().filter_map(|object| match &object.kind {
                Some(K::Endpoint(endpoint)) => Some(endpoint),
                _ => None,
            });
            self::endpoints(endpoints)
        }
        Some(K::Node(_)) => nodes(objects),
        Some(K::Identity(_)) => identities(objects),
        Some(K::CidrSet(_)) => cidr_sets(objects),
        Some(K::FleetConfig(_)) => fleet_config(objects),
        Some(K::Service(_)) => services(objects),
        Some(K::Prefilter(_)) => prefilters(objects),
        Some(K::Shaping(_)) => shapings(objects),
        Some(_) => others(objects),
    }
}

/// `app=web,env=prod`.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

pub(crate) fn endpoints<'a>(endpoints: impl Iterator<Item = &'a v1::Endpoint>) -> String {
    let header = ["NAME", "NODE", "ADDRESSES", "IDENTITY", "STATE", "INTERFACE", "LABELS"];
    let rows = endpoints.map(|it| {
        let metadata = it.metadata.clone().unwrap_or_default();
        let status = it.status.clone().unwrap_or_default();
        let state = match status.state() {
            v1::EndpointState::Unspecified => String::new(),
            v1::EndpointState::Init => "init".to_owned(),
            v1::EndpointState::Ready => "ready".to_owned(),
            v1::EndpointState::Failed => "failed".to_owned(),
        };
        let state = if status.reason.is_empty() { state } else { format!("{state}: {}", status.reason) };
        let interface = it.attachment.as_ref().map(|at| at.interface.clone()).unwrap_or_default();
        let addresses = it.addresses.join(",");
        [
            metadata.name,
            it.node.clone(),
            addresses,
            number(status.identity),
            state,
            interface,
            labels(&metadata.labels),
        ]
    });
    table(header, rows)
}

fn policies(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::Policy(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        let tier = match it.tier() {
            v1::Tier::Unspecified | v1::Tier::Application => "application",
            v1::Tier::Admin => "admin",
            v1::Tier::Baseline => "baseline",
        };
        let mode = if it.mode() == v1::PolicyMode::Audit { "audit" } else { "enforce" };
        let subject = match &it.subject {
            Some(v1::Subject { endpoints: Some(endpoints), .. }) => selector(endpoints),
            Some(v1::Subject { nodes: Some(nodes), .. }) => format!("nodes: {}", selector(nodes)),
            _ => String::new(),
        };
        let rules = |list: &Option<v1::RuleList>| {
            list.as_ref().map_or_else(String::new, |list| count(list.items.len(), "rule", "rules"))
        };
        let revision = metadata.revision.to_string();
        Some([
            metadata.name,
            tier.to_owned(),
            subject,
            rules(&it.ingress),
            rules(&it.egress),
            mode.to_owned(),
            revision,
        ])
    });
    table(["NAME", "TIER", "SUBJECT", "INGRESS", "EGRESS", "MODE", "REVISION"], rows)
}

/// A selector in the syntax of `get -l`.
pub(crate) fn selector(selector: &v1::Selector) -> String {
    use v1::LabelOperator as Op;
    let mut parts: Vec<_> =
        selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    parts.extend(selector.match_expressions.iter().map(|one| {
        let (key, values) = (&one.key, one.values.join(","));
        match one.operator() {
            Op::In => format!("{key} in ({values})"),
            Op::NotIn => format!("{key} notin ({values})"),
            Op::DoesNotExist => format!("!{key}"),
            Op::Exists | Op::Unspecified => key.clone(),
        }
    }));
    if parts.is_empty() { "all".to_owned() } else { parts.join(",") }
}

fn nodes(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::Node(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        let status = it.status.clone().unwrap_or_default();
        Some([
            metadata.name,
            it.addresses.join(","),
            it.endpoint_cidrs.join(","),
            number(status.identity),
            status.controller,
            status.realised_revision.to_string(),
            labels(&metadata.labels),
        ])
    });
    table(["NAME", "ADDRESSES", "ENDPOINT CIDRS", "IDENTITY", "CONTROLLER", "REALISED", "LABELS"], rows)
}

fn identities(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| match &object.kind {
        Some(K::Identity(it)) => Some([it.number.to_string(), labels(&it.security_labels)]),
        _ => None,
    });
    table(["NUMBER", "LABELS"], rows)
}

fn cidr_sets(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::CidrSet(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        Some([metadata.name, it.cidrs.join(","), labels(&metadata.labels), metadata.revision.to_string()])
    });
    table(["NAME", "CIDRS", "LABELS", "REVISION"], rows)
}

fn fleet_config(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::FleetConfig(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        let pools =
            it.pools.iter().map(|pool| format!("{} (/{} a node)", pool.cidr, pool.node_prefix_length));
        let action = if it.default_action() == v1::DefaultAction::Deny { "deny" } else { "allow" };
        let pools = pools.collect::<Vec<_>>().join(", ");
        Some([metadata.name, pools, action.to_owned(), metadata.revision.to_string()])
    });
    table(["NAME", "POOLS", "DEFAULT ACTION", "REVISION"], rows)
}

fn services(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::Service(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        let backends = match (&it.selector, &it.backends) {
            (Some(selected), _) => selector(selected),
            (None, Some(list)) => count(list.items.len(), "address", "addresses"),
            (None, None) => String::new(),
        };
        let mode = if it.forwarding_mode() == v1::ForwardingMode::Dsr { "dsr" } else { "snat" };
        let revision = metadata.revision.to_string();
        Some([metadata.name, frontends(&it.frontends), backends, mode.to_owned(), revision])
    });
    table(["NAME", "FRONTENDS", "BACKENDS", "FORWARDING", "REVISION"], rows)
}

/// `10.96.0.1:80/TCP`, `node port 30080/TCP`.
pub(crate) fn frontends(frontends: &[v1::Frontend]) -> String {
    frontends.iter().map(frontend).collect::<Vec<_>>().join(", ")
}

fn frontend(it: &v1::Frontend) -> String {
    let protocol = it.protocol().as_str_name().trim_start_matches("PROTOCOL_");
    let place = match it.r#type() {
        v1::FrontendType::NodePort => format!("node port {}", it.port),
        _ => place(&it.address, it.port),
    };
    format!("{place}/{protocol}")
}

/// An address and a port; 0: none.
pub(crate) fn place(address: &str, port: u32) -> String {
    match (address.contains(':'), port) {
        (_, 0) => address.to_owned(),
        (true, port) => format!("[{address}]:{port}"),
        (false, port) => format!("{address}:{port}"),
    }
}

fn shapings(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::Shaping(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        let shaped = match (&it.endpoints, &it.nodes) {
            (Some(endpoints), _) => format!("endpoints {}", selector(endpoints)),
            (None, nodes) => {
                let nodes = nodes.as_ref().map(selector).unwrap_or_default();
                format!("nodes {nodes} {}", it.cgroup).trim_end().to_owned()
            }
        };
        let rate = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let [connection, ingress, egress] =
            [&it.connection_rate, &it.ingress_rate, &it.egress_rate].map(|text| rate(text));
        Some([metadata.name, shaped, connection, ingress, egress, metadata.revision.to_string()])
    });
    table(["NAME", "SHAPED", "CONNECTION", "INGRESS", "EGRESS", "REVISION"], rows)
}

fn prefilters(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(|object| {
        let Some(K::Prefilter(it)) = &object.kind else { return None };
        let metadata = it.metadata.clone().unwrap_or_default();
        let nodes = it.nodes.as_ref().map_or_else(|| "all".to_owned(), selector);
        let prefixes = count(it.cidrs.len(), "prefix", "prefixes");
        let senders = count(it.arp_senders.len(), "sender", "senders");
        Some([metadata.name, nodes, prefixes, senders, metadata.revision.to_string()])
    });
    table(["NAME", "NODES", "PREFIXES", "ARP SENDERS", "REVISION"], rows)
}

fn others(objects: &[v1::Object]) -> String {
    let rows = objects.iter().filter_map(manifest::metadata_of).map(|(_, metadata)| {
        [metadata.name.clone(), labels(&metadata.labels), metadata.revision.to_string()]
    });
    table(["NAME", "LABELS", "REVISION"], rows)
}

/// 0 stands for "not yet".
fn number(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}
