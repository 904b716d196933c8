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
    one_hop_less(ctx, packet.v6)?;
    // SAFETY: plain numbers.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(header as i32)) } != 0 {
        return Err(Reason::KernelError);
    }
    let frame = Frame::between(ctx.data(), ctx.data_end());
    let mark = u64::from_be(packet.destination[1]) as u16;
    if hop.v4 {
        ipv4(&frame, packet, mark, hop, &own)?
    } else {
        ipv6(&frame, packet, mark, hop, &own)?
    }
    Ok(header)
}

#[inline(always)]
fn ipv4(frame: &Frame, packet: &Packet, mark: u16, hop: &Hop, own: &[u64; 2]) -> Result<(), Reason> {
    let head = frame.head::<{ ETHERNET + IPV4 }>().ok_or(Reason::KernelError)?;
    let inside = if packet.v6 { protocol::IPV6 } else { protocol::IPIP };
    let length = packet.length + IPV4 as u32;
    let first = 0x4500_0000 | u32::from(packet.tos) << 16 | length & 0xffff;
    let second = u32::from(mark) << 16 | DONT_FRAGMENT;
    let third = u32::from(HOPS) << 24 | u32::from(inside) << 16;
    // The addresses as they read.
    let [from, to] = [own[1], hop.outer[1]].map(|word| u64::from_be(word) as u32);
    let mut sum = 0;
    for word in [first, second, third, from, to] {
        sum += (word >> 16) + (word & 0xffff);
    }
    set_macs(&head, hop);
    head.write::<_, 12>(ETHERTYPE_IPV4.to_be());
    head.write::<_, ETHERNET>(first.to_be());
    head.write::<_, { ETHERNET + 4 }>(second.to_be());
    head.write::<_, { ETHERNET + 8 }>((third | u32::from(!fold(sum))).to_be());
    head.write::<_, { ETHERNET + 12 }>(from.to_be());
    head.write::<_, { ETHERNET + 16 }>(to.to_be());
    Ok(())
}

#[inline(always)]
fn ipv6(frame: &Frame, packet: &Packet, mark: u16, hop: &Hop, own: &[u64; 2]) -> Result<(), Reason> {
    const VERSION: u32 = 6 << 28;
    let head = frame.head::<{ ETHERNET + IPV6 }>().ok_or(Reason::KernelError)?;
    let inside = if packet.v6 { protocol::IPV6 } else { protocol::IPIP };
    let first = VERSION | u32::from(packet.tos) << 20 | u32::from(mark);
    let second = packet.length << 16 | u32::from(inside) << 8 | u32::from(HOPS);
    set_macs(&head, hop);
    head.write::<_, 12>(ETHERTYPE_IPV6.to_be());
    head.write::<_, ETHERNET>(first.to_be());
    head.write::<_, { ETHERNET + 4 }>(second.to_be());
    head.write::<_, { ETHERNET + 8 }>(own[0]);
    head.write::<_, { ETHERNET + 16 }>(own[1]);
    head.write::<_, { ETHERNET + 24 }>(hop.outer[0]);
    head.write::<_, { ETHERNET + 32 }>(hop.outer[1]);
    Ok(())
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
