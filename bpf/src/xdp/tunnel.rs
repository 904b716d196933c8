//! Puts a packet inside another one, for whoever answers the client itself: IPv4 or IPv6 in IPv4 or IPv6 (RFC 2003, RFC 2473,
//! RFC 4213). Which of its endpoints is meant the receiving node is told by the lower 16 bits of the backend's address, in IPv4's
//! identification (free to use in a packet that is never cut, RFC 6864) or in IPv6's flow label.

use aya_ebpf::{EbpfContext as _, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use weft_shared::layout::Reason;

use super::{hop::Hop, read::Packet};
use crate::{
    frame::{ETHERNET, Frame, IPV4, IPV6},
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol},
};

const HOPS: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;

/// Sends the packet on to the hop, in a packet of its own.
#[inline(always)]
pub fn wrap(ctx: &XdpContext, packet: &Packet, hop: &Hop) -> Result<(), Reason> {
    let header = if hop.outer.is_v4() { IPV4 } else { IPV6 } as u32;
    if packet.length + header > hop.mtu {
        return Err(Reason::PassedTooLong);
    }
    one_hop_less(ctx, packet.v6)?;
    // SAFETY: plain numbers.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(header as i32)) } != 0 {
        return Err(Reason::KernelError);
    }
    let frame = Frame::between(ctx.data(), ctx.data_end());
    let mark = u32::from_be(packet.destination.address.words[3]) as u16;
    if header == IPV4 as u32 { ipv4(&frame, packet, mark, hop) } else { ipv6(&frame, packet, mark, hop) }
}

#[inline(always)]
fn ipv4(frame: &Frame, packet: &Packet, mark: u16, hop: &Hop) -> Result<(), Reason> {
    let head = frame.head::<{ ETHERNET + IPV4 }>().ok_or(Reason::KernelError)?;
    let inside = if packet.v6 { protocol::IPV6 } else { protocol::IPIP };
    let length = (packet.length + IPV4 as u32) as u16;
    let mut words = [
        u16::from_ne_bytes([0x45, packet.tos]),
        length.to_be(),
        mark.to_be(),
        DONT_FRAGMENT.to_be(),
        u16::from_ne_bytes([HOPS, inside]),
        0,
    ];
    let [from, to] = [hop.own.words[3], hop.outer.words[3]];
    let mut sum = (from & 0xffff) + (from >> 16) + (to & 0xffff) + (to >> 16);
    for word in words {
        sum += u32::from(word);
    }
    words[5] = !fold(sum);
    head.write::<_, 0>(hop.macs);
    head.write::<_, 12>(ETHERTYPE_IPV4.to_be());
    head.write::<_, ETHERNET>(words);
    head.write::<_, { ETHERNET + 12 }>([from, to]);
    Ok(())
}

#[inline(always)]
fn ipv6(frame: &Frame, packet: &Packet, mark: u16, hop: &Hop) -> Result<(), Reason> {
    const VERSION: u32 = 6 << 28;
    let head = frame.head::<{ ETHERNET + IPV6 }>().ok_or(Reason::KernelError)?;
    let inside = if packet.v6 { protocol::IPV6 } else { protocol::IPIP };
    let first = VERSION | u32::from(packet.tos) << 20 | u32::from(mark);
    let rest = packet.length << 16 | u32::from(inside) << 8 | u32::from(HOPS);
    head.write::<_, 0>(hop.macs);
    head.write::<_, 12>(ETHERTYPE_IPV6.to_be());
    head.write::<_, ETHERNET>([first.to_be(), rest.to_be()]);
    head.write::<_, { ETHERNET + 8 }>(hop.own.words);
    head.write::<_, { ETHERNET + 24 }>(hop.outer.words);
    Ok(())
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
