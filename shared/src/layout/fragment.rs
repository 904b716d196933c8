//! What first fragments said that later ones don't.

use super::Address;
use bytemuck::{Pod, Zeroable};

/// Key of `FRAGMENTS`: what receivers put fragments together by (RFC 791 §3.2, RFC 8200 §4.5). Only packets that were
/// let through are remembered, so that the source is one that its sender may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// As it stands in the packet; IPv4: 16 bits of it.
    pub id: u32,
    /// IPv4 only; for IPv6 it is the first fragment's that counts, whatever the others say.
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// Value of `FRAGMENTS`: how the first fragment was judged, which the later ones are judged as, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Fragment {
    /// `ktime_get_coarse_ns` of the first fragment.
    pub seen_at: u64,
    /// Network order, as are the ports of a packet; echo: the identifier is both.
    pub source_port: u16,
    /// Network order.
    pub destination_port: u16,
    /// ICMP: type * 256 + code.
    pub icmp: u16,
    /// How far the first fragment reaches into the datagram: what overlaps it could replace what was judged.
    pub first_bytes: u16,
    pub protocol: u8,
    pub tcp_flags: u8,
    /// As the programs number echo: 0 none, 1 request, 2 reply.
    pub echo: u8,
    pub zero: [u8; 5],
}

/// No receiver waits longer for the rest of a datagram (RFC 8200 §4.5).
pub const FRAGMENT_NANOSECONDS: u64 = 60 * 1_000_000_000;
