//! The node itself as a subject, at its uplinks and the overlay: what its processes send and get there. Where no host policy
//! selects the node, nothing of this is asked, and the node's traffic passes its uplinks as if there were no program. (What
//! it and its own endpoints send each other is judged at their hooks.)

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weft_shared::layout::{Address, Class, Peer, Point, Reason};

use crate::{
    conntrack::{self, Ends, Entry, State},
    deliver,
    events::{Done, Trace},
    forge, fragment,
    frame::meta,
    maps, neighbour,
    parse::{self, Packet},
    verdict::{self, Hook, Moment, in_pools, same},
};

const HOST: u32 = Class::Host as u32;

/// A party that is known by its class alone.
pub const fn nameless(class: Class) -> Peer {
    Peer { identity: class as u32, class: class as u32, node: 0, ifindex: 0 }
}

/// Whether what comes in for an address is the node's own: one of its addresses, or one that is never routed on. A
/// neighbour could reach the node by those as well.
#[inline(always)]
pub fn is_receiver(ctx: &TcContext, to: &Peer, destination: &Address, v6: bool) -> bool {
    /// `PACKET_BROADCAST` and `PACKET_MULTICAST`: the frame was for many.
    const FOR_MANY: [u32; 2] = [1, 2];
    let [first, second, ..] = destination.words[3].to_ne_bytes();
    let link_local_v4 = !v6 && first == 169 && second == 254;
    to.class == HOST
        || FOR_MANY.contains(&meta(ctx).pkt_type)
        || forge::is_group(destination, v6)
        || forge::is_of_the_link(destination, v6)
        || link_local_v4
}

/// Whether what goes out is the node's own. What it only passes on came in by some interface.
#[inline(always)]
pub fn is_sender(ctx: &TcContext, from: &Peer) -> bool {
    from.class == HOST || meta(ctx).ingress_ifindex == 0
}

/// Judges what comes in for the node itself.
#[inline(always)]
pub fn receive(
    ctx: &TcContext,
    ethertype: u16,
    from: &Peer,
    to: &Peer,
    epoch: u64,
    seen: &mut Option<&'static Packet>,
    trace: &mut Trace,
) -> Result<Done, Reason> {
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    // The node does not send to itself by its uplinks, but where two of them are on one link, one hears what the other asks.
    let forged = from.class == HOST && !neighbour::is_discovery(packet);
    if forged || same(&packet.source, &packet.destination) {
        return Err(Reason::Spoofed);
    }
    // Out of the overlay nobody vouches for a source inside the pools.
    let source = if in_pools(from) { nameless(Class::Unmanaged) } else { *from };
    let destination = if to.class == HOST { *to } else { nameless(Class::Host) };
    judge(ctx, packet, &Ends { source, destination }, epoch, trace)
}

/// Judges what the node itself sends.
#[inline(always)]
pub fn send(
    ctx: &TcContext,
    ethertype: u16,
    from: &Peer,
    to: &Peer,
    epoch: u64,
    seen: &mut Option<&'static Packet>,
    trace: &mut Trace,
) -> Result<Done, Reason> {
    let packet = parse::packet(ctx, ethertype)?;
    *seen = Some(packet);
    let source = if from.class == HOST { *from } else { nameless(Class::Host) };
    // What leaves is not for the node, even where its own address is meant (a link's broadcast is among those).
    let destination = if to.class == HOST { nameless(Class::World) } else { *to };
    judge(ctx, packet, &Ends { source, destination }, epoch, trace)
}

/// Judges what the node sends or gets, one of whose ends is the node.
#[inline(always)]
pub fn judge(
    ctx: &TcContext,
    packet: &'static Packet,
    ends: &Ends,
    epoch: u64,
    trace: &mut Trace,
) -> Result<Done, Reason> {
    trace.source_identity = ends.source.identity;
    trace.destination_identity = ends.destination.identity;
    match judge_own(ctx.skb.skb, packet, ends, epoch, trace) {
        ALLOWED => Ok(deliver::to_stack()),
        number => Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
}

/// In place of a reason.
const ALLOWED: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_own(
    skb: *mut __sk_buff,
    packet: *const Packet,
    ends: *const Ends,
    epoch: u64,
    trace: *mut Trace,
) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(ends), Some(trace)) =
        (unsafe { (packet.as_ref(), ends.as_ref(), trace.as_mut()) })
    else {
        return Reason::KernelError as u32;
    };
    let ctx = &TcContext::new(skb);
    let now = conntrack::now();
    let known = own_flow(packet, ends, now);
    if known != HOLDS {
        let moment = Moment { epoch, now, point: point(ends) };
        let known = State::from_number(known);
        if let Err(reason) = verdict::decide(ctx, packet, known, ends, Hook::NONE, moment, trace) {
            return reason as u32;
        }
    }
    match fragment::remember(packet) {
        Ok(()) => ALLOWED,
        Err(reason) => reason as u32,
    }
}

/// What is known of a packet's flow that does not hold, as a number; or [`HOLDS`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn own_flow(packet: *const Packet, ends: *const Ends, now: u64) -> u32 {
    // SAFETY: as above.
    let (Some(packet), Some(ends)) = (unsafe { (packet.as_ref(), ends.as_ref()) }) else { return 0 };
    let found = if packet.tcp_opens() { None } else { conntrack::find_here(packet, now) };
    let entry = Entry::of(packet, found);
    if remembered(packet, entry, ends, now) {
        return HOLDS;
    }
    entry.and_then(|entry| entry.state()).map_or(0, State::number)
}

/// In place of what is known.
const HOLDS: u32 = u32::MAX;

/// Where it is: to endpoints the node sends through the overlay alone.
#[inline(always)]
fn point(ends: &Ends) -> Point {
    match ends.destination.class {
        HOST => Point::FromUplink,
        _ if in_pools(&ends.destination) => Point::ToOverlay,
        _ => Point::ToUplink,
    }
}

/// Whether a packet of the node itself need not be judged: nobody judges the node, or its flow is remembered.
#[inline(always)]
pub fn passes(packet: &Packet, entry: Option<Entry>, ends: &Ends, now: u64) -> bool {
    maps::runtime().host == 0 || remembered(packet, entry, ends, now)
}

#[inline(always)]
fn remembered(packet: &Packet, entry: Option<Entry>, ends: &Ends, now: u64) -> bool {
    entry.is_some_and(|entry| holds(&entry, ends) && entry.touch(packet, now))
}

/// Whether the verdict was given for these parties, and nothing has changed since.
#[inline(always)]
fn holds(entry: &Entry, ends: &Ends) -> bool {
    let known = entry.ends();
    is_same(&known.source, &ends.source)
        && is_same(&known.destination, &ends.destination)
        && entry.holds_for_host(ends)
        && entry.holds_for_nodes()
}

/// A node is told only of the endpoints that its policies name: of others it knows the class alone, until the overlay says
/// who they are. What is known anew of an address makes verdicts stale.
#[inline(always)]
fn is_same(known: &Peer, asked: &Peer) -> bool {
    let nameless = asked.identity == asked.class && in_pools(asked);
    (known.identity == asked.identity || nameless)
        && known.class == asked.class
        && known.ifindex == asked.ifindex
}
