//! What operators mean by a service, a prefilter and a shaping: everything here was checked by [`super::parse`].

use std::{fmt, net::IpAddr, net::Ipv4Addr, num::NonZeroU16};

use ipnet::IpNet;

use crate::policy::model::Selector;

/// Where clients find a service, and who answers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// At least one; no two of the same place.
    pub frontends: Vec<Frontend>,
    pub backends: Backends,
    pub algorithm: Algorithm,
    /// How long a client keeps its backend after its last flow, in seconds, 1 to 86,400; `None`: not at all.
    pub affinity_seconds: Option<u32>,
    /// For clients inside the fleet.
    pub internal: TrafficPolicy,
    /// For those who come from outside.
    pub external: TrafficPolicy,
    /// `None`: every source.
    pub source_ranges: Option<SourceRanges>,
    pub forwarding: Forwarding,
    pub health_check: Option<HealthCheck>,
    /// Backends on nodes whose value of this label is the client's node's go first.
    pub topology_label: Option<String>,
    /// TCP connections of processes to backends that have gone are ended.
    pub end_connections: bool,
}

/// One place where clients find the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub at: Place,
    pub kind: FrontendKind,
}

/// What only one service of a fleet can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// `None`: every address of every node.
    pub address: Option<IpAddr>,
    pub port: NonZeroU16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendKind {
    /// An address that only the fleet knows.
    Cluster,
    /// A port on every node.
    NodePort,
    /// An address that others route to the nodes.
    External,
}

/// Protocols that services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// Endpoints, by their labels.
    Selected {
        selector: Selector,
        /// `None`: the frontend's.
        port: Option<NonZeroU16>,
    },
    /// By their addresses, ordered by address and port; no two alike.
    Listed(Vec<Backend>),
}

/// One that is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: IpAddr,
    /// `None`: the frontend's.
    pub port: Option<NonZeroU16>,
    /// 1 to [`super::shares::WEIGHT_MAX`].
    pub weight: u16,
    pub state: BackendState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// It gets new connections.
    Active,
    /// It keeps what it has, and gets nothing new.
    Terminating,
    /// It is thought to be broken.
    Quarantined,
    /// An operator has taken it out.
    Maintenance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Maglev,
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Backends on any node.
    Fleet,
    /// Backends on the node that balances.
    Local,
}

/// Whom the service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceRanges {
    /// Only these.
    Allow(Vec<IpNet>),
    /// All but these.
    Deny(Vec<IpNet>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Through the node that balances, both ways.
    Snat,
    /// Answers go directly to the client.
    Dsr,
}

/// How a backend is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub interval_milliseconds: u32,
    /// At most the interval.
    pub timeout_milliseconds: u32,
    /// Failures in a row.
    pub unhealthy_after: u32,
    /// Successes in a row.
    pub healthy_after: u32,
    /// `None`: a TCP connection is enough.
    pub http: Option<HttpCheck>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub path: String,
    pub expected_status: u32,
}

/// What some nodes drop as early as they can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefilter {
    pub name: String,
    /// Nodes that drop.
    pub nodes: Selector,
    /// As written.
    pub cidrs: Vec<IpNet>,
    /// As written.
    pub arp_senders: Vec<Ipv4Addr>,
}

/// How fast some may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaping {
    pub name: String,
    pub shaped: Shaped,
    pub rates: Rates,
}

/// Who is shaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shaped {
    /// By all labels that they were attached with.
    Endpoints(Selector),
    /// Processes of nodes: of the cgroup at a path below the root of the node's cgroups, which is the empty path, and of those
    /// below.
    Nodes { nodes: Selector, cgroup: String },
}

/// Bits a second; `None`: not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of each TCP connection, in the direction in which the process sends.
    pub connection: Option<u64>,
    /// Of all packets of an endpoint together; never of nodes.
    pub ingress: Option<u64>,
    pub egress: Option<u64>,
}

impl Rates {
    /// Of each the lesser.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        fn lesser(one: Option<u64>, other: Option<u64>) -> Option<u64> {
            one.into_iter().chain(other).min()
        }
        Self {
            connection: lesser(self.connection, other.connection),
            ingress: lesser(self.ingress, other.ingress),
            egress: lesser(self.egress, other.egress),
        }
    }
}

impl Service {
    /// Whether some frontend answers clients of this family.
    pub fn serves(&self, family: Family) -> bool {
        self.frontends.iter().any(|frontend| frontend.at.serves(family))
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl From<IpNet> for Family {
    fn from(net: IpNet) -> Self {
        net.addr().into()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Place {
    /// A node port is there in both.
    pub fn serves(&self, family: Family) -> bool {
        self.address.is_none_or(|address| Family::from(address) == family)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(formatter, "{address}:{}", self.port)?,
            Some(IpAddr::V6(address)) => write!(formatter, "[{address}]:{}", self.port)?,
            None => write!(formatter, "node port {}", self.port)?,
        }
        write!(formatter, "/{}", self.protocol)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl Protocol {
    /// IANA's.
    pub const fn number(self) -> u32 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
