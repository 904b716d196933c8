//! Sources that nodes do not listen to, as `xdp_uplink` looks for them. A list is one prefilter; its slot is its row in
//! `PREFILTER_LISTS` and `PREFILTER_COUNTERS`, and the value of its prefixes and senders. Slot 0 is never used.

use bytemuck::{Pod, Zeroable};

use super::Direction;

/// What the daemon notes of a list, so that it keeps its slot and its counters over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PrefilterNote {
    /// Of the prefilter's name; 0: the slot is free.
    pub digest: [u64; 2],
}

/// Protocols with ports, in the order of their bits in `PREFILTER_OPEN`: TCP, UDP, SCTP (IANA numbers).
const WITH_PORTS: [u8; PLACES as usize] = [6, 17, 132];
const PORT_WORDS: u32 = 0x1_0000 / 64;
const PROTOCOL_WORDS: u32 = 256 / 64;
/// Of `WITH_PORTS`.
const PLACES: u32 = 3;
const PROTOCOLS_FROM: u32 = 2 * PLACES * PORT_WORDS;
/// Words of `PREFILTER_OPEN`: for each direction a bit for each port of each protocol that has ports, then for each direction
/// one for each other protocol.
pub const OPEN_WORDS: u32 = PROTOCOLS_FROM + 2 * PROTOCOL_WORDS;

/// Whether flows of the protocol are told apart by ports.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    protocol == WITH_PORTS[0] || protocol == WITH_PORTS[1] || protocol == WITH_PORTS[2]
}

/// Where a flow of the node itself has its bit: the word's number, and the bit in it. It is set where a failsafe entry holds
/// the flow open for everybody.
///
/// `port` (host order) is the port that the flow goes to: of the node for [`Direction::Ingress`], of the other party for
/// [`Direction::Egress`]; protocols without ports ignore it.
#[inline(always)]
pub const fn open_bit(direction: Direction, protocol: u8, port: u16) -> (u32, u64) {
    let direction = match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    };
    let place = if protocol == WITH_PORTS[0] {
        0
    } else if protocol == WITH_PORTS[1] {
        1
    } else if protocol == WITH_PORTS[2] {
        2
    } else {
        let word = PROTOCOLS_FROM + direction * PROTOCOL_WORDS + protocol as u32 / 64;
        return (word, 1 << (protocol % 64));
    };
    let word = (direction * PLACES + place) * PORT_WORDS + port as u32 / 64;
    (word, 1 << (port % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_flows_share_a_bit_and_none_is_out_of_bounds() {
        let mut seen = BTreeSet::new();
        for direction in Direction::ALL {
            for protocol in 0..=255 {
                let ports: &[u16] = if has_ports(protocol) { &[0, 1, 63, 64, 443, 65_535] } else { &[0] };
                for port in ports {
                    let (word, bit) = open_bit(direction, protocol, *port);
                    assert!(word < OPEN_WORDS);
                    assert!(seen.insert((word, bit)), "{direction:?} {protocol} {port}");
                }
            }
        }
    }
}
