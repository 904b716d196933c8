//! What a workload sends.

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{Class, Endpoint, Peer, Point, Reason, endpoint_flags};

use crate::{
    bandwidth,
    conntrack::{self, Ends, Entry, Looked},
    deliver,
    events::{Done, Trace},
    forge, fragment,
    frame::{Frame, meta},
    maps, neighbour,
    parse::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Service},
    plain, reject,
    service::{self, Side},
    verdict::{self, Hook, Moment, has_address, in_pools},
};

#[inline(always)]
pub fn run(ctx: &TcContext, seen: &mut Option<&'static Packet>, trace: &mut Trace) -> Result<Done, Reason> {
    let epoch = maps::runtime().epoch;
    let ifindex = meta(ctx).ifindex;
    let endpoint = maps::endpoint(ifindex).ok_or(Reason::UnknownEndpoint)?;
    trace.source_identity = endpoint.identity;
    if endpoint.flags & endpoint_flags::OPEN == 0 {
        return Err(Reason::EndpointInit);
    }
    let frame = Frame::with_headers(ctx);
    if frame.read::<[u16; 3]>(6)? != deliver::halves(endpoint.mac) {
        return Err(Reason::Spoofed);
    }
    let ethertype = match parse::ethertype(&frame)? {
        // A tag, which the kernel took out of the frame, would come back on the way out.
        _ if meta(ctx).vlan_present != 0 => return Err(Reason::UnknownEtherType),
        ETHERTYPE_ARP => return neighbour::arp(ctx, &frame, endpoint),
        ethertype @ (ETHERTYPE_IPV4 | ETHERTYPE_IPV6) => ethertype,
        _ => return Err(Reason::UnknownEtherType),
    };
    let frame = if ethertype == ETHERTYPE_IPV6 { frame.with_headers_v6(ctx) } else { frame };
    let now = conntrack::now();
    let looked;
    let packet = match plain::packet(ctx, &frame, ethertype) {
        Some(packet) => {
            looked = conntrack::find(&packet, now);
            let entry = looked.entry();
            if let Some((to, receiver)) = pass(&frame, &packet, entry, endpoint, ifindex, now) {
                if entry.is_some_and(|entry| entry.answers_for_service()) {
                    *seen = Some(packet.keep_answer()?);
                }
                let sent = send(ctx, &packet, endpoint, &to, receiver, seen);
                if sent.is_err() {
                    *seen = Some(packet.keep()?);
                }
                return sent;
            }
            &*packet.keep()?
        }
        None => {
            let packet = parse::packet(ctx, ethertype)?;
            *seen = Some(packet);
            if neighbour::is_discovery(packet) {
                return neighbour::discovery(ctx, packet, endpoint);
            }
            looked = Looked::unless_opens(packet);
            packet
        }
    };
    *seen = Some(packet);
    // Anew, because what was known of the other is in the verifier's way.
    let frame = Frame::of(ctx);
    forge::refuse_destination(&frame, packet)?;
    forge::refuse_source(endpoint, packet)?;
    forge::refuse_encapsulation(packet)?;
    let flow = looked.or_anywhere(packet, now);
    let Some(flow) = service::called(ctx, packet, flow, Side::INSIDE, now)? else {
        return reject(ctx, endpoint, ifindex);
    };
    let packet = &*parse::kept()?;
    let (to, receiver) = judge(
        ctx,
        packet,
        Entry::of(packet, flow),
        endpoint,
        ifindex,
        Moment { epoch, now, point: Point::FromEndpoint },
        trace,
    )?;
    fragment::remember(packet)?;
    service::remember(packet)?;
    send(ctx, packet, endpoint, &to, receiver, seen)
}

#[inline(always)]
fn reject(ctx: &TcContext, endpoint: &Endpoint, ifindex: u32) -> Result<Done, Reason> {
    reject::over(ctx)?;
    let sent = deliver::to_endpoint(ctx, endpoint, ifindex)?;
    Ok(Done { reason: Reason::ServiceRejected, ..sent })
}

/// Where a plain packet goes by what is remembered of its flow, with the receiving endpoint if it is of this node. `None`:
/// nothing is remembered that holds, or there is more to look at.
#[inline(always)]
fn pass(
    frame: &Frame,
    packet: &Packet,
    entry: Option<Entry>,
    endpoint: &'static Endpoint,
    ifindex: u32,
    now: u64,
) -> Option<(Peer, Option<&'static Endpoint>)> {
    if has_address(endpoint, &packet.source) && plain::may_be_sent(frame, packet) {
        remembered(packet, entry, endpoint, ifindex, now)
    } else {
        None
    }
}

/// Where a packet goes by what is remembered of its flow, and holds.
#[inline(always)]
fn remembered(
    packet: &Packet,
    entry: Option<Entry>,
    endpoint: &'static Endpoint,
    ifindex: u32,
    now: u64,
) -> Option<(Peer, Option<&'static Endpoint>)> {
    let entry = entry?;
    if entry.is_strange_to_service(packet) {
        return None;
    }
    let ends = entry.ends();
    let holds = ends.source.ifindex == ifindex
        && entry.holds_for(endpoint, &ends.source)
        && entry.holds_for_nodes()
        && entry.holds_for_host(&ends);
    if !holds {
        return None;
    }
    let receiver = match ends.destination.ifindex {
        0 => None,
        // What it sends itself, by way of a service whose address may be the packet's destination.
        own if own == ifindex => Some(endpoint),
        _ => Some(still_there(packet, &entry, &ends.destination)?),
    };
    entry.touch(packet, now).then_some((ends.destination, receiver))
}

/// Where a packet goes after its flow was allowed, with the receiving endpoint where it was looked up on the way.
#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    endpoint: &'static Endpoint,
    ifindex: u32,
    moment: Moment,
    trace: &mut Trace,
) -> Result<(Peer, Option<&'static Endpoint>), Reason> {
    if let Some(to) = remembered(packet, entry, endpoint, ifindex, moment.now) {
        return Ok(to);
    }
    let ends = Ends {
        source: Peer { identity: endpoint.identity, class: Class::Fleet as u32, node: 0, ifindex },
        destination: maps::peer_of(&packet.destination),
    };
    let known = entry.and_then(|entry| entry.state());
    verdict::decide(ctx, packet, known, &ends, Hook { endpoint: Some(endpoint), ifindex }, moment, trace)?;
    Ok((ends.destination, None))
}

/// The receiving endpoint of this node, if it is still who the flow's verdict was given for.
#[inline(always)]
fn still_there(packet: &Packet, entry: &Entry, remembered: &Peer) -> Option<&'static Endpoint> {
    let receiver = maps::endpoint(remembered.ifindex)?;
    (has_address(receiver, &packet.destination) && entry.holds_for(receiver, remembered)).then_some(receiver)
}

#[inline(always)]
fn send(
    ctx: &TcContext,
    packet: &Packet,
    endpoint: &Endpoint,
    to: &Peer,
    receiver: Option<&'static Endpoint>,
    seen: &Option<&'static Packet>,
) -> Result<Done, Reason> {
    bandwidth::sent(ctx, endpoint, to.ifindex)?;
    // Of the others, those that need no look are not kept.
    let answers = || seen.is_some() && parse::kept().is_ok_and(|packet| packet.service == Service::Answer);
    if to.ifindex != 0 {
        let receiver = match receiver {
            Some(receiver) if receiver.flags & endpoint_flags::OPEN != 0 => receiver,
            Some(_) => return Err(Reason::EndpointInit),
            None => verdict::own_endpoint(to, &packet.destination)?,
        };
        // Otherwise at the receiver's own hook, which it finds by its own address alone.
        let here = || receiver.flags & endpoint_flags::PEER != 0 || to.ifindex == meta(ctx).ifindex;
        if answers() && here() {
            service::show_answer(ctx)?;
        }
        deliver::hop(ctx, packet.v6)?;
        return deliver::to_endpoint(ctx, receiver, to.ifindex);
    }
    // What is another node's own, by an address that the fleet knows, goes through the overlay like its endpoints'; not where that
    // node has called a service from outside.
    if !in_pools(to) && (to.class != Class::RemoteNode as u32 || answers()) {
        if answers() {
            service::refuse_forgotten(ctx)?;
        }
        return Ok(deliver::to_stack());
    }
    if to.node == 0 {
        return Err(Reason::NoEndpoint);
    }
    deliver::hop(ctx, packet.v6)?;
    deliver::to_overlay(ctx, to.node, endpoint.identity)
}
