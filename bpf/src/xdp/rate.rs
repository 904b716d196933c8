//! How often a CPU may do in a second what somebody outside has it do. Whoever sends nothing but first packets would otherwise push
//! out all that the table of connections remembers, and have each cost what a new row costs; and who sends nothing but packets that
//! are too long would have each answered.

use crate::maps::{DONE_LATELY, config};

/// What one CPU has done.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Done {
    /// Of the clock of connections.
    second: u64,
    times: u64,
}

const NANOSECONDS: u64 = 1_000_000_000;

/// Things that are counted.
pub const COUNTED: usize = 2;
const ROWS: u32 = 0;
const ERRORS: u32 = 1;

/// ICMP errors in a second: as many as Linux sends in all (`net.ipv4.icmp_msgs_per_sec`). RFC 1812 (4.3.2.8) and RFC 4443 (2.4) ask for a
/// limit.
const ERRORS_A_SECOND: u64 = 1000;

/// Whether one more connection may be added now; it counts as if it were.
#[inline(always)]
pub fn allows(now: u64) -> bool {
    once_more(ROWS, config().connections_a_second, now)
}

/// Whether one more ICMP error may be sent now; it counts as if it were.
#[inline(always)]
pub fn allows_error(now: u64) -> bool {
    once_more(ERRORS, ERRORS_A_SECOND, now)
}

#[inline(always)]
fn once_more(what: u32, most: u64, now: u64) -> bool {
    let Some(done) = DONE_LATELY.get_ptr_mut(what) else { return false };
    // SAFETY: this CPU's element, and nothing interrupts a program that has it in hand.
    let done = unsafe { &mut *done };
    let second = now / NANOSECONDS;
    if done.second != second {
        *done = Done { second, times: 0 };
    }
    done.times += 1;
    done.times <= most
}
