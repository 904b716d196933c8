//! Sources that nodes do not listen to, as `xdp_uplink` looks for them. A look-up among 200,000 prefixes costs more than the
//! rest of what becomes of a packet: whether there can be a prefix around a source at all, bits of *blocks* say first. A list is one prefilter; its slot is its row in
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

/// Where a source's block has its bit in `PREFILTER_BLOCKS`: the word's number, and the bit in it. Where it is not set, no
/// prefix is around the source.
pub type BlockBit = (u32, u64);

/// Bits that name an IPv4 block: prefixes are at least so long, or say all of several blocks.
pub const BLOCK4_BITS: u32 = 24;
/// IPv6 prefixes at least so long have the bit of their first 48 bits, by its hash;
pub const LONG6_BITS: u32 = 48;
/// others at least so long that of their first 32, by its hash;
pub const MIDDLE6_BITS: u32 = 32;
/// others those of all blocks of 16 bits that they meet.
pub const SHORT6_BITS: u32 = 16;
const HASH_BITS: u32 = 23;
const SHORT6_FROM: u32 = (1 << BLOCK4_BITS) / 64;
const HASHED6_FROM: u32 = SHORT6_FROM + (1 << SHORT6_BITS) / 64;
/// Words of `PREFILTER_BLOCKS`: 3 MiB.
pub const BLOCK_WORDS: u32 = HASHED6_FROM + (1 << HASH_BITS) / 64;
/// They stand in rows of so many words: one row for each would take long to read.
pub const BLOCK_ROW_WORDS: u32 = 64;
pub const BLOCK_ROWS: u32 = BLOCK_WORDS / BLOCK_ROW_WORDS;
const _: () = assert!(BLOCK_WORDS.is_multiple_of(BLOCK_ROW_WORDS));
/// A row of `PREFILTER_BLOCKS`.
pub type BlockRow = [u64; BLOCK_ROW_WORDS as usize];

/// The block of an IPv4 address (host order).
#[inline(always)]
pub const fn block4(address: u32) -> BlockBit {
    bit(0, address >> (32 - BLOCK4_BITS))
}

/// The block of an IPv6 address's first 64 bits (host order) for short prefixes.
#[inline(always)]
pub const fn short6(first: u64) -> BlockBit {
    bit(SHORT6_FROM, (first >> (64 - SHORT6_BITS)) as u32)
}

/// … for those in the middle.
#[inline(always)]
pub const fn middle6(first: u64) -> BlockBit {
    // No block of long ones is all ones.
    hashed(first >> (64 - MIDDLE6_BITS) | !0 << LONG6_BITS)
}

/// … for long ones.
#[inline(always)]
pub const fn long6(first: u64) -> BlockBit {
    hashed(first >> (64 - LONG6_BITS))
}

/// Fibonacci hashing (Knuth, TAOCP 3, §6.4).
#[inline(always)]
const fn hashed(block: u64) -> BlockBit {
    bit(HASHED6_FROM, (block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - HASH_BITS)) as u32)
}

#[inline(always)]
const fn bit(from: u32, index: u32) -> BlockBit {
    (from + index / 64, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn blocks_are_in_bounds_at_both_ends_and_apart() {
        for first in [0, u64::MAX, 0x2001_0db8_0bad_0000] {
            let blocks = [block4((first >> 32) as u32), short6(first), middle6(first), long6(first)];
            assert!(blocks.iter().all(|(word, bit)| *word < BLOCK_WORDS && bit.is_power_of_two()));
            let words: Vec<_> = blocks.iter().map(|(word, _)| *word).collect();
            assert!(words[0] < SHORT6_FROM && (SHORT6_FROM..HASHED6_FROM).contains(&words[1]));
            assert!(words[2] >= HASHED6_FROM && words[3] >= HASHED6_FROM);
        }
    }

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
