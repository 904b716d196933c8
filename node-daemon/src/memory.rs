//! The daemon's own memory.
#![expect(unsafe_code, reason = "the allocator has no other way to be asked")]

/// Gives back what the start needed and nothing needs any more: the kernel's type information, read and parsed for the
/// programs, is some megabytes, and the allocator would keep them for ever.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: takes a number, and may be called at any time from any thread (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators than glibc's are not asked.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
