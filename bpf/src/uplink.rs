//! What crosses the node's uplinks: endpoints talk with the world and with other nodes here; so does the node itself, which
//! is judged where host policies select it (see `host`).

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weft_shared::layout::{Class, Endpoint, FIRST_GLOBAL_IDENTITY, Peer, Point, Reason, endpoint_flags};

use crate::{
    conntrack::{self, Ends, Entry, Found, forgotten},
    decapsulate, deliver,
    events::{Done, Trace},
    fragment,
    frame::{Frame, meta},
    host,
    maps::{self, NODES},
    parse::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, Packet, Service},
    plain, reject, route,
    service::{self, Side, direct},
    snat,
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
    let to = maps::peer_of(&parse::addresses(&frame, ethertype)?.1);
    let now = conntrack::now();
    let flow = if to.ifindex == 0 {
        if in_pools(&to) {
            return Err(Reason::NoEndpoint);
        }
        match call(ctx, ethertype, &to, Moment { epoch, now, point: Point::FromUplink }, seen, trace)? {
            Turn::Deliver(flow) => flow,
            Turn::Done(done) => return Ok(done),
            Turn::Nobodys => {
                // Read again: the stack has no room to keep them meanwhile.
                let (source, destination) = parse::addresses(&Frame::of(ctx), ethertype)?;
                let own = host::is_receiver(ctx, &to, &destination, ethertype == ETHERTYPE_IPV6);
                if runtime.host == 0 || !own {
                    return Ok(deliver::to_stack());
                }
                return host::receive(ctx, ethertype, &maps::peer_of(&source), &to, epoch, seen, trace);
            }
        }
    } else {
        // Judged on its way through the stack.
        if meta(ctx).vlan_present != 0 {
            return Ok(deliver::to_stack());
        }
        let packet = parse::packet(ctx, ethertype)?;
        *seen = Some(packet);
        let flow = conntrack::find_kept(packet, now);
        let entry = Entry::of(packet, flow);
        service::refuse_strange(packet, entry)?;
        service::mark_answer(packet, entry)?;
        flow
    };
    let packet = &*parse::kept()?;
    let entry = Entry::of(packet, flow);
    let to = if to.ifindex == 0 { maps::peer_of(&packet.destination) } else { to };
    deliver(ctx, packet, entry, &to, Moment { epoch, now, point: Point::FromUplink }, trace)
}

/// What becomes of a packet that is for no endpoint of this node as it comes.
enum Turn {
    /// It is for one now, which a service has as its backend.
    Deliver(Option<Found>),
    /// It goes on.
    Done(Done),
    /// It calls no service.
    Nobodys,
}

/// Whether the packet may call a service, or answer a call; none does that carries a tag.
#[inline(always)]
fn may_call(ctx: &TcContext, ethertype: u16) -> bool {
    service::any() && meta(ctx).vlan_present == 0 && may_be_served(ctx.skb.skb, ethertype.into()) != 0
}

/// A function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn may_be_served(skb: *mut __sk_buff, ethertype: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let plain = plain::packet(ctx, &Frame::of(ctx), ethertype as u16);
    plain.is_none_or(|plain| service::may_be_called(&plain) || snat::is_port(plain.destination_port)).into()
}

/// Whom the packet calls, itself or what another node has sent on in it.
#[inline(always)]
fn call(
    ctx: &TcContext,
    ethertype: u16,
    to: &Peer,
    moment: Moment,
    seen: &mut Option<&'static Packet>,
    trace: &mut Trace,
) -> Result<Turn, Reason> {
    let inside = decapsulate::inside(ctx, ethertype, to)?;
    if inside.is_none() && !may_call(ctx, ethertype) {
        return Ok(Turn::Nobodys);
    }
    // The verifier need not know which of the two it is.
    let ethertype = forgotten(inside.as_ref().map_or(ethertype, |inside| inside.ethertype).into()) as u16;
    let side = Side::OUTSIDE.or_forwarded(inside.map(|inside| inside.mark));
    // What another node sent on is for an endpoint, or for nobody.
    let nobodys = if side.is_forwarded() { Err(Reason::NoEndpoint) } else { Ok(Turn::Nobodys) };
    // What can't be read is what it is without services.
    let Ok(packet) = parse::packet(ctx, ethertype) else { return nobodys };
    let Some(flow) = service::called(ctx, packet, None, side, moment.now)? else {
        return reject(ctx).map(Turn::Done);
    };
    let packet = &*parse::kept()?;
    if packet.service == Service::No {
        return nobodys;
    }
    *seen = Some(packet);
    let from = maps::peer_of(&packet.source);
    // Out of the overlay nobody vouches for such a source.
    if in_pools(&from) {
        return Err(Reason::PoolSourceOutsideOverlay);
    }
    let to = maps::peer_of(&packet.destination);
    match packet.service {
        // Of a backend outside of the fleet.
        Service::Answer => {
            fragment::remember(packet)?;
            service::show_answer(ctx)?;
        }
        Service::Elsewhere if !may_come_by_uplink(&from) => return Err(Reason::Spoofed),
        Service::Elsewhere if direct::is_meant() => return direct::send(ctx, moment.now).map(Turn::Done),
        Service::Elsewhere => leave(ctx, packet, from, moment, trace)?,
        // An error about what such a one has answered.
        _ if to.ifindex == 0 && packet.is_icmp() => {}
        _ => return Ok(Turn::Deliver(flow)),
    }
    send_on(ctx).map(Turn::Done)
}

/// A question to a backend that is not on this node: the node's own policy judges the client, as if it called the node.
#[inline(always)]
fn leave(
    ctx: &TcContext,
    packet: &'static Packet,
    from: Peer,
    moment: Moment,
    trace: &mut Trace,
) -> Result<(), Reason> {
    if maps::runtime().host != 0 {
        parse::kept()?.service = Service::No;
        let to = maps::peer_of(&packet.destination);
        let destination = if to.class == Class::Host as u32 { to } else { host::nameless(Class::Host) };
        let ends = service::ends()?;
        (ends.source, ends.destination) = (from, destination);
        host::judge(ctx, packet, ends, moment.epoch, trace)?;
    }
    service::leave(ctx, moment.now)
}

/// The packet in hand is the node's own now, or for a client: to an endpoint of another node, or out of the fleet.
#[inline(always)]
fn send_on(ctx: &TcContext) -> Result<Done, Reason> {
    let to = maps::peer_of(&parse::kept()?.destination);
    if !in_pools(&to) {
        return route::out(ctx);
    }
    let own = NODES.get(0).ok_or(Reason::KernelError)?.identity;
    if to.node == 0 || own < FIRST_GLOBAL_IDENTITY {
        return Err(Reason::ServiceElsewhere);
    }
    deliver::hop(ctx, parse::kept()?.v6)?;
    deliver::to_overlay(ctx, to.node, own)
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
            && entry.touch(packet, moment.now)
        {
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
    let known = entry.and_then(|entry| entry.state());
    verdict::decide(ctx, packet, known, &ends, hook, moment, trace)
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
