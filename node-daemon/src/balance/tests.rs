mod parsing;
mod planning;
mod viewing;

use weft_proto::v1;

use super::*;

/// A service as a controller sends it.
fn sent(frontends: &[(&str, u32)], backends: &[&str]) -> v1::NodeService {
    let frontend = |(address, port): &(&str, u32)| v1::NodeFrontend {
        address: (*address).to_owned(),
        port: *port,
        protocol: 6,
        r#type: if address.is_empty() { v1::FrontendType::NodePort } else { v1::FrontendType::Cluster }
            .into(),
    };
    v1::NodeService {
        frontends: frontends.iter().map(frontend).collect(),
        backends: backends.iter().map(|text| backend(text, v1::BackendState::Active)).collect(),
        algorithm: v1::Algorithm::Maglev.into(),
        internal_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        external_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        forwarding_mode: v1::ForwardingMode::Snat.into(),
        slots: 251,
        ..v1::NodeService::default()
    }
}

/// `address`, or `address@node`, or `address@node/topology`.
fn backend(text: &str, state: v1::BackendState) -> v1::NodeBackend {
    let (address, node) = text.split_once('@').unwrap_or((text, ""));
    let (node, topology) = node.split_once('/').unwrap_or((node, ""));
    v1::NodeBackend {
        address: address.to_owned(),
        port: 8080,
        weight: 1,
        state: state.into(),
        node: node.to_owned(),
        topology: topology.to_owned(),
        probed_by: Vec::new(),
    }
}

fn parse(sent: &v1::NodeService) -> Service {
    sent.try_into().unwrap()
}

fn here() -> Here {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Here {
        node: "n1".to_owned(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        addresses: Addresses {
            known: addresses(&["192.0.2.1", "192.0.2.200", "2001:db8::1"]),
            others: addresses(&["192.0.2.1", "172.17.0.1"]),
        },
    }
}
