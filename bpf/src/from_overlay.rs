//! What another node sends through the overlay.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    helpers::bpf_skb_get_tunnel_key,
    programs::TcContext,
};
use weft_shared::layout::{
    Address, Class, Endpoint, FIRST_GLOBAL_IDENTITY, Peer, Point, Reason, endpoint_flags,
};

use crate::{
    conntrack::{self, Ends, Entry},
    deliver,
    events::{Done, Trace},
    fragment,
    frame::{Frame, meta},
    maps,
    parse::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Service},
    service,
    verdict::{self, Hook, Moment, in_pools},
};

#[inline(always)]
pub fn run(ctx: &TcContext, seen: &mut Option<&'static Packet>, trace: &mut Trace) -> Result<Done, Reason> {
    let runtime = maps::runtime();
    let (identity, outer) = tunnel(ctx)?;
    trace.source_identity = identity;
    let node = match maps::node_slot(&outer) {
        Some(slot) if slot != 0 => slot,
        _ => return Err(Reason::UnknownTunnelPeer),
    };
    if identity < FIRST_GLOBAL_IDENTITY {
        return Err(Reason::UnknownTunnelPeer);
    }
    if identity > runtime.identities_through {
        return Err(Reason::IdentityNotYetKnown);
    }
    let frame = Frame::with_headers(ctx);
    let ethertype = match parse::ethertype(&frame)? {
        _ if meta(ctx).vlan_present != 0 => return Err(Reason::UnknownEtherType),
        ethertype @ (ETHERTYPE_IPV4 | ETHERTYPE_IPV6) => ethertype,
        _ => return Err(Reason::UnknownEtherType),
    };
    if ethertype == ETHERTYPE_IPV6 {
        frame.with_headers_v6(ctx);
    }
    let sender = Peer { identity, class: Class::Fleet as u32, node, ifindex: 0 };
    let now = conntrack::now();
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    let entry = Entry::of(packet, conntrack::find_kept(packet, now));
    service::mark_answer(packet, entry)?;
    let packet = &*parse::kept()?;
    let (receiver, ifindex) = judge(
        ctx,
        packet,
        entry,
        &sender,
        Moment { epoch: runtime.epoch, now, point: Point::FromOverlay },
        trace,
    )?;
    fragment::remember(packet)?;
    // Otherwise at the receiver's own hook.
    if parse::kept()?.service == Service::Answer && receiver.flags & endpoint_flags::PEER != 0 {
        service::show_answer(ctx)?;
    }
    deliver::to_endpoint(ctx, receiver, ifindex)
}

/// The VNI and the outer source.
#[inline(always)]
fn tunnel(ctx: &TcContext) -> Result<(u32, Address), Reason> {
    // SAFETY: a structure of integers.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let mut get = |flags: u64| {
        // SAFETY: the helper writes at most the key's bytes.
        unsafe {
            bpf_skb_get_tunnel_key(
                ctx.as_ptr().cast(),
                &raw mut key,
                size_of::<bpf_tunnel_key>() as u32,
                flags,
            ) == 0
        }
    };
    if get(0) {
        // SAFETY: all of the union's members are integers, and the kernel wrote this one.
        return Ok((key.tunnel_id, Address::from_v4(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be())));
    }
    if get(BPF_F_TUNINFO_IPV6.into()) {
        // SAFETY: as above.
        return Ok((key.tunnel_id, Address { words: unsafe { key.__bindgen_anon_1.remote_ipv6 } }));
    }
    Err(Reason::UnknownTunnelPeer)
}

/// The receiver by what is remembered of the packet's flow, and holds.
#[inline(always)]
fn remembered(
    packet: &Packet,
    entry: Option<Entry>,
    sender: &Peer,
    now: u64,
) -> Option<(&'static Endpoint, u32)> {
    let entry = entry?;
    let ends = entry.ends();
    let same_sender = ends.source.identity == sender.identity
        && ends.source.class == sender.class
        && ends.source.node == sender.node;
    if !same_sender || !entry.holds_for_nodes() {
        return None;
    }
    let receiver = verdict::own_endpoint(&ends.destination, &packet.destination).ok()?;
    if !entry.holds_for(receiver, &ends.destination) {
        return None;
    }
    entry.touch(packet, now);
    Some((receiver, ends.destination.ifindex))
}

#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    sender: &Peer,
    moment: Moment,
    trace: &mut Trace,
) -> Result<(&'static Endpoint, u32), Reason> {
    if let Some(receiver) = remembered(packet, entry, sender, moment.now) {
        return Ok(receiver);
    }
    let ends = Ends { source: *sender, destination: maps::peer_of(&packet.destination) };
    let receiver = verdict::own_endpoint(&ends.destination, &packet.destination)?;
    refuse_foreign_source(packet, sender)?;
    let hook = Hook { endpoint: Some(receiver), ifindex: ends.destination.ifindex };
    verdict::decide(ctx, packet, entry, &ends, hook, moment, trace)?;
    Ok((receiver, ends.destination.ifindex))
}

/// A node sends for addresses inside the pools only, and not for those that are known to be behind another.
#[inline(always)]
fn refuse_foreign_source(packet: &Packet, sender: &Peer) -> Result<(), Reason> {
    let known = maps::peer_of(&packet.source);
    let foreign = known.ifindex != 0 || (known.node != 0 && known.node != sender.node);
    if foreign || !in_pools(&known) { Err(Reason::Spoofed) } else { Ok(()) }
}
