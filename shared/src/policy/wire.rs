//! Policies as nodes are sent them: endpoints by the names of identity sets, ports as ranges.

use ipnet::IpNet;
use weft_proto::v1;

use super::{
    model::{Action, Class, Entity, NodePolicy, Peer, Policy, PortRange, Rule, Selector},
    parse::{FieldError, entity_to_proto},
};

/// A policy with its selectors replaced by the names of their sets.
pub fn to_node(policy: &Policy) -> v1::NodePolicy {
    let rules = |rules: &Option<Vec<Rule>>| {
        rules.as_ref().map(|rules| v1::NodeRuleList { items: rules.iter().map(rule_to_node).collect() })
    };
    v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        order: 0,
        subject_set: policy.subject.set_name(),
        subject_is_nodes: false,
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
        default_deny_ingress: policy.default_deny_ingress,
        default_deny_egress: policy.default_deny_egress,
        mode: v1::PolicyMode::Enforce.into(),
    }
}

fn rule_to_node(rule: &Rule) -> v1::NodeRule {
    let action = match rule.action {
        Action::Allow => v1::Action::Allow,
        Action::Deny => v1::Action::Deny,
    };
    v1::NodeRule {
        name: rule.name.clone(),
        action: action.into(),
        peers: rule
            .peers
            .as_ref()
            .map(|peers| v1::NodePeerList { items: peers.iter().map(peer_to_node).collect() }),
        ports: rule
            .ports
            .as_ref()
            .map(|ports| v1::NodePortList { items: ports.iter().copied().map(range_to_node).collect() }),
    }
}

fn peer_to_node(peer: &Peer<Selector>) -> v1::NodePeer {
    let peer = match peer {
        Peer::Endpoints(selector) => v1::node_peer::Peer::EndpointSet(selector.set_name()),
        Peer::Cidr { cidr, except } => v1::node_peer::Peer::Cidr(v1::NodeCidr {
            cidr: cidr.to_string(),
            except: except.iter().map(IpNet::to_string).collect(),
        }),
        Peer::Entity(entity) => v1::node_peer::Peer::Entity(entity_to_proto(*entity).into()),
    };
    v1::NodePeer { peer: Some(peer) }
}

fn range_to_node(range: PortRange) -> v1::NodePortRange {
    v1::NodePortRange { protocol: range.protocol.into(), first: range.first.into(), last: range.last.into() }
}

/// Reads what [`to_node`] wrote. What this version does not understand is an error, never left out.
pub fn from_node(name: &str, policy: &v1::NodePolicy) -> Result<NodePolicy, FieldError> {
    if policy.tier() != v1::Tier::Application {
        return Err(unsupported("tier"));
    }
    if policy.mode() != v1::PolicyMode::Enforce {
        return Err(unsupported("mode"));
    }
    if policy.subject_is_nodes {
        return Err(unsupported("subjectIsNodes"));
    }
    let rules = |list: &Option<v1::NodeRuleList>| {
        list.as_ref().map(|list| list.items.iter().map(rule_from_node).collect::<Result<_, _>>()).transpose()
    };
    Ok(Policy {
        name: name.to_owned(),
        subject: policy.subject_set.clone(),
        ingress: rules(&policy.ingress)?,
        egress: rules(&policy.egress)?,
        default_deny_ingress: policy.default_deny_ingress,
        default_deny_egress: policy.default_deny_egress,
    })
}

fn rule_from_node(rule: &v1::NodeRule) -> Result<Rule<String>, FieldError> {
    let action = match rule.action() {
        v1::Action::Allow => Action::Allow,
        v1::Action::Deny => Action::Deny,
        v1::Action::Unspecified | v1::Action::Pass => return Err(unsupported("action")),
    };
    let peers =
        rule.peers.as_ref().map(|list| list.items.iter().map(peer_from_node).collect()).transpose()?;
    let ports =
        rule.ports.as_ref().map(|list| list.items.iter().map(range_from_node).collect()).transpose()?;
    Ok(Rule { name: rule.name.clone(), action, peers, ports })
}

fn peer_from_node(peer: &v1::NodePeer) -> Result<Peer<String>, FieldError> {
    match peer.peer.as_ref().ok_or_else(|| unsupported("peer"))? {
        v1::node_peer::Peer::EndpointSet(set) => Ok(Peer::Endpoints(set.clone())),
        v1::node_peer::Peer::Cidr(v1::NodeCidr { cidr, except }) => Ok(Peer::Cidr {
            cidr: prefix(cidr)?,
            except: except.iter().map(|hole| prefix(hole)).collect::<Result<_, _>>()?,
        }),
        v1::node_peer::Peer::Entity(number) => Ok(Peer::Entity(entity(*number)?)),
        v1::node_peer::Peer::NodeSet(_) => Err(unsupported("nodeSet")),
        v1::node_peer::Peer::CidrSets(_) => Err(unsupported("cidrSets")),
    }
}

fn entity(number: i32) -> Result<Entity, FieldError> {
    Ok(match v1::Entity::try_from(number).unwrap_or_default() {
        v1::Entity::Unspecified => return Err(unsupported("entity")),
        v1::Entity::Host => Entity::Class(Class::Host),
        v1::Entity::RemoteNode => Entity::Class(Class::RemoteNode),
        v1::Entity::Fleet => Entity::Class(Class::Fleet),
        v1::Entity::Unmanaged => Entity::Class(Class::Unmanaged),
        v1::Entity::World => Entity::Class(Class::World),
        v1::Entity::All => Entity::All,
    })
}

fn prefix(text: &str) -> Result<IpNet, FieldError> {
    text.parse().map_err(|_| FieldError::new("cidr", format!("\"{text}\" is not a prefix")))
}

fn range_from_node(range: &v1::NodePortRange) -> Result<PortRange, FieldError> {
    let wrong = |_| FieldError::new("ports", "a number is out of its range");
    Ok(PortRange {
        protocol: range.protocol.try_into().map_err(wrong)?,
        first: range.first.try_into().map_err(wrong)?,
        last: range.last.try_into().map_err(wrong)?,
    })
}

fn unsupported(field: &str) -> FieldError {
    FieldError::new(field, "this version does not understand it")
}
