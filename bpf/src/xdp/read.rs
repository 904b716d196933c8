//! A packet that may be a service's, read: IPv4 without options or IPv6 without extension headers, TCP, UDP or SCTP, whole.

use core::arch::asm;

use aya_ebpf::{EbpfContext as _, helpers::bpf_xdp_get_buff_len, programs::XdpContext};
use weft_shared::layout::{
    Address, Connection, ConnectionKey, Leg, Reason,
    service::{ANY_SERVED, Party, served_bit},
};

use crate::{
    frame::{ETHERNET, Frame, HEADERS_V4, HEADERS_V6, IPV4, IPV6},
    maps::{FORWARDED, SERVED_PORTS},
    parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol, tcp},
    snat,
};

/// Bytes of ports.
const PORTS: usize = 4;
/// Offset of the flags in TCP's header.
const TCP_FLAGS: usize = 13;
/// IPv4: neither an offset nor more to come.
const FRAGMENT: u16 = 0x3fff;
/// IPv6 extension headers and what else hides the ports: hop-by-hop options, routing, fragment, authentication, destination options,
/// mobility (RFC 8200, RFC 7045).
const EXTENSIONS: [u8; 6] = [0, 43, 44, protocol::AH, 60, 135];

/// Enough of a packet to send it on, and what becomes of it. Kept where the verifier forgets how it came about, as
/// `parse::Packet` is: this CPU's memory, of which one program has something in hand at a time.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Packet {
    /// Who sends to whom.
    pub key: ConnectionKey,
    /// Bytes of the IP packet.
    pub length: u32,
    pub v6: bool,
    /// TCP: it begins a connection.
    pub opens: bool,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Bits of [`maybe`].
    pub maybe: u8,
    /// What its ends become. Addresses are in two words: of four, the compiler makes calls of `memmove`.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// Network order.
    pub source_port: u16,
    pub destination_port: u16,
    /// Bits of `connection_flags`.
    pub flags: u32,
    /// What is to be remembered of it, where it is not yet.
    pub row: Connection,
    /// Whether there is a row that has the same backend.
    pub known: bool,
    /// Whether its row counts already among those of this second.
    pub counted: bool,
}

/// What a packet may be, by its port.
pub mod maybe {
    /// One to a service.
    pub const QUESTION: u8 = 1;
    /// One of a backend that answers through this node.
    pub const ANSWER: u8 = 2;
    /// TCP: FIN or RST. No packet ends a connection that begins one.
    pub const LAST: u8 = 4;
}

impl Packet {
    #[inline(always)]
    fn keep(
        key: ConnectionKey,
        length: u32,
        v6: bool,
        tos: u8,
        [maybe, flags]: [u8; 2],
    ) -> Result<&'static mut Self, Reason> {
        let kept = FORWARDED.get_ptr_mut(0).ok_or(Reason::KernelError)?;
        // SAFETY: an element of an array, which never moves, and only this program's now. The compiler must read again what it
        // wrote: it may not know, either.
        unsafe {
            (*kept).key = key;
            (*kept).length = length;
            (*kept).v6 = v6;
            (*kept).opens = flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
            (*kept).maybe = if flags & (tcp::FIN | tcp::RST) == 0 { maybe } else { maybe | maybe::LAST };
            (*kept).tos = tos;
            asm!("", options(nostack, preserves_flags));
            Ok(&mut *kept)
        }
    }

    /// The one that is kept.
    #[inline(always)]
    pub fn kept() -> Option<&'static mut Self> {
        // SAFETY: as above.
        FORWARDED.get_ptr_mut(0).map(|kept| unsafe { &mut *kept })
    }

    #[inline(always)]
    pub fn client(&self) -> Party {
        Party { address: self.key.source, port: self.key.source_port, zero: 0 }
    }

    #[inline(always)]
    pub fn frontend(&self) -> Party {
        Party { address: self.key.destination, port: self.key.destination_port, zero: 0 }
    }
}

/// `Ok(None)`: it is no service's.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Result<Option<&'static mut Packet>, Reason> {
    // Where there are no services, no packet is looked at.
    if SERVED_PORTS.get(ANY_SERVED).is_none_or(|any| *any == 0) {
        return Ok(None);
    }
    let frame = Frame::between(ctx.data(), ctx.data_end());
    let Some(head) = frame.head::<ETHERNET>() else { return Ok(None) };
    match u16::from_be(head.read::<u16, 12>()) {
        ETHERTYPE_IPV4 => ipv4(ctx, &frame),
        ETHERTYPE_IPV6 => ipv6(ctx, &frame),
        _ => Ok(None),
    }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, frame: &Frame) -> Result<Option<&'static mut Packet>, Reason> {
    let head = frame.head::<{ ETHERNET + IPV4 + PORTS }>().ok_or(Reason::PassedUnread)?;
    let protocol: u8 = head.read::<u8, { ETHERNET + 9 }>();
    let fragment = u16::from_be(head.read::<u16, { ETHERNET + 6 }>()) & FRAGMENT;
    if head.read::<u8, ETHERNET>() != 0x45 || fragment != 0 {
        return Err(Reason::PassedNotPlain);
    }
    let [from, to] = head.read::<[u16; 2], { ETHERNET + IPV4 }>();
    let maybe = maybe(protocol, to);
    if maybe == 0 {
        return Ok(None);
    }
    let length = u32::from(u16::from_be(head.read::<u16, { ETHERNET + 2 }>()));
    is_whole(ctx, frame, length, (IPV4 + header(protocol)) as u32)?;
    let flags = if protocol == protocol::TCP {
        let head = frame.head::<HEADERS_V4>().ok_or(Reason::PassedUnread)?;
        head.read::<u8, { ETHERNET + IPV4 + TCP_FLAGS }>()
    } else {
        0
    };
    let [source, destination] = head.read::<[u32; 2], { ETHERNET + 12 }>();
    let key = key(Address::from_v4(source), Address::from_v4(destination), [from, to], protocol);
    let tos = head.read::<u8, { ETHERNET + 1 }>();
    Packet::keep(key, length, false, tos, [maybe, flags]).map(Some)
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, frame: &Frame) -> Result<Option<&'static mut Packet>, Reason> {
    let head = frame.head::<{ ETHERNET + IPV6 + PORTS }>().ok_or(Reason::PassedUnread)?;
    let protocol: u8 = head.read::<u8, { ETHERNET + 6 }>();
    if EXTENSIONS.contains(&protocol) {
        return Err(Reason::PassedNotPlain);
    }
    let [from, to] = head.read::<[u16; 2], { ETHERNET + IPV6 }>();
    let maybe = maybe(protocol, to);
    if maybe == 0 {
        return Ok(None);
    }
    let source = address(head.read::<u64, { ETHERNET + 8 }>(), head.read::<u64, { ETHERNET + 16 }>());
    let destination = address(head.read::<u64, { ETHERNET + 24 }>(), head.read::<u64, { ETHERNET + 32 }>());
    // Mapped addresses would be others' in our tables; tc drops them.
    if source.is_v4() || destination.is_v4() {
        return Ok(None);
    }
    let length = IPV6 as u32 + u32::from(u16::from_be(head.read::<u16, { ETHERNET + 4 }>()));
    is_whole(ctx, frame, length, (IPV6 + header(protocol)) as u32)?;
    let flags = if protocol == protocol::TCP {
        let head = frame.head::<HEADERS_V6>().ok_or(Reason::PassedUnread)?;
        head.read::<u8, { ETHERNET + IPV6 + TCP_FLAGS }>()
    } else {
        0
    };
    let first = u16::from_be(head.read::<u16, ETHERNET>());
    let key = key(source, destination, [from, to], protocol);
    Packet::keep(key, length, true, (first >> 4) as u8, [maybe, flags]).map(Some)
}

/// By its halves, as they stand in the packet.
#[inline(always)]
fn address(high: u64, low: u64) -> Address {
    bytemuck::cast([high, low])
}

#[inline(always)]
const fn key(source: Address, destination: Address, ports: [u16; 2], protocol: u8) -> ConnectionKey {
    let [source_port, destination_port] = ports;
    let leg = Leg::Question as u8;
    ConnectionKey { source, destination, source_port, destination_port, protocol, leg, zero: [0; 2] }
}

/// Bits of [`maybe`](mod@maybe), by the port that the packet goes to.
#[inline(always)]
fn maybe(protocol: u8, port: u16) -> u8 {
    let Some((word, bit)) = served_bit(protocol, u16::from_be(port)) else { return 0 };
    let served = SERVED_PORTS.get(word).is_some_and(|bits| bits & bit != 0);
    let question = if served { maybe::QUESTION } else { 0 };
    if snat::is_port(port) { question | maybe::ANSWER } else { question }
}

/// The least that a transport header takes.
#[inline(always)]
const fn header(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => 20,
        protocol::SCTP => 12,
        _ => 8,
    }
}

/// Whether the frame has all of the packet, and that what was read of it.
#[inline(always)]
fn is_whole(ctx: &XdpContext, frame: &Frame, length: u32, least: u32) -> Result<(), Reason> {
    let end = ETHERNET as u32 + length;
    if length < least {
        return Err(Reason::PassedUnread);
    }
    if end > frame.bytes() {
        // SAFETY: the helper reads the context: what there is in all buffers.
        let all = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) };
        if u64::from(end) > all {
            return Err(Reason::PassedUnread);
        }
    }
    Ok(())
}
