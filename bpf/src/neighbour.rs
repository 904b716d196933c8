//! ARP (RFC 826) and neighbour discovery (RFC 4861) of the workloads: every question but that for the own address is
//! answered with the gateway's MAC, in place; nothing else of either protocol passes.

use aya_ebpf::{EbpfContext, helpers::bpf_skb_change_tail, programs::TcContext};
use weft_shared::layout::{Address, Endpoint, Reason};

use crate::{
    deliver::{self, halves},
    events::Done,
    frame::{ETHERNET, Frame, IPV6, meta},
    parse::Packet,
    verdict::{has_address, same},
};

/// Ethernet, IPv4, lengths of both, request: the first eight bytes of a question.
const ARP_REQUEST: [u16; 4] = [1_u16.to_be(), 0x0800_u16.to_be(), 0x0604_u16.to_be(), 1_u16.to_be()];
const ARP_REPLY: u16 = 2_u16.to_be();

/// The two MACs of the frame.
#[inline(always)]
fn source_mac(frame: &Frame) -> Result<[u16; 3], Reason> {
    frame.read(6)
}

#[inline(always)]
pub fn arp(ctx: &TcContext, frame: &Frame, endpoint: &Endpoint) -> Result<Done, Reason> {
    let head: [u16; 4] = frame.read(ETHERNET)?;
    if head != ARP_REQUEST {
        return Err(Reason::NeighbourIgnored);
    }
    let sender_mac: [u16; 3] = frame.read(ETHERNET + 8)?;
    let sender: u32 = frame.read(ETHERNET + 14)?;
    let target: u32 = frame.read(ETHERNET + 24)?;
    let own = endpoint.address4.words[3];
    // A probe (RFC 5227) asks from 0.0.0.0; it asks for the own address, and silence is the right answer.
    if sender == 0 || target == own {
        return Err(Reason::NeighbourIgnored);
    }
    if sender != own || sender_mac != halves(endpoint.mac) {
        return Err(Reason::Spoofed);
    }
    let gateway = halves(endpoint.gateway_mac);
    write_macs(frame, sender_mac, gateway)?;
    frame.write(ETHERNET + 6, ARP_REPLY)?;
    frame.write(ETHERNET + 8, gateway)?;
    frame.write(ETHERNET + 14, target)?;
    frame.write(ETHERNET + 18, sender_mac)?;
    frame.write(ETHERNET + 24, sender)?;
    deliver::back(meta(ctx).ifindex)
}

#[inline(always)]
fn write_macs(frame: &Frame, to: [u16; 3], from: [u16; 3]) -> Result<(), Reason> {
    frame.write(0, [to[0], to[1], to[2], from[0], from[1], from[2]])
}

const ROUTER_SOLICITATION: u8 = 133;
const REDIRECT: u8 = 137;
const SOLICITATION: u16 = 135 << 8;
const ADVERTISEMENT: u16 = 136 << 8;
/// A packet that was forwarded is no neighbour's (RFC 4861 §7.1).
const HOP_LIMIT: u8 = 255;
/// Router, solicited, override.
const ADVERTISEMENT_FLAGS: u32 = 0xe000_0000_u32.to_be();
/// Option: target link-layer address, one unit of eight bytes.
const TARGET_MAC: u16 = 0x0201_u16.to_be();
const SOLICITATION_BYTES: u16 = 24;
const ADVERTISEMENT_BYTES: u16 = 32;
const ICMPV6: usize = ETHERNET + IPV6;

/// Whether a packet is neighbour or router discovery.
#[inline(always)]
pub fn is_discovery(packet: &Packet) -> bool {
    let kind = (packet.icmp >> 8) as u8;
    packet.v6 && packet.is_icmp() && kind >= ROUTER_SOLICITATION && kind <= REDIRECT
}

/// `packet` is discovery without extension headers in between: no workload needs those.
#[inline(always)]
pub fn discovery(ctx: &TcContext, packet: &Packet, endpoint: &Endpoint) -> Result<Done, Reason> {
    // The question in whole, of which the linear part may lack the end, and room for the answer, which has an option.
    let frame = Frame::of(ctx);
    let next_and_hops: [u8; 2] = frame.read(ETHERNET + 6)?;
    let payload = u16::from_be(frame.read(ETHERNET + 4)?);
    if packet.icmp != SOLICITATION || next_and_hops != [58, HOP_LIMIT] || payload < SOLICITATION_BYTES {
        return Err(Reason::NeighbourIgnored);
    }
    let link_local = packet.source.words[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be();
    // Asked from nowhere: the workload only wants to know that its address is its own, and hears nothing.
    if same(&packet.source, &Address::UNSPECIFIED) {
        return Err(Reason::NeighbourIgnored);
    }
    if !link_local && !has_address(endpoint, &packet.source) {
        return Err(Reason::Spoofed);
    }
    let length = (ICMPV6 + ADVERTISEMENT_BYTES as usize) as u32;
    // SAFETY: the kernel's context and plain numbers.
    if unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), length, 0) } != 0 {
        return Err(Reason::KernelError);
    }
    let frame = Frame::of(ctx);
    let target: [u32; 4] = frame.read(ICMPV6 + 8)?;
    if target == endpoint.address6.words || target == packet.source.words {
        return Err(Reason::NeighbourIgnored);
    }
    advertise(&frame, target, packet.source.words, endpoint)?;
    deliver::back(meta(ctx).ifindex)
}

#[inline(always)]
fn advertise(frame: &Frame, target: [u32; 4], to: [u32; 4], endpoint: &Endpoint) -> Result<(), Reason> {
    let gateway = halves(endpoint.gateway_mac);
    write_macs(frame, source_mac(frame)?, gateway)?;
    // Version 6; payload; next header ICMPv6, hop limit.
    frame.write(
        ETHERNET,
        [0x6000_0000_u32.to_be(), u32::from_ne_bytes([0, ADVERTISEMENT_BYTES as u8, 58, HOP_LIMIT])],
    )?;
    frame.write(ETHERNET + 8, [target, to])?;
    let mut sum = u32::from(ADVERTISEMENT_BYTES.to_be()) + u32::from(58_u16.to_be());
    sum += u32::from(ADVERTISEMENT.to_be()) + folded(ADVERTISEMENT_FLAGS) + u32::from(TARGET_MAC);
    sum += u32::from(gateway[0]) + u32::from(gateway[1]) + u32::from(gateway[2]);
    for word in 0..4 {
        // The target is in the pseudo header, as the source, and in the message.
        sum += 2 * folded(target[word]) + folded(to[word]);
    }
    sum = folded(folded(sum));
    frame.write(ICMPV6, [ADVERTISEMENT.to_be(), !sum as u16])?;
    frame.write(ICMPV6 + 4, ADVERTISEMENT_FLAGS)?;
    frame.write(ICMPV6 + 8, target)?;
    frame.write(ICMPV6 + 24, [TARGET_MAC, gateway[0], gateway[1], gateway[2]])
}

/// The two halves of a word added, as the Internet checksum wants it (RFC 1071), in any byte order.
#[inline(always)]
const fn folded(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}
