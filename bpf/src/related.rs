//! ICMP errors about flows that are known: no port, no way, too big, no hop left, a bad header. They pass by the verdict on
//! the flow whose packet they quote, so that a closed policy does not cut path MTU discovery or "connection refused".
//!
//! The flow is judged anew and nothing is remembered: errors are few, and must keep no flow alive. What quotes no known
//! flow, or quotes it wrongly, is judged by its own type and code like any packet.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weft_shared::layout::{Address, Class, Reason, flow_flags};

use crate::{
    conntrack::{self, Ends, Entry, State},
    events::Trace,
    fragment::Part,
    frame::{ETHERNET, IPV4, IPV6, load},
    maps::{self, QUOTED},
    parse::{self, Echo, Packet, Service, protocol},
    verdict::{self, Hook, Way, in_pools, same},
};

/// What an error quotes, and what is asked about it: aside, because the stack has no room for it.
#[derive(Clone, Copy)]
pub struct Quoted {
    packet: Packet,
    ends: Ends,
    trace: Trace,
}

/// Of the ICMP header, before the quoted packet.
const ICMP: u32 = 8;
/// Of the quoted transport header, that every error has at least (RFC 792).
const TRANSPORT: u32 = 8;
/// IPv6 extension headers in the quoted packet.
const EXTENSIONS_MAX: usize = 3;

/// Whether the packet is an error about a flow that is allowed, by someone who may tell of it.
#[inline(always)]
pub fn passes(ctx: &TcContext, packet: &Packet, ends: &Ends) -> bool {
    if !read(ctx, packet) {
        return false;
    }
    let Some(quoted) = in_hand() else { return false };
    // One after the other, and not one in the other, for the stack's sake.
    if may_tell(packet, ends) == 0 {
        return false;
    }
    let flow = conntrack::find_kept(&quoted.packet, conntrack::now());
    let way = match Entry::of(&quoted.packet, flow).and_then(|entry| entry.state()) {
        Some(State { original: true, flags }) => {
            // The client named a service, and hears of that.
            if flags & flow_flags::SERVICE != 0
                && let Ok(packet) = parse::kept()
            {
                packet.service = Service::Answer;
            }
            Way::Forth
        }
        Some(_) => Way::Back,
        None => return false,
    };
    verdict::judge(&quoted.packet, &quoted.ends, Hook::NONE, way, &mut quoted.trace).is_ok()
}

/// Whether the packet is an error; then what it quotes is in hand.
#[inline(always)]
pub fn read(ctx: &TcContext, packet: &Packet) -> bool {
    is_error(packet)
        && in_hand().is_some_and(|quoted| quote(ctx.skb.skb, packet.v6 as u32, &mut quoted.packet) != 0)
}

/// What was read last.
#[inline(always)]
pub fn quoted() -> Option<&'static Packet> {
    in_hand().map(|quoted| &quoted.packet)
}

#[inline(always)]
fn in_hand() -> Option<&'static mut Quoted> {
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    QUOTED.get_ptr_mut(0).map(|quoted| unsafe { &mut *quoted })
}

#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    let kind = packet.icmp >> 8;
    packet.part == Part::Whole
        && match packet.protocol {
            // Unreachable, time exceeded, parameter problem.
            protocol::ICMP => kind == 3 || kind == 11 || kind == 12,
            // Unreachable, too big, time exceeded, parameter problem.
            protocol::ICMPV6 => kind >= 1 && kind <= 4,
            _ => false,
        }
}

/// Whether who sent the error may tell of the quoted packet; then its ends are in hand.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn may_tell(error: *const Packet, ends: *const Ends) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(error), Some(ends)) = (unsafe { (error.as_ref(), ends.as_ref()) }) else { return 0 };
    in_hand().is_some_and(|quoted| name_ends(error, ends, quoted)).into()
}

/// Who is at the ends of the quoted packet, where the sender of the error may tell of it. Only who sent the packet is told
/// of its fate. A router anywhere may tell; a workload is none, and tells of what it was sent itself, as who it is here;
/// and no router but this node sees what endpoints send each other, or the node.
#[inline(always)]
fn name_ends(error: &Packet, ends: &Ends, quoted: &mut Quoted) -> bool {
    if !same(&quoted.packet.source, &error.destination) {
        return false;
    }
    quoted.ends.source = ends.destination;
    if in_pools(&ends.source) {
        quoted.ends.destination = ends.source;
        return same(&quoted.packet.destination, &error.source);
    }
    quoted.ends.destination = maps::peer_of(&quoted.packet.destination);
    let is_seen_here_alone =
        in_pools(&quoted.ends.destination) || quoted.ends.destination.class == Class::Host as u32;
    ends.source.class == Class::Host as u32 || !is_seen_here_alone
}

/// The quoted packet's addresses and ports. What is behind extension headers is found for the usual ones; not an error
/// that has extension headers itself, nor what is about a later fragment.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quote(skb: *mut __sk_buff, v6: u32, quoted: *mut Packet) -> u32 {
    let ctx = &TcContext::new(skb);
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let Some(quoted) = (unsafe { quoted.as_mut() }) else { return 0 };
    let found = if v6 != 0 { quote_v6(ctx, quoted) } else { quote_v4(ctx, quoted) };
    found.is_ok_and(|(transport, end)| ports(ctx, quoted, transport, end).is_ok()).into()
}

/// Gives the offset of the quoted transport header, and that behind the error's last byte.
#[inline(always)]
fn quote_v4(ctx: &TcContext, quoted: &mut Packet) -> Result<(u32, u32), Reason> {
    const OFFSET: u16 = 0x1fff;
    let [version_and_length, _, high, low]: [u8; 4] = load(ctx, ETHERNET as u32)?;
    let end = ETHERNET as u32 + u32::from(u16::from_be_bytes([high, low]));
    let start = ETHERNET as u32 + u32::from(version_and_length & 0x0f) * 4 + ICMP;
    let header: [u32; 5] = load(ctx, start)?;
    let [version_and_length, ..] = header[0].to_ne_bytes();
    let [_, _, high, low] = header[1].to_ne_bytes();
    let [_, protocol, ..] = header[2].to_ne_bytes();
    let length = u32::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || length < IPV4 as u32 || u16::from_be_bytes([high, low]) & OFFSET != 0 {
        return Err(Reason::Malformed);
    }
    fill(quoted, Address::from_v4(header[3]), Address::from_v4(header[4]), protocol, false);
    Ok((start + length, end))
}

#[inline(always)]
fn quote_v6(ctx: &TcContext, quoted: &mut Packet) -> Result<(u32, u32), Reason> {
    const LATER: u16 = 0xfff8;
    const START: u32 = (ETHERNET + IPV6) as u32 + ICMP;
    let [high, low, outer_next]: [u8; 3] = load(ctx, ETHERNET as u32 + 4)?;
    let end = (ETHERNET + IPV6) as u32 + u32::from(u16::from_be_bytes([high, low]));
    let version: u8 = load(ctx, START)?;
    if outer_next != protocol::ICMPV6 || version >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let source = Address { words: load(ctx, START + 8)? };
    let destination = Address { words: load(ctx, START + 24)? };
    let mut next: u8 = load(ctx, START + 6)?;
    let mut transport = START + IPV6 as u32;
    for _ in 0..EXTENSIONS_MAX {
        let [following, length, high, low]: [u8; 4] = load(ctx, transport)?;
        match next {
            parse::HOP_BY_HOP | parse::DESTINATION => transport += (u32::from(length) + 1) * 8,
            parse::FRAGMENT if u16::from_be_bytes([high, low]) & LATER == 0 => transport += 8,
            _ => break,
        }
        next = following;
    }
    if parse::is_extension(next) {
        return Err(Reason::Malformed);
    }
    fill(quoted, source, destination, next, true);
    Ok((transport, end))
}

#[inline(always)]
fn fill(quoted: &mut Packet, source: Address, destination: Address, protocol: u8, v6: bool) {
    *quoted = Packet {
        source,
        destination,
        source_port: 0,
        destination_port: 0,
        icmp: 0,
        protocol,
        tcp_flags: 0,
        v6,
        echo: Echo::No,
        part: Part::Whole,
        service: Service::No,
        transport: 0,
    };
    // Written for itself: of five zeros in a row the compiler makes a call, and so a frame.
    // SAFETY: a field of its own.
    unsafe { (&raw mut quoted.echo).write_volatile(Echo::No) };
}

#[inline(always)]
fn ports(ctx: &TcContext, quoted: &mut Packet, transport: u32, end: u32) -> Result<(), Reason> {
    let header: [u16; 4] = load(ctx, transport)?;
    quoted.transport = transport as u16;
    if transport + TRANSPORT > end {
        return Err(Reason::Malformed);
    }
    match quoted.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            quoted.source_port = header[0];
            quoted.destination_port = header[1];
        }
        protocol::ICMP | protocol::ICMPV6 => {
            quoted.icmp = u16::from_be(header[0]);
            quoted.echo = Echo::of(quoted.icmp, quoted.v6);
            quoted.source_port = header[2];
            quoted.destination_port = header[2];
            // Other ICMP has no flow.
            if quoted.echo == Echo::No || quoted.v6 != (quoted.protocol == protocol::ICMPV6) {
                return Err(Reason::Malformed);
            }
        }
        _ => {}
    }
    Ok(())
}
