//! What operators mean, as values that can only be right: everything here was checked by [`super::parse`].

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

pub use super::selector::{Labels, Requirement, Selector};
pub use crate::layout::{Action, Class, Direction};

/// A policy of the application tier. `S` is how it names endpoints: by selector, or (on nodes) by the name of an identity
/// set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy<S = Selector> {
    pub name: String,
    /// Which endpoints it judges.
    pub subject: S,
    /// `None`: it says nothing about the direction. `Some` of no rules: it allows nothing.
    pub ingress: Option<Vec<Rule<S>>>,
    pub egress: Option<Vec<Rule<S>>>,
    pub default_deny_ingress: bool,
    pub default_deny_egress: bool,
}

/// A policy as nodes get it: endpoints by the names of identity sets.
pub type NodePolicy = Policy<String>;

impl<S> Policy<S> {
    /// The rules of a direction, in the order written.
    pub fn rules(&self, direction: Direction) -> &[Rule<S>] {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
        .unwrap_or_default()
    }

    /// The peers that any rule names.
    pub fn peers(&self) -> impl Iterator<Item = &Peer<S>> {
        let rules =
            [Direction::Ingress, Direction::Egress].into_iter().flat_map(|direction| self.rules(direction));
        rules.flat_map(|rule| rule.peers.iter().flatten())
    }

    /// Whether what no rule of any policy matches is denied to its subjects.
    pub fn default_deny(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.default_deny_ingress,
            Direction::Egress => self.default_deny_egress,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<S = Selector> {
    /// As written, or its place in the list.
    pub name: String,
    pub action: Action,
    /// `None`: every peer. `Some` of nothing: none.
    pub peers: Option<Vec<Peer<S>>>,
    /// `None`: every protocol and port. `Some` of nothing: none.
    pub ports: Option<Vec<PortRange>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer<S = Selector> {
    /// Endpoints that exist and have such labels.
    Endpoints(S),
    /// Addresses that are neither endpoints nor nodes nor inside the pools.
    Cidr {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
    Entity(Entity),
}

impl<S> Rule<S> {
    /// Whether it denies endpoints: some by their labels, or all of them.
    pub fn denies_endpoints(&self) -> bool {
        let is_endpoints =
            |peer| matches!(peer, &Peer::Endpoints(_) | &Peer::Entity(Entity::Class(Class::Fleet)));
        self.action == Action::Deny && self.peers.iter().flatten().any(is_endpoints)
    }

    /// Whether it names this class itself (`all` and absent peers do not name any).
    pub fn names_class(&self, class: Class) -> bool {
        self.peers
            .iter()
            .flatten()
            .any(|peer| matches!(peer, Peer::Entity(Entity::Class(named)) if *named == class))
    }
}

/// "Never open by ignorance": whether these rules, one subject's in one direction, close it to addresses inside the pools
/// of which nothing is known, because such an address might be an endpoint that they deny.
pub fn unmanaged_is_closed<'a, S: 'a>(mut rules: impl Iterator<Item = &'a Rule<S>> + Clone) -> bool {
    rules.clone().any(Rule::denies_endpoints) && !rules.any(|rule| rule.names_class(Class::Unmanaged))
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

/// One end of a flow, as seen from the subject's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    pub class: Class,
    /// Security labels; only of endpoints and nodes.
    pub labels: Labels,
    pub address: Option<IpAddr>,
}

/// Configuration of the fleet, as far as it is supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    pub pools: Vec<Pool>,
    pub default_action: Action,
    pub identity_labels: IdentityLabels,
    /// A node without a stream for longer is removed; `None`: never.
    pub node_expiry: Option<Duration>,
}

impl FleetConfig {
    /// The labels that make an endpoint's or a node's identity.
    pub fn security_labels(&self, labels: &Labels) -> Labels {
        let matched = labels.iter().filter(|(key, _)| self.identity_labels.contains(key));
        matched.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Whether an address is inside a pool.
    pub fn in_pools(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.cidr.contains(&address))
    }
}

/// Prefixes of this length out of this prefix are given to nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub cidr: IpNet,
    pub node_prefix_length: u8,
}

/// Which labels make identities: those that a pattern of `include` matches (none given: all) and none of `exclude` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityLabels {
    pub include: Vec<LabelPattern>,
    pub exclude: Vec<LabelPattern>,
}

impl IdentityLabels {
    /// Labels that change without changing what the workload is; excluded always.
    pub const VOLATILE: [&str; 4] = ["build", "commit", "pod-template-hash", "instance"];

    /// Whether a label of this key is part of an identity.
    pub fn contains(&self, key: &str) -> bool {
        let any = |patterns: &[LabelPattern]| patterns.iter().any(|pattern| pattern.matches(key));
        if self.include.is_empty() {
            !Self::VOLATILE.contains(&key) && !any(&self.exclude)
        } else {
            any(&self.include) && !any(&self.exclude)
        }
    }
}

/// A label key, or what keys begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelPattern {
    Key(String),
    Prefix(String),
}

impl LabelPattern {
    fn matches(&self, key: &str) -> bool {
        match self {
            Self::Key(only) => only == key,
            Self::Prefix(prefix) => key.starts_with(prefix),
        }
    }
}
