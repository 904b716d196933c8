//! Endpoints of this node.

use super::Address;
use bytemuck::{Pod, Zeroable};

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// The policy is realised; without it everything is dropped (`endpoint_init`).
    pub const OPEN: u32 = 1;
    /// A veth whose peer is in another network namespace: deliver with `redirect_peer`. Otherwise by `redirect` to the
    /// host's side (taps).
    pub const PEER: u32 = 2;
    /// What it sends out of the node is delayed until its rate allows it: the uplinks' queues (fq) wait for a packet's time of
    /// departure. Otherwise what is too much is dropped.
    pub const DEPARTURES: u32 = 4;
}

/// Value of `ENDPOINTS`, keyed by the interface index of the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Endpoint {
    /// The address of each family, or [`Address::UNSPECIFIED`].
    pub address4: Address,
    pub address6: Address,
    pub identity: u32,
    /// Index into `SUBJECTS` and `POLICIES`.
    pub subject: u32,
    pub flags: u32,
    /// The workload's.
    pub mac: [u8; 6],
    /// What the workload believes its gateway has; every ARP and ND question is answered with it.
    pub gateway_mac: [u8; 6],
    /// Bytes a second that are delivered to the workload, and that it sends; 0: as many as there are.
    pub ingress_rate: u64,
    pub egress_rate: u64,
    /// Bytes a second of each TCP connection of processes that have its address; 0: as many as there are.
    pub connection_rate: u32,
    pub zero: u32,
}
