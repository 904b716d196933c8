//! By which device a packet leaves that programs have made another one: as the kernel's routes say. The stack itself would not send
//! it, with a source that it takes for its own.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup},
    helpers::{bpf_redirect_neigh, generated},
    programs::TcContext,
};
use weft_shared::layout::Reason;

use crate::{
    deliver,
    events::Done,
    frame::meta,
    parse::{self, Packet},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The packet in hand goes on its way, with one hop less.
#[inline(always)]
pub fn out(ctx: &TcContext) -> Result<Done, Reason> {
    deliver::hop(ctx, parse::kept()?.v6)?;
    let ifindex = find_way(ctx.skb.skb);
    if ifindex == 0 {
        return Err(Reason::NoRoute);
    }
    // SAFETY: plain numbers, and no structure, whose place is then the neighbour of the packet's destination (kernel 5.10).
    let code = unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) };
    deliver::redirected(code, Reason::ServiceForwarded)
}

/// The device; 0: there is no way.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_way(skb: *mut __sk_buff) -> u32 {
    let ctx = &TcContext::new(skb);
    let Ok(packet) = parse::kept() else { return 0 };
    look_up(ctx, packet).unwrap_or(0)
}

#[inline(always)]
fn look_up(ctx: &TcContext, packet: &Packet) -> Option<u32> {
    // SAFETY: plain numbers, of which each may be zero.
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    route.ifindex = meta(ctx).ifindex;
    route.l4_protocol = packet.protocol;
    if packet.v6 {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = packet.source.words;
        route.__bindgen_anon_4.ipv6_dst = packet.destination.words;
    } else {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = packet.source.words[3];
        route.__bindgen_anon_4.ipv4_dst = packet.destination.words[3];
    }
    // SAFETY: the helper reads and writes the structure.
    let found = unsafe {
        generated::bpf_fib_lookup(ctx.as_ptr().cast(), &raw mut route, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    let known = found == BPF_FIB_LKUP_RET_SUCCESS.into() || found == BPF_FIB_LKUP_RET_NO_NEIGH.into();
    known.then_some(route.ifindex)
}
