//! Programs that only tests, `cargo xtask bench datapath` and `… bench lb` load: the references that packets' costs are told against, and the
//! wrapper that makes repeated runs of a program see the same packet each time. Nothing of this is in the shipped object.
#![no_std]
#![no_main]

mod reference;
mod wrapper;
mod xdp;

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;

/// Restores the packet and calls the program under test.
#[classifier]
pub fn tc_wrapper(ctx: TcContext) -> i32 {
    wrapper::run(&ctx);
    TC_ACT_SHOT
}

/// REF-TC.
#[classifier]
pub fn tc_reference(ctx: TcContext) -> i32 {
    match reference::run(&ctx) {
        Some(()) => TC_ACT_OK,
        None => {
            reference::missed();
            TC_ACT_SHOT
        }
    }
}

/// Restores the packet and calls the XDP program under test, which takes packets in several buffers: so must this.
#[xdp(frags)]
pub fn xdp_wrapper(ctx: XdpContext) -> u32 {
    xdp::wrapper(&ctx)
}

/// REF-XDP.
#[xdp(frags)]
pub fn xdp_reference(ctx: XdpContext) -> u32 {
    xdp::reference(&ctx)
}

/// Nothing. A veth takes what XDP sends back only where its other end has a program, too.
#[xdp(frags)]
pub fn xdp_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
