//! What of a service this node probes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Check, Probed};
use crate::balance::{
    self,
    service::{Backend, Service},
};

/// IANA's number.
const TCP: u8 = 6;

/// A backend of a service: its address, and its port as the service has it (0: the frontend's).
pub type Place = (IpAddr, u16);

/// How one backend is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// All must answer. At least one.
    pub ports: Vec<u16>,
    pub check: Check,
}

/// Services of which this node probes a backend.
pub fn probed(desired: &balance::Desired, node: &str) -> Probed {
    let probed = desired.iter().filter(|(_, service)| {
        service.health_check.is_some() && service.backends.iter().any(|backend| is_ours(backend, node))
    });
    probed.map(|(name, service)| (name.clone(), service.clone())).collect()
}

/// Whatever their state: one that comes back from maintenance is known already.
pub fn targets(service: &Service, node: &str) -> BTreeMap<Place, Target> {
    let Some(check) = &service.health_check else { return BTreeMap::new() };
    let ours = service.backends.iter().filter(|backend| is_ours(backend, node));
    let targets = ours.map(|backend| {
        let target = Target { ports: ports(service, backend), check: check.clone() };
        ((backend.address, backend.port), target)
    });
    targets.filter(|(_, target)| !target.ports.is_empty()).collect()
}

fn is_ours(backend: &Backend, node: &str) -> bool {
    if backend.node.is_empty() {
        backend.probed_by.iter().any(|prober| prober == node)
    } else {
        backend.node == node
    }
}

/// Its own, or those of the TCP frontends that it answers for.
fn ports(service: &Service, backend: &Backend) -> Vec<u16> {
    if backend.port != 0 {
        return vec![backend.port];
    }
    let same_family = |address: IpAddr| address.is_ipv4() == backend.address.is_ipv4();
    let frontends = service
        .frontends
        .iter()
        .filter(|frontend| frontend.protocol == TCP && frontend.address.is_none_or(same_family));
    let ports: BTreeSet<u16> = frontends.map(|frontend| frontend.port).collect();
    ports.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use weft_proto::v1;

    use super::*;

    fn frontend(address: &str, port: u32, protocol: u32) -> v1::NodeFrontend {
        let kind = if address.is_empty() { v1::FrontendType::NodePort } else { v1::FrontendType::Cluster };
        v1::NodeFrontend { address: address.to_owned(), port, protocol, r#type: kind.into() }
    }

    fn backend(address: &str, port: u32, node: &str, probed_by: &[&str]) -> v1::NodeBackend {
        v1::NodeBackend {
            address: address.to_owned(),
            port,
            weight: 1,
            state: v1::BackendState::Maintenance.into(),
            node: node.to_owned(),
            probed_by: probed_by.iter().map(ToString::to_string).collect(),
            ..v1::NodeBackend::default()
        }
    }

    fn service(backends: Vec<v1::NodeBackend>) -> Service {
        let sent = v1::NodeService {
            frontends: vec![
                frontend("10.96.0.1", 80, 6),
                frontend("10.96.0.2", 81, 6),
                frontend("10.96.0.1", 53, 17),
                frontend("fd96::1", 443, 6),
                frontend("", 30_080, 6),
            ],
            backends,
            algorithm: v1::Algorithm::Maglev.into(),
            internal_traffic_policy: v1::TrafficPolicy::Fleet.into(),
            external_traffic_policy: v1::TrafficPolicy::Fleet.into(),
            forwarding_mode: v1::ForwardingMode::Snat.into(),
            slots: 251,
            health_check: Some(v1::HealthCheck {
                interval_milliseconds: 1000,
                timeout_milliseconds: 500,
                unhealthy_after: 3,
                healthy_after: 2,
                http: None,
            }),
            ..v1::NodeService::default()
        };
        Service::try_from(&sent).unwrap()
    }

    fn ports(service: &Service, node: &str) -> Vec<(String, Vec<u16>)> {
        let targets = targets(service, node).into_iter();
        targets.map(|((address, _), target)| (address.to_string(), target.ports)).collect()
    }

    #[test]
    fn a_node_probes_its_own_backends_and_those_outside_that_it_was_chosen_for() {
        let service = service(vec![
            backend("10.200.0.5", 8080, "n1", &[]),
            backend("10.200.1.5", 8080, "n2", &[]),
            backend("203.0.113.5", 8080, "", &["n1", "n3"]),
            backend("203.0.113.6", 8080, "", &["n2"]),
        ]);
        assert_eq!(
            ports(&service, "n1"),
            [("10.200.0.5".to_owned(), vec![8080]), ("203.0.113.5".to_owned(), vec![8080])]
        );
        assert_eq!(ports(&service, "n4"), []);
        let desired: balance::Desired = [("api".to_owned(), std::sync::Arc::new(service))].into();
        assert_eq!(probed(&desired, "n3").len(), 1);
        assert_eq!(probed(&desired, "n4").len(), 0);
    }

    #[test]
    fn without_a_port_of_its_own_a_backend_is_probed_at_each_tcp_frontends_of_its_family() {
        let service = service(vec![backend("10.200.0.5", 0, "n1", &[]), backend("fd00::5", 0, "n1", &[])]);
        assert_eq!(
            ports(&service, "n1"),
            [("10.200.0.5".to_owned(), vec![80, 81, 30_080]), ("fd00::5".to_owned(), vec![443, 30_080])]
        );
    }
}
