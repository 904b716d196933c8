//! What crosses the node's uplinks: endpoints talk with the world and with other nodes here; the node's own traffic passes.

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{Class, Endpoint, Peer, Point, Reason};

use crate::{
    conntrack::{self, Ends, Entry},
    deliver,
    events::{Done, Trace},
    fragment,
    frame::{Frame, meta},
    maps,
    parse::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet},
    verdict::{self, Hook, Moment, in_pools},
};

#[inline(always)]
pub fn receive(
    ctx: &TcContext,
    seen: &mut Option<&'static Packet>,
    trace: &mut Trace,
) -> Result<Done, Reason> {
    let epoch = maps::runtime().epoch;
    let Some((frame, ethertype)) = internet(ctx)? else {
        return Ok(deliver::to_stack());
    };
    let (_, destination) = parse::addresses(&frame, ethertype)?;
    let to = maps::peer_of(&destination);
    if to.ifindex == 0 {
        return if in_pools(&to) { Err(Reason::NoEndpoint) } else { Ok(deliver::to_stack()) };
    }
    let receiver = verdict::own_endpoint(&to, &destination)?;
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    judge(ctx, packet, receiver, &to, epoch, trace)?;
    fragment::remember(packet)?;
    deliver::hop(ctx, packet.v6)?;
    deliver::to_endpoint(ctx, receiver, to.ifindex)
}

#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    receiver: &Endpoint,
    to: &Peer,
    epoch: u64,
    trace: &mut Trace,
) -> Result<(), Reason> {
    let now = conntrack::now();
    let entry = Entry::of(packet, conntrack::find_kept(packet, now));
    if let Some(entry) = entry {
        let ends = entry.ends();
        if ends.destination.ifindex == to.ifindex
            && may_come_by_uplink(&ends.source)
            && entry.holds_for(receiver, &ends.destination)
            && entry.holds_for_nodes()
        {
            entry.touch(packet, now);
            return Ok(());
        }
    }
    let destination =
        Peer { identity: receiver.identity, class: Class::Fleet as u32, node: 0, ifindex: to.ifindex };
    let ends = Ends { source: maps::peer_of(&packet.source), destination };
    trace.source_identity = ends.source.identity;
    if in_pools(&ends.source) {
        return Err(Reason::PoolSourceOutsideOverlay);
    }
    // The node itself does not send through its uplinks to itself, and is trusted.
    if !may_come_by_uplink(&ends.source) {
        return Err(Reason::Spoofed);
    }
    let hook = Hook { endpoint: Some(receiver), ifindex: to.ifindex };
    verdict::decide(ctx, packet, entry, &ends, hook, Moment { epoch, now, point: Point::FromUplink }, trace)
}

#[inline(always)]
fn may_come_by_uplink(source: &Peer) -> bool {
    !in_pools(source) && source.class != Class::Host as u32
}

/// Endpoints' addresses leave only for the world, and only from their endpoint.
#[inline(always)]
pub fn send(ctx: &TcContext) -> Result<Done, Reason> {
    let Some((frame, ethertype)) = internet(ctx)? else {
        return Ok(deliver::to_stack());
    };
    let (source, destination) = parse::addresses(&frame, ethertype)?;
    let from = maps::peer_of(&source);
    if in_pools(&from) && from.ifindex == 0 {
        return Err(Reason::Spoofed);
    }
    if in_pools(&maps::peer_of(&destination)) {
        return Err(Reason::NoRoute);
    }
    Ok(deliver::to_stack())
}

/// The frame, if it is IP. What is tagged belongs to a VLAN's own device.
#[inline(always)]
fn internet(ctx: &TcContext) -> Result<Option<(Frame, u16)>, Reason> {
    let frame = Frame::with_headers(ctx);
    if meta(ctx).vlan_present != 0 {
        return Ok(None);
    }
    Ok(match parse::ethertype(&frame)? {
        ETHERTYPE_IPV4 => Some((frame, ETHERTYPE_IPV4)),
        ETHERTYPE_IPV6 => Some((frame.with_headers_v6(ctx), ETHERTYPE_IPV6)),
        _ => None,
    })
}
