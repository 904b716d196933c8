//! The flow table (conntrack).

use super::{
    Address, Config,
    table::{Row, words},
};
use bytemuck::{Pod, Zeroable};

/// Key of a row of `FLOWS`: both directions of a flow have the same one. The party whose (address, port) is smaller, compared as
/// bytes in network order, comes first; [`flow_flags::FROM_HIGH`] in the value tells which of them began.
///
/// ICMP and ICMPv6 echo: the identifier is the port of both, and `asker` says who asks, because both may with the same
/// identifier. Other ICMP messages have no flow. Protocols without ports: ports are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    pub low: Address,
    pub high: Address,
    /// Network order.
    pub low_port: u16,
    /// Network order.
    pub high_port: u16,
    pub protocol: u8,
    /// Echo only: [`FlowKey::ASKER_LOW`] or [`FlowKey::ASKER_HIGH`]; otherwise 0.
    pub asker: u8,
    pub zero: [u8; 2],
}

impl FlowKey {
    pub const ASKER_LOW: u8 = 1;
    pub const ASKER_HIGH: u8 = 2;

    /// To be hashed and compared.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        let [[a, b], [c, d]] = [words(self.low.words), words(self.high.words)];
        [a, b, c, d, Self::last_word(self.low_port, self.high_port, self.protocol, self.asker)]
    }

    /// The last one of the words: what is not addresses.
    #[inline(always)]
    pub const fn last_word(low_port: u16, high_port: u16, protocol: u8, asker: u8) -> u64 {
        low_port as u64 | (high_port as u64) << 16 | (protocol as u64) << 32 | (asker as u64) << 40
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// The party that began is the key's `high`.
    pub const FROM_HIGH: u16 = 1;
    /// A reply was seen.
    pub const REPLIED: u16 = 2;
    /// TCP: SYN was seen from the party that began (the flow was met at its beginning).
    pub const SYN: u16 = 4;
    /// TCP: FIN was seen from the party that began.
    pub const FIN_ORIGINAL: u16 = 8;
    /// TCP: FIN was seen from the other party.
    pub const FIN_REPLY: u16 = 16;
    /// TCP: RST was seen from either.
    pub const RST: u16 = 32;
    /// The party that began named a service, and the other is its backend: answers are shown as the service's.
    pub const SERVICE: u16 = 64;
}

/// What was found out about a flow, so that its next packet need not look it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// Value of the node's epoch counter before the tables were read: see `RuntimeState::epoch`.
    pub judged_at: u64,
    /// `ktime_get_coarse_ns` of the last packet.
    pub seen_at: u64,
    /// Of the party that began, as the verdict was given for it.
    pub source_identity: u32,
    /// Of the other party.
    pub destination_identity: u32,
    /// Where packets of the original direction go: interface index and index into `NODES`, as in `Peer`.
    pub original_ifindex: u32,
    /// Where replies go.
    pub reply_ifindex: u32,
    pub original_node: u16,
    pub reply_node: u16,
    /// Changed by all CPUs, together with the rest of its eight bytes.
    pub flags: u16,
    /// Numbers of the classes.
    pub source_class: u8,
    pub destination_class: u8,
}

const _: () = assert!(super::maps::NODES_MAX <= 1 << 16);
/// Element of `FLOWS`.
pub type FlowRow = Row<FlowKey, Flow>;

const _: () = assert!(size_of::<FlowRow>() == 96);

/// How long a flow in this state is remembered after its last packet.
#[inline(always)]
pub const fn timeout_nanoseconds(config: &Config, protocol: u8, flags: u16) -> u64 {
    const TCP: u8 = 6;
    const CLOSED: u16 = flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY;
    if protocol != TCP {
        config.timeout_other
    } else if flags & flow_flags::RST != 0 || flags & CLOSED == CLOSED {
        config.timeout_closing
    } else if flags & flow_flags::REPLIED == 0 {
        config.timeout_syn
    } else {
        config.timeout_established
    }
}
