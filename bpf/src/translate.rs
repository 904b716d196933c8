//! Puts other parties into a packet: addresses, ports, and the checksums that are about them. What the kernel has still to sum up
//! itself, it does: the helpers know which packets those are.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use weft_shared::layout::{Address, Reason, service::Party};

use crate::{
    fragment::Part,
    frame::{ETHERNET, Frame, IPV4, IPV6},
    parse::{self, Packet, protocol},
    sctp,
};

/// The packet in hand gets these parties, in the frame and as it is kept.
#[inline(always)]
pub fn parties(ctx: &TcContext, source: &Party, destination: &Party) -> Result<(), Reason> {
    match put_parties(ctx.skb.skb, source, destination) {
        DONE => Ok(()),
        PORTS_OF_SCTP => sctp::put_sum(ctx, source.port, destination.port),
        number => Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
}

/// In place of a reason.
const DONE: u32 = u32::MAX;
/// The checksum is to be changed yet, which is a long way. The ports of the packet in hand are as they were.
const PORTS_OF_SCTP: u32 = u32::MAX - 1;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put_parties(skb: *mut __sk_buff, source: *const Party, destination: *const Party) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(source), Some(destination)) = (unsafe { (source.as_ref(), destination.as_ref()) }) else {
        return Reason::KernelError as u32;
    };
    match put(&TcContext::new(skb), source, destination) {
        Ok(done) => done,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn put(ctx: &TcContext, source: &Party, destination: &Party) -> Result<u32, Reason> {
    let packet = parse::kept()?;
    let addresses = growth(packet, &source.address, &destination.address);
    let ports = [source.port, destination.port];
    let former = [packet.source_port, packet.destination_port];
    put_addresses(&Frame::of(ctx), packet.v6, source, destination, addresses)?;
    if packet.part != Part::Later {
        put_ports(ctx, packet, ports)?;
        match packet.protocol {
            protocol::TCP => sum_up(ctx, packet, 16, addresses, difference(former, ports))?,
            protocol::UDP => sum_up(ctx, packet, 6, addresses, difference(former, ports))?,
            _ => {}
        }
    }
    packet.source = source.address;
    packet.destination = destination.address;
    if packet.protocol == protocol::SCTP && packet.part != Part::Later && ports != former {
        return Ok(PORTS_OF_SCTP);
    }
    packet.source_port = source.port;
    packet.destination_port = destination.port;
    Ok(DONE)
}

#[inline(always)]
fn put_addresses(
    frame: &Frame,
    v6: bool,
    source: &Party,
    destination: &Party,
    difference: u32,
) -> Result<(), Reason> {
    if v6 {
        return frame.write(ETHERNET + 8, [source.address.words, destination.address.words]);
    }
    frame.write(ETHERNET + 12, [source.address.words[3], destination.address.words[3]])?;
    let checksum: u16 = frame.read(ETHERNET + 10)?;
    frame.write(ETHERNET + 10, changed(checksum, difference))
}

#[inline(always)]
fn put_ports(ctx: &TcContext, packet: &Packet, ports: [u16; 2]) -> Result<(), Reason> {
    const FIXED_V4: usize = ETHERNET + IPV4;
    const FIXED_V6: usize = ETHERNET + IPV6;
    let transport = u32::from(packet.transport);
    if !packet.v6 && transport == FIXED_V4 as u32 {
        return Frame::of(ctx).write(FIXED_V4, ports);
    }
    if packet.v6 && transport == FIXED_V6 as u32 {
        return Frame::of(ctx).write(FIXED_V6, ports);
    }
    // SAFETY: the helper reads the ports' bytes.
    let failed =
        unsafe { bpf_skb_store_bytes(ctx.as_ptr().cast(), transport, (&raw const ports).cast(), 4, 0) };
    if failed == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

/// The checksum of TCP or UDP, which is `at` in its header. Addresses count as part of the pseudo header, which is in the field
/// already where the kernel has the rest still to do; ports do not.
#[inline(always)]
fn sum_up(ctx: &TcContext, packet: &Packet, at: u32, addresses: u32, ports: u32) -> Result<(), Reason> {
    let offset = u32::from(packet.transport) + at;
    // A datagram without a checksum stays one.
    let flags = u64::from(if at == 6 { BPF_F_MARK_MANGLED_0 } else { 0 });
    let replace = |difference: u32, flags: u64| {
        // SAFETY: the kernel's context and plain numbers.
        let failed = unsafe { bpf_l4_csum_replace(ctx.as_ptr().cast(), offset, 0, difference.into(), flags) };
        if failed == 0 { Ok(()) } else { Err(Reason::KernelError) }
    };
    if addresses != 0 {
        replace(addresses, flags | u64::from(BPF_F_PSEUDO_HDR))?;
        if packet.v6 {
            // A sum of the whole frame stays the same: what addresses add, the checksum takes away. For IPv4 that is the header's, and the
            // helper takes the other one's part out of the sum; for IPv6 it does so, too, which is one too many (until it is told the
            // family, commit ead7f9b8de65).
            // SAFETY: as above. Fails where there is no such sum.
            unsafe { bpf_csum_update(ctx.as_ptr().cast(), addresses) };
        }
    }
    if ports != 0 { replace(ports, flags) } else { Ok(()) }
}

/// What the sum of the ports grows by (RFC 1624); 0 if they are the same.
#[inline(always)]
pub fn difference(from: [u16; 2], to: [u16; 2]) -> u32 {
    if from == to {
        return 0;
    }
    u32::from(to[0]) + u32::from(to[1]) + u32::from(!from[0]) + u32::from(!from[1])
}

/// What the sum of the addresses grows by, when the packet gets these.
#[inline(always)]
pub fn growth(packet: &Packet, source: &Address, destination: &Address) -> u32 {
    folded(
        sum_of(source) + sum_of(destination) + negative_of(&packet.source) + negative_of(&packet.destination),
    )
}

/// Of IPv4 only the last word differs; the others cancel out.
#[inline(always)]
pub fn sum_of(address: &Address) -> u64 {
    let [a, b, c, d] = address.words;
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
}

#[inline(always)]
fn negative_of(address: &Address) -> u64 {
    let [a, b, c, d] = address.words;
    u64::from(!a) + u64::from(!b) + u64::from(!c) + u64::from(!d)
}

/// In ones' complement of 32 bits.
#[inline(always)]
pub fn folded(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// A checksum after the sum has grown (RFC 1624).
#[inline(always)]
pub fn changed(checksum: u16, difference: u32) -> u16 {
    let sum = u32::from(!checksum) + (difference & 0xffff) + (difference >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
