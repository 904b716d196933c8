//! The kernel programs of Weft. An entry point for each hook; what a hook does is in the module of its name, and the words
//! they share in theirs: `parse` (bytes to a packet), `conntrack` (the flow table, as `table` has it), `verdict` (the policy), `related` (ICMP errors), `host` (the node as a subject), `deliver` (on
//! its way), `neighbour` (ARP and ND), `fragment` (what came in pieces), `prefilter` (sources that nobody listens to), `bandwidth` (how much of it at a time), `xdp` (what uplinks do before the stack), `balance`, `connections` and `snat` (services), `decapsulate` (what another node balanced), `forge` (what an endpoint must not send), `events` (counters and drops).
//!
//! Functions with `no_mangle` are what the verifier calls global (kernel 5.6, pointers to memory 5.12): it looks at each once,
//! by itself, and not for every path that leads there. They take numbers, the context and pointers, which may be null for
//! all that it knows and whose targets have the size of their type. Nothing is known of what they return or write.
//!
//! Every error is a drop with its reason; nothing passes because something could not be found out.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod balance;
mod bandwidth;
mod connections;
mod conntrack;
mod decapsulate;
mod deliver;
mod events;
mod forge;
mod fragment;
mod frame;
mod from_endpoint;
mod from_overlay;
mod host;
mod maps;
mod neighbour;
mod pace;
mod parse;
mod plain;
mod prefilter;
mod quoted;
mod reject;
mod related;
mod route;
mod sctp;
mod service;
mod snat;
mod sock;
mod table;
mod to_endpoint;
mod to_overlay;
mod translate;
mod uplink;
mod verdict;
mod xdp;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier, sock_ops, xdp},
    programs::{SockAddrContext, SockContext, SockOpsContext, TcContext, XdpContext},
};
use events::{Trace, finish};
use sock::Family;
use weft_shared::layout::Point;

#[classifier]
#[inline(always)]
pub fn tc_from_endpoint(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = from_endpoint::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::FromEndpoint, outcome, packet, &trace)
}

#[classifier]
#[inline(always)]
pub fn tc_to_endpoint(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = to_endpoint::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::ToEndpoint, outcome, packet, &trace)
}

#[classifier]
#[inline(always)]
pub fn tc_from_overlay(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = from_overlay::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::FromOverlay, outcome, packet, &trace)
}

#[classifier]
#[inline(always)]
pub fn tc_to_overlay(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = to_overlay::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::ToOverlay, outcome, packet, &trace)
}

#[classifier]
#[inline(always)]
pub fn tc_from_uplink(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = uplink::receive(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::FromUplink, outcome, packet, &trace)
}

#[classifier]
#[inline(always)]
pub fn tc_to_uplink(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = uplink::send(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::ToUplink, outcome, packet, &trace)
}

/// Takes packets in several buffers (kernel 5.18): without, drivers would refuse it on devices with large MTUs.
#[xdp(frags)]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    xdp::run(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(ctx: SockAddrContext) -> i32 {
    sock::connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    sock::connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::send(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::send(&ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(ctx: SockAddrContext) -> i32 {
    sock::receive(&ctx, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(ctx: SockAddrContext) -> i32 {
    sock::receive(&ctx, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(ctx: SockAddrContext) -> i32 {
    sock::name_peer(&ctx, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeername6(ctx: SockAddrContext) -> i32 {
    sock::name_peer(&ctx, Family::V6)
}

#[cgroup_sock_addr(bind4)]
pub fn sock_bind4(ctx: SockAddrContext) -> i32 {
    sock::bind(&ctx, Family::V4)
}

#[cgroup_sock_addr(bind6)]
pub fn sock_bind6(ctx: SockAddrContext) -> i32 {
    sock::bind(&ctx, Family::V6)
}

#[cgroup_sock(sock_create)]
pub fn sock_made(ctx: SockContext) -> i32 {
    pace::made(&ctx)
}

#[sock_ops]
pub fn sock_paced(ctx: SockOpsContext) -> u32 {
    pace::called_back(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
