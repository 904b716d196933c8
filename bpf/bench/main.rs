//! Programs that only `cargo xtask bench datapath` loads: the reference that packets' costs are told against, and the
//! wrapper that makes repeated runs of a program see the same packet each time. Nothing of this is in the shipped object.
#![no_std]
#![no_main]

mod reference;
mod wrapper;

use aya_ebpf::{macros::classifier, programs::TcContext};

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

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
