//! The packets of the bench, and whose they are.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};

/// The workload of this node.
pub(in crate::bench) const WORKLOAD: Ipv4Addr = Ipv4Addr::new(10, 200, 1, 2);
/// Whom it talks with, on another node.
pub(in crate::bench) const PEER: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 7);
/// The service's port.
pub(in crate::bench) const PORT: u16 = 8080;
pub(super) const WORKLOAD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(in crate::bench) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const PAYLOAD: [u8; 46] = [0; 46];

/// A segment of an established connection, from the workload to the peer; 100 bytes. The source port is the wrapper's.
pub(in crate::bench) fn established() -> Vec<u8> {
    segment(WORKLOAD, PEER, false)
}

/// The same with IPv6; 120 bytes.
pub(in crate::bench) fn established6(from: Ipv6Addr) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(WORKLOAD_MAC, GATEWAY_MAC)
        .ipv6(from.octets(), PEER.to_ipv6_mapped().octets(), 64)
        .tcp(1, PORT, 1000, 65_535)
        .ack(1);
    built(step)
}

/// A segment from one to the other, or the one that begins.
pub(in crate::bench) fn segment(from: Ipv4Addr, to: Ipv4Addr, begins: bool) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(WORKLOAD_MAC, GATEWAY_MAC)
        .ipv4(from.octets(), to.octets(), 64)
        .tcp(1, PORT, 1000, 65_535);
    built(if begins { step.syn() } else { step.ack(1) })
}

fn built(step: PacketBuilderStep<TcpHeader>) -> Vec<u8> {
    let mut packet = Vec::new();
    // Writing to a vector can't fail, and the payload is far below any limit; an empty packet is refused later.
    if step.write(&mut packet, &PAYLOAD).is_err() {
        packet.clear();
    }
    packet
}
