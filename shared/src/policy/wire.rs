//! Policies as nodes are sent them: endpoints and nodes by the names of identity sets, CIDR sets by their names, ports as
//! ranges.

use ipnet::IpNet;
use weft_proto::v1;

use super::{
    model::{
        CidrSetSelector, Class, Direction, Entity, Failsafe, HostToEndpoint, Mode, NodePeer, NodePolicy,
        NodeRule, Peer, Policy, PortRange, Rule, RuleAction, Selector, Subject, Tier,
    },
    parse::{FieldError, entity_to_proto},
};

/// The name of the identity set that a selector of endpoints makes.
pub fn endpoint_set(selector: &Selector) -> String {
    selector.set_name()
}

/// … of nodes. Never a name that a selector of endpoints makes.
pub fn node_set(selector: &Selector) -> String {
    format!("nodes-{}", selector.set_name())
}

/// A policy with its selectors replaced by the names of their sets. `cidr_sets`: the names of those that exist and are
/// meant.
pub fn to_node(policy: &Policy, cidr_sets: impl Fn(&CidrSetSelector) -> Vec<String>) -> v1::NodePolicy {
    encode(&node_form(policy, cidr_sets))
}

/// The same, before it is a message.
pub fn node_form(policy: &Policy, cidr_sets: impl Fn(&CidrSetSelector) -> Vec<String>) -> NodePolicy {
    let peer = |peer: &Peer| match peer {
        Peer::Endpoints(selector) => NodePeer::Endpoints(endpoint_set(selector)),
        Peer::Nodes(selector) => NodePeer::Nodes(node_set(selector)),
        Peer::Cidr { cidr, except } => NodePeer::Cidr { cidr: *cidr, except: except.clone() },
        Peer::CidrSet(meant) => {
            let mut names = cidr_sets(meant);
            names.sort();
            names.dedup();
            NodePeer::CidrSet(names)
        }
        Peer::Entity(entity) => NodePeer::Entity(*entity),
    };
    let rule = |rule: &Rule| NodeRule {
        name: rule.name.clone(),
        action: rule.action,
        peers: rule.peers.as_ref().map(|peers| peers.iter().map(peer).collect()),
        ports: rule.ports.clone(),
    };
    let rules = |rules: &Option<Vec<Rule>>| rules.as_ref().map(|rules| rules.iter().map(rule).collect());
    NodePolicy {
        name: policy.name.clone(),
        tier: policy.tier,
        mode: policy.mode,
        subject: match &policy.subject {
            Subject::Endpoints(selector) => Subject::Endpoints(endpoint_set(selector)),
            Subject::Nodes(selector) => Subject::Nodes(node_set(selector)),
        },
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
    }
}

/// As it is sent.
pub fn encode(policy: &NodePolicy) -> v1::NodePolicy {
    let rules = |rules: &Option<Vec<NodeRule>>| {
        rules.as_ref().map(|rules| v1::NodeRuleList { items: rules.iter().map(encode_rule).collect() })
    };
    let (tier, order) = match policy.tier {
        Tier::Admin { order } => (v1::Tier::Admin, order),
        Tier::Application { .. } => (v1::Tier::Application, 0),
        Tier::Baseline { order } => (v1::Tier::Baseline, order),
    };
    let mode = match policy.mode {
        Mode::Enforce => v1::PolicyMode::Enforce,
        Mode::Audit => v1::PolicyMode::Audit,
    };
    v1::NodePolicy {
        tier: tier.into(),
        order,
        subject_set: policy.subject.named().clone(),
        subject_is_nodes: policy.subject.is_nodes(),
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
        default_deny_ingress: policy.default_deny(Direction::Ingress),
        default_deny_egress: policy.default_deny(Direction::Egress),
        mode: mode.into(),
    }
}

fn encode_rule(rule: &NodeRule) -> v1::NodeRule {
    let action = match rule.action {
        RuleAction::Allow => v1::Action::Allow,
        RuleAction::Deny => v1::Action::Deny,
        RuleAction::Pass => v1::Action::Pass,
    };
    let range = |range: &PortRange| v1::NodePortRange {
        protocol: range.protocol.into(),
        first: range.first.into(),
        last: range.last.into(),
    };
    let peers = rule.peers.as_ref();
    let ports = rule.ports.as_ref();
    v1::NodeRule {
        name: rule.name.clone(),
        action: action.into(),
        peers: peers.map(|peers| v1::NodePeerList { items: peers.iter().map(encode_peer).collect() }),
        ports: ports.map(|ports| v1::NodePortList { items: ports.iter().map(range).collect() }),
    }
}

fn encode_peer(peer: &NodePeer) -> v1::NodePeer {
    use v1::node_peer::Peer as Of;
    let peer = match peer {
        Peer::Endpoints(set) => Of::EndpointSet(set.clone()),
        Peer::Nodes(set) => Of::NodeSet(set.clone()),
        Peer::Cidr { cidr, except } => Of::Cidr(v1::NodeCidr {
            cidr: cidr.to_string(),
            except: except.iter().map(IpNet::to_string).collect(),
        }),
        Peer::CidrSet(names) => Of::CidrSets(v1::NodeCidrSets { names: names.clone() }),
        Peer::Entity(entity) => Of::Entity(entity_to_proto(*entity).into()),
    };
    v1::NodePeer { peer: Some(peer) }
}

/// Reads what [`encode`] wrote. What this version does not understand is an error, never left out.
pub fn from_node(name: &str, policy: &v1::NodePolicy) -> Result<NodePolicy, FieldError> {
    let rules = |list: &Option<v1::NodeRuleList>| {
        list.as_ref().map(|list| list.items.iter().map(decode_rule).collect::<Result<_, _>>()).transpose()
    };
    let policy = NodePolicy {
        name: name.to_owned(),
        tier: tier(policy)?,
        mode: match v1::PolicyMode::try_from(policy.mode) {
            Ok(v1::PolicyMode::Enforce) => Mode::Enforce,
            Ok(v1::PolicyMode::Audit) => Mode::Audit,
            Ok(v1::PolicyMode::Unspecified) | Err(_) => return Err(unsupported("mode")),
        },
        subject: if policy.subject_is_nodes {
            Subject::Nodes(policy.subject_set.clone())
        } else {
            Subject::Endpoints(policy.subject_set.clone())
        },
        ingress: rules(&policy.ingress)?,
        egress: rules(&policy.egress)?,
    };
    let mut rules = [Direction::Ingress, Direction::Egress].into_iter().flat_map(|way| policy.rules(way));
    let passes = rules.any(|rule| rule.action == RuleAction::Pass);
    if passes && !matches!(policy.tier, Tier::Admin { .. }) {
        return Err(FieldError::new("action", "pass is for the admin tier"));
    }
    Ok(policy)
}

fn tier(policy: &v1::NodePolicy) -> Result<Tier, FieldError> {
    let order = policy.order;
    let ordered = match v1::Tier::try_from(policy.tier) {
        Ok(v1::Tier::Application) => {
            return Ok(Tier::Application {
                default_deny_ingress: policy.default_deny_ingress,
                default_deny_egress: policy.default_deny_egress,
            });
        }
        Ok(v1::Tier::Admin) => Tier::Admin { order },
        Ok(v1::Tier::Baseline) => Tier::Baseline { order },
        Ok(v1::Tier::Unspecified) | Err(_) => return Err(unsupported("tier")),
    };
    if policy.default_deny_ingress || policy.default_deny_egress {
        return Err(FieldError::new("defaultDeny", "is for the application tier"));
    }
    if order > Tier::ORDER_MAX {
        return Err(FieldError::new("order", format!("{order} is out of range")));
    }
    Ok(ordered)
}

fn decode_rule(rule: &v1::NodeRule) -> Result<NodeRule, FieldError> {
    let action = match v1::Action::try_from(rule.action) {
        Ok(v1::Action::Allow) => RuleAction::Allow,
        Ok(v1::Action::Deny) => RuleAction::Deny,
        Ok(v1::Action::Pass) => RuleAction::Pass,
        Ok(v1::Action::Unspecified) | Err(_) => return Err(unsupported("action")),
    };
    let peers = rule.peers.as_ref().map(|list| list.items.iter().map(decode_peer).collect()).transpose()?;
    let ports = rule.ports.as_ref().map(|list| list.items.iter().map(decode_range).collect()).transpose()?;
    Ok(Rule { name: rule.name.clone(), action, peers, ports })
}

fn decode_peer(peer: &v1::NodePeer) -> Result<NodePeer, FieldError> {
    use v1::node_peer::Peer as Of;
    Ok(match peer.peer.as_ref().ok_or_else(|| unsupported("peer"))? {
        Of::EndpointSet(set) => Peer::Endpoints(set.clone()),
        Of::NodeSet(set) => Peer::Nodes(set.clone()),
        Of::Cidr(v1::NodeCidr { cidr, except }) => {
            Peer::Cidr { cidr: prefix(cidr)?, except: prefixes(except)? }
        }
        Of::CidrSets(sets) => Peer::CidrSet(sets.names.clone()),
        Of::Entity(number) => Peer::Entity(entity(*number)?),
    })
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

/// The prefixes of a CIDR set as nodes get it.
pub fn cidr_set_from_node(set: &v1::NodeCidrSet) -> Result<Vec<IpNet>, FieldError> {
    prefixes(&set.cidrs)
}

/// Failsafe entries as nodes get them: always all of them, the defaults written out.
pub fn failsafe_to_node(entries: &[Failsafe]) -> Vec<v1::NodeFailsafe> {
    let entry = |entry: &Failsafe| v1::NodeFailsafe {
        protocol: entry.protocol.into(),
        first: entry.first.into(),
        last: entry.last.into(),
        direction: match entry.direction {
            Direction::Ingress => v1::Direction::Ingress,
            Direction::Egress => v1::Direction::Egress,
        }
        .into(),
        cidrs: entry.prefixes.iter().map(IpNet::to_string).collect(),
    };
    entries.iter().map(entry).collect()
}

/// Reads what [`failsafe_to_node`] wrote.
pub fn failsafe_from_node(entries: &[v1::NodeFailsafe]) -> Result<Vec<Failsafe>, FieldError> {
    let entry = |entry: &v1::NodeFailsafe| {
        let direction = match entry.direction() {
            v1::Direction::Ingress => Direction::Ingress,
            v1::Direction::Egress => Direction::Egress,
            v1::Direction::Unspecified => return Err(unsupported("failsafe")),
        };
        let range = v1::NodePortRange { protocol: entry.protocol, first: entry.first, last: entry.last };
        let PortRange { protocol, first, last } = decode_range(&range)?;
        Ok(Failsafe { protocol, first, last, direction, prefixes: prefixes(&entry.cidrs)? })
    };
    entries.iter().map(entry).collect()
}

/// Whether traffic from a node to its own endpoints is judged. What this version does not understand is an error.
pub fn host_to_endpoint(number: i32) -> Result<HostToEndpoint, FieldError> {
    match v1::HostToEndpoint::try_from(number) {
        Ok(v1::HostToEndpoint::Unspecified | v1::HostToEndpoint::Allow) => Ok(HostToEndpoint::Allow),
        Ok(v1::HostToEndpoint::Policy) => Ok(HostToEndpoint::Policy),
        Err(_) => Err(FieldError::new("hostToEndpoint", "expected allow or policy")),
    }
}

fn prefixes(texts: &[String]) -> Result<Vec<IpNet>, FieldError> {
    texts.iter().map(|text| prefix(text)).collect()
}

fn prefix(text: &str) -> Result<IpNet, FieldError> {
    text.parse().map_err(|_| FieldError::new("cidr", format!("\"{text}\" is not a prefix")))
}

fn decode_range(range: &v1::NodePortRange) -> Result<PortRange, FieldError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        arbitrary::{self, Fleet},
        case,
    };

    fn is_read_as_it_was_meant(fleet: &Fleet) -> bool {
        let policies = fleet.policies.iter().all(|policy| {
            let form = node_form(policy, |meant| fleet.cidr_set_names(meant));
            from_node(&policy.name, &encode(&form)) == Ok(form)
        });
        let entries = &fleet.config.failsafe;
        policies && failsafe_from_node(&failsafe_to_node(entries)).as_ref() == Ok(entries)
    }

    #[test]
    fn what_is_sent_is_read_as_it_was_meant() {
        case::hold(256, &arbitrary::fleet(), |fleet| {
            if is_read_as_it_was_meant(&fleet) {
                return Ok(());
            }
            Err(case::manifests(&case::smallest(fleet, |fleet| !is_read_as_it_was_meant(fleet))))
        });
    }

    fn sent() -> v1::NodePolicy {
        encode(&NodePolicy {
            name: "p".to_owned(),
            tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
            mode: Mode::Enforce,
            subject: Subject::Endpoints("set".to_owned()),
            ingress: Some(vec![NodeRule {
                name: "0".to_owned(),
                action: RuleAction::Deny,
                peers: None,
                ports: None,
            }]),
            egress: None,
        })
    }

    #[test]
    fn a_policy_of_another_version_is_not_half_understood() {
        let path = |change: &dyn Fn(&mut v1::NodePolicy)| {
            let mut message = sent();
            change(&mut message);
            from_node("p", &message).map_err(|error| error.path)
        };
        let rule = |message: &mut v1::NodePolicy, change: &dyn Fn(&mut v1::NodeRule)| {
            message.ingress.iter_mut().flat_map(|list| &mut list.items).for_each(change);
        };
        assert!(path(&|_| ()).is_ok());
        assert_eq!(path(&|message| message.tier = 77), Err("tier".to_owned()));
        assert_eq!(path(&|message| message.mode = 77), Err("mode".to_owned()));
        assert_eq!(path(&|message| message.tier = v1::Tier::Admin.into()), Err("defaultDeny".to_owned()));
        assert_eq!(path(&|message| rule(message, &|rule| rule.action = 77)), Err("action".to_owned()));
        let pass = path(&|message| rule(message, &|rule| rule.action = v1::Action::Pass.into()));
        assert_eq!(pass, Err("action".to_owned()));
        let no_peer = |rule: &mut v1::NodeRule| {
            rule.peers = Some(v1::NodePeerList { items: vec![v1::NodePeer { peer: None }] });
        };
        assert_eq!(path(&|message| rule(message, &no_peer)), Err("peer".to_owned()));
    }

    #[test]
    fn sets_of_nodes_and_of_endpoints_never_share_a_name() {
        assert_ne!(node_set(&Selector::default()), endpoint_set(&Selector::default()));
    }
}
