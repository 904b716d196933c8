//! Packets, built by etherparse.

use std::net::IpAddr;

use etherparse::{Ethernet2Header, IpNumber, PacketBuilder, PacketBuilderStep};

use crate::world::{Family, Party, gateway_mac, mac};

pub(crate) const SYN: u8 = 2;
pub(crate) const FIN: u8 = 1;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// Who sends to whom, and the MACs on the frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    pub(crate) hops: u8,
}

/// What an endpoint of this node sends to its gateway.
pub(crate) fn out_of(ifindex: u32, from: Party, to: Party, family: Family) -> Way {
    Way {
        from: from.address(family),
        to: to.address(family),
        source_mac: mac(ifindex),
        destination_mac: gateway_mac(ifindex),
        hops: 64,
    }
}

/// What arrives from elsewhere.
pub(crate) fn arriving(from: Party, to: Party, family: Family) -> Way {
    Way {
        from: from.address(family),
        to: to.address(family),
        source_mac: [2, 9, 9, 9, 9, 1],
        destination_mac: [2, 9, 9, 9, 9, 2],
        hops: 60,
    }
}

impl Way {
    fn builder(&self) -> PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet: PacketBuilderStep<Ethernet2Header> =
            PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), self.hops),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), self.hops),
            _ => panic!("one family"),
        }
    }

    pub(crate) fn tcp(&self, source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut step = self.builder().tcp(source, destination, 1000, 65_535);
        if flags & SYN != 0 {
            step = step.syn();
        }
        if flags & FIN != 0 {
            step = step.fin();
        }
        if flags & RST != 0 {
            step = step.rst();
        }
        if flags & ACK != 0 {
            step = step.ack(1);
        }
        let mut packet = Vec::new();
        step.write(&mut packet, b"").unwrap();
        packet
    }

    pub(crate) fn udp(&self, source: u16, destination: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        self.builder().udp(source, destination).write(&mut packet, b"payload").unwrap();
        packet
    }

    /// UDP with a payload of that many bytes.
    pub(crate) fn datagram(&self, source: u16, destination: u16, bytes: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        self.builder().udp(source, destination).write(&mut packet, &vec![7; bytes]).unwrap();
        packet
    }

    pub(crate) fn ping(&self, identifier: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        match self.from {
            IpAddr::V4(_) => {
                self.builder().icmpv4_echo_request(identifier, 1).write(&mut packet, b"ping").unwrap();
            }
            IpAddr::V6(_) => {
                self.builder().icmpv6_echo_request(identifier, 1).write(&mut packet, b"ping").unwrap();
            }
        }
        packet
    }

    pub(crate) fn pong(&self, identifier: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        match self.from {
            IpAddr::V4(_) => {
                self.builder().icmpv4_echo_reply(identifier, 1).write(&mut packet, b"ping").unwrap();
            }
            IpAddr::V6(_) => {
                self.builder().icmpv6_echo_reply(identifier, 1).write(&mut packet, b"ping").unwrap();
            }
        }
        packet
    }

    /// ICMP of this family with any type and code.
    pub(crate) fn icmp(&self, kind: u8, code: u8) -> Vec<u8> {
        let mut packet = Vec::new();
        match self.from {
            IpAddr::V4(_) => {
                self.builder().icmpv4_raw(kind, code, [0; 4]).write(&mut packet, b"body").unwrap();
            }
            IpAddr::V6(_) => {
                self.builder().icmpv6_raw(kind, code, [0; 4]).write(&mut packet, b"body").unwrap();
            }
        }
        packet
    }

    /// An ICMP error of this family about a packet, of which it quotes that many bytes behind the frame's header.
    pub(crate) fn error(&self, (kind, code): (u8, u8), about: &[u8], bytes: usize) -> Vec<u8> {
        let quoted = &about[14..about.len().min(14 + bytes)];
        let mut packet = Vec::new();
        match self.from {
            IpAddr::V4(_) => {
                self.builder().icmpv4_raw(kind, code, [0; 4]).write(&mut packet, quoted).unwrap();
            }
            IpAddr::V6(_) => {
                self.builder().icmpv6_raw(kind, code, [0; 4]).write(&mut packet, quoted).unwrap();
            }
        }
        packet
    }

    /// Any protocol, or for IPv6 an extension header, which etherparse would not write as it is given.
    pub(crate) fn protocol(&self, number: u8, payload: &[u8]) -> Vec<u8> {
        const NEXT_HEADER: usize = 20;
        let mut packet = Vec::new();
        if self.from.is_ipv4() {
            self.builder().write(&mut packet, IpNumber(number), payload).unwrap();
        } else {
            self.builder().write(&mut packet, IpNumber::EXPERIMENTAL_AND_TESTING_0, payload).unwrap();
            packet[NEXT_HEADER] = number;
        }
        packet
    }

    /// Cuts a packet of this way (without options and extension headers) where its datagram has `at` bytes, multiples of
    /// eight.
    pub(crate) fn cut(&self, packet: &[u8], at: &[usize], id: u16) -> Vec<Vec<u8>> {
        const ETHERNET: usize = 14;
        let (header, body) = packet.split_at(ETHERNET + if self.from.is_ipv4() { 20 } else { 40 });
        let starts = [&[0], at].concat();
        let ends = [at, &[body.len()]].concat();
        let piece = |(start, end): (usize, usize)| {
            let [high, low] = u16::try_from(start / 8).unwrap().to_be_bytes();
            let more = end < body.len();
            let mut piece = header.to_vec();
            let length = if self.from.is_ipv4() {
                piece[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
                piece[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&[high | u8::from(more) << 5, low]);
                ETHERNET + 2
            } else {
                let field = u16::try_from(start).unwrap() | u16::from(more);
                piece[ETHERNET + 6] = 44;
                piece.extend([header[ETHERNET + 6], 0]);
                piece.extend(field.to_be_bytes());
                piece.extend(u32::from(id).to_be_bytes());
                ETHERNET + 4
            };
            piece.extend(&body[start..end]);
            let total = piece.len() - ETHERNET - if self.from.is_ipv4() { 0 } else { 40 };
            piece[length..length + 2].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
            piece
        };
        starts.into_iter().zip(ends).map(piece).collect()
    }

    /// The way back, by an endpoint of this node.
    pub(crate) fn back_from(&self, ifindex: u32) -> Self {
        Self {
            from: self.to,
            to: self.from,
            source_mac: mac(ifindex),
            destination_mac: gateway_mac(ifindex),
            hops: 64,
        }
    }

    /// The way back, from elsewhere.
    pub(crate) fn back(&self) -> Self {
        Self { from: self.to, to: self.from, ..*self }
    }
}
