//! Rows of the maps, in words.

use std::net::IpAddr;

use weft_proto::v1::DumpMapResponse;
use weft_shared::layout::{
    Action, Address, Class, Direction, Endpoint, FailsafeKey, Peer, PolicyRow, PortKey, PrefixKey,
    class_rulebook, endpoint_flags,
};

use super::names::Names;
use crate::plan::{
    compile::prefix_of,
    tables::{HostRow, SubjectRow, Tables},
};

/// What can be dumped.
pub const MAPS: [&str; 10] = [
    "endpoints",
    "ipcache",
    "prefixes",
    "nodes",
    "node_addresses",
    "subjects",
    "peer_rules",
    "rules",
    "failsafe",
    "runtime",
];

/// All rows of one map. The error names the maps that there are.
pub fn rows(tables: &Tables, map: &str, names: &Names) -> Result<Vec<DumpMapResponse>, String> {
    let row = |key: String, value: String| DumpMapResponse { key, value };
    Ok(match map {
        "endpoints" => tables
            .endpoints
            .iter()
            .map(|(ifindex, value)| {
                row(format!("ifindex {ifindex} {}", names.endpoint(*ifindex)), endpoint(value))
            })
            .collect(),
        "ipcache" => tables.ipcache.iter().map(|(key, value)| row(address(*key), peer(value))).collect(),
        "prefixes" => tables
            .prefixes
            .iter()
            .map(|(key, value)| {
                row(prefix_of(*key).map(|net| net.to_string()).unwrap_or_default(), peer(value))
            })
            .collect(),
        "nodes" => tables
            .nodes
            .iter()
            .map(|(slot, node)| {
                row(
                    format!("slot {slot}"),
                    format!("address {} identity {}", address(node.address), node.identity),
                )
            })
            .collect(),
        "node_addresses" => tables
            .node_addresses
            .iter()
            .map(|(key, slot)| row(address(*key), format!("slot {slot}")))
            .collect(),
        "subjects" => {
            tables.subjects.iter().map(|(slot, value)| row(format!("slot {slot}"), subject(value))).collect()
        }
        "peer_rules" => tables
            .peer_rules
            .iter()
            .map(|(key, number)| {
                let direction = if key.direction == Direction::Ingress as u32 { "ingress" } else { "egress" };
                let key = format!("subject {} {direction} peer {}", key.subject, key.peer);
                row(key, format!("rulebook {number}"))
            })
            .collect(),
        "rules" => rules(tables, names),
        "failsafe" => tables
            .failsafe
            .iter()
            .map(|(key, number)| {
                let ingress = key.direction == (Direction::Ingress as u32).to_be();
                let bits = key.bits.saturating_sub(FailsafeKey::DIRECTION_BITS);
                let prefix = prefix_of(PrefixKey { bits, address: key.address });
                let prefix = prefix.map(|net| net.to_string()).unwrap_or_default();
                let direction = if ingress { "ingress" } else { "egress" };
                row(format!("{direction} {prefix}"), format!("rulebook {number}"))
            })
            .collect(),
        "runtime" => vec![
            row("identities_through".to_owned(), tables.identities_through.to_string()),
            row("host".to_owned(), host(tables)),
        ],
        _ => return Err(format!("there is no map \"{map}\"; there are {}", MAPS.join(", "))),
    })
}

fn host(tables: &Tables) -> String {
    match tables.host {
        None => "not judged".to_owned(),
        Some(HostRow { subject, own_endpoints_free: true }) => format!("slot {subject}; own endpoints free"),
        Some(HostRow { subject, own_endpoints_free: false }) => format!("slot {subject}"),
    }
}

fn subject(subject: &SubjectRow) -> String {
    let books = |direction, word: &str| {
        let of_class = |of: Class| subject.rulebooks[class_rulebook(direction, of)];
        let books = Class::ALL.map(|of| format!("{} {}", class(of as u32), of_class(of)));
        format!("{word} rulebooks {}", books.join(", "))
    };
    let [ingress, egress] = [books(Direction::Ingress, "ingress"), books(Direction::Egress, "egress")];
    format!("identity {}; {ingress}; {egress}", subject.identity)
}

fn rules(tables: &Tables, names: &Names) -> Vec<DumpMapResponse> {
    let rows = tables.rulebooks.iter().flat_map(|(number, rulebook)| {
        rulebook.iter().map(move |(key, row)| DumpMapResponse {
            key: format!("rulebook {number} {}", ports(*key)),
            value: policy_row(row, names),
        })
    });
    rows.collect()
}

fn address(address: Address) -> String {
    IpAddr::from(address).to_string()
}

fn class(number: u32) -> &'static str {
    match Class::ALL.into_iter().find(|class| *class as u32 == number) {
        Some(Class::Host) => "host",
        Some(Class::RemoteNode) => "remote-node",
        Some(Class::Fleet) => "fleet",
        Some(Class::Unmanaged) => "unmanaged",
        Some(Class::World) => "world",
        None => "?",
    }
}

fn peer(peer: &Peer) -> String {
    let Peer { identity, node, ifindex, .. } = peer;
    let class = class(peer.class);
    match (node, ifindex) {
        (0, 0) => format!("identity {identity} class {class}"),
        (0, _) => format!("identity {identity} class {class} ifindex {ifindex}"),
        _ => format!("identity {identity} class {class} node {node}"),
    }
}

fn endpoint(endpoint: &Endpoint) -> String {
    let state = if endpoint.flags & endpoint_flags::OPEN == 0 { "init" } else { "open" };
    let addresses: Vec<String> = [endpoint.address4, endpoint.address6]
        .into_iter()
        .filter(|address| *address != Address::UNSPECIFIED)
        .map(address)
        .collect();
    let rates = [
        ("ingress", endpoint.ingress_rate),
        ("egress", endpoint.egress_rate),
        ("each connection", endpoint.connection_rate.into()),
    ];
    let rates = rates.iter().filter(|(_, rate)| *rate != 0);
    let rates: Vec<String> = rates.map(|(of, rate)| format!(" {of} {rate} bytes/s")).collect();
    format!(
        "{state} identity {} subject {} addresses {}{}",
        endpoint.identity,
        endpoint.subject,
        addresses.join(","),
        rates.concat()
    )
}

fn ports(key: PortKey) -> String {
    if key.bits < PortKey::PROTOCOL_BITS {
        return "everything".to_owned();
    }
    let free = PortKey::FULL_BITS - key.bits;
    let last = key.port | u16::try_from((1_u32 << free) - 1).unwrap_or(u16::MAX);
    format!("protocol {} ports {}-{last}", key.protocol, key.port)
}

fn policy_row(row: &PolicyRow, names: &Names) -> String {
    let says = |action: u32, rule: u32| {
        let action = if action == Action::Allow as u32 { "allow" } else { "deny" };
        let (policy, rule) = names.rule(rule);
        format!("{action} policy {policy} rule {rule}").trim_end().to_owned()
    };
    let enforced = says(row.action, row.rule);
    if row.audit_action == row.action {
        return enforced;
    }
    format!("{enforced}; with audited policies {}", says(row.audit_action, row.audit_rule))
}
