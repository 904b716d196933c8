//! What nodes are told of services, prefilters and shapings. Nothing is left open: defaults are written out, and lists are ordered, so
//! that what means the same has the same bytes.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;
use weft_proto::v1::{self, node_shaping::Meant};

use super::{
    model::{
        Algorithm, BackendState, Family, Forwarding, Frontend, FrontendKind, HealthCheck, Prefilter,
        Protocol, Rates, Service, Shaped, Shaping, SourceRanges, TrafficPolicy,
    },
    shares::{self, BACKENDS_MAX},
};

/// A backend as the fleet has it: where a listed address is, or an endpoint that was selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub weight: u16,
    pub state: BackendState,
    /// That has the address as an endpoint's; empty: it is outside of the fleet.
    pub node: String,
    /// Value of the service's topology label on that node; empty: none.
    pub topology: String,
    /// Nodes that probe it; of one on a node, that one, and not said.
    pub probed_by: Vec<String>,
}

/// By address and port; `None`: the frontend's.
pub type ResolvedBackends = BTreeMap<(IpAddr, Option<NonZeroU16>), Resolved>;

/// Takes out what is beyond [`BACKENDS_MAX`] of a family, the highest addresses. Returns how many.
pub fn leave_out(backends: &mut ResolvedBackends) -> usize {
    let (before, mut kept) = (backends.len(), [0; 2]);
    backends.retain(|(address, _), _| {
        let count = &mut kept[usize::from(address.is_ipv6())];
        *count += 1;
        *count <= BACKENDS_MAX
    });
    before - backends.len()
}

/// The service as nodes get it.
pub fn to_node(service: &Service, backends: &ResolvedBackends) -> v1::NodeService {
    let weights = |family: Family| {
        let of_family = backends.iter().filter(move |((address, _), _)| Family::from(*address) == family);
        of_family.map(|(_, resolved)| resolved.weight)
    };
    let ratio = Family::BOTH.map(|family| shares::ratio(weights(family)));
    let mut frontends: Vec<&Frontend> = service.frontends.iter().collect();
    frontends.sort_unstable_by_key(|frontend| frontend.at);
    v1::NodeService {
        frontends: frontends.into_iter().map(frontend).collect(),
        backends: backends.iter().map(backend).collect(),
        algorithm: algorithm(service.algorithm).into(),
        affinity_seconds: service.affinity_seconds.unwrap_or_default(),
        internal_traffic_policy: traffic(service.internal).into(),
        external_traffic_policy: traffic(service.external).into(),
        source_ranges: service.source_ranges.as_ref().map(source_ranges),
        forwarding_mode: forwarding(service.forwarding).into(),
        topology_label: service.topology_label.clone().unwrap_or_default(),
        slots: shares::slots(ratio[0].max(ratio[1])),
        health_check: service.health_check.as_ref().map(health_check),
        end_connections: service.end_connections,
    }
}

fn frontend(frontend: &Frontend) -> v1::NodeFrontend {
    v1::NodeFrontend {
        address: frontend.at.address.map(|address| address.to_string()).unwrap_or_default(),
        port: frontend.at.port.get().into(),
        protocol: frontend.at.protocol.number(),
        r#type: kind(frontend.kind).into(),
    }
}

/// As in manifests, the default written out.
pub fn frontend_as_written(frontend: &Frontend) -> v1::Frontend {
    let protocol = match frontend.at.protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
        Protocol::Sctp => v1::Protocol::Sctp,
    };
    v1::Frontend {
        address: frontend.at.address.map(|address| address.to_string()).unwrap_or_default(),
        port: frontend.at.port.get().into(),
        protocol: protocol.into(),
        r#type: kind(frontend.kind).into(),
    }
}

fn backend((place, resolved): (&(IpAddr, Option<NonZeroU16>), &Resolved)) -> v1::NodeBackend {
    let (address, port) = place;
    v1::NodeBackend {
        address: address.to_string(),
        port: port.map(|port| port.get().into()).unwrap_or_default(),
        weight: resolved.weight.into(),
        state: state(resolved.state).into(),
        node: resolved.node.clone(),
        topology: resolved.topology.clone(),
        probed_by: resolved.probed_by.clone(),
    }
}

pub const fn kind(kind: FrontendKind) -> v1::FrontendType {
    match kind {
        FrontendKind::Cluster => v1::FrontendType::Cluster,
        FrontendKind::NodePort => v1::FrontendType::NodePort,
        FrontendKind::External => v1::FrontendType::External,
    }
}

pub const fn state(state: BackendState) -> v1::BackendState {
    match state {
        BackendState::Active => v1::BackendState::Active,
        BackendState::Terminating => v1::BackendState::Terminating,
        BackendState::Quarantined => v1::BackendState::Quarantined,
        BackendState::Maintenance => v1::BackendState::Maintenance,
    }
}

pub const fn algorithm(algorithm: Algorithm) -> v1::Algorithm {
    match algorithm {
        Algorithm::Maglev => v1::Algorithm::Maglev,
        Algorithm::Random => v1::Algorithm::Random,
    }
}

pub const fn forwarding(forwarding: Forwarding) -> v1::ForwardingMode {
    match forwarding {
        Forwarding::Snat => v1::ForwardingMode::Snat,
        Forwarding::Dsr => v1::ForwardingMode::Dsr,
    }
}

const fn traffic(policy: TrafficPolicy) -> v1::TrafficPolicy {
    match policy {
        TrafficPolicy::Fleet => v1::TrafficPolicy::Fleet,
        TrafficPolicy::Local => v1::TrafficPolicy::Local,
    }
}

fn source_ranges(ranges: &SourceRanges) -> v1::SourceRanges {
    let (action, cidrs) = match ranges {
        SourceRanges::Allow(cidrs) => (v1::source_ranges::Action::Allow, cidrs),
        SourceRanges::Deny(cidrs) => (v1::source_ranges::Action::Deny, cidrs),
    };
    v1::SourceRanges { action: action.into(), cidrs: cidrs.iter().map(IpNet::to_string).collect() }
}

/// As in manifests, defaults written out.
pub fn health_check(check: &HealthCheck) -> v1::HealthCheck {
    v1::HealthCheck {
        interval_milliseconds: check.interval_milliseconds,
        timeout_milliseconds: check.timeout_milliseconds,
        unhealthy_after: check.unhealthy_after,
        healthy_after: check.healthy_after,
        http: check
            .http
            .as_ref()
            .map(|http| v1::HttpCheck { path: http.path.clone(), expected_status: http.expected_status }),
    }
}

/// The prefilter as nodes get it: a prefix inside of another says nothing more.
pub fn prefilter_to_node(prefilter: &Prefilter) -> v1::NodePrefilter {
    let mut senders = prefilter.arp_senders.clone();
    senders.sort_unstable();
    senders.dedup();
    v1::NodePrefilter {
        cidrs: IpNet::aggregate(&prefilter.cidrs).iter().map(IpNet::to_string).collect(),
        arp_senders: senders.iter().map(ToString::to_string).collect(),
    }
}

/// The shaping as nodes get it.
pub fn shaping_to_node(shaping: &Shaping) -> v1::NodeShaping {
    let Rates { connection, ingress, egress } = shaping.rates;
    let meant = match &shaping.shaped {
        Shaped::Endpoints(selector) => Meant::Endpoints(selector.into()),
        Shaped::Nodes { cgroup, .. } => Meant::Cgroup(cgroup.clone()),
    };
    v1::NodeShaping {
        meant: Some(meant),
        connection_rate: connection.unwrap_or_default(),
        ingress_rate: ingress.unwrap_or_default(),
        egress_rate: egress.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::parse;

    fn service(frontends: &[&str]) -> Service {
        let frontend = |address: &&str| v1::Frontend {
            address: (*address).to_owned(),
            port: 80,
            protocol: v1::Protocol::Tcp.into(),
            r#type: 0,
        };
        let message = v1::Service {
            metadata: Some(v1::Metadata { name: "api".into(), ..Default::default() }),
            frontends: frontends.iter().map(frontend).collect(),
            selector: Some(v1::Selector::default()),
            ..Default::default()
        };
        parse::service(&message).expect("it is right")
    }

    fn backends(count: u16, weight: u16) -> ResolvedBackends {
        let resolved = Resolved {
            weight,
            state: BackendState::Active,
            node: String::new(),
            topology: String::new(),
            probed_by: Vec::new(),
        };
        let address = |number: u16| IpAddr::from([10, 200, (number >> 8) as u8, (number & 255) as u8]);
        (0..count).map(|number| ((address(number), None), resolved.clone())).collect()
    }

    #[test]
    fn nothing_is_left_open_and_everything_is_ordered() {
        let sent = to_node(&service(&["10.96.0.2", "10.96.0.1"]), &backends(2, 1));
        assert_eq!(sent.frontends[0].address, "10.96.0.1");
        assert_eq!(sent.frontends[0].protocol, 6);
        assert_eq!(sent.frontends[0].r#type(), v1::FrontendType::Cluster);
        assert_eq!(sent.algorithm(), v1::Algorithm::Maglev);
        assert_eq!(sent.forwarding_mode(), v1::ForwardingMode::Snat);
        assert_eq!(sent.internal_traffic_policy(), v1::TrafficPolicy::Fleet);
        assert_eq!((sent.backends[0].address.as_str(), sent.backends[0].weight), ("10.200.0.0", 1));
        assert_eq!(sent.backends[0].state(), v1::BackendState::Active);
        assert!(!sent.end_connections);
        let ending = Service { end_connections: true, ..service(&["10.96.0.1"]) };
        assert!(to_node(&ending, &backends(2, 1)).end_connections);
        assert_eq!(to_node(&service(&["10.96.0.1", "10.96.0.2"]), &backends(2, 1)), sent);
    }

    #[test]
    fn the_table_grows_with_the_backends() {
        let slots = |count, weight| to_node(&service(&["10.96.0.1"]), &backends(count, weight)).slots;
        assert_eq!((slots(0, 1), slots(327, 1), slots(327, 256)), (16_381, 16_381, 16_381));
        assert_eq!(slots(328, 1), 65_521);
    }

    #[test]
    fn what_is_beyond_the_limit_is_left_out_from_above() {
        let mut many = backends(1_313, 1);
        let lowest: Vec<_> = many.keys().take(1_310).copied().collect();
        assert_eq!(leave_out(&mut many), 3);
        assert_eq!(many.into_keys().collect::<Vec<_>>(), lowest);
    }

    #[test]
    fn a_prefilter_has_no_prefix_inside_of_another() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let prefilter = Prefilter {
            name: "scanners".into(),
            nodes: crate::policy::model::Selector::default(),
            cidrs: vec![net("203.0.113.7/32"), net("2001:db8::/32"), net("203.0.113.0/24")],
            arp_senders: vec![[192, 0, 2, 2].into(), [192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
        };
        let sent = prefilter_to_node(&prefilter);
        assert_eq!(sent.cidrs, ["203.0.113.0/24", "2001:db8::/32"]);
        assert_eq!(sent.arp_senders, ["192.0.2.1", "192.0.2.2"]);
    }
}
