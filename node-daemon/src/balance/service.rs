//! A service as the controllers say it, parsed once at the edge.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use ipnet::IpNet;
use weft_proto::v1;
use weft_shared::{
    balance::maglev::is_size, layout::maps::BACKENDS_MAX, policy::parse::FieldError,
    service::shares::WEIGHT_MAX,
};

pub use weft_shared::service::model::BackendState as State;

use super::sources::Sources;
use crate::health::{Check, Http};

/// Who answers at which places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub frontends: Vec<Frontend>,
    pub backends: Vec<Backend>,
    pub algorithm: Algorithm,
    /// 0: none.
    pub affinity_seconds: u32,
    /// Flows that begin on a node go to backends on it alone.
    pub local_inside: bool,
    /// … and those that come from elsewhere.
    pub local_outside: bool,
    /// `None`: everybody may come.
    pub sources: Option<Sources>,
    pub forwarding: Forwarding,
    /// Backends on nodes with this node's value of the label go first.
    pub topology_label: Option<String>,
    /// Of a Maglev table.
    pub slots: u16,
    /// `None`: backends are not probed.
    pub health_check: Option<Check>,
    /// TCP connections of processes to backends that have gone are ended.
    pub end_connections: bool,
}

/// How the backend of a new flow is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// By a hash of the flow.
    Maglev,
    /// By chance.
    Random,
}

/// How packets from elsewhere get to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Snat,
    /// Backends answer the client themselves.
    Dsr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `None`: a port on each address of the node.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Not for those outside of the fleet.
    pub cluster: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: IpAddr,
    /// 0: the frontend's.
    pub port: u16,
    pub weight: u16,
    pub state: State,
    /// That has the address as an endpoint's; empty: outside of the fleet.
    pub node: String,
    /// Value of the topology label on that node; empty: none.
    pub topology: String,
    /// Outside of the fleet: nodes that probe it.
    pub probed_by: Vec<String>,
}

impl TryFrom<&v1::NodeService> for Service {
    type Error = FieldError;

    fn try_from(sent: &v1::NodeService) -> Result<Self, FieldError> {
        let slots = u16::try_from(sent.slots).ok().filter(|_| is_size(sent.slots));
        let slots = slots.ok_or_else(|| wrong("slots", "expected a prime that fits 16 bits"))?;
        let backends = backends(&sent.backends)?;
        for v4 in [true, false] {
            let count = backends.iter().filter(|backend| backend.address.is_ipv4() == v4).count();
            if count > BACKENDS_MAX.min(slots.into()) {
                let limit = BACKENDS_MAX.min(slots.into());
                return Err(wrong("backends", format!("{count} of one family, at most {limit} fit a table")));
            }
        }
        Ok(Self {
            frontends: frontends(&sent.frontends)?,
            backends,
            algorithm: match sent.algorithm() {
                v1::Algorithm::Maglev => Algorithm::Maglev,
                v1::Algorithm::Random => Algorithm::Random,
                v1::Algorithm::Unspecified => return Err(wrong("algorithm", "expected maglev or random")),
            },
            affinity_seconds: sent.affinity_seconds,
            local_inside: is_local("internalTrafficPolicy", sent.internal_traffic_policy())?,
            local_outside: is_local("externalTrafficPolicy", sent.external_traffic_policy())?,
            sources: sent.source_ranges.as_ref().map(sources).transpose()?,
            forwarding: match sent.forwarding_mode() {
                v1::ForwardingMode::Snat => Forwarding::Snat,
                v1::ForwardingMode::Dsr => Forwarding::Dsr,
                v1::ForwardingMode::Unspecified => {
                    return Err(wrong("forwardingMode", "expected snat or dsr"));
                }
            },
            topology_label: Some(sent.topology_label.clone()).filter(|label| !label.is_empty()),
            slots,
            health_check: sent.health_check.as_ref().map(health_check).transpose()?,
            end_connections: sent.end_connections,
        })
    }
}

fn wrong(path: impl Into<String>, message: impl Into<String>) -> FieldError {
    FieldError::new(path, message)
}

fn health_check(sent: &v1::HealthCheck) -> Result<Check, FieldError> {
    let wrong = |field: &str, expected: &str| wrong(format!("healthCheck.{field}"), expected);
    let v1::HealthCheck {
        interval_milliseconds, timeout_milliseconds, unhealthy_after, healthy_after, ..
    } = *sent;
    if interval_milliseconds == 0 {
        return Err(wrong("intervalMilliseconds", "expected 1 or more"));
    }
    if !(1..=interval_milliseconds).contains(&timeout_milliseconds) {
        return Err(wrong("timeoutMilliseconds", "expected 1 to the interval"));
    }
    if unhealthy_after == 0 || healthy_after == 0 {
        return Err(wrong("unhealthyAfter, healthyAfter", "expected 1 or more"));
    }
    let http = sent.http.as_ref().map(|http| {
        if http.path.parse::<PathAndQuery>().is_err() || !http.path.starts_with('/') {
            return Err(wrong("http.path", "expected / and what a request can have behind it"));
        }
        let status = u16::try_from(http.expected_status).ok().filter(|status| (100..=599).contains(status));
        let expected_status = status.ok_or_else(|| wrong("http.expectedStatus", "expected 100 to 599"))?;
        Ok(Http { path: http.path.clone(), expected_status })
    });
    Ok(Check {
        interval: Duration::from_millis(interval_milliseconds.into()),
        timeout: Duration::from_millis(timeout_milliseconds.into()),
        unhealthy_after,
        healthy_after,
        http: http.transpose()?,
    })
}

fn is_local(path: &str, policy: v1::TrafficPolicy) -> Result<bool, FieldError> {
    match policy {
        v1::TrafficPolicy::Fleet => Ok(false),
        v1::TrafficPolicy::Local => Ok(true),
        v1::TrafficPolicy::Unspecified => Err(wrong(path, "expected fleet or local")),
    }
}

fn sources(ranges: &v1::SourceRanges) -> Result<Sources, FieldError> {
    let denied = match ranges.action() {
        v1::source_ranges::Action::Allow => false,
        v1::source_ranges::Action::Deny => true,
        v1::source_ranges::Action::Unspecified => {
            return Err(wrong("sourceRanges.action", "expected allow or deny"));
        }
    };
    let mut nets = BTreeSet::new();
    for (index, text) in ranges.cidrs.iter().enumerate() {
        let parsed = text.parse::<IpNet>().ok().filter(|net| net.trunc() == *net && !is_mapped(net));
        nets.insert(parsed.ok_or_else(|| {
            let message = format!("\"{text}\" is not a prefix, or has host bits, or is IPv4 dressed as IPv6");
            wrong(format!("sourceRanges.cidrs[{index}]"), message)
        })?);
    }
    let (v4, v6) = nets.into_iter().partition(|net| net.addr().is_ipv4());
    Ok(Sources { v4: Arc::new(v4), v6: Arc::new(v6), denied })
}

fn is_mapped(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some())
}

fn frontends(sent: &[v1::NodeFrontend]) -> Result<Vec<Frontend>, FieldError> {
    let mut seen = BTreeSet::new();
    let mut frontends = Vec::with_capacity(sent.len());
    for (index, frontend) in sent.iter().enumerate() {
        let path = |field: &str| format!("frontends[{index}]{field}");
        let port = port(frontend.port).filter(|port| *port != 0);
        let parsed = Frontend {
            address: match (frontend.r#type(), frontend.address.as_str()) {
                (v1::FrontendType::NodePort, "") => None,
                (v1::FrontendType::NodePort, _) => {
                    return Err(wrong(path(".address"), "a node port has none of its own"));
                }
                (v1::FrontendType::Cluster | v1::FrontendType::External, text) => {
                    Some(address(path(".address"), text)?)
                }
                (v1::FrontendType::Unspecified, _) => {
                    return Err(wrong(path(".type"), "expected cluster, nodePort or external"));
                }
            },
            port: port.ok_or_else(|| wrong(path(".port"), "expected 1 to 65535"))?,
            protocol: u8::try_from(frontend.protocol)
                .map_err(|_| wrong(path(".protocol"), "expected the number of a protocol, 0 to 255"))?,
            cluster: frontend.r#type() == v1::FrontendType::Cluster,
        };
        if !seen.insert((parsed.address, parsed.port, parsed.protocol)) {
            return Err(wrong(path(""), "it is there twice"));
        }
        frontends.push(parsed);
    }
    Ok(frontends)
}

fn backends(sent: &[v1::NodeBackend]) -> Result<Vec<Backend>, FieldError> {
    let mut seen = BTreeSet::new();
    let mut backends = Vec::with_capacity(sent.len());
    for (index, backend) in sent.iter().enumerate() {
        let path = |field: &str| format!("backends[{index}]{field}");
        let weight = u16::try_from(backend.weight).ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
        let parsed = Backend {
            address: address(path(".address"), &backend.address)?,
            port: port(backend.port).ok_or_else(|| wrong(path(".port"), "expected 0 to 65535"))?,
            weight: weight.ok_or_else(|| wrong(path(".weight"), format!("expected 1 to {WEIGHT_MAX}")))?,
            state: match backend.state() {
                v1::BackendState::Active => State::Active,
                v1::BackendState::Terminating => State::Terminating,
                v1::BackendState::Quarantined => State::Quarantined,
                v1::BackendState::Maintenance => State::Maintenance,
                v1::BackendState::Unspecified => {
                    let states = "expected active, terminating, quarantined or maintenance";
                    return Err(wrong(path(".state"), states));
                }
            },
            node: backend.node.clone(),
            topology: backend.topology.clone(),
            probed_by: backend.probed_by.clone(),
        };
        if !seen.insert((parsed.address, parsed.port)) {
            return Err(wrong(path(""), "it is there twice"));
        }
        backends.push(parsed);
    }
    Ok(backends)
}

/// In canonical form: an IPv4 address that is written as a mapped one would be another party in the same row.
fn address(path: String, text: &str) -> Result<IpAddr, FieldError> {
    let parsed = text.parse::<IpAddr>().ok().filter(|address| address.to_canonical() == *address);
    parsed
        .filter(|address| !address.is_unspecified())
        .ok_or_else(|| wrong(path, format!("\"{text}\" is not an address, or not in its shortest form")))
}

fn port(sent: u32) -> Option<u16> {
    u16::try_from(sent).ok()
}
