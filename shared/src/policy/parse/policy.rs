//! Policies.

use std::collections::BTreeSet;

use weft_proto::v1;

use super::{
    super::model::{Action, Class, Entity, Peer, Policy, PortRange, Rule},
    Errors, FieldError, metadata, selector,
    text::{name, prefix},
};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// A policy of the application tier.
pub fn policy(message: &v1::Policy) -> Result<Policy, Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata(&mut errors, message.metadata.as_ref());
    tier_and_mode(&mut errors, message);
    let subject = subject(&mut errors, message.subject.as_ref());
    let ingress = rules(&mut errors, message.ingress.as_ref(), "ingress");
    let egress = rules(&mut errors, message.egress.as_ref(), "egress");
    let default_deny = message.default_deny.unwrap_or_default();
    if message.ingress.is_none() && message.egress.is_none() && message.default_deny.is_none() {
        errors.add("ingress", "the policy says nothing: expected ingress, egress or defaultDeny");
    }
    let value = name.zip(subject).map(|(name, subject)| Policy {
        name,
        subject,
        default_deny_ingress: default_deny.ingress.unwrap_or(ingress.is_some()),
        default_deny_egress: default_deny.egress.unwrap_or(egress.is_some()),
        ingress,
        egress,
    });
    errors.finish(value)
}

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

fn tier_and_mode(errors: &mut Errors, message: &v1::Policy) {
    match v1::Tier::try_from(message.tier) {
        Ok(v1::Tier::Unspecified | v1::Tier::Application) => {}
        Ok(_) => errors.add("tier", "this version supports the application tier only"),
        Err(_) => errors.add("tier", "expected application"),
    }
    if message.order.is_some() {
        errors.add("order", "policies of the application tier have no order");
    }
    match v1::PolicyMode::try_from(message.mode) {
        Ok(v1::PolicyMode::Unspecified | v1::PolicyMode::Enforce) => {}
        Ok(v1::PolicyMode::Audit) => errors.add("mode", "this version does not support audit yet"),
        Err(_) => errors.add("mode", "expected enforce"),
    }
}

fn subject(errors: &mut Errors, message: Option<&v1::Subject>) -> Option<super::super::selector::Selector> {
    let subject = message.cloned().unwrap_or_default();
    if subject.nodes.is_some() {
        errors.add("subject.nodes", "this version does not support host policies yet");
        return None;
    }
    let Some(endpoints) = subject.endpoints else {
        errors.add("subject", "expected endpoints: a selector ({} selects all)");
        return None;
    };
    errors.take_all(selector(&endpoints, "subject.endpoints"))
}

fn rules(errors: &mut Errors, list: Option<&v1::RuleList>, path: &str) -> Option<Vec<Rule>> {
    let list = list?;
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (index, message) in list.items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let rule = rule(errors, message, index, &path);
        if rule.as_ref().is_some_and(|rule| !names.insert(rule.name.clone())) {
            errors.add(
                format!("{path}.name"),
                format!("another rule of this list is called \"{}\"", message.name),
            );
        }
        found.extend(rule);
    }
    Some(found)
}

fn rule(errors: &mut Errors, message: &v1::Rule, index: usize, path: &str) -> Option<Rule> {
    let rule_name = if message.name.is_empty() { index.to_string() } else { message.name.clone() };
    errors.take(name(&rule_name, &format!("{path}.name")));
    let action = match v1::Action::try_from(message.action) {
        Ok(v1::Action::Allow) => Some(Action::Allow),
        Ok(v1::Action::Deny) => Some(Action::Deny),
        Ok(v1::Action::Pass) => {
            errors.add(format!("{path}.action"), "pass is for the admin tier");
            None
        }
        Ok(v1::Action::Unspecified) | Err(_) => {
            errors.add(format!("{path}.action"), "expected allow or deny");
            None
        }
    };
    let peers = message.peers.as_ref().map(|list| {
        let peer = |(index, message)| peer(errors, message, &format!("{path}.peers[{index}]"));
        list.items.iter().enumerate().filter_map(peer).collect()
    });
    let ports = message.ports.as_ref().map(|list| {
        let port = |(index, message)| port(errors, message, &format!("{path}.ports[{index}]"));
        list.items.iter().enumerate().filter_map(port).collect()
    });
    Some(Rule { name: rule_name, action: action?, peers, ports })
}

fn peer(errors: &mut Errors, message: &v1::Peer, path: &str) -> Option<Peer> {
    let entity = v1::Entity::try_from(message.entity).ok();
    let kinds = [
        message.endpoints.is_some(),
        message.nodes.is_some(),
        message.cidr.is_some(),
        message.cidr_set.is_some(),
        entity != Some(v1::Entity::Unspecified),
    ];
    if kinds.iter().filter(|present| **present).count() != 1 {
        errors.add(path, "expected exactly one of endpoints, cidr and entity");
        return None;
    }
    if !message.except.is_empty() && message.cidr.is_none() {
        errors.add(format!("{path}.except"), "except goes with cidr");
    }
    if let Some(endpoints) = &message.endpoints {
        errors.take_all(selector(endpoints, &format!("{path}.endpoints"))).map(Peer::Endpoints)
    } else if let Some(text) = &message.cidr {
        cidr(errors, text, &message.except, path)
    } else if message.nodes.is_some() {
        errors.add(format!("{path}.nodes"), "this version does not support peers by node labels yet");
        None
    } else if message.cidr_set.is_some() {
        errors.add(format!("{path}.cidrSet"), "this version does not support CIDR sets yet");
        None
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
        }
        holes.push(hole);
    }
    cidr.map(|cidr| Peer::Cidr { cidr, except: holes })
}

fn port(errors: &mut Errors, message: &v1::Port, path: &str) -> Option<PortRange> {
    let protocol = errors.take(protocol(message, path))?;
    let (has_ports, has_types) = (matches!(protocol, TCP | UDP | SCTP), matches!(protocol, ICMP | ICMPV6));
    if !has_ports && (message.port.is_some() || message.end_port.is_some()) {
        errors.add(format!("{path}.port"), "only TCP, UDP and SCTP have ports");
        return None;
    }
    if !has_types && (message.r#type.is_some() || message.code.is_some()) {
        errors.add(format!("{path}.type"), "only ICMP and ICMPv6 have types and codes");
        return None;
    }
    let range = if has_types { icmp_range(errors, message, path) } else { port_range(errors, message, path) };
    range.map(|(first, last)| PortRange { protocol, first, last })
}

fn protocol(message: &v1::Port, path: &str) -> Result<u8, FieldError> {
    let field = format!("{path}.protocol");
    let named = match v1::Protocol::try_from(message.protocol) {
        Ok(v1::Protocol::Tcp) => Some(TCP),
        Ok(v1::Protocol::Udp) => Some(UDP),
        Ok(v1::Protocol::Sctp) => Some(SCTP),
        Ok(v1::Protocol::Icmp) => Some(ICMP),
        Ok(v1::Protocol::Icmpv6) => Some(ICMPV6),
        Ok(v1::Protocol::Unspecified) => None,
        Err(_) => return Err(FieldError::new(field, "expected TCP, UDP, SCTP, ICMP or ICMPv6")),
    };
    match (named, message.protocol_number) {
        (Some(named), None) => Ok(named),
        (None, Some(number)) => u8::try_from(number).map_err(|_| {
            FieldError::new(
                format!("{path}.protocolNumber"),
                format!("{number} is out of range: expected 0 to 255"),
            )
        }),
        (None, None) => {
            Err(FieldError::new(field, "expected TCP, UDP, SCTP, ICMP or ICMPv6, or a protocolNumber"))
        }
        (Some(_), Some(_)) => {
            Err(FieldError::new(field, "expected either protocol or protocolNumber, not both"))
        }
    }
}

fn port_range(errors: &mut Errors, message: &v1::Port, path: &str) -> Option<(u16, u16)> {
    let number = |value: u32, field: &str| {
        let wrong = || {
            FieldError::new(
                format!("{path}.{field}"),
                format!("{value} is out of range: expected 1 to 65535"),
            )
        };
        u16::try_from(value).ok().filter(|port| *port != 0).ok_or_else(wrong)
    };
    match (message.port, message.end_port) {
        (None, None) => Some((0, u16::MAX)),
        (None, Some(_)) => {
            errors.add(format!("{path}.endPort"), "endPort goes with port");
            None
        }
        (Some(first), last) => {
            let first = errors.take(number(first, "port"));
            let last = last.map_or(first, |last| errors.take(number(last, "endPort")));
            let (first, last) = first.zip(last)?;
            if last < first {
                errors.add(format!("{path}.endPort"), format!("{last} is below port {first}"));
                return None;
            }
            Some((first, last))
        }
    }
}

fn icmp_range(errors: &mut Errors, message: &v1::Port, path: &str) -> Option<(u16, u16)> {
    let number = |value: u32, field: &str| {
        let wrong = |_| {
            FieldError::new(format!("{path}.{field}"), format!("{value} is out of range: expected 0 to 255"))
        };
        u8::try_from(value).map_err(wrong)
    };
    match (message.r#type, message.code) {
        (None, None) => Some((0, u16::MAX)),
        (None, Some(_)) => {
            errors.add(format!("{path}.code"), "code goes with type");
            None
        }
        (Some(kind), code) => {
            let kind = errors.take(number(kind, "type"))?;
            match code {
                None => Some((u16::from_be_bytes([kind, 0]), u16::from_be_bytes([kind, u8::MAX]))),
                Some(code) => {
                    let port = u16::from_be_bytes([kind, errors.take(number(code, "code"))?]);
                    Some((port, port))
                }
            }
        }
    }
}
