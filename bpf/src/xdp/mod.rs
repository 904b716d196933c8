//! What is done with a packet before the node's stack sees it: what comes from listed sources is dropped (`prefilter`), and what goes
//! to services of which a backend is elsewhere is sent on to that (`forward`) by the device on which it came. Everything else
//! goes up, untouched; why it does, where it might have been sent on, is counted.

mod forward;
pub mod hop;
pub mod rate;
pub mod read;
mod rewrite;
pub mod tunnel;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::bpf_xdp_get_buff_len,
    programs::XdpContext,
};
use weft_shared::layout::{
    Point, Reason,
    maps::{Counter, counter_index},
};

use self::forward::Sent;
use crate::{
    maps::{COUNTERS, PREFILTER_COUNTERS},
    prefilter,
};

#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    match judge(ctx) {
        Ok(None) => XDP_PASS,
        Ok(Some(Sent { reason, bytes })) => {
            count(COUNTERS.get_ptr_mut(counter_index(Point::XdpUplink, reason)), bytes.into());
            XDP_TX
        }
        Err(reason) => {
            count(COUNTERS.get_ptr_mut(counter_index(Point::XdpUplink, reason)), length(ctx));
            if reason.is_drop() { XDP_DROP } else { XDP_PASS }
        }
    }
}

/// As what the packet is sent on, if it is; an error is why it is dropped, or why it goes up where it is not simply nobody's here.
#[inline(always)]
fn judge(ctx: &XdpContext) -> Result<Option<Sent>, Reason> {
    if let Some(list) = prefilter::listed(ctx)? {
        count(PREFILTER_COUNTERS.get_ptr_mut(list), length(ctx));
        return Err(Reason::Prefiltered);
    }
    let Some(packet) = read::packet(ctx)? else { return Ok(None) };
    forward::run(ctx, packet)
}

/// Bytes of the frame in all its buffers.
#[inline(always)]
fn length(ctx: &XdpContext) -> u64 {
    // SAFETY: the helper reads the context.
    unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) }
}

#[inline(always)]
fn count(counter: Option<*mut Counter>, bytes: u64) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's element; XDP programs of one CPU don't interrupt each other.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}
