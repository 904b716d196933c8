//! Ports of this node from which connections to backends come that answer through it. A port is a connection's as long as the row
//! is there that says where answers go.

use core::{arch::asm, ptr::NonNull};

use weft_shared::layout::{
    Address, Connection, ConnectionKey, Leg, connection_flags, connection_nanoseconds,
    service::{Party, packet_hash},
};

use crate::{
    connections,
    maps::{ANSWER, config},
};

/// Ports that are tried. With nine of ten taken, one in 2,000 connections finds none.
const PROBES: u32 = 72;

/// Whether a port (network order) may be of SNAT.
#[inline(always)]
pub fn is_port(port: u16) -> bool {
    let (config, port) = (config(), u16::from_be(port));
    port >= config.snat_first_port && port <= config.snat_last_port
}

/// Gives the connection a port of its own (network order), under which what the backend sends to `own` is an answer to the client,
/// as it is written in the table now; 0: none is free. `flags`: those of the answers' row.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn snat_port(
    question: *const ConnectionKey,
    backend: *const Party,
    own: *const Address,
    flags: u32,
    now: u64,
) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let Some((question, backend, own)) = (unsafe { given(question, backend, own) }) else { return 0 };
    let Some(Answer { key, row }) = answer(question, backend, own, 0, flags, now) else { return 0 };
    let (first, last) = (u32::from(config().snat_first_port), u32::from(config().snat_last_port));
    if last < first {
        return 0;
    }
    let ports = last - first + 1;
    let mut place = packet_hash(&row.destination, backend, question.protocol) % ports;
    for _ in 0..PROBES {
        key.destination_port = ((first + place) as u16).to_be();
        if try_port(now) != 0 {
            return key.destination_port.into();
        }
        // Without a branch: the verifier would follow both ways to the end of the loop.
        place = (place + 1) % ports;
    }
    0
}

/// Whether the answers' row is there now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn try_port(now: u64) -> u32 {
    in_hand().is_some_and(|Answer { key, row }| connections::add(key, row) || take_over(key, row, now)).into()
}

/// In `flags` of [`snat_keep`]: the connection begins anew.
pub const BEGINS: u32 = 1 << 31;

/// Whether the port that a connection has is its own still, as it is from now on; where its row was pushed out, it is there again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn snat_keep(
    question: *const ConnectionKey,
    backend: *const Party,
    own: *const Party,
    flags: u32,
    now: u64,
) -> u32 {
    // SAFETY: as above.
    let Some((question, backend, own)) = (unsafe { given(question, backend, own) }) else { return 0 };
    let Some(Answer { key, row }) = answer(question, backend, &own.address, own.port, flags, now) else {
        return 0;
    };
    let Some(mut there) = connections::find(key) else { return connections::add(key, row).into() };
    // SAFETY: the kernel's element; see `connections::find`.
    let there = unsafe { there.as_mut() };
    if !there.destination.is(&row.destination) || !there.source.is(&row.source) {
        return 0;
    }
    let ended = if flags & BEGINS == 0 { there.flags & connection_flags::ENDED } else { 0 };
    (there.seen_at, there.flags) = (now, flags & !BEGINS | ended);
    1
}

/// What the arguments point to.
///
/// # Safety
///
/// Each is null, or points to what it says.
#[inline(always)]
unsafe fn given<'a, T>(
    question: *const ConnectionKey,
    backend: *const Party,
    own: *const T,
) -> Option<(&'a ConnectionKey, &'a Party, &'a T)> {
    // SAFETY: the caller's.
    unsafe { Some((question.as_ref()?, backend.as_ref()?, own.as_ref()?)) }
}

/// What the backend answers, and its row. Kept aside: the stack has no room for it.
#[derive(Clone, Copy)]
pub struct Answer {
    key: ConnectionKey,
    row: Connection,
}

#[inline(always)]
fn answer(
    question: &ConnectionKey,
    backend: &Party,
    own: &Address,
    port: u16,
    flags: u32,
    now: u64,
) -> Option<&'static mut Answer> {
    let Answer { key, row } = in_hand()?;
    (key.source, key.source_port) = (backend.address, backend.port);
    (key.destination, key.destination_port) = (*own, port);
    (key.protocol, key.leg, key.zero) = (question.protocol, Leg::Answer as u8, [0; 2]);
    row.source = Party { address: question.destination, port: question.destination_port, zero: 0 };
    row.destination = Party { address: question.source, port: question.source_port, zero: 0 };
    (row.flags, row.table, row.digest, row.seen_at) = (flags & !BEGINS, 0, 0, now);
    in_hand()
}

#[inline(always)]
fn in_hand() -> Option<&'static mut Answer> {
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    ANSWER.get_ptr_mut(0).map(|answer| unsafe { &mut *answer })
}

/// Takes the port of a connection that is over. Of several CPUs that want it, one gets it: who changes the time.
#[inline(always)]
fn take_over(key: &ConnectionKey, row: &Connection, now: u64) -> bool {
    let Some(there) = connections::find(key) else { return false };
    // SAFETY: the kernel's element; see `connections::find`.
    let (seen_at, flags) = unsafe { ((*there.as_ptr()).seen_at, (*there.as_ptr()).flags) };
    now.saturating_sub(seen_at) > connection_nanoseconds(key.protocol, flags)
        && is_first(there, seen_at, now)
        && connections::put(key, row)
}

/// Whether nobody else has changed the time since it was read.
#[inline(always)]
fn is_first(row: NonNull<Connection>, seen_at: u64, now: u64) -> bool {
    let found: u64;
    // SAFETY: an aligned word inside of the kernel's element. The target's `core` has no such operation, the kernel (5.12) has.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({row} + {offset}, r0, {now})",
            row = in(reg) row.as_ptr(),
            offset = const core::mem::offset_of!(Connection, seen_at),
            now = in(reg) now,
            inout("r0") seen_at => found,
        );
    }
    found == seen_at
}
