//! What leaves by the overlay's device. What programs put there says by itself where it goes. What the stack has for it is
//! the node's own, for endpoints of other nodes: it gets the node's identity here, after the node's policy was asked.
//! Nothing else goes: the device knows no other way.

use core::ffi::c_long;

use aya_ebpf::{EbpfContext, bindings::bpf_tunnel_key, helpers::bpf_skb_get_tunnel_key, programs::TcContext};
use weft_shared::layout::{Class, FIRST_GLOBAL_IDENTITY, Peer, Reason};

use crate::{
    conntrack::Ends,
    deliver,
    events::{Done, TC_ACT_OK, Trace},
    forge, fragment,
    frame::meta,
    host,
    maps::{self, NODES},
    parse::{self, Packet},
    verdict::in_pools,
};

const SENT: Done = Done { reason: Reason::DeliveredOverlay, code: TC_ACT_OK };

#[inline(always)]
pub fn run(ctx: &TcContext, seen: &mut Option<&'static Packet>, trace: &mut Trace) -> Result<Done, Reason> {
    let runtime = maps::runtime();
    if meta(ctx).ingress_ifindex != 0 {
        return if has_tunnel_key(ctx) { Ok(SENT) } else { Err(Reason::NotTheNodes) };
    }
    let ethertype = parse::untagged_ip(ctx)?;
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    let destination = elsewhere(packet)?;
    let ends = Ends { source: own(packet)?, destination };
    if runtime.host != 0 {
        host::judge(ctx, packet, &ends, runtime.epoch, trace)?;
    } else {
        fragment::remember(packet)?;
    }
    deliver::set_tunnel_key(ctx, ends.destination.node, ends.source.identity)?;
    Ok(SENT)
}

/// Whether a program has said where the packet goes.
#[inline(always)]
fn has_tunnel_key(ctx: &TcContext) -> bool {
    /// `EPROTO`: there is one, of IPv6.
    const OTHER_FAMILY: c_long = -71;
    // SAFETY: a structure of integers, of which the helper writes at most its bytes.
    let answer = unsafe {
        let mut key: bpf_tunnel_key = core::mem::zeroed();
        bpf_skb_get_tunnel_key(ctx.as_ptr().cast(), &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0)
    };
    answer == 0 || answer == OTHER_FAMILY
}

/// The node itself, where others know it by the packet's source.
#[inline(always)]
fn own(packet: &Packet) -> Result<Peer, Reason> {
    let identity = NODES.get(0).ok_or(Reason::KernelError)?.identity;
    if maps::node_slot(&packet.source) != Some(0) || identity < FIRST_GLOBAL_IDENTITY {
        return Err(Reason::NotTheNodes);
    }
    Ok(Peer { identity, class: Class::Host as u32, node: 0, ifindex: 0 })
}

/// The destination, if another node has its part of the pools. A node is told only of the endpoints that its policies name;
/// the other one knows whether it has this one.
#[inline(always)]
fn elsewhere(packet: &Packet) -> Result<Peer, Reason> {
    let peer = maps::peer_of(&packet.destination);
    match in_pools(&peer) {
        true if peer.node != 0 => Ok(peer),
        true => Err(Reason::NoEndpoint),
        false if forge::is_group(&packet.destination, packet.v6) => Err(Reason::Multicast),
        false => Err(Reason::NoRoute),
    }
}
