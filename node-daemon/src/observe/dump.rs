//! Rows of the maps, in words.

use std::net::IpAddr;

use weft_proto::v1::DumpMapResponse;
use weft_shared::layout::{
    Action, Address, Class, DIRECTION_PREFIX_BITS, Direction, Endpoint, IDENTITY_PREFIX_BITS,
    PROTOCOL_PREFIX_BITS, Peer, PolicyKey, PolicyRow, endpoint_flags,
};

use super::names::Names;
use crate::plan::{compile::prefix_of, tables::Tables};

/// What can be dumped.
pub const MAPS: [&str; 8] =
    ["endpoints", "ipcache", "prefixes", "nodes", "node_addresses", "subjects", "policies", "runtime"];

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
        "subjects" => tables
            .subjects
            .iter()
            .map(|(slot, identity)| row(format!("slot {slot}"), format!("identity {identity}")))
            .collect(),
        "policies" => policies(tables, names),
        "runtime" => vec![row("identities_through".to_owned(), tables.identities_through.to_string())],
        _ => return Err(format!("there is no map \"{map}\"; there are {}", MAPS.join(", "))),
    })
}

fn policies(tables: &Tables, names: &Names) -> Vec<DumpMapResponse> {
    let mut rows = Vec::new();
    for (slot, table) in &tables.policies {
        let subject =
            tables.subjects.get(slot).map_or_else(|| format!("slot {slot}"), |id| format!("subject {id}"));
        for (key, value) in table {
            rows.push(DumpMapResponse {
                key: format!("{subject} {}", policy_key(key)),
                value: policy_row(value, names),
            });
        }
    }
    rows
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
    format!(
        "{state} identity {} subject {} addresses {}",
        endpoint.identity,
        endpoint.subject,
        addresses.join(",")
    )
}

fn policy_key(key: &PolicyKey) -> String {
    let direction = if key.direction == Direction::Ingress as u8 { "ingress" } else { "egress" };
    if key.bits < IDENTITY_PREFIX_BITS {
        debug_assert_eq!(key.bits, DIRECTION_PREFIX_BITS);
        return format!("{direction} default");
    }
    let peer = u32::from_be_bytes(key.identity);
    if key.bits < PROTOCOL_PREFIX_BITS {
        return format!("{direction} peer {peer}");
    }
    let first = u16::from_be_bytes(key.port);
    let free = PolicyKey::FULL_BITS - key.bits;
    let last = first | u16::try_from((1_u32 << free) - 1).unwrap_or(u16::MAX);
    format!("{direction} peer {peer} protocol {} ports {first}-{last}", key.protocol)
}

fn policy_row(row: &PolicyRow, names: &Names) -> String {
    let action = match row.action {
        allow if allow == Action::Allow as u32 => "allow",
        _ => "deny",
    };
    let (policy, rule) = names.rule(row.rule);
    format!("{action} precedence {} policy {policy} rule {rule}", row.precedence).trim_end().to_owned()
}
