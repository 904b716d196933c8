//! Objects between their stored form and the API's. What is stored has no revision: the store knows it.
use bytes::Bytes;
use prost::Message as _;
use weft_proto::v1::{self, Kind, Metadata, Object, object::Kind as Of};

use crate::{
    keys,
    store::{KeyValue, StoreError},
};

/// One arm for each kind.
macro_rules! for_each_kind {
    ($value:expr, $inner:ident => $body:expr) => {
        match $value {
            Of::Node($inner) => $body,
            Of::Endpoint($inner) => $body,
            Of::Identity($inner) => $body,
            Of::CidrSet($inner) => $body,
            Of::Policy($inner) => $body,
            Of::Service($inner) => $body,
            Of::Prefilter($inner) => $body,
            Of::EgressGateway($inner) => $body,
            Of::Bundle($inner) => $body,
            Of::Rollout($inner) => $body,
            Of::FleetConfig($inner) => $body,
            Of::Shaping($inner) => $body,
        }
    };
}

pub fn metadata(object: &Object) -> Option<&Metadata> {
    for_each_kind!(object.kind.as_ref()?, inner => inner.metadata.as_ref())
}

/// `None`: the object has no kind.
pub fn metadata_mut(object: &mut Object) -> Option<&mut Metadata> {
    for_each_kind!(object.kind.as_mut()?, inner => Some(inner.metadata.get_or_insert_default()))
}

/// Empty when there is none.
pub fn name(object: &Object) -> &str {
    metadata(object).map_or("", |metadata| metadata.name.as_str())
}

pub fn kind(object: &Object) -> Kind {
    match &object.kind {
        None => Kind::Unspecified,
        Some(Of::Node(_)) => Kind::Node,
        Some(Of::Endpoint(_)) => Kind::Endpoint,
        Some(Of::Identity(_)) => Kind::Identity,
        Some(Of::CidrSet(_)) => Kind::CidrSet,
        Some(Of::Policy(_)) => Kind::Policy,
        Some(Of::Service(_)) => Kind::Service,
        Some(Of::Prefilter(_)) => Kind::Prefilter,
        Some(Of::EgressGateway(_)) => Kind::EgressGateway,
        Some(Of::Bundle(_)) => Kind::Bundle,
        Some(Of::Rollout(_)) => Kind::Rollout,
        Some(Of::FleetConfig(_)) => Kind::FleetConfig,
        Some(Of::Shaping(_)) => Kind::Shaping,
    }
}

/// Its field in `Object`, as paths and manifests spell it.
pub fn field(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "kind",
        Kind::Node => "node",
        Kind::Endpoint => "endpoint",
        Kind::Identity => "identity",
        Kind::CidrSet => "cidrSet",
        Kind::Policy => "policy",
        Kind::Service => "service",
        Kind::Prefilter => "prefilter",
        Kind::EgressGateway => "egressGateway",
        Kind::Bundle => "bundle",
        Kind::Rollout => "rollout",
        Kind::FleetConfig => "fleetConfig",
        Kind::Shaping => "shaping",
    }
}

/// Whether the object carries a status, which is not the operator's to write.
pub fn has_status(object: &Object) -> bool {
    match &object.kind {
        Some(Of::Node(node)) => node.status.is_some(),
        Some(Of::Endpoint(endpoint)) => endpoint.status.is_some(),
        Some(Of::Rollout(rollout)) => rollout.status.is_some(),
        _ => false,
    }
}

pub fn encode(mut object: Object) -> Bytes {
    if let Some(metadata) = metadata_mut(&mut object) {
        metadata.revision = 0;
    }
    object.encode_to_vec().into()
}

pub fn decode(item: &KeyValue) -> Result<Object, StoreError> {
    let corrupt = || StoreError::Corrupt { key: item.key.clone() };
    let mut object = Object::decode(item.value.clone()).map_err(|_| corrupt())?;
    let metadata = metadata_mut(&mut object).ok_or_else(corrupt)?;
    metadata.revision = item.mod_revision;
    match keys::parse(&item.key) {
        Some((expected, expected_name)) if metadata.name == expected_name && kind(&object) == expected => {
            Ok(object)
        }
        _ => Err(corrupt()),
    }
}

pub fn decode_node(item: &KeyValue) -> Result<v1::Node, StoreError> {
    match decode(item)?.kind {
        Some(Of::Node(node)) => Ok(node),
        _ => Err(StoreError::Corrupt { key: item.key.clone() }),
    }
}

pub fn decode_endpoint(item: &KeyValue) -> Result<v1::Endpoint, StoreError> {
    match decode(item)?.kind {
        Some(Of::Endpoint(endpoint)) => Ok(endpoint),
        _ => Err(StoreError::Corrupt { key: item.key.clone() }),
    }
}

pub fn decode_fleet_config(item: &KeyValue) -> Result<v1::FleetConfig, StoreError> {
    match decode(item)?.kind {
        Some(Of::FleetConfig(config)) => Ok(config),
        _ => Err(StoreError::Corrupt { key: item.key.clone() }),
    }
}

pub fn object(kind: Of) -> Object {
    Object { kind: Some(kind) }
}

pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// An object of this kind in which nothing is set.
pub fn empty(kind: Kind) -> Option<Object> {
    let of = match kind {
        Kind::Unspecified => return None,
        Kind::Node => Of::Node(v1::Node::default()),
        Kind::Endpoint => Of::Endpoint(v1::Endpoint::default()),
        Kind::Identity => Of::Identity(v1::Identity::default()),
        Kind::CidrSet => Of::CidrSet(v1::CidrSet::default()),
        Kind::Policy => Of::Policy(v1::Policy::default()),
        Kind::Service => Of::Service(v1::Service::default()),
        Kind::Prefilter => Of::Prefilter(v1::Prefilter::default()),
        Kind::EgressGateway => Of::EgressGateway(v1::EgressGateway::default()),
        Kind::Bundle => Of::Bundle(v1::Bundle::default()),
        Kind::Rollout => Of::Rollout(v1::Rollout::default()),
        Kind::FleetConfig => Of::FleetConfig(v1::FleetConfig::default()),
        Kind::Shaping => Of::Shaping(v1::Shaping::default()),
    };
    Some(object(of))
}
