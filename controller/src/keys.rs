//! Names of the store's keys. Everything is below one root, which carries the version of the form of what is stored.
use std::net::IpAddr;

use ipnet::IpNet;
use weft_proto::v1::Kind;
use weft_shared::policy::model::Labels;

pub const ROOT: &str = "/weft/v1/";
/// The store's own id, a UUID; kept when data moves to another store.
pub const STORE_ID: &str = "/weft/v1/meta/store-id";
/// Written with every change that an operator makes: its revision is what `if_revision` is compared with.
pub const OPERATOR_CHANGE: &str = "/weft/v1/meta/operator-change";
/// What each controller knows of its nodes; the value is a `ControllerProgress`.
pub const PROGRESS: &str = "/weft/v1/progress/";
/// Written whenever a node is given an endpoint CIDR: what was seen of all nodes' CIDRs holds if this has not changed.
pub const ENDPOINT_CIDR_GIVEN: &str = "/weft/v1/meta/endpoint-cidr-given";
/// The next identity number, in decimal.
pub const NEXT_IDENTITY: &str = "/weft/v1/meta/next-identity";
/// In a store that data is being moved into: the id of the store that it is moved from. No controller serves it.
pub const MOVING: &str = "/weft/v1/meta/moving";
/// In a store whose data was moved: where to. No controller serves it any more.
pub const MOVED_TO: &str = "/weft/v1/meta/moved-to";
/// In decimal: what the store's revisions are ahead of etcd's own, since its data was moved there from another store. Written
/// when a move begins, and never once it is done.
pub const REVISION_BASE: &str = "/weft/v1/meta/revision-base";
/// Claims of endpoint CIDRs; the value is the node's name.
pub const ENDPOINT_CIDRS: &str = "/weft/v1/endpoint-cidr/";

/// Written whenever a service or a prefilter is applied: what was seen of their addresses holds if this has not changed.
pub const ADDRESSES_SPOKEN_FOR: &str = "/weft/v1/meta/addresses-spoken-for";
/// Written whenever a node gets an address: what was seen of all nodes' addresses holds if this has not changed.
pub const NODE_ADDRESS_GIVEN: &str = "/weft/v1/meta/node-address-given";
/// Written whenever a node gets other SNAT ports: what was seen of all nodes' holds if this has not changed.
pub const SNAT_PORTS_GIVEN: &str = "/weft/v1/meta/snat-ports-given";
/// What each node has found out about services' backends; the value is a `ServiceHealth`.
pub const HEALTH: &str = "/weft/v1/backend-health/";
/// Written whenever such a word, or one about who is away, is taken back.
pub const HEALTH_TAKEN_BACK: &str = "/weft/v1/meta/backend-health-taken-back";
/// Nodes that are away, so that others probe backends outside of the fleet for them.
pub const PROBERS_AWAY: &str = "/weft/v1/prober-away/";
/// Written whenever an endpoint is taken out.
pub const ENDPOINT_REMOVED: &str = "/weft/v1/meta/endpoint-removed";

/// Every kind that is stored, with its room.
const KINDS: [(Kind, &str); 12] = [
    (Kind::Node, "node"),
    (Kind::Endpoint, "endpoint"),
    (Kind::Identity, "identity"),
    (Kind::CidrSet, "cidr-set"),
    (Kind::Policy, "policy"),
    (Kind::Service, "service"),
    (Kind::Prefilter, "prefilter"),
    (Kind::EgressGateway, "egress-gateway"),
    (Kind::Bundle, "bundle"),
    (Kind::Rollout, "rollout"),
    (Kind::FleetConfig, "fleet-config"),
    (Kind::Shaping, "shaping"),
];

/// `None`: not a kind.
pub fn prefix(kind: Kind) -> Option<String> {
    let (_, room) = KINDS.iter().find(|(known, _)| *known == kind)?;
    Some(format!("{ROOT}{room}/"))
}

pub fn object(kind: Kind, name: &str) -> String {
    let room = KINDS.iter().find(|(known, _)| *known == kind).map_or("unknown", |(_, room)| room);
    format!("{ROOT}{room}/{name}")
}

/// What kind of object a key holds, and its name; `None`: something of the controller's own.
pub fn parse(key: &str) -> Option<(Kind, &str)> {
    let (room, name) = key.strip_prefix(ROOT)?.split_once('/')?;
    let (kind, _) = KINDS.iter().find(|(_, known)| *known == room)?;
    Some((*kind, name))
}

/// Whether the key changes with everything that nodes may have to be told of, removals among it.
pub fn tells_of_change(key: &str) -> bool {
    [OPERATOR_CHANGE, ENDPOINT_REMOVED, HEALTH_TAKEN_BACK].contains(&key)
        || parse(key).is_some()
        || parse_health(key).is_some()
        || parse_prober_away(key).is_some()
}

pub fn health(node: &str, service: &str) -> String {
    format!("{HEALTH}{node}/{service}")
}

/// Whose word about which service.
pub fn parse_health(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix(HEALTH)?.split_once('/')
}

pub fn prober_away(node: &str) -> String {
    format!("{PROBERS_AWAY}{node}")
}

pub fn parse_prober_away(key: &str) -> Option<&str> {
    key.strip_prefix(PROBERS_AWAY)
}

/// Claim of an address; the value is its [`Owner`](crate::claims::Owner).
pub fn address(address: IpAddr) -> String {
    format!("{ROOT}address/{address}")
}

pub fn endpoint_cidr(cidr: IpNet) -> String {
    format!("{ENDPOINT_CIDRS}{cidr}")
}

/// What an operator has said of a node that holds another store's state; the value is an `Adoption`.
pub fn adoption(node: &str) -> String {
    format!("{ROOT}adoption/{node}")
}

pub fn progress(controller: &str) -> String {
    format!("{PROGRESS}{controller}")
}

/// Written whenever the node gets an endpoint: what was seen of its endpoints holds if this has not changed.
pub fn endpoint_added(node: &str) -> String {
    format!("{ROOT}endpoint-added/{node}")
}

/// Written by everybody who begins to bear the identity: what was seen of its bearers holds if this has not changed.
pub fn identity_reference(number: u32) -> String {
    format!("{ROOT}identity-reference/{number}")
}

/// The key is the canonical text of the label set itself, so that two sets can never meet in one key. Label syntax has
/// neither ',' nor '='; at most 64 labels bound it to 25 KiB.
pub fn identity_by_labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{ROOT}identity-by-labels/{{{}}}", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_which_object_it_holds() {
        for (kind, _) in KINDS {
            assert_eq!(parse(&object(kind, "a.b")), Some((kind, "a.b")));
        }
        assert_eq!(parse(STORE_ID), None);
        assert_eq!(parse_health(&health("n.1", "api-2")), Some(("n.1", "api-2")));
        assert_eq!(parse_prober_away(&prober_away("n.1")), Some("n.1"));
        assert_eq!(parse(&identity_by_labels(&Labels::new())), None);
    }
}
