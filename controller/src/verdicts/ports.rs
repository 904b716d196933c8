//! Classes of ports: of each protocol that a rule or failsafe entry names, the runs of ports that all of them treat alike;
//! and one for the protocols that none names.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use weft_shared::policy::model::{
    Class, Direction, FlowPort, LISTENER_DISCOVERY, Party, PortRange, needed_by_the_link,
};

use super::State;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Ports that no rule tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PortClass {
    Range(PortRange),
    /// Every protocol that is not named; one of them.
    OtherProtocols(u8),
}

impl PortClass {
    /// One of them.
    pub(super) fn example(&self) -> FlowPort {
        match self {
            Self::Range(range) => FlowPort { protocol: range.protocol, port: range.first },
            Self::OtherProtocols(protocol) => FlowPort { protocol: *protocol, port: 0 },
        }
    }

    /// Whether there are such packets with this address: each family has an ICMP of its own.
    pub(super) fn can_be(&self, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::Range(range), Some(address)) if range.protocol == ICMP => address.is_ipv4(),
            (Self::Range(range), Some(address)) if range.protocol == ICMPV6 => address.is_ipv6(),
            _ => true,
        }
    }

    /// Takes in the class right behind it. `false`: it is another protocol's, or further away.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Range(range), Self::Range(next))
                if range.protocol == next.protocol && range.last.checked_add(1) == Some(next.first) =>
            {
                range.last = next.last;
                true
            }
            _ => false,
        }
    }
}

/// All classes, by protocol and port; together they are every flow.
pub(super) fn classes(states: [&State; 2], subject: &Party, direction: Direction) -> Vec<PortClass> {
    let mut starts: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    let mut cut = |protocol: u8, first: u16, last: u16| {
        let starts = starts.entry(protocol).or_insert_with(|| [0].into());
        starts.insert(first);
        starts.extend(last.checked_add(1));
    };
    for state in states {
        let rules = state.policies.iter().flat_map(|policy| policy.rules(direction));
        for range in rules.flat_map(|rule| rule.ports.iter().flatten()) {
            cut(range.protocol, range.first, range.last);
        }
        for entry in state.config.failsafe.iter().filter(|entry| entry.direction == direction) {
            cut(entry.protocol, entry.first, entry.last);
        }
    }
    if subject.class == Class::Host {
        for entry in LISTENER_DISCOVERY.iter().filter(|entry| entry.direction == direction) {
            cut(entry.protocol, entry.first, entry.last);
        }
        for (protocol, first, last) in needed_ranges(direction) {
            cut(protocol, first, last);
        }
    }
    let unnamed = (0..=u8::MAX).rev().find(|protocol| !starts.contains_key(protocol));
    let mut classes = Vec::new();
    for (protocol, starts) in starts {
        let mut starts = starts.into_iter().peekable();
        while let Some(first) = starts.next() {
            let last = starts.peek().map_or(u16::MAX, |next| next - 1);
            classes.push(PortClass::Range(PortRange { protocol, first, last }));
        }
    }
    classes.extend(unnamed.map(PortClass::OtherProtocols));
    classes
}

/// What passes on a node's uplinks whatever the policies say, as runs.
fn needed_ranges(direction: Direction) -> Vec<(u8, u16, u16)> {
    let mut found: Vec<(u8, u16, u16)> = Vec::new();
    for protocol in [UDP, ICMPV6] {
        for port in
            (0..=u16::MAX).filter(|port| needed_by_the_link(direction, FlowPort { protocol, port: *port }))
        {
            match found.last_mut() {
                Some((of, _, last)) if *of == protocol && last.checked_add(1) == Some(port) => *last = port,
                _ => found.push((protocol, port, port)),
            }
        }
    }
    found
}

impl fmt::Display for PortClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Range(range) = self else { return formatter.write_str("other protocols") };
        let (first, last) = (range.first, range.last);
        let name = match range.protocol {
            ICMP => "icmp",
            TCP => "tcp",
            UDP => "udp",
            ICMPV6 => "icmpv6",
            SCTP => "sctp",
            other => return write!(formatter, "proto/{other}"),
        };
        let is_icmp = matches!(range.protocol, ICMP | ICMPV6);
        match (first, last) {
            (0, u16::MAX) => formatter.write_str(name),
            (first, last) if is_icmp => icmp(formatter, name, first, last),
            // There is no port 0.
            (0, last) => write!(formatter, "{name}/1-{last}"),
            (first, last) if first == last => write!(formatter, "{name}/{first}"),
            (first, last) => write!(formatter, "{name}/{first}-{last}"),
        }
    }
}

/// By type, or by type and code.
fn icmp(formatter: &mut fmt::Formatter<'_>, name: &str, first: u16, last: u16) -> fmt::Result {
    let ([from, from_code], [to, to_code]) = (first.to_be_bytes(), last.to_be_bytes());
    match (from_code, to_code) {
        (0, u8::MAX) if from == to => write!(formatter, "{name}/{from}"),
        (0, u8::MAX) => write!(formatter, "{name}/{from}-{to}"),
        _ if first == last => write!(formatter, "{name}/{from}/{from_code}"),
        _ => write!(formatter, "{name}/{from}/{from_code}-{to}/{to_code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_written_as_operators_write_ports() {
        let text = |protocol, first, last| PortClass::Range(PortRange { protocol, first, last }).to_string();
        assert_eq!(text(6, 443, 443), "tcp/443");
        assert_eq!(text(17, 0, 65_535), "udp");
        assert_eq!(text(132, 0, 79), "sctp/1-79");
        assert_eq!(text(1, 0x0800, 0x08ff), "icmp/8");
        assert_eq!(text(58, 0x0301, 0x0301), "icmpv6/3/1");
        assert_eq!(text(1, 0x0900, 0xffff), "icmp/9-255");
        assert_eq!(text(47, 0, 65_535), "proto/47");
        assert_eq!(PortClass::OtherProtocols(255).to_string(), "other protocols");
    }
}
