//! Sends a packet that may pass on its way: to an endpoint of this node, into the overlay, or to the node's stack.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1,
        bpf_tunnel_key__bindgen_ty_2, bpf_tunnel_key__bindgen_ty_3,
    },
    helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_set_tunnel_key},
    programs::TcContext,
};
use weft_shared::layout::{Address, Endpoint, Reason, endpoint_flags};

use crate::{
    bandwidth,
    events::{Done, TC_ACT_OK, unseen_zero},
    frame::{ETHERNET, Frame, meta},
    maps::{self, NODES},
};

pub const TC_ACT_REDIRECT: i64 = 7;
/// `PACKET_HOST`: the stack drops what is addressed to another MAC, and looked when the frame came in, before our rewrite.
pub const PACKET_HOST: u32 = 0;
const OUTER_TTL: u8 = 64;

#[inline(always)]
pub fn to_stack() -> Done {
    Done { reason: Reason::DeliveredStack, code: TC_ACT_OK }
}

/// To an endpoint of this node; its policy allowed.
#[inline(always)]
pub fn to_endpoint(ctx: &TcContext, endpoint: &Endpoint, ifindex: u32) -> Result<Done, Reason> {
    set_macs(ctx, endpoint)?;
    take_in(ctx)?;
    // The hook of the host's side, which takes the others, is passed by.
    let inline = endpoint.flags & endpoint_flags::PEER != 0;
    if inline {
        bandwidth::received(ctx, endpoint, ifindex)?;
    }
    // SAFETY: plain numbers.
    let code = unsafe { if inline { bpf_redirect_peer(ifindex, 0) } else { bpf_redirect(ifindex, 0) } };
    redirected(code, Reason::DeliveredLocal)
}

/// As the workload expects a frame from its gateway.
#[inline(always)]
pub fn set_macs(ctx: &TcContext, endpoint: &Endpoint) -> Result<(), Reason> {
    let frame = Frame::of(ctx);
    let to = halves(endpoint.mac);
    let from = halves(endpoint.gateway_mac);
    frame.write::<[u16; 6]>(0, [to[0], to[1], to[2], from[0], from[1], from[2]])
}

#[inline(always)]
pub fn halves(mac: [u8; 6]) -> [u16; 3] {
    [
        u16::from_ne_bytes([mac[0], mac[1]]),
        u16::from_ne_bytes([mac[2], mac[3]]),
        u16::from_ne_bytes([mac[4], mac[5]]),
    ]
}

/// To the node itself, out of the overlay.
#[inline(always)]
pub fn to_host(ctx: &TcContext) -> Result<Done, Reason> {
    take_in(ctx)?;
    Ok(to_stack())
}

/// The frame is for this node, whatever its MACs say.
#[inline(always)]
fn take_in(ctx: &TcContext) -> Result<(), Reason> {
    if meta(ctx).pkt_type != PACKET_HOST && ctx.change_type(PACKET_HOST).is_err() {
        return Err(Reason::KernelError);
    }
    Ok(())
}

/// To the node of a slot, with the source's identity.
#[inline(always)]
pub fn to_overlay(ctx: &TcContext, slot: u32, identity: u32) -> Result<Done, Reason> {
    let device = maps::config().overlay_ifindex;
    if device == 0 {
        return Err(Reason::NoRoute);
    }
    set_tunnel_key(ctx, slot, identity)?;
    // SAFETY: plain numbers.
    redirected(unsafe { bpf_redirect(device, 0) }, Reason::DeliveredOverlay)
}

/// Says on the packet where the overlay's device is to send it, and whose it is.
#[inline(always)]
pub fn set_tunnel_key(ctx: &TcContext, slot: u32, identity: u32) -> Result<(), Reason> {
    match set_key(ctx.skb.skb, slot, identity) {
        KEY_SET => Ok(()),
        number => Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
}

/// In place of a reason.
const KEY_SET: u32 = u32::MAX;

/// A function of its own: the callers' stacks have no room for the key.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn set_key(skb: *mut __sk_buff, slot: u32, identity: u32) -> u32 {
    match try_set_key(skb, slot, identity) {
        Ok(()) => KEY_SET,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn try_set_key(skb: *mut __sk_buff, slot: u32, identity: u32) -> Result<(), Reason> {
    let node = NODES.get(slot).ok_or(Reason::NoRoute)?;
    if node.address.words == Address::UNSPECIFIED.words {
        return Err(Reason::NoRoute);
    }
    let zero = unseen_zero() as u32;
    let mut key = bpf_tunnel_key {
        tunnel_id: identity,
        __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [zero; 4] },
        tunnel_tos: 0,
        tunnel_ttl: OUTER_TTL,
        __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
        tunnel_label: zero,
        __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 { local_ipv6: [zero; 4] },
    };
    let flags = if node.address.is_v4() {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(node.address.words[3]);
        BPF_F_ZERO_CSUM_TX
    } else {
        key.__bindgen_anon_1.remote_ipv6 = node.address.words;
        BPF_F_TUNINFO_IPV6
    };
    // SAFETY: the helper reads the key's bytes.
    let failed = unsafe {
        bpf_skb_set_tunnel_key(skb.cast(), &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags.into())
    };
    if failed == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

/// Back to where it came from: an answer written over the question.
#[inline(always)]
pub fn back(ifindex: u32) -> Result<Done, Reason> {
    // SAFETY: plain numbers.
    redirected(unsafe { bpf_redirect(ifindex, 0) }, Reason::NeighbourAnswered)
}

#[inline(always)]
pub fn redirected(code: i64, reason: Reason) -> Result<Done, Reason> {
    if code == TC_ACT_REDIRECT { Ok(Done { reason, code: code as i32 }) } else { Err(Reason::KernelError) }
}

/// One hop less to live, where Weft routes in place of the stack.
#[inline(always)]
pub fn hop(ctx: &TcContext, v6: bool) -> Result<(), Reason> {
    let frame = Frame::of(ctx);
    let offset = if v6 { ETHERNET + 7 } else { ETHERNET + 8 };
    let left: u8 = frame.read(offset)?;
    if left <= 1 {
        return Err(Reason::TimeExceeded);
    }
    frame.write(offset, left - 1)?;
    if v6 {
        return Ok(());
    }
    // One less in the high byte of a word: the checksum, a complement, grows by as much (RFC 1141).
    let checksum = u32::from(frame.read::<u16>(ETHERNET + 10)?) + u32::from(0x0100_u16.to_be());
    frame.write(ETHERNET + 10, (checksum + u32::from(checksum >= 0xffff)) as u16)
}
