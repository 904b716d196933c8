//! Takes packets to services out of those in which another node sent them on (see `xdp::tunnel`): IPv4 or IPv6 in IPv4 or IPv6. Only
//! from addresses of nodes, because whoever sends such a packet says which endpoint gets what is inside, and who its source is.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_skb_adjust_room, bpf_skb_change_proto},
    programs::TcContext,
};
use weft_shared::layout::{Class, Peer, Reason};

use crate::{
    frame::{ETHERNET, Frame, IPV4, IPV6},
    maps,
    parse::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol},
    service,
};

/// What was inside.
pub struct Inside {
    pub ethertype: u16,
    /// The lower half of the backend's address.
    pub mark: u16,
}

/// Takes the packet in hand, for the node itself, out of the one around it; `None`: there is none, or it is none of another node's for
/// a service.
#[inline(always)]
pub fn inside(ctx: &TcContext, ethertype: u16, to: &Peer) -> Result<Option<Inside>, Reason> {
    if to.class != Class::Host as u32 || !service::any() {
        return Ok(None);
    }
    match take_out(ctx.skb.skb, ethertype.into()) {
        NOTHING => Ok(None),
        taken if taken & TAKEN != 0 => {
            Ok(Some(Inside { ethertype: (taken >> 16) as u16, mark: taken as u16 }))
        }
        number => Err(Reason::from_number(number as u32).unwrap_or(Reason::KernelError)),
    }
}

/// What [`take_out`] answers, if not the number of a reason. Above it, the EtherType and the mark.
const NOTHING: u64 = u64::MAX;
const TAKEN: u64 = 1 << 32;

/// A function of its own: the stack has no room for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_out(skb: *mut __sk_buff, ethertype: u32) -> u64 {
    match try_take_out(&TcContext::new(skb), ethertype as u16) {
        Ok(None) => NOTHING,
        Ok(Some(Inside { ethertype, mark })) => TAKEN | u64::from(ethertype) << 16 | u64::from(mark),
        Err(reason) => reason as u64,
    }
}

#[inline(always)]
fn try_take_out(ctx: &TcContext, ethertype: u16) -> Result<Option<Inside>, Reason> {
    let frame = Frame::of(ctx);
    let v4 = ethertype == ETHERTYPE_IPV4;
    let next: u8 = frame.read(ETHERNET + if v4 { 9 } else { 6 })?;
    let ethertype = match next {
        protocol::IPIP => ETHERTYPE_IPV4,
        protocol::IPV6 => ETHERTYPE_IPV6,
        _ => return Ok(None),
    };
    let (source, _) = parse::addresses(&frame, if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 })?;
    if maps::node_slot(&source).is_none_or(|slot| slot == 0) {
        return Ok(None);
    }
    let Some(mark) = mark(&frame, v4)? else { return Ok(None) };
    // What is inside has a header of its own, or can't be judged.
    let header = if v4 { IPV4 } else { IPV6 } + if next == protocol::IPIP { IPV4 } else { IPV6 };
    if ctx.len() < (ETHERNET + header) as u32 {
        return Err(Reason::Malformed);
    }
    strip(ctx, v4, ethertype == ETHERTYPE_IPV4)?;
    Frame::of(ctx).write(12, ethertype.to_be())?;
    Ok(Some(Inside { ethertype, mark }))
}

/// What the header says of the endpoint; `None`: nodes send no such header.
#[inline(always)]
fn mark(frame: &Frame, v4: bool) -> Result<Option<u16>, Reason> {
    if !v4 {
        return Ok(Some(u16::from_be(frame.read(ETHERNET + 2)?)));
    }
    /// More fragments, and the offset.
    const CUT: u16 = 0x3fff_u16.to_be();
    let cut: u16 = frame.read(ETHERNET + 6)?;
    if frame.read::<u8>(ETHERNET)? != 0x45 || cut & CUT != 0 {
        return Ok(None);
    }
    Ok(Some(u16::from_be(frame.read(ETHERNET + 4)?)))
}

/// Takes the outer header away. The kernel is told of another family first: that makes a header as long as the family's of the
/// one that goes.
#[inline(always)]
fn strip(ctx: &TcContext, outer_v4: bool, inner_v4: bool) -> Result<(), Reason> {
    if outer_v4 != inner_v4 {
        let family = if inner_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        // SAFETY: the kernel's context and plain numbers.
        if unsafe { bpf_skb_change_proto(ctx.as_ptr().cast(), family.to_be(), 0) } != 0 {
            return Err(Reason::KernelError);
        }
    }
    let header = if inner_v4 { IPV4 } else { IPV6 } as i32;
    // SAFETY: as above.
    let failed = unsafe {
        bpf_skb_adjust_room(ctx.as_ptr().cast(), -header, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into())
    };
    if failed == 0 { Ok(()) } else { Err(Reason::KernelError) }
}
