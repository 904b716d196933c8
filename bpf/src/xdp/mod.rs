//! What is done with a packet before the node's stack sees it: what comes from listed sources is dropped (`prefilter`), and what goes
//! to services of which a backend is elsewhere is sent on to that (`forward`) by the device on which it came. Everything else
//! goes up, untouched; why it does, where it might have been sent on, is counted.

mod forward;
pub mod hop;
pub mod rate;
pub mod read;
mod tunnel;

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

use crate::{
    maps::{COUNTERS, PREFILTER_COUNTERS},
    prefilter,
};

#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    match judge(ctx) {
        Ok(None) => XDP_PASS,
        Ok(Some(sent)) => {
            note(ctx, sent);
            XDP_TX
        }
        Err(reason) => {
            note(ctx, reason);
            if reason.is_drop() { XDP_DROP } else { XDP_PASS }
        }
    }
}

/// As what the packet is sent on, if it is; an error is why it is dropped, or why it goes up where it is not simply nobody's here.
#[inline(always)]
fn judge(ctx: &XdpContext) -> Result<Option<Reason>, Reason> {
    if let Some(list) = prefilter::listed(ctx)? {
        count(PREFILTER_COUNTERS.get_ptr_mut(list), ctx);
        return Err(Reason::Prefiltered);
    }
    let Some(packet) = read::packet(ctx)? else { return Ok(None) };
    forward::run(ctx, packet)
}

#[inline(always)]
fn note(ctx: &XdpContext, reason: Reason) {
    count(COUNTERS.get_ptr_mut(counter_index(Point::XdpUplink, reason)), ctx);
}

#[inline(always)]
fn count(counter: Option<*mut Counter>, ctx: &XdpContext) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's element; XDP programs of one CPU don't interrupt each other. The helper reads the context.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bpf_xdp_get_buff_len(ctx.as_ptr().cast());
        }
    }
}
