//! What the fleet compiler learns from the store: objects as facts, without what nodes are never sent.
use std::{net::IpAddr, ops::RangeInclusive};

use prost::Message as _;
use weft_proto::v1::{self, Kind, object::Kind as Of};
use weft_shared::{
    digest::Digest,
    policy::{
        model::{CidrSet, Labels, Policy},
        parse,
    },
    service::{
        self,
        model::{Prefilter, Service, Shaping},
    },
};

use super::health::{self, Words};
use crate::{
    keys, nodes, resource,
    store::{Event, KeyValue, StoreError},
};

/// One object changed; `None`: it was deleted.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Node {
        name: String,
        facts: Option<NodeFacts>,
    },
    Endpoint {
        name: String,
        facts: Option<EndpointFacts>,
    },
    Identity {
        number: u32,
        labels: Option<Labels>,
    },
    Policy {
        name: String,
        policy: Option<Policy>,
    },
    CidrSet {
        name: String,
        set: Option<CidrSet>,
    },
    Service {
        name: String,
        service: Option<Service>,
    },
    Prefilter {
        name: String,
        prefilter: Option<Prefilter>,
    },
    /// What a node says of a service's backends.
    Health {
        node: String,
        service: String,
        words: Option<Words>,
    },
    /// Whether a node is away for so long that others probe for it.
    Away {
        node: String,
        away: bool,
    },
    Shaping {
        name: String,
        shaping: Option<Shaping>,
    },
    Config(Option<v1::FleetConfig>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    pub addresses: Vec<String>,
    pub endpoint_cidrs: Vec<String>,
    pub identity: u32,
    /// Where it was last connected.
    pub controller: String,
    /// `None`: it has not said.
    pub snat_ports: Option<RangeInclusive<u16>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFacts {
    pub node: String,
    pub identity: u32,
    pub addresses: Vec<IpAddr>,
    pub uid: String,
    /// Of its attachment.
    pub instance: String,
    pub ready: bool,
    /// Of the report that made it so.
    pub report: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{key} holds what this release does not understand: {error}")]
    NotUnderstood { key: String, error: parse::FieldError },
}

impl Change {
    /// `None`: the key is none of the compiler's business.
    pub fn from_event(event: &Event) -> Result<Option<Self>, EventError> {
        match &event.value {
            Some(item) => Self::from_item(item),
            None => Ok(Self::deleted(&event.key)),
        }
    }

    pub fn from_item(item: &KeyValue) -> Result<Option<Self>, EventError> {
        let Some((_, name)) = keys::parse(&item.key) else { return Ok(Self::of_probes(item)) };
        let name = name.to_owned();
        let object = resource::decode(item)?;
        let change = match object.kind {
            Some(Of::Node(node)) => Self::Node { name, facts: Some(NodeFacts::from(node)) },
            Some(Of::Endpoint(endpoint)) => {
                Self::Endpoint { name, facts: Some(EndpointFacts::from(endpoint)) }
            }
            Some(Of::Identity(identity)) => {
                Self::Identity { number: identity.number, labels: Some(identity.security_labels) }
            }
            Some(Of::Policy(policy)) => {
                let parsed = parse::policy(&policy).map_err(|errors| not_understood(item, errors))?;
                Self::Policy { name, policy: Some(parsed) }
            }
            Some(Of::CidrSet(set)) => {
                let parsed = parse::cidr_set(&set).map_err(|errors| not_understood(item, errors))?;
                Self::CidrSet { name, set: Some(parsed) }
            }
            Some(Of::Service(message)) => {
                let parsed =
                    service::parse::service(&message).map_err(|errors| not_understood(item, errors))?;
                Self::Service { name, service: Some(parsed) }
            }
            Some(Of::Prefilter(message)) => {
                let parsed =
                    service::parse::prefilter(&message).map_err(|errors| not_understood(item, errors))?;
                Self::Prefilter { name, prefilter: Some(parsed.0) }
            }
            Some(Of::Shaping(message)) => {
                let parsed =
                    service::parse::shaping(&message).map_err(|errors| not_understood(item, errors))?;
                Self::Shaping { name, shaping: Some(parsed.0) }
            }
            Some(Of::FleetConfig(config)) => {
                parse::failsafe(config.failsafe.as_ref()).map_err(|errors| not_understood(item, errors))?;
                Self::Config(Some(config))
            }
            _ => return Ok(None),
        };
        Ok(Some(change))
    }

    /// Of what is no object.
    fn of_probes(item: &KeyValue) -> Option<Self> {
        if let Some(node) = keys::parse_prober_away(&item.key) {
            return Some(Self::Away { node: node.to_owned(), away: true });
        }
        let (node, service) = keys::parse_health(&item.key)?;
        let words = match v1::ServiceHealth::decode(item.value.clone()) {
            Ok(message) => Some(health::from_message(&message)),
            Err(error) => {
                // As if nothing had been said: no backend is taken out for it.
                tracing::error!(node, service, %error, "what a node has found out about a service cannot be read");
                None
            }
        };
        Some(Self::Health { node: node.to_owned(), service: service.to_owned(), words })
    }

    fn deleted(key: &str) -> Option<Self> {
        if let Some((node, service)) = keys::parse_health(key) {
            return Some(Self::Health { node: node.to_owned(), service: service.to_owned(), words: None });
        }
        if let Some(node) = keys::parse_prober_away(key) {
            return Some(Self::Away { node: node.to_owned(), away: false });
        }
        let (kind, name) = keys::parse(key)?;
        let name = name.to_owned();
        match kind {
            Kind::Node => Some(Self::Node { name, facts: None }),
            Kind::Endpoint => Some(Self::Endpoint { name, facts: None }),
            Kind::Identity => Some(Self::Identity { number: name.parse().ok()?, labels: None }),
            Kind::Policy => Some(Self::Policy { name, policy: None }),
            Kind::CidrSet => Some(Self::CidrSet { name, set: None }),
            Kind::Service => Some(Self::Service { name, service: None }),
            Kind::Prefilter => Some(Self::Prefilter { name, prefilter: None }),
            Kind::Shaping => Some(Self::Shaping { name, shaping: None }),
            Kind::FleetConfig => Some(Self::Config(None)),
            _ => None,
        }
    }

    /// Deletions come first in a revision, so that an address can pass from one endpoint to another in it.
    pub(super) fn is_deletion(&self) -> bool {
        match self {
            Self::Node { facts, .. } => facts.is_none(),
            Self::Endpoint { facts, .. } => facts.is_none(),
            Self::Identity { labels, .. } => labels.is_none(),
            Self::Policy { policy, .. } => policy.is_none(),
            Self::CidrSet { set, .. } => set.is_none(),
            Self::Service { service, .. } => service.is_none(),
            Self::Prefilter { prefilter, .. } => prefilter.is_none(),
            Self::Health { words, .. } => words.is_none(),
            Self::Away { away, .. } => !away,
            Self::Shaping { shaping, .. } => shaping.is_none(),
            Self::Config(config) => config.is_none(),
        }
    }
}

fn not_understood(item: &KeyValue, mut errors: Vec<parse::FieldError>) -> EventError {
    EventError::NotUnderstood { key: item.key.clone(), error: errors.swap_remove(0) }
}

impl From<v1::Node> for NodeFacts {
    fn from(node: v1::Node) -> Self {
        let status = node.status.unwrap_or_default();
        let snat_ports = nodes::snat_ports(&status);
        let v1::NodeStatus { identity, controller, .. } = status;
        Self {
            addresses: node.addresses,
            endpoint_cidrs: node.endpoint_cidrs,
            identity,
            controller,
            snat_ports,
        }
    }
}

impl From<v1::Endpoint> for EndpointFacts {
    fn from(endpoint: v1::Endpoint) -> Self {
        Self {
            report: Digest::of_report(&endpoint),
            identity: endpoint.status.as_ref().map_or(0, |status| status.identity),
            ready: endpoint.status.is_some_and(|status| status.state() == v1::EndpointState::Ready),
            addresses: nodes::parse_all(&endpoint.addresses),
            uid: endpoint.metadata.map(|metadata| metadata.uid).unwrap_or_default(),
            instance: endpoint.attachment.map(|attachment| attachment.instance).unwrap_or_default(),
            node: endpoint.node,
        }
    }
}
