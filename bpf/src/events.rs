//! Counts every outcome, and tells user space of drops.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};
use weft_shared::layout::{Address, Event, Point, Reason, maps::counter_index};

use crate::{
    frame::meta,
    maps::{COUNTERS, EVENTS, EVENTS_LOST},
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
    pub const EMPTY: Self = Self { source_identity: 0, destination_identity: 0, rule: 0, direction: 0 };
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
    packet: Option<&Packet>,
    trace: &Trace,
) -> i32 {
    match outcome {
        Ok(done) => {
            count(ctx, point, done.reason);
            done.code
        }
        Err(reason) => {
            count(ctx, point, reason);
            tell(ctx, point, reason, packet, trace);
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

#[inline(always)]
fn tell(ctx: &TcContext, point: Point, reason: Reason, packet: Option<&Packet>, trace: &Trace) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
            // SAFETY: as in `count`.
            unsafe { *lost += 1 };
        }
        return;
    };
    let (source, destination, source_port, destination_port, protocol) = match packet {
        Some(packet) if packet.is_icmp() => {
            (packet.source, packet.destination, 0, packet.icmp, packet.protocol)
        }
        Some(packet) => (
            packet.source,
            packet.destination,
            u16::from_be(packet.source_port),
            u16::from_be(packet.destination_port),
            packet.protocol,
        ),
        None => (Address::UNSPECIFIED, Address::UNSPECIFIED, 0, 0, 0),
    };
    entry.write(Event {
        // SAFETY: no arguments.
        at_nanoseconds: unsafe { bpf_ktime_get_ns() },
        reason: reason as u32,
        point: point as u32,
        ifindex: meta(ctx).ifindex,
        length_bytes: ctx.len(),
        source,
        destination,
        source_identity: trace.source_identity,
        destination_identity: trace.destination_identity,
        rule: trace.rule,
        source_port,
        destination_port,
        protocol,
        direction: trace.direction,
        reserved: [0; 6],
    });
    entry.submit(0);
}
