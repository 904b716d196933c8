//! The resources of the stream, parsed once at the edge.

use std::net::IpAddr;

use ipnet::IpNet;
use prost::Message;
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    layout::Class,
    policy::{
        model::{Action, Failsafe, HostToEndpoint, NodePolicy},
        parse::FieldError,
        wire,
    },
};

use super::Key;
use crate::{balance::service::Service, prefilter::Prefilter, shaping::Shaping};

/// Why a resource is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("it requires \"{0}\", which this version does not have")]
    Requires(String),
    #[error("its bytes are not a message of its type: {0}")]
    Bytes(#[from] prost::DecodeError),
    #[error("{field}: {message}")]
    Field { field: String, message: String },
    #[error("this version does not support resources of this type")]
    Unsupported,
}

fn field(field: impl Into<String>, message: impl Into<String>) -> ParseError {
    ParseError::Field { field: field.into(), message: message.into() }
}

fn wrong(error: FieldError) -> ParseError {
    field(error.path, error.message)
}

/// Configuration that the whole datapath needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub pools: Vec<IpNet>,
    pub default_action: Action,
    /// [`Class::Fleet`] or [`Class::Unmanaged`].
    pub unknown_pool_address: Class,
    pub host_to_endpoint: HostToEndpoint,
    /// What host policies can't close.
    pub failsafe: Vec<Failsafe>,
}

/// How a node is reached, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub addresses: Vec<IpAddr>,
    pub endpoint_cidrs: Vec<IpNet>,
    pub identity: u32,
}

/// What the controllers say of an endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointWord {
    pub identity: u32,
    pub open: bool,
    pub uid: String,
    /// Of the attachment that it is about; empty: a controller that does not say.
    pub instance: String,
    /// Of the batch that brought it.
    pub revision: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    Fleet(Fleet),
    Node(Route),
    Member {
        set: String,
        identity: u32,
    },
    Policy(NodePolicy),
    /// Prefixes, of a set by its name.
    CidrSet(Vec<IpNet>),
    Address {
        address: IpAddr,
        identity: u32,
        node: String,
    },
    Endpoint(EndpointWord),
    Service(Service),
    Prefilter(Prefilter),
    Shaping(Shaping),
}

impl Resource {
    pub fn parse(key: &Key, bytes: &[u8], revision: u64) -> Result<Self, ParseError> {
        Ok(match key.kind {
            ResourceType::Fleet => Self::Fleet(fleet(&v1::NodeFleet::decode(bytes)?)?),
            ResourceType::Node => Self::Node(route(&v1::NodeRoute::decode(bytes)?)?),
            ResourceType::IdentitySetMember => {
                let (set, identity) = member(&key.name)?;
                Self::Member { set: set.to_owned(), identity }
            }
            ResourceType::Policy => {
                let policy = wire::from_node(&key.name, &v1::NodePolicy::decode(bytes)?);
                Self::Policy(policy.map_err(wrong)?)
            }
            ResourceType::CidrSet => {
                Self::CidrSet(wire::cidr_set_from_node(&v1::NodeCidrSet::decode(bytes)?).map_err(wrong)?)
            }
            ResourceType::Address => {
                let v1::NodeAddress { identity, node } = v1::NodeAddress::decode(bytes)?;
                Self::Address { address: address("name", &key.name)?, identity, node }
            }
            ResourceType::Endpoint => {
                let v1::NodeEndpoint { identity, open, uid, instance } = v1::NodeEndpoint::decode(bytes)?;
                Self::Endpoint(EndpointWord { identity, open, uid, instance, revision })
            }
            ResourceType::Service => {
                Self::Service(Service::try_from(&v1::NodeService::decode(bytes)?).map_err(wrong)?)
            }
            ResourceType::Prefilter => {
                Self::Prefilter(Prefilter::try_from(&v1::NodePrefilter::decode(bytes)?).map_err(wrong)?)
            }
            ResourceType::Shaping => {
                Self::Shaping(Shaping::try_from(&v1::NodeShaping::decode(bytes)?).map_err(wrong)?)
            }
            _ => return Err(ParseError::Unsupported),
        })
    }
}

/// The name of a member resource, "SET/IDENTITY".
pub(super) fn member(name: &str) -> Result<(&str, u32), ParseError> {
    let (set, identity) = name.rsplit_once('/').ok_or_else(|| field("name", "expected SET/IDENTITY"))?;
    let identity =
        identity.parse().map_err(|_| field("name", format!("\"{identity}\" is not an identity")))?;
    Ok((set, identity))
}

fn fleet(fleet: &v1::NodeFleet) -> Result<Fleet, ParseError> {
    if fleet.routing_mode() == v1::RoutingMode::Native {
        return Err(field("routingMode", "native routing is not supported by this version"));
    }
    if fleet.encryption_mode() == v1::EncryptionMode::Strict {
        return Err(field("encryptionMode", "encryption is not supported by this version"));
    }
    Ok(Fleet {
        pools: prefixes("pools", &fleet.pools)?,
        default_action: match fleet.default_action() {
            v1::DefaultAction::Unspecified | v1::DefaultAction::Allow => Action::Allow,
            v1::DefaultAction::Deny => Action::Deny,
        },
        unknown_pool_address: match fleet.unknown_pool_address() {
            v1::Entity::Fleet => Class::Fleet,
            // Not said is not known: the class that closes.
            v1::Entity::Unspecified | v1::Entity::Unmanaged => Class::Unmanaged,
            _ => return Err(field("unknownPoolAddress", "expected fleet or unmanaged")),
        },
        host_to_endpoint: wire::host_to_endpoint(fleet.host_to_endpoint).map_err(wrong)?,
        failsafe: wire::failsafe_from_node(&fleet.failsafe).map_err(wrong)?,
    })
}

fn route(route: &v1::NodeRoute) -> Result<Route, ParseError> {
    let addresses =
        route.addresses.iter().map(|text| address("addresses", text)).collect::<Result<_, _>>()?;
    Ok(Route {
        addresses,
        endpoint_cidrs: prefixes("endpointCidrs", &route.endpoint_cidrs)?,
        identity: route.identity,
    })
}

fn address(path: &str, text: &str) -> Result<IpAddr, ParseError> {
    text.parse().map_err(|_| field(path, format!("\"{text}\" is not an address")))
}

fn prefixes(path: &str, texts: &[String]) -> Result<Vec<IpNet>, ParseError> {
    let prefix = |text: &String| text.parse().map_err(|_| field(path, format!("\"{text}\" is not a prefix")));
    texts.iter().map(prefix).collect()
}
