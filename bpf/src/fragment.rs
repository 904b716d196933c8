//! Fragments. The first one has the ports and is judged by them; it is remembered when it was let through. The later ones
//! take from there what they lack and go the same way. One that comes before its first is dropped: nobody knows what it
//! is, and to hold it back is the receiver's work.
//!
//! What a receiver makes of the fragments is governed by the one at offset 0, and that one was judged by itself. So it
//! does no harm if several of them have one id, or an id comes again: the later fragments pass by the word of a first
//! that passed, and a first that did not pass is not at the receiver.

use aya_ebpf::bindings::BPF_ANY;
use weft_shared::layout::{FRAGMENT_NANOSECONDS, Fragment, FragmentKey, Reason};

use crate::{
    conntrack::now,
    maps::{CUT, FRAGMENTS, HANDED_ON},
    parse::{Echo, Packet},
};

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    Whole = 0,
    First = 1,
    Later = 2,
}

/// What a fragment says of itself. It lies aside, so that whole packets have nothing of it to carry.
#[derive(Clone, Copy)]
pub struct Cut {
    id: u32,
    /// Offset in bytes, which is a multiple of eight.
    offset: u16,
    /// Of the datagram that are in the packet.
    bytes: u16,
}

/// Notes what a fragment says of itself. `offset_and_more`: the offset in bytes, in the lowest bit whether there is more to
/// come; 0 is a whole packet.
#[inline(always)]
pub fn note(offset_and_more: u16, bytes: u32, id: u32) -> Result<Part, Reason> {
    const MORE: u16 = 1;
    // With more to come, a part has a multiple of eight bytes: the others' offsets can't say anything else.
    if offset_and_more & MORE != 0 && bytes % 8 != 0 {
        return Err(Reason::Malformed);
    }
    let cut = CUT.get_ptr_mut(0).ok_or(Reason::KernelError)?;
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    unsafe { cut.write(Cut { id, offset: offset_and_more & !MORE, bytes: bytes as u16 }) };
    Ok(match offset_and_more {
        0 => Part::Whole,
        MORE => Part::First,
        _ => Part::Later,
    })
}

#[inline(always)]
fn cut() -> Option<Cut> {
    // SAFETY: as in `note`.
    CUT.get_ptr(0).map(|cut| unsafe { *cut })
}

/// Remembers a packet that was let through, if it is a first fragment.
#[inline(always)]
pub fn remember(packet: &Packet) -> Result<(), Reason> {
    if packet.part == Part::First && write_first(packet) == 0 { Err(Reason::KernelError) } else { Ok(()) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_first(packet: *const Packet) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(cut), Some(value)) =
        (unsafe { packet.as_ref() }, cut(), HANDED_ON.get_ptr_mut(0))
    else {
        return 0;
    };
    let first = Fragment {
        seen_at: now(),
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        icmp: packet.icmp,
        first_bytes: cut.bytes,
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        echo: packet.echo as u8,
        zero: [0; 5],
    };
    // SAFETY: as in `note`.
    let value = unsafe {
        value.write(first);
        &*value
    };
    FRAGMENTS.insert(key(packet, cut), value, BPF_ANY.into()).is_ok().into()
}

/// Gives a later fragment what its first said. A fragment that overlaps the first is none of its datagram: it could replace
/// what was judged.
#[inline(always)]
pub fn recall(packet: &mut Packet) -> bool {
    recall_first(packet) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recall_first(packet: *mut Packet) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(cut)) = (unsafe { packet.as_mut() }, cut()) else { return 0 };
    // SAFETY: read only. Another CPU may take the element for another datagram meanwhile, as with all maps of this kind;
    // then this is judged as a packet of that one.
    let Some(first) = (unsafe { FRAGMENTS.get(key(packet, cut)) }) else {
        return 0;
    };
    if cut.offset < first.first_bytes || now().saturating_sub(first.seen_at) > FRAGMENT_NANOSECONDS {
        return 0;
    }
    packet.source_port = first.source_port;
    packet.destination_port = first.destination_port;
    packet.icmp = first.icmp;
    packet.protocol = first.protocol;
    packet.tcp_flags = first.tcp_flags;
    packet.echo = Echo::from_number(first.echo);
    1
}

#[inline(always)]
fn key(packet: &Packet, cut: Cut) -> FragmentKey {
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: cut.id,
        protocol: if packet.v6 { 0 } else { packet.protocol },
        zero: [0; 3],
    }
}
