//! Peers of rules.

use weft_proto::v1;

use super::{
    super::model::{CidrSetSelector, Class, Entity, Peer},
    Errors, FieldError,
    selector::selector_of,
    text::{labels, name, prefix},
};

/// The schema's number for an entity.
pub fn entity_to_proto(entity: Entity) -> v1::Entity {
    match entity {
        Entity::Class(Class::Host) => v1::Entity::Host,
        Entity::Class(Class::RemoteNode) => v1::Entity::RemoteNode,
        Entity::Class(Class::Fleet) => v1::Entity::Fleet,
        Entity::Class(Class::Unmanaged) => v1::Entity::Unmanaged,
        Entity::Class(Class::World) => v1::Entity::World,
        Entity::All => v1::Entity::All,
    }
}

pub(super) fn peer(errors: &mut Errors, message: &v1::Peer, path: &str) -> Option<Peer> {
    let entity = v1::Entity::try_from(message.entity).ok();
    let kinds = [
        message.endpoints.is_some(),
        message.nodes.is_some(),
        message.cidr.is_some(),
        message.cidr_set.is_some(),
        entity != Some(v1::Entity::Unspecified),
    ];
    if kinds.iter().filter(|present| **present).count() != 1 {
        errors.add(path, "expected exactly one of endpoints, nodes, cidr, cidrSet and entity");
        return None;
    }
    if !message.except.is_empty() && message.cidr.is_none() {
        errors.add(format!("{path}.except"), "except goes with cidr");
    }
    if let Some(endpoints) = &message.endpoints {
        selector_of(errors, endpoints, &format!("{path}.endpoints")).map(Peer::Endpoints)
    } else if let Some(nodes) = &message.nodes {
        selector_of(errors, nodes, &format!("{path}.nodes")).map(Peer::Nodes)
    } else if let Some(text) = &message.cidr {
        cidr(errors, text, &message.except, path)
    } else if let Some(reference) = &message.cidr_set {
        cidr_set(errors, reference, &format!("{path}.cidrSet")).map(Peer::CidrSet)
    } else {
        errors.take(entity_from_proto(entity, &format!("{path}.entity"))).map(Peer::Entity)
    }
}

fn entity_from_proto(entity: Option<v1::Entity>, path: &str) -> Result<Entity, FieldError> {
    Ok(match entity {
        Some(v1::Entity::Host) => Entity::Class(Class::Host),
        Some(v1::Entity::RemoteNode) => Entity::Class(Class::RemoteNode),
        Some(v1::Entity::Fleet) => Entity::Class(Class::Fleet),
        Some(v1::Entity::Unmanaged) => Entity::Class(Class::Unmanaged),
        Some(v1::Entity::World) => Entity::Class(Class::World),
        Some(v1::Entity::All) => Entity::All,
        Some(v1::Entity::Unspecified) | None => {
            return Err(FieldError::new(path, "expected host, remote-node, fleet, unmanaged, world or all"));
        }
    })
}

fn cidr(errors: &mut Errors, text: &str, except: &[String], path: &str) -> Option<Peer> {
    let cidr = errors.take(prefix(text, &format!("{path}.cidr")));
    let mut holes = Vec::new();
    for (index, text) in except.iter().enumerate() {
        let path = format!("{path}.except[{index}]");
        let Some(hole) = errors.take(prefix(text, &path)) else { continue };
        if cidr.is_some_and(|cidr| !cidr.contains(&hole)) {
            errors.add(path, format!("{hole} is not inside the cidr"));
        } else if cidr == Some(hole) {
            errors.warn(path, format!("{hole} is the whole cidr: the peer matches nothing"));
        }
        holes.push(hole);
    }
    cidr.map(|cidr| Peer::Cidr { cidr, except: holes })
}

fn cidr_set(errors: &mut Errors, message: &v1::CidrSetReference, path: &str) -> Option<CidrSetSelector> {
    match (&message.name, message.match_labels.is_empty()) {
        (Some(named), true) => {
            errors.take(name(named, &format!("{path}.name")))?;
            Some(CidrSetSelector::Name(named.clone()))
        }
        (None, false) => {
            errors.take_all(labels(&message.match_labels, &format!("{path}.matchLabels")))?;
            Some(CidrSetSelector::MatchLabels(message.match_labels.clone()))
        }
        (Some(_), false) => {
            errors.add(path, "expected either name or matchLabels, not both");
            None
        }
        (None, true) => {
            errors.add(path, "expected the name of a CIDR set, or matchLabels with at least one label");
            None
        }
    }
}
