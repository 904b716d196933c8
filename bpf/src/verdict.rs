//! What the policy says: both local subjects of a flow are asked, each for its own direction. Whatever is missing denies.

use core::arch::asm;

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{
    Action, Address, CLASS_RULEBOOKS, Class, Direction, Endpoint, Peer, PeerKey, Point, Reason,
    class_rulebook, endpoint_flags, host,
};

use crate::{
    conntrack::{self, Ends, State},
    events::{self, Trace},
    maps::{self, PEER_RULES, SUBJECTS},
    parse::{Echo, Packet, Service},
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

/// The endpoint whose hook this is, if it is an endpoint's: it is open, and has the packet's address on its side.
#[derive(Clone, Copy)]
pub struct Hook<'a> {
    pub endpoint: Option<&'a Endpoint>,
    pub ifindex: u32,
}

impl<'a> Hook<'a> {
    /// None that is known already.
    pub const NONE: Self = Self { endpoint: None, ifindex: 0 };

    /// The endpoint that a party is: looked up unless it is this one.
    #[inline(always)]
    fn or_own_endpoint(self, peer: &Peer, address: &Address) -> Result<&'a Endpoint, Reason> {
        match self.endpoint {
            Some(endpoint) if self.ifindex == peer.ifindex => Ok(endpoint),
            _ => own_endpoint(peer, address),
        }
    }
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
    known: Option<State>,
    ends: &Ends,
    hook: Hook,
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
    events::nobody_asked();
    // Also by way of a service, for which the source is another one.
    if ends.source.ifindex != 0 && ends.source.ifindex == ends.destination.ifindex {
        return conntrack::remember(packet, true, ends, None, &moment);
    }
    if let Some(State { original, flags }) = known {
        let way = if original { Way::Forth } else { Way::Back };
        // A denied flow keeps its entry: without, its next packet would be taken for the start of another flow, and what the
        // answering party says in the midst of a connection would pass by the verdict of its own direction.
        judge(packet, ends, hook, way, trace)?;
        conntrack::remember(packet, original, ends, Some(flags), &moment)?;
        events::allowed_again(ctx, moment.point, packet, trace);
        return Ok(());
    }
    let mut original = true;
    if packet.service == Service::Answer {
        judge(packet, ends, hook, Way::Back, trace)?;
        original = false;
    } else if let Err(reason) = judge(packet, ends, hook, Way::Forth, trace) {
        let mut second = Trace::empty();
        if !packet.tcp_without_syn() || judge(packet, ends, hook, Way::Back, &mut second).is_err() {
            return Err(reason);
        }
        original = false;
    }
    // An answer to an echo that nobody asked for must not open the way for questions.
    if packet.has_flow() && packet.echo != Echo::Reply {
        conntrack::remember(packet, original, ends, None, &moment)?;
    }
    events::allowed(ctx, moment.point, packet, trace);
    Ok(())
}

/// The verdict of both subjects.
#[inline(always)]
pub fn judge(packet: &Packet, ends: &Ends, hook: Hook, way: Way, trace: &mut Trace) -> Result<(), Reason> {
    let own = hook.endpoint.map_or(core::ptr::null(), core::ptr::from_ref);
    let way = u64::from(hook.ifindex) << 1 | way as u64;
    match judge_number(packet, ends, own, way, trace) {
        ALLOWED => Ok(()),
        number => Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
}

const ALLOWED: u32 = u32::MAX;

/// `way`: a [`Way`], and above its bit the interface that `own` is the endpoint of.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_number(
    packet: *const Packet,
    ends: *const Ends,
    own: *const Endpoint,
    way: u64,
    trace: *mut Trace,
) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(ends), Some(trace)) =
        (unsafe { (packet.as_ref(), ends.as_ref(), trace.as_mut()) })
    else {
        return Reason::KernelError as u32;
    };
    // SAFETY: as above.
    let hook = Hook { endpoint: unsafe { own.as_ref() }, ifindex: (way >> 1) as u32 };
    let judged = if way & 1 == Way::Forth as u64 {
        let flow = Question { port: packet.policy_port(), protocol: packet.protocol };
        both(&flow, hook, &ends.source, &packet.source, &ends.destination, &packet.destination, trace)
    } else {
        let flow = Question { port: packet.policy_port_of_original(), protocol: packet.protocol };
        both(&flow, hook, &ends.destination, &packet.destination, &ends.source, &packet.source, trace)
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
    hook: Hook,
    from: &Peer,
    from_address: &Address,
    to: &Peer,
    to_address: &Address,
    trace: &mut Trace,
) -> Result<(), Reason> {
    if from.ifindex != 0 {
        let subject = hook.or_own_endpoint(from, from_address)?;
        one(flow, (subject.subject, subject.identity), Direction::Egress, to, trace)?;
    } else if from.class == Class::Host as u32 {
        node(flow, Direction::Egress, to, to_address, trace)?;
    }
    if to.ifindex != 0 {
        let subject = hook.or_own_endpoint(to, to_address)?;
        one(flow, (subject.subject, subject.identity), Direction::Ingress, from, trace)?;
    } else if to.class == Class::Host as u32 {
        node(flow, Direction::Ingress, from, from_address, trace)?;
    }
    Ok(())
}

/// The verdict of the node itself in one direction, if it is judged.
#[inline(always)]
fn node(
    flow: &Question,
    direction: Direction,
    peer: &Peer,
    address: &Address,
    trace: &mut Trace,
) -> Result<(), Reason> {
    let flow = u32::from(flow.port) | u32::from(flow.protocol) << 16 | (direction as u32) << 24;
    match judge_node(flow, peer, address, trace) {
        ALLOWED => Ok(()),
        number => Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
}

/// `flow`: port, protocol and the node's direction, from the lowest bit.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_node(flow: u32, peer: *const Peer, address: *const Address, trace: *mut Trace) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(peer), Some(address), Some(trace)) =
        (unsafe { (peer.as_ref(), address.as_ref(), trace.as_mut()) })
    else {
        return Reason::KernelError as u32;
    };
    let question = Question { port: flow as u16, protocol: (flow >> 16) as u8 };
    let egress = flow >> 24 == Direction::Egress as u32;
    let direction = if egress { Direction::Egress } else { Direction::Ingress };
    let state = maps::runtime().host;
    if state == 0 {
        return ALLOWED;
    }
    let own_endpoint = egress && peer.ifindex != 0 && state & host::OWN_ENDPOINTS_FREE != 0;
    if own_endpoint || maps::is_failsafe(direction, address, question.protocol, question.port) {
        events::allowed_by(direction, 0);
        return ALLOWED;
    }
    match one(&question, (state & host::SUBJECT, ANY_IDENTITY), direction, peer, trace) {
        Ok(()) => ALLOWED,
        Err(reason) => reason as u32,
    }
}

/// In place of an identity: that of whoever is in the slot. Nobody has it.
const ANY_IDENTITY: u32 = 0;

/// The verdict of one subject in one direction, which is in a slot and has this identity.
#[inline(always)]
fn one(
    flow: &Question,
    subject: (u32, u32),
    direction: Direction,
    peer: &Peer,
    trace: &mut Trace,
) -> Result<(), Reason> {
    let rulebook = rulebook(subject, direction, peer).ok_or(Reason::PolicyMissing)?;
    let row = maps::rule(rulebook, flow.protocol, flow.port).ok_or(Reason::PolicyMissing)?;
    if row.audit_action != row.action {
        events::audited(direction, row);
    }
    if row.action == Action::Allow as u32 {
        events::allowed_by(direction, row.rule);
        return Ok(());
    }
    trace.direction = direction as u8;
    trace.rule = row.rule;
    Err(Reason::PolicyDenied)
}

/// The rulebook of a peer, or of its class. The class's is read first: the daemon puts rows before the classes change, and
/// takes them away when all who read a former one have come to their end. So whoever finds no row has the rulebook that
/// goes with that.
#[inline(always)]
fn rulebook((slot, wanted): (u32, u32), direction: Direction, peer: &Peer) -> Option<u32> {
    if peer.class > Class::World as u32 {
        return None;
    }
    let slot = SUBJECTS.get_ptr(slot)?;
    let place =
        in_register((class_rulebook(direction, Class::Host) as u64).wrapping_add(peer.class.into()) - 1);
    if place >= CLASS_RULEBOOKS as u64 {
        return None;
    }
    let place = place as usize;
    // SAFETY: an element of an array, which never moves; whole numbers are written at once.
    let (identity, of_class) = unsafe {
        ((&raw const (*slot).identity).read_volatile(), (&raw const (*slot).rulebooks[place]).read_volatile())
    };
    if identity == ANY_IDENTITY || (wanted != ANY_IDENTITY && identity != wanted) {
        return None;
    }
    // The host's identity may be other nodes', too.
    if peer.identity == peer.class || peer.class == Class::Host as u32 {
        return Some(of_class);
    }
    let key = PeerKey { subject: identity, peer: peer.identity, direction: direction as u32 };
    // SAFETY: read only; rows are replaced, never written in place.
    unsafe { PEER_RULES.get(&key) }.copied().or(Some(of_class))
}

/// The same number, of which the compiler knows nothing any more: what is checked and what is used is one register, as the
/// verifier wants it.
#[inline(always)]
fn in_register(mut number: u64) -> u64 {
    // SAFETY: changes the one register, into itself.
    unsafe {
        asm!("{number} = {number}", number = inout(reg) number, options(nomem, nostack, preserves_flags, pure));
    }
    number
}
