//! The kernel programs of Weft. An entry point for each hook; what a hook does is in the module of its name, and the words
//! they share in theirs: `parse` (bytes to a packet), `conntrack` (the flow table), `verdict` (the policy), `related` (ICMP errors), `host` (the node as a subject), `deliver` (on
//! its way), `neighbour` (ARP and ND), `fragment` (what came in pieces), `forge` (what an endpoint must not send), `events` (counters and drops).
//!
//! Functions with `no_mangle` are what the verifier calls global (kernel 5.6, pointers to memory 5.12): it looks at each once,
//! by itself, and not for every path that leads there. They take numbers, the context and pointers, which may be null for
//! all that it knows and whose targets have the size of their type. Nothing is known of what they return or write.
//!
//! Every error is a drop with its reason; nothing passes because something could not be found out.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod conntrack;
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
mod parse;
mod plain;
mod related;
mod to_endpoint;
mod uplink;
mod verdict;

use aya_ebpf::{macros::classifier, programs::TcContext};
use events::{Trace, finish};
use weft_shared::layout::Point;

#[classifier]
pub fn tc_from_endpoint(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = from_endpoint::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::FromEndpoint, outcome, packet, &trace)
}

#[classifier]
pub fn tc_to_endpoint(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = to_endpoint::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::ToEndpoint, outcome, packet, &trace)
}

#[classifier]
pub fn tc_from_overlay(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = from_overlay::run(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::FromOverlay, outcome, packet, &trace)
}

#[classifier]
pub fn tc_from_uplink(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = uplink::receive(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::FromUplink, outcome, packet, &trace)
}

#[classifier]
pub fn tc_to_uplink(ctx: TcContext) -> i32 {
    let (mut packet, mut trace) = (None, Trace::empty());
    let outcome = uplink::send(&ctx, &mut packet, &mut trace);
    finish(&ctx, Point::ToUplink, outcome, packet, &trace)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
