//! Rows of a subject's policy table.

use bytemuck::{Pod, Zeroable};

/// Which of a subject's verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    Ingress = 1,
    Egress = 2,
}

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Action {
    Allow = 1,
    Deny = 2,
}

/// Bits of [`PolicyKey::bits`] for a row of the direction alone: the default, which each table has for both directions.
pub const DIRECTION_PREFIX_BITS: u32 = 8;
/// … of a peer, whatever protocol.
pub const IDENTITY_PREFIX_BITS: u32 = DIRECTION_PREFIX_BITS + 32;
/// … of a peer and protocol, whatever port. Up to 16 more for a prefix of the port.
pub const PROTOCOL_PREFIX_BITS: u32 = IDENTITY_PREFIX_BITS + 8;

/// Key of a table, a longest-prefix-match map in `POLICIES`, one for each subject. A flow is looked up with the peer's
/// exact identity and with its class; the answer of the higher precedence decides. No answer drops (`policy_missing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PolicyKey {
    /// Host order, as the kernel wants it.
    pub bits: u32,
    /// A [`Direction`].
    pub direction: u8,
    /// Network order, so that it is matched from its most significant byte; bytes, because it is not aligned.
    pub identity: [u8; 4],
    /// IANA protocol number.
    pub protocol: u8,
    /// Network order. The flow's destination port in its original direction; ICMP: type, then code; others: 0.
    pub port: [u8; 2],
}

impl PolicyKey {
    /// All bits: what a lookup uses.
    pub const FULL_BITS: u32 = PROTOCOL_PREFIX_BITS + 16;

    #[inline(always)]
    pub const fn flow(direction: Direction, identity: u32, protocol: u8, port: u16) -> Self {
        Self {
            bits: Self::FULL_BITS,
            direction: direction as u8,
            identity: identity.to_be_bytes(),
            protocol,
            port: port.to_be_bytes(),
        }
    }
}

/// Value of a table's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PolicyRow {
    /// Higher wins; at equal precedence deny wins. 0: the default row.
    pub precedence: u32,
    /// An [`Action`]; anything else drops.
    pub action: u32,
    /// The rule, as the daemon numbers them; 0: none (default).
    pub rule: u32,
}
