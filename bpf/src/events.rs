//! Counts every outcome, and tells user space of drops, and of new flows while somebody wants to know.

use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY},
    helpers::bpf_ktime_get_ns,
    programs::TcContext,
};
use weft_shared::layout::{
    Action, Address, Direction, Event, Point, PolicyRow, Reason, Told, ToldKey, maps::counter_index,
    monitor_flags,
};

use crate::{
    conntrack,
    frame::meta,
    maps::{self, ALLOWED_BY, COUNTERS, EVENT, EVENTS, EVENTS_LOST, MONITOR, TOLD},
    parse::Packet,
};

/// What was found out on the way to a verdict, for the event.
#[derive(Clone, Copy)]
pub struct Trace {
    pub source_identity: u32,
    pub destination_identity: u32,
    pub rule: u32,
    pub direction: u8,
}

impl Trace {
    /// Nothing found out yet.
    #[inline(always)]
    pub fn empty() -> Self {
        let zero = unseen_zero() as u32;
        Self { source_identity: zero, destination_identity: zero, rule: zero, direction: zero as u8 }
    }
}

/// A zero that the compiler can't see, for structures on the way of every packet: of several zeros that it sees it makes a
/// call of `memset`, which writes byte by byte and costs more than a look-up.
#[inline(always)]
pub fn unseen_zero() -> u64 {
    let zero: u64;
    // SAFETY: sets a register.
    unsafe { asm!("{zero} = 0", zero = out(reg) zero, options(nomem, nostack, preserves_flags, pure)) };
    zero
}

/// How a program ends with a packet that goes on: what to count, and the code for the kernel.
#[derive(Clone, Copy)]
pub struct Done {
    pub reason: Reason,
    pub code: i32,
}

pub const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;

/// Counts, tells, and gives the program's answer to the kernel.
#[inline(always)]
pub fn finish(
    ctx: &TcContext,
    point: Point,
    outcome: Result<Done, Reason>,
    packet: Option<&'static Packet>,
    trace: &Trace,
) -> i32 {
    match outcome {
        Ok(done) => {
            count(ctx, point, done.reason);
            done.code
        }
        Err(reason) => {
            count(ctx, point, reason);
            tell(ctx, point as u32, reason as u32, packet, trace);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn count(ctx: &TcContext, point: Point, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(point, reason)) {
        // SAFETY: this CPU's element; programs of one CPU don't interrupt each other here but for nested hooks, which may
        // lose a count.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(ctx.len());
        }
    }
}

/// The rows that let a packet pass, each 0 without a rule of its own.
#[derive(Clone, Copy)]
pub struct AllowedBy {
    /// Bits of the directions in which there was a subject to ask.
    judged: u32,
    egress: u32,
    ingress: u32,
    audit: Audit,
}

/// What audited policies would decide otherwise, by the first row of the packet's that says so.
#[derive(Clone, Copy)]
struct Audit {
    /// 0: nothing.
    action: u32,
    rule: u32,
    direction: u32,
}

/// Before a packet is judged.
#[inline(always)]
pub fn nobody_asked() {
    if let Some(by) = ALLOWED_BY.get_ptr_mut(0) {
        // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
        unsafe {
            let zero = unseen_zero() as u32;
            by.write(AllowedBy {
                judged: zero,
                egress: zero,
                ingress: zero,
                audit: Audit { action: zero, rule: zero, direction: zero },
            });
        }
    }
}

/// A subject's row allows the packet in hand.
#[inline(always)]
pub fn allowed_by(direction: Direction, rule: u32) {
    if let Some(by) = ALLOWED_BY.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe {
            (*by).judged |= 1 << direction as u32;
            match direction {
                Direction::Egress => (*by).egress = rule,
                Direction::Ingress => (*by).ingress = rule,
            }
        }
    }
}

/// Audited policies would decide otherwise than a subject's row did.
#[inline(always)]
pub fn audited(direction: Direction, row: &PolicyRow) {
    if let Some(by) = ALLOWED_BY.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe {
            if (*by).audit.action == 0 {
                (*by).audit =
                    Audit { action: row.audit_action, rule: row.audit_rule, direction: direction as u32 };
            }
        }
    }
}

/// Whether audited policies would drop the packet in hand, which passes.
#[inline(always)]
fn would_be_dropped() -> bool {
    // SAFETY: as above.
    ALLOWED_BY.get_ptr(0).is_some_and(|by| unsafe { (*by).audit.action } == Action::Deny as u32)
}

/// Tells of a known flow that was judged again and allowed, where audited policies would not.
#[inline(always)]
pub fn allowed_again(ctx: &TcContext, point: Point, packet: &'static Packet, trace: &Trace) {
    if would_be_dropped() {
        tell(ctx, point as u32, AUDITED, Some(packet), trace);
    }
}

/// Tells of a new flow that was allowed, if somebody wants to know, or if audited policies would not allow it.
#[inline(always)]
pub fn allowed(ctx: &TcContext, point: Point, packet: &'static Packet, trace: &Trace) {
    // SAFETY: a number of an array, which the daemon changes.
    let wanted = MONITOR
        .get_ptr(0)
        .is_some_and(|flags| unsafe { flags.read_volatile() } & monitor_flags::ALLOWED != 0);
    if wanted {
        tell(ctx, point as u32, ALLOWED, Some(packet), trace);
    } else {
        allowed_again(ctx, point, packet, trace);
    }
}

/// In place of a reason.
const ALLOWED: u32 = u32::MAX;
/// The same, told as drops are: once in a while.
const AUDITED: u32 = u32::MAX - 1;

/// Writes an event, unless one just like it was written a moment ago.
#[inline(always)]
fn tell(ctx: &TcContext, point: u32, reason: u32, packet: Option<&'static Packet>, trace: &Trace) {
    let packet = packet.map_or(core::ptr::null(), core::ptr::from_ref);
    tell_of(ctx.skb.skb, point, reason, packet, trace);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_of(
    skb: *mut __sk_buff,
    point: u32,
    reason: u32,
    packet: *const Packet,
    trace: *const Trace,
) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (packet, trace) = unsafe { (packet.as_ref(), trace.as_ref()) };
    if let Some(trace) = trace {
        write(&TcContext::new(skb), point, reason, packet, trace);
    }
    0
}

/// The event is made aside, because the stack has no room for it.
#[inline(always)]
fn write(ctx: &TcContext, point: u32, reason: u32, packet: Option<&Packet>, trace: &Trace) {
    let Some(event) = EVENT.get_ptr_mut(0) else { return };
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    let event = unsafe { &mut *event };
    // SAFETY: no arguments.
    event.at_nanoseconds = unsafe { bpf_ktime_get_ns() };
    event.point = point;
    event.ifindex = meta(ctx).ifindex;
    event.length_bytes = ctx.len();
    event.source_identity = trace.source_identity;
    event.destination_identity = trace.destination_identity;
    show(event, packet);
    event.audit_action = 0;
    event.audit_direction = 0;
    event.audit_rule = 0;
    if reason == ALLOWED || reason == AUDITED {
        event.reason = 0;
        event.direction = 0;
        say_who_allowed(event);
        say_audit(event, Action::Deny);
        event.packets = if reason == ALLOWED { 1 } else { packets_alike(event) };
    } else {
        event.reason = reason;
        event.direction = trace.direction;
        event.rule = trace.rule;
        event.allowed = 0;
        event.judged = 0;
        event.ingress_rule = 0;
        // Of other drops, what lies there is another packet's.
        if reason == Reason::PolicyDenied as u32 {
            say_audit(event, Action::Allow);
        }
        event.packets = packets_alike(event);
    }
    if event.packets != 0
        && EVENTS.output(&*event, 0).is_err()
        && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: as in `count`.
        unsafe { *lost += 1 };
    }
}

/// What is known of the packet, as far as it was looked into.
#[inline(always)]
fn show(event: &mut Event, packet: Option<&Packet>) {
    event.source = Address::UNSPECIFIED;
    event.destination = Address::UNSPECIFIED;
    event.source_port = 0;
    event.destination_port = 0;
    event.protocol = 0;
    if let Some(packet) = packet {
        event.source = packet.source;
        event.destination = packet.destination;
        if !packet.is_icmp() {
            event.source_port = u16::from_be(packet.source_port);
        }
        event.destination_port = packet.policy_port();
        event.protocol = packet.protocol;
    }
}

#[inline(always)]
fn say_who_allowed(event: &mut Event) {
    if let Some(by) = ALLOWED_BY.get_ptr(0) {
        // SAFETY: as in `nobody_asked`.
        let by = unsafe { *by };
        event.allowed = 1;
        event.judged = by.judged as u8;
        event.rule = by.egress;
        event.ingress_rule = by.ingress;
    }
}

/// What audited policies would do, if it is the other thing than what is done.
#[inline(always)]
fn say_audit(event: &mut Event, other: Action) {
    // SAFETY: as in `nobody_asked`.
    let audit = ALLOWED_BY.get_ptr(0).map(|by| unsafe { (*by).audit });
    if let Some(audit) = audit.filter(|audit| audit.action == other as u32) {
        event.audit_action = audit.action as u8;
        event.audit_direction = audit.direction as u8;
        event.audit_rule = audit.rule;
    }
}

/// How many drops an event of this one stands for; 0: it is not to be told, but counted for the next.
#[inline(always)]
fn packets_alike(event: &Event) -> u64 {
    let again = maps::config().tell_again_after;
    if again == 0 {
        return 1;
    }
    let key = ToldKey {
        source: event.source,
        destination: event.destination,
        ifindex: event.ifindex,
        destination_port: event.destination_port,
        protocol: event.protocol,
        reason: event.reason as u8,
        point: event.point,
    };
    let now = conntrack::now();
    if let Some(told) = TOLD.get_ptr_mut(&key) {
        // SAFETY: the kernel's element; other CPUs may count at the same time, which loses a packet of the sum (the
        // counters have them all).
        let told = unsafe { &mut *told };
        if now.saturating_sub(told.at) < again {
            told.packets += 1;
            return 0;
        }
        let packets = told.packets + 1;
        told.at = now;
        told.packets = 0;
        return packets;
    }
    // Where it can't be remembered, the next is told as well.
    let _ = TOLD.insert(&key, &Told { at: now, packets: 0 }, BPF_ANY.into());
    1
}
