//! Tells a client how long its packets to a service may be, where one is too long for its way to the backend inside another:
//! "fragmentation needed" (RFC 792, RFC 1191) or "packet too big" (RFC 4443), from the frontend.
//!
//! IPv4 packets that may be cut are answered as well: they can't be cut here, and most who send them (Linux among them) then
//! cut the next ones themselves.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::bpf_skb_adjust_room,
    programs::TcContext,
};
use weft_shared::layout::Reason;

use crate::{
    conntrack::now,
    deliver, forge,
    fragment::Part,
    frame::{ETHERNET, Frame, IPV4, IPV6, load, meta, store},
    parse::{self, Packet, protocol},
    reject::{ICMP, headers, is_partial, pseudo, resize, short},
    xdp::rate,
};

/// What an error quotes: headers with some options, and TCP's.
const QUOTED: usize = 128;
/// Every link takes so much (RFC 791, RFC 8200).
const LEAST_V4: u32 = 68;
const LEAST_V6: u32 = 1280;

/// Tells the sender of the packet in hand, of so many bytes, how many fit: the number of what became of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_length(skb: *mut __sk_buff, bytes: u16, fits: u16) -> u32 {
    let Ok(packet) = parse::kept() else { return Reason::KernelError as u32 };
    let ctx = &TcContext::new(skb);
    let fits = u32::from(fits).max(if packet.v6 { LEAST_V6 } else { LEAST_V4 });
    if u32::from(bytes) <= fits || !may_be_told(ctx, packet) || !rate::allows_error(now()) {
        return Reason::ServiceTooLong as u32;
    }
    match try_tell(ctx, packet, fits) {
        Ok(()) => Reason::ServiceToldLength as u32,
        Err(reason) => reason as u32,
    }
}

/// No errors about errors, later fragments, and to nobody in particular (RFC 1122, RFC 4443).
#[inline(always)]
fn may_be_told(ctx: &TcContext, packet: &Packet) -> bool {
    let nobody =
        forge::is_group(&packet.source, packet.v6) || forge::is_of_the_link(&packet.source, packet.v6);
    !nobody && !packet.is_icmp() && packet.part != Part::Later && ctx.len() >= (ETHERNET + QUOTED) as u32
}

/// Leaves of the packet what is quoted, puts the headers before it, and sends it back.
#[inline(always)]
fn try_tell(ctx: &TcContext, packet: &Packet, fits: u32) -> Result<(), Reason> {
    let due = due(ctx, packet)?;
    resize(ctx, ETHERNET + QUOTED)?;
    if packet.v6 {
        write_v6(ctx, packet, due, fits)?
    } else {
        write_v4(ctx, packet, due, fits)?
    }
    let frame = Frame::of(ctx);
    let macs: [[u16; 3]; 2] = frame.read(0)?;
    frame.write(0, [macs[1], macs[0]])?;
    deliver::back(meta(ctx).ifindex).map(|_| ())
}

/// The transport's checksum, where the kernel has the rest of it still to make. It makes it where it is quoted, of what is quoted.
#[inline(always)]
fn due(ctx: &TcContext, packet: &Packet) -> Result<Option<u16>, Reason> {
    let at = match packet.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 8,
    };
    let offset = u32::from(packet.transport) + at;
    let checksum: u16 = load(ctx, offset)?;
    if !is_partial(ctx, offset)? {
        return store(ctx, offset, &checksum).map(|()| None);
    }
    let fixed = ETHERNET + if packet.v6 { IPV6 } else { IPV4 };
    // What it comes to is known of these.
    let known = usize::from(packet.transport) == fixed && packet.protocol != protocol::SCTP;
    if known { Ok(Some(checksum)) } else { Err(Reason::ServiceTooLong) }
}

/// The sum of what is quoted, as it will be.
#[inline(always)]
fn quoted(frame: &Frame, start: usize, header: usize, due: Option<u16>) -> Result<u64, Reason> {
    match due {
        None => frame.sum(start, QUOTED),
        // With its checksum a transport sums up to the complement of the pseudo header, which is in the field.
        Some(pseudo) => Ok(frame.sum(start, header)? + u64::from(!pseudo)),
    }
}

#[inline(always)]
fn write_v4(ctx: &TcContext, packet: &Packet, due: Option<u16>, fits: u32) -> Result<(), Reason> {
    const KIND: u32 = u32::from_ne_bytes([3, 4, 0, 0]);
    const BODY: usize = ETHERNET + IPV4 + ICMP;
    let frame = make_room(ctx, IPV4 + ICMP)?;
    headers(&frame, packet, (ICMP + QUOTED) as u16, protocol::ICMP)?;
    let checksum = !short(quoted(&frame, BODY, IPV4, due)? + u64::from(KIND) + u64::from(fits.to_be()));
    frame.write(ETHERNET + IPV4, [KIND | u32::from(checksum) << 16, fits.to_be()])
}

#[inline(always)]
fn write_v6(ctx: &TcContext, packet: &Packet, due: Option<u16>, fits: u32) -> Result<(), Reason> {
    const KIND: u32 = u32::from_ne_bytes([2, 0, 0, 0]);
    const BODY: usize = ETHERNET + IPV6 + ICMP;
    const BYTES: u16 = (ICMP + QUOTED) as u16;
    let frame = make_room(ctx, IPV6 + ICMP)?;
    headers(&frame, packet, BYTES, protocol::ICMPV6)?;
    let pseudo = pseudo(packet, BYTES, protocol::ICMPV6);
    let sum = quoted(&frame, BODY, IPV6, due)? + u64::from(KIND) + u64::from(fits.to_be()) + pseudo;
    frame.write(ETHERNET + IPV6, [KIND | u32::from(!short(sum)) << 16, fits.to_be()])
}

/// Room for headers before the packet; all of it then is in the linear part.
#[inline(always)]
fn make_room(ctx: &TcContext, bytes: usize) -> Result<Frame, Reason> {
    // SAFETY: the kernel's context and plain numbers.
    let failed = unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast(), bytes as i32, BPF_ADJ_ROOM_MAC, 0) };
    if failed != 0 || ctx.pull_data((ETHERNET + bytes + QUOTED) as u32).is_err() {
        return Err(Reason::KernelError);
    }
    Ok(Frame::of(ctx))
}
