//! What the programs tell user space.

use super::Address;
use bytemuck::{Pod, Zeroable};

/// A record of the ring buffer `EVENTS`: one dropped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// `ktime_get_ns`.
    pub at_nanoseconds: u64,
    /// A [`Reason`](super::Reason).
    pub reason: u32,
    /// A [`Point`](super::Point).
    pub point: u32,
    /// Where the program ran.
    pub ifindex: u32,
    pub length_bytes: u32,
    pub source: Address,
    pub destination: Address,
    /// 0: not known at that point.
    pub source_identity: u32,
    /// 0: not known at that point.
    pub destination_identity: u32,
    /// `PolicyRow::rule` of the row that decided; 0: none.
    pub rule: u32,
    /// Host order; ICMP: type * 256 + code as destination port.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    /// A [`Direction`](super::Direction) for policy drops; 0 otherwise.
    pub direction: u8,
    pub reserved: [u8; 6],
}
