//! How many connections a CPU may add to the table in a second. Whoever sends nothing but first packets would otherwise push out
//! all that the table remembers, and have each cost what a new row costs.

use crate::maps::{ADDED, config};

/// What one CPU has added.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Added {
    /// Of the clock of connections.
    second: u64,
    rows: u64,
}

const NANOSECONDS: u64 = 1_000_000_000;

/// Whether one more may be added now; it counts as if it were.
#[inline(always)]
pub fn allows(now: u64) -> bool {
    let Some(added) = ADDED.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's element, and nothing interrupts a program that has it in hand.
    let added = unsafe { &mut *added };
    let second = now / NANOSECONDS;
    if added.second != second {
        *added = Added { second, rows: 0 };
    }
    added.rows += 1;
    added.rows <= config().connections_a_second
}
