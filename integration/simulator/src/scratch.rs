//! The tables that a node should have, compiled from what the store holds: from scratch, by a fleet that has seen nothing
//! else.
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use prost::Message as _;
use weft_controller::{
    fleet::{Change, Fleet},
    keys,
    store::{Memory, Range, Store},
};
use weft_noded::{
    desired::{
        Batch, Desired,
        attachments::{Attachment, Attachments},
    },
    plan::{
        compile::{self, Input, Stale},
        tables::Tables,
    },
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::{Address, Endpoint, endpoint_flags},
    policy::model::Labels,
};

use crate::node::HOST_ADDRESSES;

/// The fleet as of a revision; `None`: that is compacted.
pub(crate) async fn fleet(memory: &Memory, revision: Option<u64>) -> Option<Fleet> {
    let mut range = Range { prefix: keys::ROOT.to_owned(), limit: 1000, revision, ..Range::default() };
    let mut changes = Vec::new();
    loop {
        let page = memory.range(range.clone()).await.ok()?;
        for item in &page.items {
            changes.extend(Change::from_item(item).ok()?);
        }
        if !page.more {
            let mut fleet = Fleet::default();
            fleet.apply(page.revision, Duration::ZERO, changes);
            return Some(fleet);
        }
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
    }
}

/// What a node should be told, of its endpoints nothing. `None`: the fleet has no such node.
pub(crate) fn desired(fleet: &mut Fleet, node: &str) -> Option<Desired> {
    fleet.node(node)?;
    fleet.connect(node, None);
    let delta = fleet.drain(node)?;
    let of_all = delta.upserts.iter().filter(|resource| resource.key.kind != ResourceType::Endpoint);
    let upserts =
        of_all.map(|resource| upsert(resource.key.kind, &resource.key.name, resource.bytes.clone()));
    let mut desired = Desired::default();
    desired.apply(Batch {
        revision: delta.revision,
        identities_through: delta.identities_through,
        upserts: upserts.collect(),
        in_sync: true,
        ..Batch::default()
    });
    Some(desired)
}

/// What a node that is told this should have in its kernel, given which interfaces it has (`now` says that, and which slots are
/// taken) and what labels identities have.
pub(crate) fn tables(
    mut desired: Desired,
    node: &str,
    address: IpAddr,
    now: &Tables,
    identities: &BTreeMap<u32, Labels>,
) -> Tables {
    let (mut upserts, mut attachments) = (Vec::new(), Attachments::default());
    for (ifindex, row) in &now.endpoints {
        let labels = identities.get(&row.identity).cloned().unwrap_or_default();
        let own = attachment(*ifindex, row, labels);
        if row.identity != 0 {
            let open = row.flags & endpoint_flags::OPEN != 0;
            let word = v1::NodeEndpoint { identity: row.identity, open, ..v1::NodeEndpoint::default() };
            upserts.push(upsert(ResourceType::Endpoint, &own.name, word.encode_to_vec().into()));
        }
        attachments.endpoints.insert(own.name.clone(), own);
    }
    let (revision, identities_through) = (desired.revision, desired.identities_through);
    desired.apply(Batch { revision, identities_through, upserts, in_sync: true, ..Batch::default() });
    let input = Input {
        node,
        own_addresses: &[address],
        host_addresses: &HOST_ADDRESSES,
        desired: &desired,
        attachments: &attachments,
        departures: false,
        former_sets: &BTreeMap::new(),
    };
    let mut tables = compile::compile(input, now, Stale::Drop).tables;
    for (ifindex, row) in &mut tables.endpoints {
        // Whose labels are not known here: which rates it has can't be said.
        if let Some(found) = now.endpoints.get(ifindex).filter(|row| row.flags & endpoint_flags::OPEN == 0) {
            row.connection_rate = found.connection_rate;
            (row.ingress_rate, row.egress_rate) = (found.ingress_rate, found.egress_rate);
        }
    }
    tables
}

fn upsert(kind: ResourceType, name: &str, bytes: bytes::Bytes) -> v1::Upsert {
    v1::Upsert { r#type: kind.into(), name: name.to_owned(), requires: Vec::new(), bytes }
}

fn attachment(ifindex: u32, row: &Endpoint, labels: Labels) -> Attachment {
    let address = |address: Address| Some(IpAddr::from(address)).filter(|_| address != Address::UNSPECIFIED);
    let (v4, v6) = (address(row.address4), address(row.address6));
    Attachment {
        name: format!("interface-{ifindex}"),
        instance: String::new(),
        labels,
        interface: String::new(),
        ifindex,
        netns: String::new(),
        ours: true,
        peer: row.flags & endpoint_flags::PEER != 0,
        container_id: String::new(),
        address4: v4.and_then(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
        address6: v6.and_then(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
        mac: row.mac,
        gateway_mac: row.gateway_mac,
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
        accepted: Some(0),
        lent_identity: None,
    }
}

/// Where two sets of tables differ, for people.
pub(crate) fn difference(found: &Tables, expected: &Tables) -> Option<String> {
    let mut lines = rows("endpoint", &found.endpoints, &expected.endpoints);
    lines.extend(rows("address", &found.ipcache, &expected.ipcache));
    lines.extend(rows("prefix", &found.prefixes, &expected.prefixes));
    lines.extend(rows("node", &found.nodes, &expected.nodes));
    lines.extend(rows("node address", &found.node_addresses, &expected.node_addresses));
    lines.extend(rows("subject", &found.subjects, &expected.subjects));
    lines.extend(rows("peer", &found.peer_rules, &expected.peer_rules));
    lines.extend(rows("rulebook", &found.rulebooks, &expected.rulebooks));
    lines.extend(rows("failsafe", &found.failsafe, &expected.failsafe));
    if found.host != expected.host {
        lines.push(format!("the node itself: found {:?}, expected {:?}", found.host, expected.host));
    }
    if found.identities_through != expected.identities_through {
        lines.push(format!(
            "identities through {}, expected {}",
            found.identities_through, expected.identities_through
        ));
    }
    (!lines.is_empty()).then(|| lines.join("\n    "))
}

/// Rows that differ, for people.
pub(crate) fn rows<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) -> Vec<String> {
    let keys: std::collections::BTreeSet<&K> = found.keys().chain(expected.keys()).collect();
    let differing = keys.into_iter().filter(|key| found.get(key) != expected.get(key));
    differing
        .map(|key| format!("{what} {key:?}: found {:?}, expected {:?}", found.get(key), expected.get(key)))
        .collect()
}
