//! Puts a packet inside another one, for whoever answers the client itself: IPv4 or IPv6 in IPv4 or IPv6 (RFC 2003, RFC 2473,
//! RFC 4213). Which of its endpoints is meant the receiving node is told by the lower 16 bits of the backend's address, in IPv4's
//! identification (free to use in a packet that is never cut, RFC 6864) or in IPv6's flow label.

use aya_ebpf::{EbpfContext as _, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use weft_shared::layout::Reason;

use super::{
    hop::{self, Hop},
    read::Packet,
};
use crate::{
    frame::{ETHERNET, Frame, Head, IPV4, IPV6},
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol},
};

const HOPS: u8 = 64;
const DONT_FRAGMENT: u32 = 0x4000;

/// Puts the packet in one of its own to the hop: how many bytes longer it is.
#[inline(always)]
pub fn wrap(ctx: &XdpContext, packet: &Packet, hop: &Hop) -> Result<u32, Reason> {
    let header = if hop.v4 { IPV4 } else { IPV6 } as u32;
    if packet.length + header > hop.mtu.into() {
        return Err(Reason::PassedTooLong);
    }
    let own = hop::own_address(hop.v4).ok_or(Reason::KernelError)?;
    let around = Around {
        v6: packet.v6,
        length: packet.length,
        tos: packet.tos,
        mark: mark_of(&packet.destination),
        from: own,
        to: hop.outer,
    };
    one_hop_less(ctx, packet.v6)?;
    // SAFETY: plain numbers.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(header as i32)) } != 0 {
        return Err(Reason::KernelError);
    }
    let frame = Frame::between(ctx.data(), ctx.data_end());
    if hop.v4 {
        let head = frame.head().ok_or(Reason::KernelError)?;
        set_macs(&head, hop);
        around.write_v4(&head);
    } else {
        let head = frame.head().ok_or(Reason::KernelError)?;
        set_macs(&head, hop);
        around.write_v6(&head);
    }
    Ok(header)
}

/// What the header around a packet says.
pub struct Around {
    /// Whether the packet inside is of IPv6, its bytes, and its type of service or traffic class.
    pub v6: bool,
    pub length: u32,
    pub tos: u8,
    /// Which endpoint is meant.
    pub mark: u16,
    pub from: [u64; 2],
    pub to: [u64; 2],
}

/// By what a node is told of its endpoint.
#[inline(always)]
pub const fn mark_of(backend: &[u64; 2]) -> u16 {
    u64::from_be(backend[1]) as u16
}

impl Around {
    #[inline(always)]
    const fn inside(&self) -> u8 {
        if self.v6 { protocol::IPV6 } else { protocol::IPIP }
    }

    /// Writes it, and the frame's type.
    #[inline(always)]
    pub fn write_v4(&self, head: &Head<{ ETHERNET + IPV4 }>) {
        let length = self.length + IPV4 as u32;
        let first = 0x4500_0000 | u32::from(self.tos) << 16 | length & 0xffff;
        let second = u32::from(self.mark) << 16 | DONT_FRAGMENT;
        let third = u32::from(HOPS) << 24 | u32::from(self.inside()) << 16;
        // The addresses as they read.
        let [from, to] = [self.from[1], self.to[1]].map(|word| u64::from_be(word) as u32);
        let mut sum = 0;
        for word in [first, second, third, from, to] {
            sum += (word >> 16) + (word & 0xffff);
        }
        head.write::<_, 12>(ETHERTYPE_IPV4.to_be());
        head.write::<_, ETHERNET>(first.to_be());
        head.write::<_, { ETHERNET + 4 }>(second.to_be());
        head.write::<_, { ETHERNET + 8 }>((third | u32::from(!fold(sum))).to_be());
        head.write::<_, { ETHERNET + 12 }>(from.to_be());
        head.write::<_, { ETHERNET + 16 }>(to.to_be());
    }

    /// The same, of IPv6.
    #[inline(always)]
    pub fn write_v6(&self, head: &Head<{ ETHERNET + IPV6 }>) {
        const VERSION: u32 = 6 << 28;
        let first = VERSION | u32::from(self.tos) << 20 | u32::from(self.mark);
        let second = self.length << 16 | u32::from(self.inside()) << 8 | u32::from(HOPS);
        head.write::<_, 12>(ETHERTYPE_IPV6.to_be());
        head.write::<_, ETHERNET>(first.to_be());
        head.write::<_, { ETHERNET + 4 }>(second.to_be());
        head.write::<_, { ETHERNET + 8 }>(self.from[0]);
        head.write::<_, { ETHERNET + 16 }>(self.from[1]);
        head.write::<_, { ETHERNET + 24 }>(self.to[0]);
        head.write::<_, { ETHERNET + 32 }>(self.to[1]);
    }
}

/// By which the frame gets to the hop.
#[inline(always)]
pub fn set_macs<const BYTES: usize>(head: &Head<BYTES>, hop: &Hop) {
    head.write::<_, 0>(hop.macs[0]);
    head.write::<_, 4>(hop.macs[1]);
    head.write::<_, 8>(hop.macs[2]);
}

/// One hop less to live: who puts a packet inside another one forwards it (RFC 2003 §3.1).
#[inline(always)]
pub fn one_hop_less(ctx: &XdpContext, v6: bool) -> Result<(), Reason> {
    let frame = Frame::between(ctx.data(), ctx.data_end());
    let head = frame.head::<{ ETHERNET + IPV4 }>().ok_or(Reason::PassedUnread)?;
    if v6 {
        let left = head.read::<u8, { ETHERNET + 7 }>();
        head.write::<_, { ETHERNET + 7 }>(left.wrapping_sub(1));
        return if left <= 1 { Err(Reason::TimeExceeded) } else { Ok(()) };
    }
    let left = head.read::<u8, { ETHERNET + 8 }>();
    if left <= 1 {
        return Err(Reason::TimeExceeded);
    }
    head.write::<_, { ETHERNET + 8 }>(left - 1);
    // One less in the high byte of a word: the checksum, a complement, grows by as much (RFC 1141).
    let sum = u32::from(head.read::<u16, { ETHERNET + 10 }>()) + u32::from(0x0100_u16.to_be());
    head.write::<_, { ETHERNET + 10 }>((sum + u32::from(sum >= 0xffff)) as u16);
    Ok(())
}

/// A sum of less than 2^16 words as one (RFC 1071).
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
