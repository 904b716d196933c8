//! What the policy says: both local subjects of a flow are asked, each for its own direction, by exact identity and by
//! class. Whatever is missing denies.

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{
    Action, Address, Class, Direction, Endpoint, Peer, Point, PolicyKey, PolicyRow, Reason, endpoint_flags,
};

use crate::{
    conntrack::{self, Ends, Entry},
    events::{self, Trace},
    maps::{self, POLICIES, SUBJECTS, policy_row},
    parse::{Echo, Packet},
    related,
};

/// Which flow is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// The packet's own direction.
    Forth = 0,
    /// The flow whose reply the packet is.
    Back = 1,
}

/// When a packet is judged: state read before any table.
#[derive(Clone, Copy)]
pub struct Moment {
    pub epoch: u64,
    pub now: u64,
    /// Where it is judged.
    pub point: Point,
}

/// Whether a class's addresses are inside the pools.
#[inline(always)]
pub fn in_pools(peer: &Peer) -> bool {
    peer.class == Class::Fleet as u32 || peer.class == Class::Unmanaged as u32
}

/// Whether an address is the endpoint's. Asked of both families, because a choice by family becomes a computed offset,
/// which the verifier refuses.
#[inline(always)]
pub fn has_address(endpoint: &Endpoint, address: &Address) -> bool {
    let known = same(address, &endpoint.address4) || same(address, &endpoint.address6);
    known && !same(address, &Address::UNSPECIFIED)
}

/// Word by word from the last, where addresses differ most.
#[inline(always)]
pub fn same(one: &Address, other: &Address) -> bool {
    one.words[3] == other.words[3]
        && one.words[2] == other.words[2]
        && one.words[1] == other.words[1]
        && one.words[0] == other.words[0]
}

/// The endpoint of this node that a party is, ready for packets.
#[inline(always)]
pub fn own_endpoint(peer: &Peer, address: &Address) -> Result<&'static Endpoint, Reason> {
    let endpoint = maps::endpoint(peer.ifindex).ok_or(Reason::NoEndpoint)?;
    if !has_address(endpoint, address) {
        return Err(Reason::NoEndpoint);
    }
    if endpoint.flags & endpoint_flags::OPEN == 0 {
        return Err(Reason::EndpointInit);
    }
    Ok(endpoint)
}

/// Judges a packet that no remembered verdict holds for, and remembers the new one. Again in the flow's original direction
/// where there is an entry; else in the packet's own, and for TCP in the midst of a connection also as a reply.
#[inline(always)]
pub fn decide(
    ctx: &TcContext,
    packet: &'static Packet,
    entry: Option<Entry>,
    ends: &Ends,
    moment: Moment,
    trace: &mut Trace,
) -> Result<(), Reason> {
    trace.source_identity = ends.source.identity;
    trace.destination_identity = ends.destination.identity;
    // An endpoint may always reach itself.
    if same(&packet.source, &packet.destination) {
        return Ok(());
    }
    if related::passes(ctx, packet, ends) {
        return Ok(());
    }
    if let Some(entry) = entry {
        let way = if entry.original() { Way::Forth } else { Way::Back };
        // A denied flow keeps its entry: without, its next packet would be taken for the start of another flow, and what the
        // answering party says in the midst of a connection would pass by the verdict of its own direction.
        judge(packet, ends, way, trace)?;
        return conntrack::remember(packet, entry.original(), ends, entry.flags(), &moment);
    }
    events::nobody_asked();
    let mut original = true;
    if let Err(reason) = judge(packet, ends, Way::Forth, trace) {
        let mut second = Trace::empty();
        if !packet.tcp_without_syn() || judge(packet, ends, Way::Back, &mut second).is_err() {
            return Err(reason);
        }
        original = false;
    }
    // An answer to an echo that nobody asked for must not open the way for questions.
    if packet.has_flow() && packet.echo != Echo::Reply {
        conntrack::remember(packet, original, ends, 0, &moment)?;
    }
    events::allowed(ctx, moment.point, packet, trace);
    Ok(())
}

/// The verdict of both subjects.
#[inline(always)]
pub fn judge(packet: &Packet, ends: &Ends, way: Way, trace: &mut Trace) -> Result<(), Reason> {
    match judge_number(packet, ends, way as u32, trace) {
        ALLOWED => Ok(()),
        number => Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
}

const ALLOWED: u32 = u32::MAX;

/// A function of its own for the verifier, which looks at it once for each caller and not once for each path there.
#[inline(never)]
fn judge_number(packet: &Packet, ends: &Ends, way: u32, trace: &mut Trace) -> u32 {
    let judged = if way == Way::Forth as u32 {
        let flow = Question { port: packet.policy_port(), protocol: packet.protocol };
        both(&flow, &ends.source, &packet.source, &ends.destination, &packet.destination, trace)
    } else {
        let flow = Question { port: packet.policy_port_of_original(), protocol: packet.protocol };
        both(&flow, &ends.destination, &packet.destination, &ends.source, &packet.source, trace)
    };
    match judged {
        Ok(()) => ALLOWED,
        Err(reason) => reason as u32,
    }
}

struct Question {
    port: u16,
    protocol: u8,
}

#[inline(always)]
fn both(
    flow: &Question,
    from: &Peer,
    from_address: &Address,
    to: &Peer,
    to_address: &Address,
    trace: &mut Trace,
) -> Result<(), Reason> {
    if from.ifindex != 0 {
        let subject = own_endpoint(from, from_address)?;
        one(flow, subject, Direction::Egress, to, trace)?;
    }
    // A node may always reach its own endpoints.
    if to.ifindex != 0 {
        let subject = own_endpoint(to, to_address)?;
        if from.class != Class::Host as u32 {
            one(flow, subject, Direction::Ingress, from, trace)?;
        }
    }
    Ok(())
}

/// The verdict of one subject in one direction.
#[inline(always)]
fn one(
    flow: &Question,
    subject: &Endpoint,
    direction: Direction,
    peer: &Peer,
    trace: &mut Trace,
) -> Result<(), Reason> {
    let slot = SUBJECTS.get(subject.subject).ok_or(Reason::PolicyMissing)?;
    if slot.identity != subject.identity {
        return Err(Reason::PolicyMissing);
    }
    // Once: both look-ups see the same table, whatever is swapped meanwhile.
    let table = POLICIES.get(subject.subject).ok_or(Reason::PolicyMissing)?;
    let row = |identity| policy_row(table, &PolicyKey::flow(direction, identity, flow.protocol, flow.port));
    let exact = row(peer.identity);
    let class = if peer.class == peer.identity { None } else { row(peer.class) };
    let row = match (exact, class) {
        (Some(exact), Some(class)) => stronger(exact, class),
        (Some(only), None) | (None, Some(only)) => only,
        (None, None) => return Err(Reason::PolicyMissing),
    };
    if row.action == Action::Allow as u32 {
        events::allowed_by(direction, row.rule);
        return Ok(());
    }
    trace.direction = direction as u8;
    trace.rule = row.rule;
    Err(Reason::PolicyDenied)
}

#[inline(always)]
fn stronger(one: &'static PolicyRow, other: &'static PolicyRow) -> &'static PolicyRow {
    if one.precedence > other.precedence {
        one
    } else if other.precedence > one.precedence || other.action != Action::Allow as u32 {
        other
    } else {
        one
    }
}
