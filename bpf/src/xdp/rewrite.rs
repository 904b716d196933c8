//! Changes both ends of a packet, its checksums along (RFC 1624): what was wrong stays wrong.

use aya_ebpf::programs::XdpContext;
use weft_shared::layout::Reason;

use super::{
    hop::Hop,
    read::Packet,
    tunnel::{fold, one_hop_less, set_macs},
};
use crate::{
    frame::{ETHERNET, Frame, IPV4, IPV6},
    parse::protocol,
};

/// Offset of the checksum in TCP's header, and in UDP's.
const TCP_SUM: usize = 16;
const UDP_SUM: usize = 6;

/// Gives the packet the ends that it becomes, on its way to the hop. TCP or UDP.
#[inline(always)]
pub fn ends(ctx: &XdpContext, packet: &Packet, hop: &Hop) -> Result<(), Reason> {
    if packet.length > hop.mtu.into() {
        return Err(Reason::PassedTooLong);
    }
    one_hop_less(ctx, packet.v6)?;
    let frame = Frame::between(ctx.data(), ctx.data_end());
    if packet.v6 {
        let sum = addresses6(&frame, packet, hop)?;
        transport(&frame, packet, sum, ETHERNET + IPV6)
    } else {
        let sum = addresses4(&frame, packet, hop)?;
        transport(&frame, packet, sum, ETHERNET + IPV4)
    }
}

/// What the change adds to a checksum's sum of words, here and below: the new ones, and the complements of the old.
#[inline(always)]
fn addresses4(frame: &Frame, packet: &Packet, hop: &Hop) -> Result<u64, Reason> {
    let head = frame.head::<{ ETHERNET + IPV4 }>().ok_or(Reason::PassedUnread)?;
    let [_, from] = words(packet.source[1]);
    let [_, to] = words(packet.destination[1]);
    let (was_from, was_to) = (packet.key.source.words[3], packet.key.destination.words[3]);
    let sum = u64::from(from) + u64::from(to) + u64::from(!was_from) + u64::from(!was_to);
    let checksum = head.read::<u16, { ETHERNET + 10 }>();
    set_macs(&head, hop);
    head.write::<_, { ETHERNET + 10 }>(changed(checksum, sum));
    head.write::<_, { ETHERNET + 12 }>(from);
    head.write::<_, { ETHERNET + 16 }>(to);
    Ok(sum)
}

#[inline(always)]
fn addresses6(frame: &Frame, packet: &Packet, hop: &Hop) -> Result<u64, Reason> {
    let head = frame.head::<{ ETHERNET + IPV6 }>().ok_or(Reason::PassedUnread)?;
    // Without a loop: of what the compiler makes of one, kernel 6.1 finds that it goes back where it may not.
    let sum = sum_of(packet.source[0])
        + sum_of(packet.source[1])
        + sum_of(packet.destination[0])
        + sum_of(packet.destination[1])
        + complements(packet.key.source.words)
        + complements(packet.key.destination.words);
    set_macs(&head, hop);
    head.write::<_, { ETHERNET + 8 }>(packet.source[0]);
    head.write::<_, { ETHERNET + 16 }>(packet.source[1]);
    head.write::<_, { ETHERNET + 24 }>(packet.destination[0]);
    head.write::<_, { ETHERNET + 32 }>(packet.destination[1]);
    Ok(sum)
}

/// `sum`: of the addresses' change.
#[inline(always)]
fn transport(frame: &Frame, packet: &Packet, sum: u64, at: usize) -> Result<(), Reason> {
    let Packet { key, source_port, destination_port, .. } = packet;
    let sum = sum
        + u64::from(*source_port)
        + u64::from(*destination_port)
        + u64::from(!key.source_port)
        + u64::from(!key.destination_port);
    frame.write(at, *source_port)?;
    frame.write(at + 2, *destination_port)?;
    if key.protocol == protocol::TCP {
        let checksum: u16 = frame.read(at + TCP_SUM)?;
        return frame.write(at + TCP_SUM, changed(checksum, sum));
    }
    let checksum: u16 = frame.read(at + UDP_SUM)?;
    if checksum == 0 {
        // There is none (RFC 768).
        return Ok(());
    }
    let checksum = changed(checksum, sum);
    frame.write(at + UDP_SUM, if checksum == 0 { !0 } else { checksum })
}

#[inline(always)]
const fn changed(checksum: u16, sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32) + !checksum as u64;
    !fold(sum as u32)
}

#[inline(always)]
const fn sum_of(half: u64) -> u64 {
    (half & 0xffff_ffff) + (half >> 32)
}

#[inline(always)]
const fn complements([a, b, c, d]: [u32; 4]) -> u64 {
    !a as u64 + !b as u64 + !c as u64 + !d as u64
}

/// Of an address's half, as they stand in the packet.
#[inline(always)]
const fn words(half: u64) -> [u32; 2] {
    if cfg!(target_endian = "little") {
        [half as u32, (half >> 32) as u32]
    } else {
        [(half >> 32) as u32, half as u32]
    }
}
