//! What holds for nodes as subjects whatever the policies say.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{IpNet, Ipv6Net};

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

/// Multicast listener discovery (RFC 2710, RFC 3810: ICMPv6 types 130 to 132, and 143) of the groups of a link. A switch that
/// snoops forwards to a node only the groups that it has reported, and neighbours ask for a node by one of them: without
/// these messages it is no longer found. As entries, because they are confined by address: what a node sends of them goes to
/// a group of the link, and what it hears comes from a neighbour's link-local address; so they open nothing beyond the link.
/// Groups of wider scope, and IGMP, are nothing that a link needs (ARP is broadcast): policies judge them.
pub static LISTENER_DISCOVERY: LazyLock<[Failsafe; 4]> = LazyLock::new(|| {
    const GROUPS_OF_THE_LINK: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16);
    const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
    let entry = |first: u16, last: u16, direction| Failsafe {
        protocol: 58,
        first: first << 8,
        last: last << 8 | 0xff,
        direction,
        prefixes: match direction {
            Direction::Ingress => vec![LINK_LOCAL.into()],
            Direction::Egress => vec![GROUPS_OF_THE_LINK.into()],
        },
    };
    let [ingress, egress] = [Direction::Ingress, Direction::Egress];
    [entry(130, 132, ingress), entry(143, 143, ingress), entry(130, 132, egress), entry(143, 143, egress)]
});

/// Whether a node's flow with this address is [`LISTENER_DISCOVERY`]. A peer without an address is none.
pub fn is_listener_discovery(direction: Direction, address: Option<IpAddr>, port: FlowPort) -> bool {
    LISTENER_DISCOVERY.iter().any(|entry| entry.holds(direction, address, port))
}
