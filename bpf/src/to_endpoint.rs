//! What the node's stack, or a redirect to the host's side, has for a workload.

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{Class, Endpoint, Peer, Point, Reason, endpoint_flags};

use crate::{
    bandwidth,
    conntrack::{self, Ends, Entry, Looked},
    deliver,
    events::{Done, TC_ACT_OK, Trace},
    fragment,
    frame::{Frame, meta},
    maps, neighbour,
    parse::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Service},
    plain, service,
    verdict::{self, Hook, Moment, has_address, in_pools},
};

#[inline(always)]
pub fn run(ctx: &TcContext, seen: &mut Option<&'static Packet>, trace: &mut Trace) -> Result<Done, Reason> {
    let epoch = maps::runtime().epoch;
    let ifindex = meta(ctx).ifindex;
    let endpoint = maps::endpoint(ifindex).ok_or(Reason::UnknownEndpoint)?;
    trace.destination_identity = endpoint.identity;
    if endpoint.flags & endpoint_flags::OPEN == 0 {
        return Err(Reason::EndpointInit);
    }
    let frame = Frame::with_headers(ctx);
    // Our own answer to this very workload, on its way back (see `neighbour`).
    let answered = meta(ctx).ingress_ifindex == ifindex;
    let ethertype = match parse::ethertype(&frame)? {
        ETHERTYPE_ARP if answered => return Ok(Done { reason: Reason::NeighbourAnswered, code: TC_ACT_OK }),
        // The host knows the workload's MAC without asking.
        ETHERTYPE_ARP => return Err(Reason::NeighbourIgnored),
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
            if has_address(endpoint, &packet.destination)
                && remembered(ctx, &packet, entry, endpoint, ifindex, now)
            {
                if entry.is_some_and(|entry| entry.answers_for_service()) {
                    *seen = Some(packet.keep()?);
                    service::show_answer(ctx)?;
                }
                return deliver(ctx, endpoint);
            }
            &*packet.keep()?
        }
        None => {
            let packet = parse::packet(ctx, ethertype)?;
            *seen = Some(packet);
            if neighbour::is_discovery(packet) {
                if answered {
                    return Ok(Done { reason: Reason::NeighbourAnswered, code: TC_ACT_OK });
                }
                return Err(Reason::NeighbourIgnored);
            }
            looked = Looked::unless_opens(packet);
            packet
        }
    };
    *seen = Some(packet);
    let entry = Entry::of(packet, looked.or_anywhere(packet, now));
    if !has_address(endpoint, &packet.destination) {
        let [first, _] = Frame::of(ctx).read::<[u8; 2]>(0)?;
        return Err(if first & 1 != 0 { Reason::Multicast } else { Reason::NoEndpoint });
    }
    // Nobody else sends an endpoint back what it sent itself, from another's address: a service refuses, or is itself the backend.
    if answered && !has_address(endpoint, &packet.source) {
        return deliver(ctx, endpoint);
    }
    service::mark_answer(packet, entry)?;
    let packet = &*parse::kept()?;
    judge(ctx, packet, entry, endpoint, ifindex, Moment { epoch, now, point: Point::ToEndpoint }, trace)?;
    fragment::remember(packet)?;
    if parse::kept()?.service == Service::Answer {
        service::show_answer(ctx)?;
    }
    deliver(ctx, endpoint)
}

#[inline(always)]
fn deliver(ctx: &TcContext, endpoint: &Endpoint) -> Result<Done, Reason> {
    bandwidth::received(ctx, endpoint, meta(ctx).ifindex)?;
    deliver::set_macs(ctx, endpoint)?;
    Ok(Done { reason: Reason::DeliveredLocal, code: TC_ACT_OK })
}

/// Whether a packet may pass by what is remembered of its flow, and holds.
#[inline(always)]
fn remembered(
    ctx: &TcContext,
    packet: &Packet,
    entry: Option<Entry>,
    endpoint: &Endpoint,
    ifindex: u32,
    now: u64,
) -> bool {
    let Some(entry) = entry else { return false };
    let ends = entry.ends();
    ends.destination.ifindex == ifindex
        && came_by_its_way(ctx, &ends.source)
        && entry.holds_for(endpoint, &ends.destination)
        && entry.holds_for_nodes()
        && entry.holds_for_host(&ends)
        && sender_holds(packet, &entry, &ends.source)
        && entry.touch(packet, now)
}

#[inline(always)]
fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    endpoint: &Endpoint,
    ifindex: u32,
    moment: Moment,
    trace: &mut Trace,
) -> Result<(), Reason> {
    if remembered(ctx, packet, entry, endpoint, ifindex, moment.now) {
        return Ok(());
    }
    let ends = Ends {
        source: maps::peer_of(&packet.source),
        destination: Peer { identity: endpoint.identity, class: Class::Fleet as u32, node: 0, ifindex },
    };
    trace.source_identity = ends.source.identity;
    if !came_by_its_way(ctx, &ends.source) {
        return Err(Reason::PoolSourceOutsideOverlay);
    }
    let known = entry.and_then(|entry| entry.state());
    verdict::decide(ctx, packet, known, &ends, Hook { endpoint: Some(endpoint), ifindex }, moment, trace)
}

/// A source inside the pools comes from its endpoint's interface or out of the overlay, where its right to the address
/// was checked; never from elsewhere.
#[inline(always)]
fn came_by_its_way(ctx: &TcContext, source: &Peer) -> bool {
    let from = meta(ctx).ingress_ifindex;
    if source.ifindex != 0 {
        from == source.ifindex
    } else {
        !in_pools(source) || (from != 0 && from == maps::config().overlay_ifindex)
    }
}

/// Whether a sender that is an endpoint of this node is who the flow's verdict was given for.
#[inline(always)]
fn sender_holds(packet: &Packet, entry: &Entry, remembered: &Peer) -> bool {
    if remembered.ifindex == 0 {
        return true;
    }
    match maps::endpoint(remembered.ifindex) {
        Some(sender) => has_address(sender, &packet.source) && entry.holds_for(sender, remembered),
        None => false,
    }
}
