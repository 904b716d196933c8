//! The daemon's own memory.
#![expect(unsafe_code, reason = "the allocator has no other way to be asked")]

/// From here on, the allocator keeps no large piece of memory that is free: what the kernel holds is read every half minute, and
/// glibc would keep room for the largest map, in the arena of whichever thread read it first.
#[cfg(target_env = "gnu")]
pub fn keep_little() {
    const LARGE_BYTES: libc::c_int = 128 * 1024;
    // SAFETY: take numbers, and may be called at any time from any thread (mallopt(3)). A number that is set stays: by itself
    // the allocator would raise these with each large piece that is freed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BYTES);
    }
}

/// Other allocators than glibc's are not asked.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little() {}

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
