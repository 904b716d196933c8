//! Rules: what of which peers at which ports.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Class, Labels, Selector};

/// What a rule says of what it matches. (`layout`'s [`Action`] is a verdict's: it knows no pass.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleAction {
    Allow,
    Deny,
    /// Admin tier only: the admin tier says no more, the application tier goes on.
    Pass,
}

impl RuleAction {
    /// `None`: it passes on.
    pub const fn verdict(self) -> Option<Action> {
        match self {
            Self::Allow => Some(Action::Allow),
            Self::Deny => Some(Action::Deny),
            Self::Pass => None,
        }
    }
}

/// One rule of a policy's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<S = Selector, C = CidrSetSelector> {
    /// As written, or its place in the list.
    pub name: String,
    pub action: RuleAction,
    /// `None`: every peer. `Some` of nothing: none.
    pub peers: Option<Vec<Peer<S, C>>>,
    /// `None`: every protocol and port. `Some` of nothing: none.
    pub ports: Option<Vec<PortRange>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer<S = Selector, C = CidrSetSelector> {
    /// Endpoints that exist and have such labels.
    Endpoints(S),
    /// Nodes that exist and have such labels, the subject's own among them.
    Nodes(S),
    /// Addresses that are neither endpoints nor nodes nor inside the pools.
    Cidr {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
    /// The same by named lists of prefixes; several are alternatives.
    CidrSet(C),
    Entity(Entity),
}

/// The CIDR sets that a policy means, in the fleet's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CidrSetSelector {
    Name(String),
    /// All that have these labels. Never empty.
    MatchLabels(Labels),
}

/// A named, labelled list of prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrSet {
    pub name: String,
    pub labels: Labels,
    /// Ascending, without repeats.
    pub cidrs: Vec<IpNet>,
}

impl CidrSetSelector {
    /// Whether this set is meant.
    pub fn selects(&self, set: &CidrSet) -> bool {
        self.selects_named(&set.name, &set.labels)
    }

    /// Whether a set of this name with these labels is meant.
    pub fn selects_named(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Name(only) => only == name,
            Self::MatchLabels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
        }
    }
}

impl CidrSet {
    /// Whether the address is in one of its prefixes.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.contains(&address))
    }
}

impl<S, C> Rule<S, C> {
    /// Whether it may keep out endpoints that it tells from other parties: it denies some by their labels, or all of them,
    /// or passes them by what the admin tier would allow.
    pub fn may_deny_endpoints(&self) -> bool {
        let is_endpoints = |peer: &Peer<S, C>| {
            matches!(peer, Peer::Endpoints(_) | Peer::Entity(Entity::Class(Class::Fleet)))
        };
        self.action != RuleAction::Allow && self.peers.iter().flatten().any(is_endpoints)
    }

    /// Whether it names this class itself (`all` and absent peers do not name any).
    pub fn names_class(&self, class: Class) -> bool {
        self.peers
            .iter()
            .flatten()
            .any(|peer| matches!(peer, Peer::Entity(Entity::Class(named)) if *named == class))
    }
}

/// "Never open by ignorance": whether these rules, of all tiers, one subject's in one direction, close it to addresses
/// inside the pools of which nothing is known, because such an address might be an endpoint that they keep out. An allow by
/// labels can't open to such an address, whatever its operators (`NotIn`, `DoesNotExist`): selectors match only endpoints
/// that are known.
pub fn unmanaged_is_closed<'a, S: 'a, C: 'a>(
    mut rules: impl Iterator<Item = &'a Rule<S, C>> + Clone,
) -> bool {
    rules.clone().any(Rule::may_deny_endpoints) && !rules.any(|rule| rule.names_class(Class::Unmanaged))
}

/// A class of parties, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entity {
    Class(Class),
    All,
}

impl Entity {
    /// Whether a party of this class is meant.
    pub fn contains(self, class: Class) -> bool {
        match self {
            Self::Class(only) => only == class,
            Self::All => true,
        }
    }
}

/// Ports of one protocol, both ends included. ICMP and ICMPv6: `type * 256 + code`. A protocol without ports has port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// IANA protocol number.
    pub protocol: u8,
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Whether the flow's port is one of these.
    pub fn contains(&self, port: FlowPort) -> bool {
        self.protocol == port.protocol && (self.first..=self.last).contains(&port.port)
    }
}

/// What a flow goes to: the protocol, and the destination port (ICMP: `type * 256 + code`; without ports: 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowPort {
    pub protocol: u8,
    pub port: u16,
}

/// One end of a flow, as seen from the subject's node. A subject is an endpoint ([`Class::Fleet`]) or the node itself
/// ([`Class::Host`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    pub class: Class,
    /// Security labels; only of endpoints and nodes.
    pub labels: Labels,
    pub address: Option<IpAddr>,
    /// Of an endpoint: whether it is on the subject's node.
    pub local: bool,
}
