//! What a workload sends.

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{Class, Endpoint, Peer, Point, Reason, endpoint_flags};

use crate::{
    conntrack::{self, Ends, Entry},
    deliver,
    events::{Done, Trace},
    forge, fragment,
    frame::{Frame, meta},
    maps, neighbour,
    parse::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet},
    verdict::{self, Moment, has_address, in_pools},
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
    let network = parse::network(ctx, &frame, ethertype)?;
    let packet = parse::packet(ctx, &frame, &network)?;
    *seen = Some(packet);
    if neighbour::is_discovery(packet) {
        return neighbour::discovery(ctx, packet, endpoint);
    }
    forge::refuse_destination(&frame, packet)?;
    forge::refuse_source(endpoint, packet)?;
    forge::refuse_encapsulation(packet)?;
    let (ends, receiver) = judge(ctx, packet, endpoint, ifindex, epoch, trace)?;
    fragment::remember(packet)?;
    send(ctx, packet, endpoint, &ends.destination, receiver)
}

/// Who is at both ends, after the flow was allowed; with the receiving endpoint where it was looked up on the way.
#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    endpoint: &'static Endpoint,
    ifindex: u32,
    epoch: u64,
    trace: &mut Trace,
) -> Result<(Ends, Option<&'static Endpoint>), Reason> {
    let now = conntrack::now();
    let (key, high) = conntrack::key(packet);
    let entry = conntrack::find(packet, &key, high, now);
    if let Some(entry) = entry {
        let ends = entry.ends();
        if ends.source.ifindex == ifindex
            && entry.holds_for(endpoint, &ends.source)
            && entry.holds_for_nodes()
        {
            if ends.destination.ifindex == 0 {
                entry.touch(packet, now);
                return Ok((ends, None));
            }
            if let Some(receiver) = still_there(packet, &entry, &ends.destination) {
                entry.touch(packet, now);
                return Ok((ends, Some(receiver)));
            }
        }
    }
    let ends = Ends {
        source: Peer { identity: endpoint.identity, class: Class::Fleet as u32, node: 0, ifindex },
        destination: maps::peer_of(&packet.destination),
    };
    verdict::decide(ctx, packet, entry, &ends, Moment { epoch, now, point: Point::FromEndpoint }, trace)?;
    Ok((ends, None))
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
) -> Result<Done, Reason> {
    if to.ifindex != 0 {
        let receiver = match receiver {
            Some(receiver) if receiver.flags & endpoint_flags::OPEN != 0 => receiver,
            Some(_) => return Err(Reason::EndpointInit),
            None => verdict::own_endpoint(to, &packet.destination)?,
        };
        deliver::hop(ctx, packet.v6)?;
        return deliver::to_endpoint(ctx, receiver, to.ifindex);
    }
    if !in_pools(to) {
        return Ok(deliver::to_stack());
    }
    if to.node == 0 {
        return Err(Reason::NoEndpoint);
    }
    deliver::hop(ctx, packet.v6)?;
    deliver::to_overlay(ctx, to.node, endpoint.identity)
}
