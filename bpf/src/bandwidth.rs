//! Rates of endpoints: what all of a workload's packets together may be, in each direction.
//!
//! A bucket is one number, the time at which what was let through would be over at the endpoint's rate (the generic cell rate
//! algorithm, ITU-T I.371). A packet may be ahead of it by so much as may wait; what is further ahead is dropped. Where the
//! uplinks' queues keep to a packet's time of departure it is delayed for as long as it is ahead, and otherwise passes at once.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_ns, generated::bpf_skb_set_tstamp},
    programs::TcContext,
};
use weft_shared::layout::{
    Direction, Endpoint, Reason, endpoint_flags,
    shaping::{BucketKey, ahead_max, nanoseconds},
};

use crate::{atomic, frame::meta, maps::BUCKETS};

/// `BPF_SKB_TSTAMP_DELIVERY_MONO` (kernel 5.18, commit 9bb984f28d5b): `CLOCK_MONOTONIC`, which forwarding keeps.
const DELIVERY_MONOTONIC: u32 = 1;

/// What a workload sends, to another endpoint of this node or out of it.
#[inline(always)]
pub fn sent(ctx: &TcContext, endpoint: &Endpoint, to_ifindex: u32) -> Result<(), Reason> {
    if endpoint.egress_rate == 0 {
        return Ok(());
    }
    let meta = meta(ctx);
    let departs =
        take_from_bucket(meta.ifindex, Direction::Egress as u32, wire_bytes(ctx), endpoint.egress_rate);
    if departs == NEVER {
        return Err(Reason::RateExceeded);
    }
    // Within the node there is no queue in which it could wait.
    if departs != AT_ONCE && to_ifindex == 0 && endpoint.flags & endpoint_flags::DEPARTURES != 0 {
        // SAFETY: the context is the program's, the rest plain numbers.
        let failed = unsafe { bpf_skb_set_tstamp(ctx.as_ptr().cast(), departs, DELIVERY_MONOTONIC) };
        if failed != 0 {
            return Err(Reason::KernelError);
        }
    }
    Ok(())
}

/// What is delivered to a workload.
#[inline(always)]
pub fn received(ctx: &TcContext, endpoint: &Endpoint, ifindex: u32) -> Result<(), Reason> {
    if endpoint.ingress_rate == 0 {
        return Ok(());
    }
    let departs =
        take_from_bucket(ifindex, Direction::Ingress as u32, wire_bytes(ctx), endpoint.ingress_rate);
    if departs == NEVER { Err(Reason::RateExceeded) } else { Ok(()) }
}

/// As long as the packet is on the wire. Of what comes in, the kernel takes `wire_len` before it puts the Ethernet header back
/// (`sch_handle_ingress`), so that it is not counted there; of what goes out uncut, the headers of all pieces are.
#[inline(always)]
fn wire_bytes(ctx: &TcContext) -> u32 {
    let meta = meta(ctx);
    meta.wire_len.max(meta.len)
}

const AT_ONCE: u64 = 0;
const NEVER: u64 = u64::MAX;

/// Takes a packet out of an endpoint's bucket: when it may go (nanoseconds of `CLOCK_MONOTONIC`), [`AT_ONCE`] or [`NEVER`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_from_bucket(ifindex: u32, direction: u32, bytes: u32, rate: u64) -> u64 {
    if rate == 0 {
        return NEVER;
    }
    let Some(bucket) = bucket(&BucketKey { ifindex, direction }) else { return NEVER };
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let takes = nanoseconds(bytes.into(), rate);
    // SAFETY: the kernel's element, which stays a number while the program runs (RCU).
    let over_at = unsafe { bucket.read_volatile() };
    let begins = over_at.max(now);
    if begins - now > ahead_max(rate) {
        return NEVER;
    }
    // SAFETY: as above.
    let begins = unsafe {
        if atomic::exchange(bucket, over_at, begins + takes) {
            begins
        } else {
            // Another CPU has brought it to the present this moment.
            atomic::add(bucket, takes)
        }
    };
    if begins > now { begins } else { AT_ONCE }
}

/// The first packet makes it.
#[inline(always)]
fn bucket(key: &BucketKey) -> Option<*mut u64> {
    BUCKETS.get_ptr_mut(key).or_else(|| {
        // Another CPU may have been faster.
        BUCKETS.insert(key, &0, BPF_NOEXIST.into()).unwrap_or_default();
        BUCKETS.get_ptr_mut(key)
    })
}
