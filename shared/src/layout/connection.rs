//! Connections whose packets are translated one by one: where the client named a service, and no socket program saw it.

use bytemuck::{Pod, Zeroable};

use super::{
    Address,
    service::Party,
    table::{Row, words},
};

/// Key of a row of `CONNECTIONS`: a packet's parties, as they stand in it where it is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct ConnectionKey {
    pub source: Address,
    pub destination: Address,
    /// Network order.
    pub source_port: u16,
    /// Network order.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Leg`].
    pub leg: u8,
    pub zero: [u8; 2],
}

impl ConnectionKey {
    /// To be hashed and compared.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        let [[a, b], [c, d]] = [words(self.source.words), words(self.destination.words)];
        let ports = self.source_port as u64 | (self.destination_port as u64) << 16;
        [a, b, c, d, ports | (self.protocol as u64) << 32 | (self.leg as u64) << 40]
    }
}

/// Which packets a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Leg {
    /// Client → frontend.
    Question = 0,
    /// Backend → whoever it thinks the client is: the client itself, or with SNAT an address and a port of this node.
    Answer = 1,
}

/// What becomes of a packet of a row of `CONNECTIONS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Connection {
    /// What its source becomes; the same as in the key where it stays.
    pub source: Party,
    /// `connection_flags`.
    pub flags: u32,
    /// What its destination becomes; the same as in the key where it stays.
    pub destination: Party,
    /// Questions: slot in `SERVICES` of the table that has the backend.
    pub table: u32,
    /// Questions: the first half of the digest of the table in which the backend was found last. While the table in the slot
    /// has it, the backend need not be looked for.
    pub digest: u64,
    /// `ktime_get_coarse_ns` of the last packet, to a second.
    pub seen_at: u64,
}

/// Bits of [`Connection::flags`].
pub mod connection_flags {
    /// The source is an address of this node, with a port of its range for this.
    pub const SNAT: u32 = 1;
    /// The packet goes to the backend's node as the client sent it, inside another (IPIP, IP6IP6).
    pub const DSR: u32 = 2;
    /// The backend is an endpoint of this node.
    pub const LOCAL: u32 = 4;
    /// The backend is an endpoint of another node.
    pub const FLEET: u32 = 8;
    /// Answers of SNAT: FIN or RST was seen from either. The port is free soon after.
    pub const ENDED: u32 = 16;
}

/// How long a connection is remembered after its last packet, in nanoseconds; as long, its port is not given to another (RFC 4787,
/// RFC 5382, RFC 7857).
#[inline(always)]
pub const fn connection_nanoseconds(protocol: u8, flags: u32) -> u64 {
    const TCP: u8 = 6;
    const SECOND: u64 = 1_000_000_000;
    if protocol != TCP {
        300 * SECOND
    } else if flags & connection_flags::ENDED != 0 {
        10 * SECOND
    } else {
        7440 * SECOND
    }
}

/// Element of `CONNECTIONS`.
pub type ConnectionRow = Row<ConnectionKey, Connection>;

const _: () = assert!(size_of::<ConnectionKey>() == 40 && size_of::<ConnectionRow>() == 128);
