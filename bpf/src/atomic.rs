//! Operations on numbers that several CPUs change at once, with what they find there: the target's own (kernel 5.12, commit
//! 5ffa25502b5a), which the compiler's library does not offer for it.

use core::arch::asm;

/// Adds; gives what was there before.
///
/// # Safety
///
/// A number is at the pointer.
#[inline(always)]
pub unsafe fn add(number: *mut u64, added: u64) -> u64 {
    let mut word = added;
    // SAFETY: the caller's.
    unsafe {
        asm!("{word} = atomic_fetch_add((u64 *)({number} + 0), {word})", number = in(reg) number, word = inout(reg) word);
    }
    word
}

/// Puts another number there if the expected one is; whether it was.
///
/// # Safety
///
/// A number is at the pointer.
#[inline(always)]
pub unsafe fn exchange(number: *mut u64, expected: u64, new: u64) -> bool {
    let mut found = expected;
    // SAFETY: the caller's.
    unsafe {
        asm!("r0 = cmpxchg_64({number} + 0, r0, {new})", number = in(reg) number, new = in(reg) new, inout("r0") found);
    }
    found == expected
}
