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
    fragment, host,
    maps::{self, NODES},
    parse::{self, Packet, Service},
    route, service, snat,
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
    let ethertype = parse::untagged_ip(ctx)?;
    let sender = sender(identity, node)?;
    let now = conntrack::now();
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    if answers_outside(ctx, packet) {
        refuse_foreign_source(packet, &sender)?;
        fragment::remember(packet)?;
        service::show_answer(ctx)?;
        return route::out(ctx);
    }
    let entry = Entry::of(packet, conntrack::find_kept(packet, now));
    service::mark_answer(packet, entry)?;
    let packet = &*parse::kept()?;
    let receiver = judge(
        ctx,
        packet,
        entry,
        &sender,
        Moment { epoch: runtime.epoch, now, point: Point::FromOverlay },
        trace,
    )?;
    fragment::remember(packet)?;
    match receiver {
        Receiver::Endpoint(endpoint, ifindex) => {
            // Otherwise at the receiver's own hook.
            if parse::kept()?.service == Service::Answer && endpoint.flags & endpoint_flags::PEER != 0 {
                service::show_answer(ctx)?;
            }
            deliver::to_endpoint(ctx, endpoint, ifindex)
        }
        Receiver::Host => deliver::to_host(ctx),
    }
}

/// Whether a backend behind another node answers, or tells of a question, that this node has sent it for a client outside.
#[inline(always)]
fn answers_outside(ctx: &TcContext, packet: &Packet) -> bool {
    (packet.is_icmp() || snat::is_port(packet.destination_port))
        && service::any()
        && maps::peer_of(&packet.destination).class == Class::Host as u32
        && service::answers_outside(ctx, packet)
}

/// Who the packet is for.
#[derive(Clone, Copy)]
enum Receiver {
    /// With the interface of its host's side.
    Endpoint(&'static Endpoint, u32),
    Host,
}

/// An endpoint of the node in a slot, or the node itself: no endpoint has the identity of a node.
#[inline(always)]
fn sender(identity: u32, slot: u32) -> Result<Peer, Reason> {
    let node = NODES.get(slot).ok_or(Reason::UnknownTunnelPeer)?;
    let class = if node.identity == identity { Class::RemoteNode } else { Class::Fleet };
    Ok(Peer { identity, class: class as u32, node: slot, ifindex: 0 })
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
    entry.touch(packet, now).then_some((receiver, ends.destination.ifindex))
}

#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    sender: &Peer,
    moment: Moment,
    trace: &mut Trace,
) -> Result<Receiver, Reason> {
    if let Some((receiver, ifindex)) = remembered(packet, entry, sender, moment.now) {
        return Ok(Receiver::Endpoint(receiver, ifindex));
    }
    let ends = Ends { source: *sender, destination: maps::peer_of(&packet.destination) };
    let receiver = receiver(packet, &ends)?;
    refuse_foreign_source(packet, sender)?;
    let hook = match receiver {
        Receiver::Endpoint(endpoint, ifindex) => Hook { endpoint: Some(endpoint), ifindex },
        Receiver::Host if host::passes(packet, entry, &ends, moment.now) => return Ok(receiver),
        Receiver::Host => Hook::NONE,
    };
    let known = entry.and_then(|entry| entry.state());
    verdict::decide(ctx, packet, known, &ends, hook, moment, trace)?;
    Ok(receiver)
}

/// The node itself hears of endpoints alone: nodes talk with each other outside of the overlay.
#[inline(always)]
fn receiver(packet: &Packet, ends: &Ends) -> Result<Receiver, Reason> {
    if ends.destination.class != Class::Host as u32 {
        let endpoint = verdict::own_endpoint(&ends.destination, &packet.destination)?;
        return Ok(Receiver::Endpoint(endpoint, ends.destination.ifindex));
    }
    if in_pools(&ends.source) { Ok(Receiver::Host) } else { Err(Reason::Spoofed) }
}

/// A node sends for itself, and for addresses inside the pools; not for those that are known to be behind another.
#[inline(always)]
fn refuse_foreign_source(packet: &Packet, sender: &Peer) -> Result<(), Reason> {
    const REMOTE_NODE: u32 = Class::RemoteNode as u32;
    let known = maps::peer_of(&packet.source);
    let a_nodes = known.class == REMOTE_NODE;
    let elsewhere = known.node != sender.node && (known.node != 0 || a_nodes);
    let foreign = known.ifindex != 0 || elsewhere;
    if foreign || !(a_nodes || in_pools(&known)) {
        return Err(Reason::Spoofed);
    }
    // The labels of a node have changed, and not everybody knows yet; or somebody pretends.
    if a_nodes != (sender.class == REMOTE_NODE) { Err(Reason::WrongNodeIdentity) } else { Ok(()) }
}
