//! By which device a packet leaves that programs have made another one: as the kernel's routes say. The stack itself would not send
//! it, with a source that it takes for its own.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup,
    },
    helpers::{bpf_redirect_neigh, generated},
    programs::TcContext,
};
use weft_shared::layout::{Address, Reason};

use crate::{deliver, events::Done, frame::meta, parse};

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
    deliver::redirected(by(ifindex), Reason::ServiceForwarded)
}

/// Has the packet leave by a device, to the neighbour that is the way to its destination: the verdict.
#[inline(always)]
pub fn by(ifindex: u32) -> i64 {
    // SAFETY: plain numbers, and no structure, in place of which the kernel looks for the neighbour (kernel 5.10).
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }
}

/// The device by which the packet in hand leaves; 0: there is no way.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_way(skb: *mut __sk_buff) -> u32 {
    let ctx = &TcContext::new(skb);
    let Ok(packet) = parse::kept() else { return 0 };
    match look_up(ctx, &packet.source, &packet.destination, packet.v6, packet.protocol, ANY_LENGTH) {
        Some(Way::By(ifindex)) => ifindex,
        _ => 0,
    }
}

/// Where a packet goes.
pub enum Way {
    /// This device.
    By(u32),
    /// A way that takes no more than so many bytes.
    Short(u16),
}

/// The length of which no way's MTU is asked.
const ANY_LENGTH: u16 = 0;

/// Asks the kernel's routes for the way of a packet of so many bytes. Of the neighbour nothing needs to be known yet.
#[inline(always)]
pub fn look_up(
    ctx: &TcContext,
    source: &Address,
    destination: &Address,
    v6: bool,
    protocol: u8,
    length: u16,
) -> Option<Way> {
    // SAFETY: plain numbers, of which each may be zero.
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    route.ifindex = meta(ctx).ifindex;
    route.l4_protocol = protocol;
    route.__bindgen_anon_1.tot_len = length;
    if v6 {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = source.words;
        route.__bindgen_anon_4.ipv6_dst = destination.words;
    } else {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = source.words[3];
        route.__bindgen_anon_4.ipv4_dst = destination.words[3];
    }
    // SAFETY: the helper reads and writes the structure.
    let found = unsafe {
        generated::bpf_fib_lookup(ctx.as_ptr().cast(), &raw mut route, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    if length != ANY_LENGTH && found == BPF_FIB_LKUP_RET_FRAG_NEEDED.into() {
        // SAFETY: the helper wrote it (kernel 5.12).
        return Some(Way::Short(unsafe { route.__bindgen_anon_1.mtu_result }));
    }
    let known = found == BPF_FIB_LKUP_RET_SUCCESS.into() || found == BPF_FIB_LKUP_RET_NO_NEIGH.into();
    known.then_some(Way::By(route.ifindex))
}
