//! What most packets are: whole ones of TCP or UDP, with nothing between the fixed headers and hops left to go. They are
//! read with one check of their length, into registers, and where their flow is known they go on at once: see the callers.
//! Everything else, and whatever is wrong with a packet, is the long way's (`parse`), which finds out what it is.

use aya_ebpf::programs::TcContext;
use weft_shared::layout::Address;

use crate::{
    forge,
    fragment::Part,
    frame::{ETHERNET, Frame, HEADERS_V4, HEADERS_V6, Head, IPV4, IPV6},
    parse::{ETHERTYPE_IPV4, Echo, Packet, Service, protocol},
};

#[inline(always)]
pub fn packet(ctx: &TcContext, frame: &Frame, ethertype: u16) -> Option<Packet> {
    if ethertype == ETHERTYPE_IPV4 { v4(ctx, frame) } else { v6(ctx, frame) }
}

#[inline(always)]
fn v4(ctx: &TcContext, frame: &Frame) -> Option<Packet> {
    /// Version 4, five words of header.
    const PLAIN: u8 = 0x45;
    /// More fragments, and the offset.
    const CUT: u16 = 0x3fff_u16.to_be();
    let head: Head<HEADERS_V4> = frame.head()?;
    let total = u32::from(u16::from_be(head.read::<u16, { ETHERNET + 2 }>()));
    let hops: u8 = head.read::<u8, { ETHERNET + 8 }>();
    let cut = head.read::<u16, { ETHERNET + 6 }>() & CUT;
    if head.read::<u8, ETHERNET>() != PLAIN || cut != 0 || hops <= 1 || ETHERNET as u32 + total > ctx.len() {
        return None;
    }
    let [source, destination] = head.read::<[u32; 2], { ETHERNET + 12 }>();
    transport::<HEADERS_V4, { ETHERNET + IPV4 }, { ETHERNET + IPV4 + 12 }>(
        &head,
        Address::from_v4(source),
        Address::from_v4(destination),
        head.read::<u8, { ETHERNET + 9 }>(),
        total.checked_sub(IPV4 as u32)?,
        false,
    )
}

#[inline(always)]
fn v6(ctx: &TcContext, frame: &Frame) -> Option<Packet> {
    let head: Head<HEADERS_V6> = frame.head()?;
    let payload = u32::from(u16::from_be(head.read::<u16, { ETHERNET + 4 }>()));
    let hops: u8 = head.read::<u8, { ETHERNET + 7 }>();
    let version = head.read::<u8, ETHERNET>() >> 4;
    if version != 6 || hops <= 1 || (ETHERNET + IPV6) as u32 + payload > ctx.len() {
        return None;
    }
    let [source, destination] = head.read::<[[u32; 4]; 2], { ETHERNET + 8 }>();
    let (source, destination) = (Address { words: source }, Address { words: destination });
    if source.is_v4() || destination.is_v4() {
        return None;
    }
    transport::<HEADERS_V6, { ETHERNET + IPV6 }, { ETHERNET + IPV6 + 12 }>(
        &head,
        source,
        destination,
        head.read::<u8, { ETHERNET + 6 }>(),
        payload,
        true,
    )
}

/// `bytes`: of the transport header and all behind it. `FLAGS`: where TCP has its own length and the flags.
#[inline(always)]
fn transport<const BYTES: usize, const OFFSET: usize, const FLAGS: usize>(
    head: &Head<BYTES>,
    source: Address,
    destination: Address,
    protocol: u8,
    bytes: u32,
    v6: bool,
) -> Option<Packet> {
    let tcp_flags = match protocol {
        protocol::TCP => {
            let [length, flags] = head.read::<[u8; 2], FLAGS>();
            let length = u32::from(length >> 4) * 4;
            if length < 20 || length > bytes {
                return None;
            }
            flags
        }
        protocol::UDP if bytes >= 8 => 0,
        _ => return None,
    };
    let [source_port, destination_port] = head.read::<[u16; 2], OFFSET>();
    Some(Packet {
        source,
        destination,
        source_port,
        destination_port,
        icmp: 0,
        protocol,
        tcp_flags,
        v6,
        echo: Echo::No,
        part: Part::Whole,
        service: Service::No,
        transport: OFFSET as u16,
    })
}

/// Whether an endpoint may send there without a look at what else the destination could mean; what may not, the long way
/// refuses by name.
#[inline(always)]
pub fn may_be_sent(frame: &Frame, packet: &Packet) -> bool {
    forge::refuse_destination(frame, packet).is_ok()
        && (packet.protocol == protocol::TCP || !forge::is_vxlan(packet))
}
