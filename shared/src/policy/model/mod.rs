//! What operators mean, as values that can only be right: everything here was checked by [`super::parse`].

mod fleet;
mod host;
mod rule;

pub use self::{
    fleet::{FleetConfig, IdentityLabels, LabelPattern, Pool},
    host::{
        Failsafe, HostToEndpoint, LISTENER_DISCOVERY, is_listener_discovery, needed_by_the_link,
        needs_of_the_link,
    },
    rule::{
        CidrSet, CidrSetSelector, Entity, FlowPort, Party, Peer, PortRange, Rule, RuleAction,
        unmanaged_is_closed,
    },
};
pub use super::selector::{Labels, Requirement, Selector};
pub use crate::layout::{Action, Class, Direction};

/// A policy. `S` is how it names endpoints and nodes, `C` how it names CIDR sets: by selectors (the fleet's form), or (on
/// nodes, [`NodePolicy`]) by names of identity sets and of CIDR sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy<S = Selector, C = CidrSetSelector> {
    pub name: String,
    pub tier: Tier,
    pub mode: Mode,
    /// Whom it judges.
    pub subject: Subject<S>,
    /// `None`: it says nothing about the direction. `Some` of no rules: it allows nothing.
    pub ingress: Option<Vec<Rule<S, C>>>,
    pub egress: Option<Vec<Rule<S, C>>>,
}

/// A policy as nodes get it. Endpoints and nodes are named by identity sets (an endpoint's and a node's identity are
/// different numbers even with equal labels, so sets of the two never meet); CIDR sets by their names, ascending, each of
/// which is a resource of its own. What a policy selects by the labels of CIDR sets, the controller has resolved.
pub type NodePolicy = Policy<String, Vec<String>>;
/// A rule of a [`NodePolicy`].
pub type NodeRule = Rule<String, Vec<String>>;
/// A peer of a [`NodePolicy`].
pub type NodePeer = Peer<String, Vec<String>>;

/// When a policy is walked, and what only its tier has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// By order, then by name byte by byte; the first rule that matches decides, or passes on to the application tier.
    Admin { order: u32 },
    /// Unordered: deny before allow before default deny.
    Application {
        /// Whether what no rule of any policy matches is denied to its subjects.
        default_deny_ingress: bool,
        default_deny_egress: bool,
    },
    /// Like admin, without pass.
    Baseline { order: u32 },
}

impl Tier {
    /// Of policies that don't say.
    pub const DEFAULT_ORDER: u32 = 1000;
    /// The last there is.
    pub const ORDER_MAX: u32 = 65_535;

    /// What admin and baseline policies are sorted by before their names; 0 in the application tier, which has no order.
    pub const fn order(self) -> u32 {
        match self {
            Self::Admin { order } | Self::Baseline { order } => order,
            Self::Application { .. } => 0,
        }
    }
}

/// Whether a policy takes part in verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    /// In none, its default deny included; where the verdict would differ if it did, that is told.
    Audit,
}

/// Whom a policy judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject<S = Selector> {
    Endpoints(S),
    /// Nodes themselves: a host policy.
    Nodes(S),
}

impl<S> Subject<S> {
    /// How its endpoints or nodes are named.
    pub const fn named(&self) -> &S {
        match self {
            Self::Endpoints(named) | Self::Nodes(named) => named,
        }
    }

    /// Whether it is a host policy's.
    pub const fn is_nodes(&self) -> bool {
        matches!(self, Self::Nodes(_))
    }
}

impl<S, C> Policy<S, C> {
    /// The rules of a direction, in the order written.
    pub fn rules(&self, direction: Direction) -> &[Rule<S, C>] {
        self.of_direction(direction).unwrap_or_default()
    }

    /// The peers that any rule names.
    pub fn peers(&self) -> impl Iterator<Item = &Peer<S, C>> {
        let rules =
            [Direction::Ingress, Direction::Egress].into_iter().flat_map(|direction| self.rules(direction));
        rules.flat_map(|rule| rule.peers.iter().flatten())
    }

    /// Whether what no rule of any policy matches is denied to its subjects; only in the application tier.
    pub fn default_deny(&self, direction: Direction) -> bool {
        match (self.tier, direction) {
            (Tier::Application { default_deny_ingress, .. }, Direction::Ingress) => default_deny_ingress,
            (Tier::Application { default_deny_egress, .. }, Direction::Egress) => default_deny_egress,
            (Tier::Admin { .. } | Tier::Baseline { .. }, _) => false,
        }
    }

    /// Whether it says anything about the direction: a host policy selects its nodes in these directions only.
    pub fn is_about(&self, direction: Direction) -> bool {
        self.of_direction(direction).is_some() || self.default_deny(direction)
    }

    /// Whether it takes part in verdicts.
    pub fn is_enforced(&self) -> bool {
        self.mode == Mode::Enforce
    }

    fn of_direction(&self, direction: Direction) -> Option<&[Rule<S, C>]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}
