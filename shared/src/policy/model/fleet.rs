//! The fleet's configuration.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;

use super::{Action, Failsafe, HostToEndpoint, Labels};

/// Configuration of the fleet, as far as it is supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    pub pools: Vec<Pool>,
    pub default_action: Action,
    pub identity_labels: IdentityLabels,
    pub host_to_endpoint: HostToEndpoint,
    /// What host policies and prefilters can't stop.
    pub failsafe: Vec<Failsafe>,
    /// A node without a stream for longer is removed; `None`: never.
    pub node_expiry: Option<Duration>,
    /// Ports that services may have on every node.
    pub node_ports: RangeInclusive<u16>,
    /// Of which no prefilter may drop any address.
    pub protected_prefixes: Vec<IpNet>,
}

impl FleetConfig {
    /// Of a fleet that does not say.
    pub const NODE_PORTS_DEFAULT: RangeInclusive<u16> = 30_000..=32_767;

    /// Of a fleet that says nothing but its pools.
    pub fn of_pools(pools: Vec<Pool>) -> Self {
        Self {
            pools,
            default_action: Action::Allow,
            identity_labels: IdentityLabels::default(),
            host_to_endpoint: HostToEndpoint::default(),
            failsafe: Failsafe::defaults(),
            node_expiry: None,
            node_ports: Self::NODE_PORTS_DEFAULT,
            protected_prefixes: Vec::new(),
        }
    }

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
