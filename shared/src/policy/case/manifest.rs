//! The model as manifests. (The command's own writer goes by the schema's descriptors, which this crate does not know; a
//! test of the command reads what is written here.)

use std::fmt::Display;

use ipnet::IpNet;

use crate::policy::{
    arbitrary::Fleet,
    model::{
        Action, CidrSet, CidrSetSelector, Class, Direction, Entity, Failsafe, FleetConfig, FlowPort,
        HostToEndpoint, Labels, Mode, Party, Peer, Policy, PortRange, Requirement, Rule, RuleAction,
        Selector, Subject, Tier,
    },
};

/// The fleet's configuration, CIDR sets and policies, as `weft apply` takes them.
pub fn manifests(fleet: &Fleet) -> String {
    let mut text = config(&fleet.config);
    for set in &fleet.cidr_sets {
        text.push_str(&cidr_set(set));
    }
    for one in &fleet.policies {
        text.push_str(&policy(one));
    }
    text
}

fn config(config: &FleetConfig) -> String {
    let pool = |(cidr, length)| format!("{{cidr: {}, nodePrefixLength: {length}}}", prefix(&cidr));
    let pools = config.pools.iter().map(|of| pool((of.cidr, of.node_prefix_length)));
    let mut text = format!("kind: FleetConfig\nname: fleet\npools: {}\n", list(pools));
    let default_action = match config.default_action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    let host_to_endpoint = match config.host_to_endpoint {
        HostToEndpoint::Allow => "allow",
        HostToEndpoint::Policy => "policy",
    };
    text += &format!("defaultAction: {default_action}\nhostToEndpoint: {host_to_endpoint}\n");
    if config.failsafe != Failsafe::defaults() {
        text += &format!("failsafe: {}\n", list(config.failsafe.iter().map(failsafe)));
    }
    text
}

fn failsafe(entry: &Failsafe) -> String {
    let port = range(PortRange { protocol: entry.protocol, first: entry.first, last: entry.last });
    let mut text = format!("{{{port}, direction: {}", direction(entry.direction));
    if !entry.prefixes.is_empty() {
        text += &format!(", cidrs: {}", list(entry.prefixes.iter().map(prefix)));
    }
    text + "}"
}

fn cidr_set(set: &CidrSet) -> String {
    let cidrs = list(set.cidrs.iter().map(prefix));
    format!("---\nkind: CidrSet\nname: {}\nlabels: {}\ncidrs: {cidrs}\n", set.name, labels(&set.labels))
}

fn policy(policy: &Policy) -> String {
    let mut text = format!("---\nkind: Policy\nname: {}\n", policy.name);
    text += &match policy.tier {
        Tier::Admin { order } => format!("tier: admin\norder: {order}\n"),
        Tier::Baseline { order } => format!("tier: baseline\norder: {order}\n"),
        Tier::Application { default_deny_ingress, default_deny_egress } => format!(
            "tier: application\ndefaultDeny: {{ingress: {default_deny_ingress}, egress: {default_deny_egress}}}\n"
        ),
    };
    if policy.mode == Mode::Audit {
        text += "mode: audit\n";
    }
    text += &match &policy.subject {
        Subject::Endpoints(selected) => format!("subject: {{endpoints: {}}}\n", selector(selected)),
        Subject::Nodes(selected) => format!("subject: {{nodes: {}}}\n", selector(selected)),
    };
    for (name, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
        match rules.as_deref() {
            None => {}
            Some([]) => text += &format!("{name}: []\n"),
            Some(rules) => {
                text += &format!("{name}:\n");
                for written in rules {
                    text += &rule(written);
                }
            }
        }
    }
    text
}

fn rule(rule: &Rule) -> String {
    let action = match rule.action {
        RuleAction::Allow => "allow",
        RuleAction::Deny => "deny",
        RuleAction::Pass => "pass",
    };
    // A rule's name may be a number.
    let mut text = format!("  - name: {:?}\n    action: {action}\n", rule.name);
    if let Some(peers) = &rule.peers {
        text += &format!("    peers: {}\n", list(peers.iter().map(peer)));
    }
    if let Some(ports) = &rule.ports {
        text += &format!("    ports: {}\n", list(ports.iter().map(|one| format!("{{{}}}", range(*one)))));
    }
    text
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Endpoints(selected) => format!("{{endpoints: {}}}", selector(selected)),
        Peer::Nodes(selected) => format!("{{nodes: {}}}", selector(selected)),
        Peer::Cidr { cidr, except } if except.is_empty() => format!("{{cidr: {}}}", prefix(cidr)),
        Peer::Cidr { cidr, except } => {
            format!("{{cidr: {}, except: {}}}", prefix(cidr), list(except.iter().map(prefix)))
        }
        Peer::CidrSet(CidrSetSelector::Name(name)) => format!("{{cidrSet: {name}}}"),
        Peer::CidrSet(CidrSetSelector::MatchLabels(wanted)) => {
            format!("{{cidrSet: {{matchLabels: {}}}}}", labels(wanted))
        }
        Peer::Entity(Entity::All) => "{entity: all}".to_owned(),
        Peer::Entity(Entity::Class(named)) => format!("{{entity: {}}}", class(*named)),
    }
}

fn selector(selector: &Selector) -> String {
    let (mut by_value, mut expressions) = (Labels::new(), Vec::new());
    for requirement in selector.requirements() {
        let (operator, values) = match requirement {
            Requirement::In { key, values } => match values.first() {
                Some(only) if values.len() == 1 && !by_value.contains_key(key) => {
                    by_value.insert(key.clone(), only.clone());
                    continue;
                }
                _ => ("In", Some(values)),
            },
            Requirement::NotIn { values, .. } => ("NotIn", Some(values)),
            Requirement::Exists { .. } => ("Exists", None),
            Requirement::DoesNotExist { .. } => ("DoesNotExist", None),
        };
        let mut text = format!("{{key: {:?}, operator: {operator}", requirement.key());
        if let Some(values) = values {
            text += &format!(", values: {}", list(values.iter().map(|value| format!("{value:?}"))));
        }
        expressions.push(text + "}");
    }
    let mut parts = Vec::new();
    if !by_value.is_empty() {
        parts.push(format!("matchLabels: {}", labels(&by_value)));
    }
    if !expressions.is_empty() {
        parts.push(format!("matchExpressions: {}", list(expressions)));
    }
    format!("{{{}}}", parts.join(", "))
}

/// Without its braces: failsafe entries say more.
fn range(range: PortRange) -> String {
    let PortRange { protocol, first, last } = range;
    let mut text = self::protocol(protocol);
    let [kind, code] = first.to_be_bytes();
    text += &match protocol {
        _ if (first, last) == (0, u16::MAX) => String::new(),
        1 | 58 if first == last => format!(", type: {kind}, code: {code}"),
        1 | 58 => format!(", type: {kind}"),
        _ if first == last => format!(", port: {first}"),
        _ => format!(", port: {first}, endPort: {last}"),
    };
    text
}

fn protocol(number: u8) -> String {
    match number {
        1 => "protocol: ICMP".to_owned(),
        6 => "protocol: TCP".to_owned(),
        17 => "protocol: UDP".to_owned(),
        58 => "protocol: ICMPv6".to_owned(),
        132 => "protocol: SCTP".to_owned(),
        other => format!("protocolNumber: {other}"),
    }
}

/// What a flow goes to, in the form of a rule's port.
pub(super) fn flow_port(port: FlowPort) -> String {
    let has_ports = matches!(port.protocol, 1 | 6 | 17 | 58 | 132);
    let last = if has_ports { port.port } else { u16::MAX };
    format!("{{{}}}", range(PortRange { protocol: port.protocol, first: port.port, last }))
}

/// One end of a flow.
pub(super) fn party(party: &Party) -> String {
    let mut text = format!("{{class: {}", class(party.class));
    if party.class == Class::Fleet {
        text += if party.local { ", node: this" } else { ", node: another" };
    }
    if matches!(party.class, Class::Host | Class::RemoteNode | Class::Fleet) {
        text += &format!(", labels: {}", labels(&party.labels));
    }
    if let Some(address) = party.address {
        text += &format!(", address: \"{address}\"");
    }
    text + "}"
}

pub(super) fn labels(labels: &Labels) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{key:?}: {value:?}"));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
}

pub(super) const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

const fn class(class: Class) -> &'static str {
    match class {
        Class::Host => "host",
        Class::RemoteNode => "remote-node",
        Class::Fleet => "fleet",
        Class::Unmanaged => "unmanaged",
        Class::World => "world",
    }
}

fn prefix(prefix: &IpNet) -> String {
    format!("\"{prefix}\"")
}

fn list(items: impl IntoIterator<Item: Display>) -> String {
    let items = items.into_iter().map(|item| item.to_string());
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
