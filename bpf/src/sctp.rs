//! The checksum of SCTP (CRC32c, RFC 9260 appendix A) after the ports have changed. It is linear: what a change at one place makes of
//! it does not depend on the rest, only on how many bytes follow.

use aya_ebpf::{EbpfContext, bindings::__sk_buff, helpers::bpf_skb_store_bytes, programs::TcContext};
use weft_shared::layout::Reason;

use crate::{
    fragment::Part,
    frame::{ETHERNET, load},
    parse,
};

const CHECKSUM: u32 = 8;
/// The polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0 in that order.
const ONE: u32 = 1 << 31;
/// Powers that a packet's length needs: 8 * 2^16 bits.
const POWERS: usize = 16;

/// x^(8 * 2^n), by n.
static SHIFTS: [u32; POWERS] = shifts();

const fn shifts() -> [u32; POWERS] {
    let mut powers = [0; POWERS];
    // x^8.
    let mut power = ONE >> 8;
    let mut index = 0;
    while index < POWERS {
        powers[index] = power;
        power = product(power, power);
        index += 1;
    }
    powers
}

/// Modulo the polynomial.
#[inline(always)]
const fn product(one: u32, other: u32) -> u32 {
    let (mut one, mut sum, mut bit) = (one, 0, 0);
    while bit < 32 {
        let taken = 0_u32.wrapping_sub((other >> (31 - bit)) & 1);
        sum ^= one & taken;
        one = (one >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(one & 1));
        bit += 1;
    }
    sum
}

/// The frame has these ports, and the packet in hand gets them, too.
#[inline(always)]
pub fn put_sum(ctx: &TcContext, source: u16, destination: u16) -> Result<(), Reason> {
    let packet = parse::kept()?;
    if packet.part != Part::Whole {
        return Err(Reason::ServiceUntranslatable);
    }
    let former = ports([packet.source_port, packet.destination_port]);
    packet.source_port = source;
    packet.destination_port = destination;
    let changed = former ^ ports([source, destination]);
    if change_sum(ctx.skb.skb, changed) == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

/// In the order of their bytes on the wire, the first in the lowest.
#[inline(always)]
fn ports(ports: [u16; 2]) -> u32 {
    u32::from(ports[0]) | u32::from(ports[1]) << 16
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn change_sum(skb: *mut __sk_buff, changed: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let Ok(packet) = parse::kept() else { return 1 };
    let at = u32::from(packet.transport);
    let (Ok(end), Ok(checksum)) = (end(ctx, packet.v6), load::<u32>(ctx, at + CHECKSUM)) else { return 1 };
    // A checksum of 0 is one that the kernel, or the device, has still to make.
    if checksum == 0 || end < at + 4 {
        return 0;
    }
    // Bytes behind the ports; the change itself is shifted by its own four by what the CRC is.
    let mut left = end - at - 4;
    let mut value = product(changed, SHIFTS[2]);
    for power in SHIFTS {
        if left & 1 != 0 {
            value = multiply(value, power);
        }
        left >>= 1;
    }
    let checksum = checksum ^ value;
    // SAFETY: the helper reads the checksum's bytes.
    unsafe {
        bpf_skb_store_bytes(ctx.as_ptr().cast(), at + CHECKSUM, (&raw const checksum).cast(), 4, 0) as u32
    }
}

/// A function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn multiply(one: u32, other: u32) -> u32 {
    product(one, other)
}

/// Offset behind the packet's last byte, by its own word.
#[inline(always)]
fn end(ctx: &TcContext, v6: bool) -> Result<u32, Reason> {
    let field: u16 = load(ctx, ETHERNET as u32 + if v6 { 4 } else { 2 })?;
    Ok(ETHERNET as u32 + u32::from(u16::from_be(field)) + if v6 { 40 } else { 0 })
}
