//! What crosses the node's uplinks: endpoints talk with the world and with other nodes here; so does the node itself, which
//! is judged where host policies select it (see `host`).

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{Class, Endpoint, Peer, Point, Reason, endpoint_flags};

use crate::{
    conntrack::{self, Ends, Entry, forgotten},
    decapsulate, deliver,
    events::{Done, Trace},
    fragment,
    frame::{Frame, meta},
    host, maps,
    parse::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, Packet, Service},
    plain, reject,
    service::{self, Side},
    verdict::{self, Hook, Moment, in_pools},
};

#[inline(always)]
pub fn receive(
    ctx: &TcContext,
    seen: &mut Option<&'static Packet>,
    trace: &mut Trace,
) -> Result<Done, Reason> {
    let runtime = maps::runtime();
    let epoch = runtime.epoch;
    let Some((frame, ethertype)) = internet(ctx, runtime.host != 0)? else {
        return Ok(deliver::to_stack());
    };
    let (source, destination) = parse::addresses(&frame, ethertype)?;
    let to = maps::peer_of(&destination);
    if to.ifindex == 0 {
        if in_pools(&to) {
            return Err(Reason::NoEndpoint);
        }
        let inside = decapsulate::inside(ctx, ethertype, &to)?;
        if inside.is_some() || may_call(ctx, &Frame::of(ctx), ethertype) {
            // The verifier need not know which of the two it is.
            let ethertype =
                forgotten(inside.as_ref().map_or(ethertype, |inside| inside.ethertype).into()) as u16;
            let side = Side::OUTSIDE.or_forwarded(inside.map(|inside| inside.mark));
            if let Some(done) = call(ctx, ethertype, side, epoch, seen, trace)? {
                return Ok(done);
            }
            // What another node sent on is for an endpoint, or for nobody.
            if side.is_forwarded() {
                return Err(Reason::NoEndpoint);
            }
        }
        if runtime.host == 0 || !host::is_receiver(ctx, &to, &destination, ethertype == ETHERTYPE_IPV6) {
            return Ok(deliver::to_stack());
        }
        return host::receive(ctx, ethertype, &maps::peer_of(&source), &to, epoch, seen, trace);
    }
    // Judged on its way through the stack.
    if meta(ctx).vlan_present != 0 {
        return Ok(deliver::to_stack());
    }
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    let now = conntrack::now();
    let entry = Entry::of(packet, conntrack::find_kept(packet, now));
    service::refuse_strange(packet, entry)?;
    service::mark_answer(packet, entry)?;
    let packet = &*parse::kept()?;
    deliver(ctx, packet, entry, &to, Moment { epoch, now, point: Point::FromUplink }, trace)
}

/// Whether the packet may call a service; none does that carries a tag.
#[inline(always)]
fn may_call(ctx: &TcContext, frame: &Frame, ethertype: u16) -> bool {
    let plain = plain::packet(ctx, frame, ethertype);
    service::any() && meta(ctx).vlan_present == 0 && plain.is_none_or(|plain| service::may_be_called(&plain))
}

/// What becomes of a packet that calls a service; `None`: it calls none.
#[inline(always)]
fn call(
    ctx: &TcContext,
    ethertype: u16,
    side: Side,
    epoch: u64,
    seen: &mut Option<&'static Packet>,
    trace: &mut Trace,
) -> Result<Option<Done>, Reason> {
    // What can't be read is what it is without services.
    let Ok(packet) = parse::packet(ctx, ethertype) else { return Ok(None) };
    let now = conntrack::now();
    let Some(flow) = service::called(ctx, packet, None, side, now)? else {
        return reject(ctx).map(Some);
    };
    let packet = &*parse::kept()?;
    if packet.service != Service::Question {
        return Ok(None);
    }
    *seen = Some(packet);
    let entry = Entry::of(packet, flow);
    let to = maps::peer_of(&packet.destination);
    if to.ifindex == 0 {
        return Err(Reason::ServiceElsewhere);
    }
    deliver(ctx, packet, entry, &to, Moment { epoch, now, point: Point::FromUplink }, trace).map(Some)
}

/// By where the packet came from.
#[inline(always)]
fn reject(ctx: &TcContext) -> Result<Done, Reason> {
    let macs: [[u16; 3]; 2] = Frame::of(ctx).read(0)?;
    reject::over(ctx)?;
    Frame::of(ctx).write(0, [macs[1], macs[0]])?;
    let sent = deliver::back(meta(ctx).ifindex)?;
    Ok(Done { reason: Reason::ServiceRejected, ..sent })
}

/// To an endpoint of this node, if its policy allows.
#[inline(always)]
fn deliver(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    to: &Peer,
    moment: Moment,
    trace: &mut Trace,
) -> Result<Done, Reason> {
    let receiver = verdict::own_endpoint(to, &packet.destination)?;
    judge(ctx, packet, entry, receiver, to, moment, trace)?;
    fragment::remember(packet)?;
    service::remember(packet)?;
    if parse::kept()?.service == Service::Answer && receiver.flags & endpoint_flags::PEER != 0 {
        service::show_answer(ctx)?;
    }
    deliver::hop(ctx, packet.v6)?;
    deliver::to_endpoint(ctx, receiver, to.ifindex)
}

#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    receiver: &Endpoint,
    to: &Peer,
    moment: Moment,
    trace: &mut Trace,
) -> Result<(), Reason> {
    if let Some(entry) = entry {
        let ends = entry.ends();
        if ends.destination.ifindex == to.ifindex
            && may_come_by_uplink(&ends.source)
            && entry.holds_for(receiver, &ends.destination)
            && entry.holds_for_nodes()
        {
            entry.touch(packet, moment.now);
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
    verdict::decide(ctx, packet, entry, &ends, hook, moment, trace)
}

#[inline(always)]
fn may_come_by_uplink(source: &Peer) -> bool {
    !in_pools(source) && source.class != Class::Host as u32
}

/// Endpoints' addresses leave only for the world, and only from their endpoint.
#[inline(always)]
pub fn send(ctx: &TcContext, seen: &mut Option<&'static Packet>, trace: &mut Trace) -> Result<Done, Reason> {
    let runtime = maps::runtime();
    let Some((frame, ethertype)) = internet(ctx, runtime.host != 0)? else {
        return Ok(deliver::to_stack());
    };
    let (source, destination) = parse::addresses(&frame, ethertype)?;
    let from = maps::peer_of(&source);
    if in_pools(&from) && from.ifindex == 0 {
        return Err(Reason::Spoofed);
    }
    let to = maps::peer_of(&destination);
    if in_pools(&to) {
        return Err(Reason::NoRoute);
    }
    if in_pools(&from) && service::any() {
        return show_answer(ctx, ethertype, seen);
    }
    if runtime.host == 0 || in_pools(&from) || !host::is_sender(ctx, &from) {
        return Ok(deliver::to_stack());
    }
    host::send(ctx, ethertype, &from, &to, runtime.epoch, seen, trace)
}

/// What an endpoint of this node says to somebody outside, who may have called a service.
#[inline(always)]
fn show_answer(ctx: &TcContext, ethertype: u16, seen: &mut Option<&'static Packet>) -> Result<Done, Reason> {
    // What can't be read is no answer: its endpoint's hook has read it.
    if let Ok(packet) = parse::packet(ctx, ethertype)
        && service::answers_outside(ctx, packet)
    {
        *seen = Some(packet);
        fragment::remember(packet)?;
        service::show_answer(ctx)?;
    }
    Ok(deliver::to_stack())
}

/// The frame, if it is IP. What is tagged belongs to a VLAN's own device; but a tag of no VLAN (IEEE 802.1Q: VLAN 0 is a
/// priority alone) is taken off by the stack, so that where the node is judged, what is behind it is looked at, and a
/// second tag behind it is refused.
#[inline(always)]
fn internet(ctx: &TcContext, host_is_judged: bool) -> Result<Option<(Frame, u16)>, Reason> {
    const VLAN: u32 = 0x0fff;
    let frame = Frame::with_headers(ctx);
    let tagged = meta(ctx).vlan_present != 0;
    if tagged && (!host_is_judged || meta(ctx).vlan_tci & VLAN != 0) {
        return Ok(None);
    }
    Ok(match parse::ethertype(&frame)? {
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN if tagged => return Err(Reason::UnknownEtherType),
        ETHERTYPE_IPV4 => Some((frame, ETHERTYPE_IPV4)),
        ETHERTYPE_IPV6 => Some((frame.with_headers_v6(ctx), ETHERTYPE_IPV6)),
        _ => None,
    })
}
