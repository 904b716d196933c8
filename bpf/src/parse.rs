//! From bytes to a [`Packet`]. What is truncated, inconsistent or can't be judged is an error here, so that later modules
//! only see whole packets.

use core::arch::asm;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weft_shared::layout::{Address, Reason};

use crate::{
    fragment::{self, Part},
    frame::{ETHERNET, Frame, IPV4, IPV6, load, meta},
    maps::PACKET,
};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// Type, then code, of echo messages. Those with another code than 0 are no echo here: a policy may tell them apart.
const ECHO_REPLY_V4: u16 = 0;
const ECHO_REQUEST_V4: u16 = 8 << 8;
const ECHO_REQUEST_V6: u16 = 128 << 8;
const ECHO_REPLY_V6: u16 = 129 << 8;

/// IPv6 extension headers, up to which a packet's protocol is looked for.
const EXTENSIONS_MAX: usize = 6;
/// Words of IPv4 options, by the width of the header's length.
const OPTION_WORDS_MAX: u32 = 10;

/// What ICMP is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Echo {
    No = 0,
    Request = 1,
    Reply = 2,
}

impl Echo {
    /// By type and code.
    #[inline(always)]
    pub const fn of(icmp: u16, v6: bool) -> Self {
        match icmp {
            ECHO_REQUEST_V4 if !v6 => Self::Request,
            ECHO_REQUEST_V6 if v6 => Self::Request,
            ECHO_REPLY_V4 if !v6 => Self::Reply,
            ECHO_REPLY_V6 if v6 => Self::Reply,
            _ => Self::No,
        }
    }

    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Reply,
            _ => Self::No,
        }
    }
}

/// What a packet has to do with services.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// Nothing, as far as is known.
    No = 0,
    /// The client named one; the packet now names the backend.
    Question = 1,
    /// It answers a connection to one.
    Answer = 2,
    /// The client named one whose backend is elsewhere; the packet is as it came, and the backend is in hand.
    Elsewhere = 3,
}

/// Addresses of a packet and where what they carry begins.
#[derive(Clone, Copy)]
struct Network {
    source: Address,
    destination: Address,
    v6: bool,
    protocol: u8,
    part: Part,
    /// Offset of the transport header; `FIXED_V4` or `FIXED_V6` where there is nothing between.
    transport: u32,
    /// Offset behind the packet's last byte, by its own word.
    end: u32,
}

const FIXED_V4: u32 = (ETHERNET + IPV4) as u32;
const FIXED_V6: u32 = (ETHERNET + IPV6) as u32;

/// A packet that can be judged.
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: Address,
    pub destination: Address,
    /// Network order; echo: the identifier is both ports.
    pub source_port: u16,
    /// Network order.
    pub destination_port: u16,
    /// ICMP: type, then code, as the policy's rows hold them (host order).
    pub icmp: u16,
    pub protocol: u8,
    pub tcp_flags: u8,
    pub v6: bool,
    pub echo: Echo,
    pub part: Part,
    pub service: Service,
    /// Offset of the transport header in the frame.
    pub transport: u16,
}

impl Packet {
    #[inline(always)]
    const fn without_ports(network: &Network) -> Self {
        Self {
            source: network.source,
            destination: network.destination,
            source_port: 0,
            destination_port: 0,
            icmp: 0,
            protocol: network.protocol,
            tcp_flags: 0,
            v6: network.v6,
            echo: Echo::No,
            part: network.part,
            service: Service::No,
            // Six extension headers of 2 KiB at most.
            transport: network.transport as u16,
        }
    }

    /// Puts the packet where the verifier forgets how it came about. Otherwise it follows every way through the parser to
    /// the end of the program, which are more than it has patience for. The memory is this CPU's; no two of our programs
    /// have a packet in hand there at once, because none is interrupted by another.
    #[inline(always)]
    pub fn keep(self) -> Result<&'static mut Self, Reason> {
        let kept = PACKET.get_ptr_mut(0).ok_or(Reason::KernelError)?;
        // SAFETY: an element of an array, which never moves, and only this program's now. The compiler must read again
        // what it wrote: it may not know, either.
        unsafe {
            kept.write(self);
            asm!("", options(nostack, preserves_flags));
            Ok(&mut *kept)
        }
    }

    /// The same, of one that answers for a service.
    #[inline(always)]
    pub fn keep_answer(self) -> Result<&'static mut Self, Reason> {
        Self { service: Service::Answer, ..self }.keep()
    }

    /// The port that a policy's rows are looked up with, in the packet's own direction. Host order.
    #[inline(always)]
    pub fn policy_port(&self) -> u16 {
        if self.is_icmp() { self.icmp } else { u16::from_be(self.destination_port) }
    }

    /// The port that the policy of the flow was asked with where this packet is a reply.
    #[inline(always)]
    pub fn policy_port_of_original(&self) -> u16 {
        match (self.is_icmp(), self.v6) {
            (false, _) => u16::from_be(self.source_port),
            (true, false) => ECHO_REQUEST_V4,
            (true, true) => ECHO_REQUEST_V6,
        }
    }

    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.protocol == protocol::ICMP || self.protocol == protocol::ICMPV6
    }

    /// ICMP other than echo belongs to no flow: each packet is judged by itself. An answer to an echo that nobody asked
    /// for is judged by its own type.
    #[inline(always)]
    pub fn has_flow(&self) -> bool {
        !self.is_icmp() || self.echo != Echo::No
    }

    #[inline(always)]
    pub fn tcp_without_syn(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & tcp::SYN == 0
    }

    #[inline(always)]
    pub fn tcp_opens(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

/// The EtherType, host order.
#[inline(always)]
pub fn ethertype(frame: &Frame) -> Result<u16, Reason> {
    frame.read::<u16>(12).map(u16::from_be)
}

/// The EtherType of a frame that must be IP without a tag, whose headers can then be read.
#[inline(always)]
pub fn untagged_ip(ctx: &TcContext) -> Result<u16, Reason> {
    let frame = Frame::with_headers(ctx);
    match ethertype(&frame)? {
        _ if meta(ctx).vlan_present != 0 => Err(Reason::UnknownEtherType),
        ETHERTYPE_IPV4 => Ok(ETHERTYPE_IPV4),
        ETHERTYPE_IPV6 => {
            frame.with_headers_v6(ctx);
            Ok(ETHERTYPE_IPV6)
        }
        _ => Err(Reason::UnknownEtherType),
    }
}

/// The addresses alone, for hooks that see the node's own traffic too.
#[inline(always)]
pub fn addresses(frame: &Frame, ethertype: u16) -> Result<(Address, Address), Reason> {
    if ethertype == ETHERTYPE_IPV4 {
        let pair: [u32; 2] = frame.read(ETHERNET + 12)?;
        Ok((Address::from_v4(pair[0]), Address::from_v4(pair[1])))
    } else {
        let pair: [[u32; 4]; 2] = frame.read(ETHERNET + 8)?;
        Ok((Address { words: pair[0] }, Address { words: pair[1] }))
    }
}

/// The whole packet, wherever its headers are; of a later fragment, with the transport header that its first had. The fixed
/// headers are in the linear part, where they fit (see `Frame::with_headers`).
#[inline(always)]
pub fn packet(ctx: &TcContext, ethertype: u16) -> Result<&'static Packet, Reason> {
    match parse_packet(ctx.skb.skb, ethertype.into()) {
        PARSED => {}
        number => return Err(Reason::from_number(number).unwrap_or(Reason::Malformed)),
    }
    let packet = kept()?;
    if packet.part == Part::Later && !fragment::recall(packet) {
        return Err(Reason::FragmentWithoutFirst);
    }
    Ok(packet)
}

/// The packet in hand, after another function may have changed it.
#[inline(always)]
pub fn kept() -> Result<&'static mut Packet, Reason> {
    let kept = PACKET.get_ptr_mut(0).ok_or(Reason::KernelError)?;
    // SAFETY: as in `Packet::keep`.
    Ok(unsafe { &mut *kept })
}

/// In place of a reason.
const PARSED: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_packet(skb: *mut __sk_buff, ethertype: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let frame = &Frame::of(ctx);
    let parsed = network(ctx, frame, ethertype as u16).and_then(|network| transport(ctx, frame, &network));
    match parsed.and_then(Packet::keep) {
        Ok(_) => PARSED,
        Err(reason) => reason as u32,
    }
}

/// IPv4 or IPv6 by the EtherType.
#[inline(always)]
fn network(ctx: &TcContext, frame: &Frame, ethertype: u16) -> Result<Network, Reason> {
    if ethertype == ETHERTYPE_IPV4 { ipv4(ctx, frame) } else { ipv6(ctx, frame) }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, frame: &Frame) -> Result<Network, Reason> {
    let (source, destination) = addresses(frame, ETHERTYPE_IPV4)?;
    let version_and_length: u8 = frame.read(ETHERNET)?;
    let header = u32::from(version_and_length & 0x0f) * 4;
    let total = u32::from(u16::from_be(frame.read(ETHERNET + 2)?));
    let end = ETHERNET as u32 + total;
    if version_and_length >> 4 != 4 || header < IPV4 as u32 || total < header || end > ctx.len() {
        return Err(Reason::Malformed);
    }
    let part = match u16::from_be(frame.read(ETHERNET + 6)?) & 0x3fff {
        0 => Part::Whole,
        // Units of eight bytes below the bit of more to come.
        field => fragment::note(
            field << 3 | field >> 13,
            total - header,
            u32::from(frame.read::<u16>(ETHERNET + 4)?),
        )?,
    };
    if header > IPV4 as u32 {
        refuse_source_route(ctx, header)?;
    }
    let protocol = frame.read(ETHERNET + 9)?;
    Ok(Network { source, destination, v6: false, protocol, part, transport: ETHERNET as u32 + header, end })
}

/// Loose and strict source route (RFC 791): the packet would go elsewhere than where it was judged for. The options are
/// not walked one by one, which the verifier takes for a million paths: no byte of them may be one of these numbers. That
/// also refuses some recorded routes and timestamps, which nobody misses.
#[inline(always)]
fn refuse_source_route(ctx: &TcContext, header: u32) -> Result<(), Reason> {
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    for word in 0..OPTION_WORDS_MAX {
        let offset = IPV4 as u32 + word * 4;
        if offset >= header {
            break;
        }
        let bytes: [u8; 4] = load(ctx, ETHERNET as u32 + offset)?;
        for byte in bytes {
            if byte == LOOSE || byte == STRICT {
                return Err(Reason::ForbiddenAddress);
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn ipv6(ctx: &TcContext, frame: &Frame) -> Result<Network, Reason> {
    let (source, destination) = addresses(frame, ETHERTYPE_IPV6)?;
    let version: u8 = frame.read(ETHERNET)?;
    let payload = u32::from(u16::from_be(frame.read(ETHERNET + 4)?));
    let next: u8 = frame.read(ETHERNET + 6)?;
    let end = FIXED_V6 + payload;
    if version >> 4 != 6 || end > ctx.len() {
        return Err(Reason::Malformed);
    }
    if source.is_v4() || destination.is_v4() {
        return Err(Reason::ForbiddenAddress);
    }
    let mut network = Network {
        source,
        destination,
        v6: true,
        protocol: next,
        part: Part::Whole,
        transport: FIXED_V6,
        end,
    };
    if is_extension(next) {
        extensions(ctx, &mut network)?;
    }
    Ok(network)
}

pub const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;

#[inline(always)]
pub fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

/// Finds the protocol behind the extension headers. AH and ESP count as protocols: what is behind them is not ours to
/// judge. A later fragment ends with its header; what its first said is found elsewhere.
#[inline(always)]
fn extensions(ctx: &TcContext, network: &mut Network) -> Result<(), Reason> {
    let mut next = network.protocol;
    let mut offset = network.transport;
    for index in 0..EXTENSIONS_MAX {
        match next {
            HOP_BY_HOP if index > 0 => return Err(Reason::Malformed),
            HOP_BY_HOP | DESTINATION => {
                let header: [u8; 2] = load(ctx, offset)?;
                next = header[0];
                offset += (u32::from(header[1]) + 1) * 8;
                if offset > network.end {
                    return Err(Reason::Malformed);
                }
            }
            ROUTING => return Err(Reason::ForbiddenAddress),
            // A fragment of a fragment.
            FRAGMENT if network.part != Part::Whole => return Err(Reason::Malformed),
            FRAGMENT => {
                let header: [u16; 4] = load(ctx, offset)?;
                next = header[0].to_ne_bytes()[0];
                offset += 8;
                if offset > network.end {
                    return Err(Reason::Malformed);
                }
                // Two bits between are reserved.
                network.part = fragment::note(
                    u16::from_be(header[1]) & !0b110,
                    network.end - offset,
                    u32::from(header[2]) | u32::from(header[3]) << 16,
                )?;
                if network.part == Part::Later {
                    break;
                }
            }
            _ => break,
        }
    }
    if is_extension(next) && network.part != Part::Later {
        return Err(Reason::Malformed);
    }
    network.protocol = next;
    network.transport = offset;
    Ok(())
}

/// A later fragment has no transport header of its own.
#[inline(always)]
fn transport(ctx: &TcContext, frame: &Frame, network: &Network) -> Result<Packet, Reason> {
    if network.part == Part::Later { Ok(Packet::without_ports(network)) } else { ports(ctx, frame, network) }
}

/// The transport header's part that is judged.
#[inline(always)]
fn ports(ctx: &TcContext, frame: &Frame, network: &Network) -> Result<Packet, Reason> {
    let mut packet = Packet::without_ports(network);
    match network.protocol {
        protocol::TCP => {
            [packet.source_port, packet.destination_port] = field(ctx, frame, network, 0, 20)?;
            let [length, flags]: [u8; 2] = field(ctx, frame, network, 12, 20)?;
            let length = u32::from(length >> 4) * 4;
            if length < 20 || network.transport + length > network.end {
                return Err(Reason::Malformed);
            }
            packet.tcp_flags = flags;
        }
        protocol::UDP => [packet.source_port, packet.destination_port] = field(ctx, frame, network, 0, 8)?,
        protocol::SCTP => [packet.source_port, packet.destination_port] = field(ctx, frame, network, 0, 12)?,
        // The other family's ICMP is a protocol like any without ports, but for its number it would be taken for ICMP.
        protocol::ICMP if network.v6 => return Err(Reason::Malformed),
        protocol::ICMPV6 if !network.v6 => return Err(Reason::Malformed),
        protocol::ICMP | protocol::ICMPV6 => {
            let [kind, code]: [u8; 2] = field(ctx, frame, network, 0, 8)?;
            packet.icmp = u16::from_be_bytes([kind, code]);
            packet.echo = Echo::of(packet.icmp, network.v6);
            if packet.echo != Echo::No {
                let identifier = field::<u16>(ctx, frame, network, 4, 8)?;
                packet.source_port = identifier;
                packet.destination_port = identifier;
            }
        }
        _ => {}
    }
    Ok(packet)
}

/// A field of the transport header, which has at least `minimum` bytes.
#[inline(always)]
fn field<T: Copy + Default>(
    ctx: &TcContext,
    frame: &Frame,
    network: &Network,
    offset: usize,
    minimum: u32,
) -> Result<T, Reason> {
    if network.transport + minimum > network.end {
        return Err(Reason::Malformed);
    }
    if !network.v6 && network.transport == FIXED_V4 {
        frame.read(FIXED_V4 as usize + offset)
    } else if network.v6 && network.transport == FIXED_V6 {
        frame.read(FIXED_V6 as usize + offset)
    } else {
        load(ctx, network.transport + offset as u32)
    }
}
