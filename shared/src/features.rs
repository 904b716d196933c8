//! What a resource can need of a node beyond what every node has had since 0.1. A controller writes the names of these
//! features beside the resource; a node that does not list one rejects the resource and says which, rather than enforcing
//! half of it. Names are for ever: a feature that changes its meaning gets another one.
use weft_proto::v1::{self, node_peer::Peer};

/// Policies of the admin and baseline tiers, with their order.
pub const POLICY_TIERS: &str = "policy-tiers";
/// Policies that are only watched.
pub const POLICY_AUDIT: &str = "policy-audit";
/// Policies whose subjects are nodes.
pub const HOST_POLICIES: &str = "host-policies";
/// Peers that are nodes with certain labels.
pub const NODE_PEERS: &str = "node-peers";
/// Peers that are named lists of prefixes.
pub const CIDR_SETS: &str = "cidr-sets";
pub const NATIVE_ROUTING: &str = "native-routing";
pub const ENCRYPTION: &str = "encryption";
/// Policy on flows from a node to its own endpoints.
pub const HOST_TO_ENDPOINT: &str = "host-to-endpoint";

/// Services: load balancing.
pub const SERVICES: &str = "services";
/// Probes of a service's backends.
pub const SERVICE_HEALTH: &str = "service-health";
/// Ending TCP connections to a service's backends that have gone.
pub const SERVICE_END_CONNECTIONS: &str = "service-end-connections";
/// Dropping by source as early as possible.
pub const PREFILTER: &str = "prefilter";
/// Rates of endpoints and connections.
pub const SHAPING: &str = "shaping";

/// What the policy needs, in order.
pub fn of_policy(policy: &v1::NodePolicy) -> Vec<&'static str> {
    let rules = [&policy.ingress, &policy.egress].into_iter().flatten().flat_map(|rules| &rules.items);
    let peers: Vec<&Peer> = rules
        .filter_map(|rule| rule.peers.as_ref())
        .flat_map(|peers| &peers.items)
        .filter_map(|peer| peer.peer.as_ref())
        .collect();
    let base_tier = matches!(policy.tier(), v1::Tier::Unspecified | v1::Tier::Application);
    let needs = [
        (!base_tier, POLICY_TIERS),
        (policy.mode() == v1::PolicyMode::Audit, POLICY_AUDIT),
        (policy.subject_is_nodes, HOST_POLICIES),
        (peers.iter().any(|peer| matches!(peer, Peer::NodeSet(_))), NODE_PEERS),
        (peers.iter().any(|peer| matches!(peer, Peer::CidrSets(_))), CIDR_SETS),
    ];
    named(needs)
}

/// What the fleet's configuration needs of every node, in order.
pub fn of_fleet(fleet: &v1::NodeFleet) -> Vec<&'static str> {
    named([
        (fleet.routing_mode() == v1::RoutingMode::Native, NATIVE_ROUTING),
        (fleet.encryption_mode() == v1::EncryptionMode::Strict, ENCRYPTION),
        (fleet.host_to_endpoint() == v1::HostToEndpoint::Policy, HOST_TO_ENDPOINT),
    ])
}

/// What the service needs, in order.
pub fn of_service(service: &v1::NodeService) -> Vec<&'static str> {
    named([
        (true, SERVICES),
        (service.health_check.is_some(), SERVICE_HEALTH),
        (service.end_connections, SERVICE_END_CONNECTIONS),
    ])
}

fn named<const N: usize>(needs: [(bool, &'static str); N]) -> Vec<&'static str> {
    needs.into_iter().filter(|(needed, _)| *needed).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_peer(peer: Peer) -> v1::NodePolicy {
        let peers = v1::NodePeerList { items: vec![v1::NodePeer { peer: Some(peer) }] };
        let rule = v1::NodeRule { peers: Some(peers), ..v1::NodeRule::default() };
        let egress = Some(v1::NodeRuleList { items: vec![rule] });
        v1::NodePolicy { tier: v1::Tier::Application.into(), egress, ..v1::NodePolicy::default() }
    }

    #[test]
    fn a_policy_names_what_it_uses_beyond_the_first_release() {
        let base = with_peer(Peer::EndpointSet("app=web".to_owned()));
        assert_eq!(of_policy(&base), Vec::<&str>::new());
        assert_eq!(of_policy(&with_peer(Peer::NodeSet("role=gateway".to_owned()))), [NODE_PEERS]);
        assert_eq!(of_policy(&with_peer(Peer::CidrSets(v1::NodeCidrSets::default()))), [CIDR_SETS]);
        let all = v1::NodePolicy {
            tier: v1::Tier::Admin.into(),
            mode: v1::PolicyMode::Audit.into(),
            subject_is_nodes: true,
            ..base
        };
        assert_eq!(of_policy(&all), [POLICY_TIERS, POLICY_AUDIT, HOST_POLICIES]);
    }

    #[test]
    fn a_service_names_what_it_uses() {
        let plain = v1::NodeService::default();
        assert_eq!(of_service(&plain), [SERVICES]);
        let probed = v1::NodeService { health_check: Some(v1::HealthCheck::default()), ..plain.clone() };
        assert_eq!(of_service(&probed), [SERVICES, SERVICE_HEALTH]);
        let ending = v1::NodeService { end_connections: true, ..plain };
        assert_eq!(of_service(&ending), [SERVICES, SERVICE_END_CONNECTIONS]);
    }

    #[test]
    fn a_configuration_names_what_it_uses_beyond_the_first_release() {
        assert_eq!(of_fleet(&v1::NodeFleet::default()), Vec::<&str>::new());
        let fleet = v1::NodeFleet {
            routing_mode: v1::RoutingMode::Native.into(),
            encryption_mode: v1::EncryptionMode::Strict.into(),
            host_to_endpoint: v1::HostToEndpoint::Policy.into(),
            ..v1::NodeFleet::default()
        };
        assert_eq!(of_fleet(&fleet), [NATIVE_ROUTING, ENCRYPTION, HOST_TO_ENDPOINT]);
    }
}
