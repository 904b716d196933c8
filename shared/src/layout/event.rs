//! What the programs tell user space.

use super::Address;
use bytemuck::{Pod, Zeroable};

/// A record of the ring buffer `EVENTS`: a dropped packet, or a flow that was judged and allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// `ktime_get_ns`.
    pub at_nanoseconds: u64,
    /// A [`Reason`](super::Reason); allowed: 0.
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
    /// `PolicyRow::rule` of the row that decided; 0: none. Allowed: that of the source, for its egress.
    pub rule: u32,
    /// Host order; ICMP: type * 256 + code as destination port.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    /// A [`Direction`](super::Direction) for policy drops; 0 otherwise.
    pub direction: u8,
    /// 1: allowed; 0: dropped.
    pub allowed: u8,
    /// Allowed: bits of the [`Direction`](super::Direction)s in which a subject of this node was asked.
    pub judged: u8,
    /// Allowed: `PolicyRow::rule` of the destination's row, for its ingress.
    pub ingress_rule: u32,
    /// Packets that this stands for: with it those alike that were dropped (or audited) since the last event of them.
    pub packets: u64,
    /// `PolicyRow::audit_rule` of the row by which audited policies would decide otherwise.
    pub audit_rule: u32,
    /// What they would decide there: an [`Action`](super::Action); 0: the same.
    pub audit_action: u8,
    /// Whose row it is: a [`Direction`](super::Direction).
    pub audit_direction: u8,
    pub zero: [u8; 2],
}

/// Bits of the one u32 of the array `MONITOR`, which the daemon of the loaded programs sets.
pub mod monitor_flags {
    /// Somebody wants to know of new flows that are allowed.
    pub const ALLOWED: u32 = 1;
}

/// Key of `TOLD`: drops that look alike to an operator. Another source port makes no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ToldKey {
    pub source: Address,
    pub destination: Address,
    pub ifindex: u32,
    pub destination_port: u16,
    pub protocol: u8,
    pub reason: u8,
    pub point: u32,
}

/// Value of `TOLD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Told {
    /// `ktime_get_coarse_ns` of the last event.
    pub at: u64,
    /// Packets since then.
    pub packets: u64,
}
