//! Tells a client at once that nobody answers: TCP with a reset (RFC 9293 §3.5.2), everything else with "port unreachable" (RFC 792,
//! RFC 4443), both from the frontend, written over the packet.

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_l4_csum_replace, bpf_skb_change_tail},
    programs::TcContext,
};
use weft_shared::layout::Reason;

use crate::{
    fragment::Part,
    frame::{ETHERNET, Frame, IPV4, IPV6, load},
    parse::{self, Packet, protocol, tcp},
    translate::{folded, sum_of},
};

const HOPS: u8 = 64;
const TCP: usize = 20;
pub const ICMP: usize = 8;
/// What an error quotes: the header and eight bytes (RFC 792), for both families.
const QUOTED: usize = 8;

/// Writes the refusal over the packet in hand, with the MACs as they were. What can't be refused is an error.
#[inline(always)]
pub fn over(ctx: &TcContext) -> Result<(), Reason> {
    let packet = parse::kept()?;
    let fixed = ETHERNET + if packet.v6 { IPV6 } else { IPV4 };
    let plain = packet.part == Part::Whole && usize::from(packet.transport) == fixed;
    // A reset is not answered (RFC 9293).
    if !plain || packet.tcp_flags & tcp::RST != 0 {
        return Err(Reason::ServiceUnanswered);
    }
    let skb = ctx.skb.skb;
    // Each by itself, for the stack's sake.
    let refused = match (packet.protocol == protocol::TCP, packet.v6) {
        (true, false) => reset_v4(skb),
        (true, true) => reset_v6(skb),
        (false, false) => tell_v4(skb),
        (false, true) => tell_v6(skb),
    };
    if refused == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reset_v4(skb: *mut __sk_buff) -> u32 {
    refuse(skb, reset::<{ ETHERNET + IPV4 }>)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reset_v6(skb: *mut __sk_buff) -> u32 {
    refuse(skb, reset::<{ ETHERNET + IPV6 }>)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_v4(skb: *mut __sk_buff) -> u32 {
    refuse(skb, unreachable_v4)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_v6(skb: *mut __sk_buff) -> u32 {
    refuse(skb, unreachable_v6)
}

/// 0, or an error.
#[inline(always)]
fn refuse(skb: *mut __sk_buff, how: impl FnOnce(&TcContext, &Packet) -> Result<(), Reason>) -> u32 {
    parse::kept().and_then(|packet| how(&TcContext::new(skb), packet)).is_err().into()
}

/// What a TCP packet takes of its sender's numbers: a byte for each of its payload, one for SYN and one for FIN.
#[inline(always)]
fn taken(ctx: &TcContext, packet: &Packet) -> Result<u32, Reason> {
    let field: u16 = load(ctx, ETHERNET as u32 + if packet.v6 { 4 } else { 2 })?;
    let end = u32::from(u16::from_be(field)) + ETHERNET as u32 + if packet.v6 { IPV6 as u32 } else { 0 };
    let length: u8 = load(ctx, u32::from(packet.transport) + 12)?;
    let start = u32::from(packet.transport) + u32::from(length >> 4) * 4;
    let flags = u32::from(packet.tcp_flags & tcp::SYN != 0) + u32::from(packet.tcp_flags & tcp::FIN != 0);
    Ok(end.wrapping_sub(start).wrapping_add(flags))
}

#[inline(always)]
fn reset<const TRANSPORT: usize>(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    let numbers: [u32; 2] = load(ctx, TRANSPORT as u32 + 4)?;
    let taken = taken(ctx, packet)?;
    let acknowledges = packet.tcp_flags & tcp::ACK != 0;
    let (sequence, acknowledged, flags) = if acknowledges {
        (numbers[1], 0, tcp::RST)
    } else {
        (0, u32::from_be(numbers[0]).wrapping_add(taken).to_be(), tcp::RST | tcp::ACK)
    };
    let partial = is_partial(ctx, TRANSPORT as u32 + 16)?;
    resize(ctx, TRANSPORT + TCP)?;
    let frame = Frame::of(ctx);
    headers(&frame, packet, TCP as u16, protocol::TCP)?;
    let words = [
        u32::from(packet.destination_port) | u32::from(packet.source_port) << 16,
        sequence,
        acknowledged,
        u32::from_ne_bytes([(TCP as u8 / 4) << 4, flags, 0, 0]),
        0,
    ];
    frame.write(TRANSPORT, words)?;
    let pseudo = pseudo(packet, TCP as u16, protocol::TCP);
    // Who sums up the rest later finds the pseudo header's sum.
    let checksum = if partial { short(pseudo) } else { !short(sum(&words) + pseudo) };
    frame.write(TRANSPORT + 16, checksum)
}

#[inline(always)]
fn unreachable_v4(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    /// Port unreachable.
    const KIND: u32 = u32::from_ne_bytes([3, 3, 0, 0]);
    const BODY: usize = ETHERNET + IPV4 + ICMP;
    let quoted: [u32; (IPV4 + QUOTED) / 4] = load(ctx, ETHERNET as u32)?;
    resize(ctx, BODY + IPV4 + QUOTED)?;
    let frame = Frame::of(ctx);
    headers(&frame, packet, (ICMP + IPV4 + QUOTED) as u16, protocol::ICMP)?;
    frame.write(BODY, quoted)?;
    let checksum = !short(sum(&quoted) + u64::from(KIND));
    // The word behind it is unused. Where the kernel still had UDP's checksum to make, it makes one there, in which the whole sums up, too.
    frame.write(ETHERNET + IPV4, [KIND | u32::from(checksum) << 16, 0])
}

#[inline(always)]
fn unreachable_v6(ctx: &TcContext, packet: &Packet) -> Result<(), Reason> {
    /// Port unreachable.
    const KIND: u32 = u32::from_ne_bytes([1, 4, 0, 0]);
    const BODY: usize = ETHERNET + IPV6 + ICMP;
    const BYTES: u16 = (ICMP + IPV6 + QUOTED) as u16;
    let quoted: [u32; (IPV6 + QUOTED) / 4] = load(ctx, ETHERNET as u32)?;
    let partial = packet.protocol == protocol::UDP && is_partial(ctx, u32::from(packet.transport) + 6)?;
    resize(ctx, BODY + IPV6 + QUOTED)?;
    let frame = Frame::of(ctx);
    headers(&frame, packet, BYTES, protocol::ICMPV6)?;
    frame.write(BODY, quoted)?;
    let pseudo = pseudo(packet, BYTES, protocol::ICMPV6);
    let checksum = !short(sum(&quoted) + u64::from(KIND) + pseudo);
    // As above; here the pseudo header must be in what is summed up.
    let unused = if partial { u32::from(short(pseudo)) << 16 } else { 0 };
    frame.write(ETHERNET + IPV6, [KIND | u32::from(checksum) << 16, unused])
}

/// Whether the kernel has the checksum still to make: then it leaves the field alone when what is not in the pseudo header changes. The
/// field is overwritten afterwards.
#[inline(always)]
pub fn is_partial(ctx: &TcContext, offset: u32) -> Result<bool, Reason> {
    let before: u16 = load(ctx, offset)?;
    // SAFETY: the kernel's context and plain numbers.
    let failed = unsafe { bpf_l4_csum_replace(ctx.as_ptr().cast(), offset, 0, 1, 2) };
    if failed != 0 {
        return Err(Reason::KernelError);
    }
    let after: u16 = load(ctx, offset)?;
    Ok(before == after)
}

#[inline(always)]
pub fn resize(ctx: &TcContext, bytes: usize) -> Result<(), Reason> {
    // SAFETY: the kernel's context and plain numbers.
    let failed = unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), bytes as u32, 0) };
    if failed == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

/// The network header of what goes back.
#[inline(always)]
pub fn headers(frame: &Frame, packet: &Packet, bytes: u16, protocol: u8) -> Result<(), Reason> {
    let (from, to) = (packet.destination.words, packet.source.words);
    if packet.v6 {
        let second = u32::from_be_bytes([0, 0, protocol, HOPS]) | u32::from(bytes) << 16;
        frame.write(ETHERNET, [0x6000_0000_u32.to_be(), second.to_be()])?;
        return frame.write(ETHERNET + 8, [from, to]);
    }
    let words = [
        (0x4500_0000 | (u32::from(bytes) + IPV4 as u32)).to_be(),
        // Not to be cut.
        0x4000_u32.to_be(),
        u32::from_be_bytes([HOPS, protocol, 0, 0]).to_be(),
        from[3],
        to[3],
    ];
    frame.write(ETHERNET, words)?;
    frame.write(ETHERNET + 10, !short(sum(&words)))
}

/// Of the pseudo header.
#[inline(always)]
pub fn pseudo(packet: &Packet, bytes: u16, protocol: u8) -> u64 {
    // What makes an IPv4 address a mapped one is not in it, and is a whole 16 bits of ones: nothing.
    sum_of(&packet.source)
        + sum_of(&packet.destination)
        + u64::from(bytes.to_be())
        + u64::from(u16::from(protocol).to_be())
}

#[inline(always)]
fn sum(words: &[u32]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// In ones' complement of 16 bits.
#[inline(always)]
pub fn short(sum: u64) -> u16 {
    let sum = folded(sum);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
