//! Drops what comes from listed sources as early as there is a program, before a packet costs anything; everything else
//! goes up untouched, and tc judges it. Only the source is looked at, but for packets of listed sources: what failsafe
//! entries hold open for everybody passes all the same, so that no list locks an operator out.
//!
//! Frames with a VLAN tag and those whose source can't be read go up, counted: to drop what is malformed is tc's work.

use aya_ebpf::{
    EbpfContext as _, btf_maps::lpm_trie::Key, helpers::bpf_xdp_load_bytes, programs::XdpContext,
};
use weft_shared::layout::{
    Address, Class, Direction, Reason,
    prefilter::{BLOCK_ROW_WORDS, BlockBit, block4, has_ports, long6, middle6, open_bit, short6},
};

use crate::{
    frame::{ETHERNET, Frame, IPV4, IPV6},
    maps::{IPCACHE, PREFILTER_BLOCKS, PREFILTER_OPEN, PREFILTER_SENDERS, PREFILTER4, PREFILTER6},
    parse::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN},
};

/// The list for which the packet is dropped; an error is why one passes that is not simply listed nowhere.
#[inline(always)]
pub fn listed(ctx: &XdpContext) -> Result<Option<u32>, Reason> {
    let frame = Frame::between(ctx.data(), ctx.data_end());
    let head = frame.head::<ETHERNET>().ok_or(Reason::PassedUnread)?;
    match u16::from_be(head.read::<u16, 12>()) {
        ETHERTYPE_IPV4 => ipv4(ctx, &frame),
        ETHERTYPE_IPV6 => ipv6(ctx, &frame),
        ETHERTYPE_ARP => arp(&frame),
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Err(Reason::PassedTagged),
        _ => Ok(None),
    }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, frame: &Frame) -> Result<Option<u32>, Reason> {
    let head = frame.head::<{ ETHERNET + IPV4 }>().ok_or(Reason::PassedUnread)?;
    let first: u8 = head.read::<u8, ETHERNET>();
    if first >> 4 != 4 || first & 15 < 5 {
        return Err(Reason::PassedUnread);
    }
    let source = head.read::<u32, { ETHERNET + 12 }>();
    if !is_met(block4(u32::from_be(source))) {
        return Ok(None);
    }
    let Some(list) = PREFILTER4.get(&Key::new(32, source)) else {
        return Ok(None);
    };
    let to = Address::from_v4(head.read::<u32, { ETHERNET + 16 }>());
    // Of a later fragment the ports are not known.
    let later = u16::from_be(head.read::<u16, { ETHERNET + 6 }>()) & 0x1fff != 0;
    let transport = ETHERNET as u32 + u32::from(first & 15) * 4;
    if !later && is_held_open(ctx, &to, head.read::<u8, { ETHERNET + 9 }>(), transport) {
        return Err(Reason::PassedFailsafe);
    }
    Ok(Some(*list))
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, frame: &Frame) -> Result<Option<u32>, Reason> {
    let head = frame.head::<{ ETHERNET + IPV6 }>().ok_or(Reason::PassedUnread)?;
    if head.read::<u8, ETHERNET>() >> 4 != 6 {
        return Err(Reason::PassedUnread);
    }
    let first = u64::from_be(head.read::<u64, { ETHERNET + 8 }>());
    if !is_met(short6(first)) && !is_met(middle6(first)) && !is_met(long6(first)) {
        return Ok(None);
    }
    // In two words: of four, the compiler makes a call of `memmove`.
    let source = [head.read::<u64, { ETHERNET + 8 }>(), head.read::<u64, { ETHERNET + 16 }>()];
    let Some(list) = PREFILTER6.get(&Key::new(128, bytemuck::cast(source))) else {
        return Ok(None);
    };
    let to = Address { words: head.read::<[u32; 4], { ETHERNET + 24 }>() };
    let next = head.read::<u8, { ETHERNET + 6 }>();
    // What has extension headers is not what failsafe entries are for.
    if is_held_open(ctx, &to, next, (ETHERNET + IPV6) as u32) {
        return Err(Reason::PassedFailsafe);
    }
    Ok(Some(*list))
}

/// Whether a prefix meets the block. Bits are there before the prefixes for which they are set, and longer.
#[inline(always)]
fn is_met((word, bit): BlockBit) -> bool {
    let row = PREFILTER_BLOCKS.get(word / BLOCK_ROW_WORDS);
    row.is_some_and(|words| words[(word % BLOCK_ROW_WORDS) as usize] & bit != 0)
}

/// Requests alone: answers come to who asked.
#[inline(always)]
fn arp(frame: &Frame) -> Result<Option<u32>, Reason> {
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let head = frame.head::<{ ETHERNET + 28 }>().ok_or(Reason::PassedUnread)?;
    if head.read::<u64, ETHERNET>() != u64::from_ne_bytes(REQUEST) {
        return Ok(None);
    }
    let sender = head.read::<u32, { ETHERNET + 14 }>();
    // SAFETY: rows are replaced, never written in place; the memory stays a row while the program runs (RCU).
    Ok(unsafe { PREFILTER_SENDERS.get(&sender) }.copied())
}

/// Whether the packet is of a flow of the node itself that a failsafe entry holds open for everybody: to a port of the node,
/// or from one that the node may call.
#[inline(always)]
fn is_held_open(ctx: &XdpContext, to: &Address, protocol: u8, transport: u32) -> bool {
    // SAFETY: as above.
    let own = unsafe { IPCACHE.get(to) }.is_some_and(|peer| peer.class == Class::Host as u32);
    if !own {
        return false;
    }
    let mut ports = [0_u16; 2];
    if has_ports(protocol) {
        // SAFETY: the helper writes exactly these bytes.
        let failed =
            unsafe { bpf_xdp_load_bytes(ctx.as_ptr().cast(), transport, (&raw mut ports).cast(), 4) };
        if failed != 0 {
            return false;
        }
    }
    let [from, at] = ports.map(u16::from_be);
    is_open(Direction::Ingress, protocol, at) || is_open(Direction::Egress, protocol, from)
}

#[inline(always)]
fn is_open(direction: Direction, protocol: u8, port: u16) -> bool {
    let (word, bit) = open_bit(direction, protocol, port);
    PREFILTER_OPEN.get(word).is_some_and(|bits| *bits & bit != 0)
}
