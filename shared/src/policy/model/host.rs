//! What holds for nodes as subjects whatever the policies say.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Direction, FlowPort, PortRange};

/// Whether traffic from a node to its own endpoints is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostToEndpoint {
    /// It is allowed, on both sides.
    #[default]
    Allow,
    /// By the node's host policies and the endpoint's policies, as anything else.
    Policy,
}

/// A flow of a node's own that no host policy and no prefilter can stop, so that nobody locks himself out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination ports, both ends included; 0 to 65535 for all, and for protocols without ports.
    pub first: u16,
    pub last: u16,
    /// As the node sees it.
    pub direction: Direction,
    /// Of the other party; none at all: every address of both families.
    pub prefixes: Vec<IpNet>,
}

impl Failsafe {
    /// Of fleets that don't say: ssh in; DNS, the controllers and etcd out; etcd's clients and members, and nodes that
    /// reach a controller on this one, in; the overlay and IPsec both ways.
    pub fn defaults() -> Vec<Self> {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const ESP: u8 = 50;
        let entry = |protocol, first, last, direction| Self {
            protocol,
            first,
            last,
            direction,
            prefixes: Vec::new(),
        };
        let both = |protocol, first, last| {
            [Direction::Ingress, Direction::Egress].map(|direction| entry(protocol, first, last, direction))
        };
        let mut entries = vec![
            entry(TCP, 22, 22, Direction::Ingress),
            entry(UDP, 53, 53, Direction::Egress),
            entry(TCP, 53, 53, Direction::Egress),
        ];
        entries.extend(both(TCP, 7443, 7443));
        entries.extend(both(TCP, 2379, 2380));
        entries.extend(both(UDP, 8472, 8472));
        entries.extend(both(ESP, 0, u16::MAX));
        entries
    }

    /// Whether it holds a flow of the node with this address open. A peer without an address is in no prefix.
    pub fn holds(&self, direction: Direction, address: Option<IpAddr>, port: FlowPort) -> bool {
        let range = PortRange { protocol: self.protocol, first: self.first, last: self.last };
        let within = |address: IpAddr| self.prefixes.iter().any(|prefix| prefix.contains(&address));
        self.direction == direction
            && range.contains(port)
            && (self.prefixes.is_empty() || address.is_some_and(within))
    }
}

/// What a link can't do without, and no policy stops on a node's uplinks: neighbour discovery and router messages (ICMPv6
/// types 133 to 137, RFC 4861) and the node's own DHCP (RFC 2131: client port 68, server port 67; RFC 8415: 546, 547). ARP
/// is no flow. `direction` is the node's.
pub fn needed_by_the_link(direction: Direction, port: FlowPort) -> bool {
    needs_of_the_link(direction).iter().any(|range| range.contains(port))
}

/// The same as ranges.
pub const fn needs_of_the_link(direction: Direction) -> [PortRange; 3] {
    const fn udp(port: u16) -> PortRange {
        PortRange { protocol: 17, first: port, last: port }
    }
    let discovery = PortRange { protocol: 58, first: 133 << 8, last: 137 << 8 | 0xff };
    match direction {
        Direction::Egress => [discovery, udp(67), udp(547)],
        Direction::Ingress => [discovery, udp(68), udp(546)],
    }
}
