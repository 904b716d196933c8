//! The one place of `unsafe` of the daemon's BPF half: values that aya may copy as bytes, and the ring buffer's
//! descriptor in tokio's hands.
#![expect(unsafe_code, reason = "aya's marker of plain values, and tokio's registration of a descriptor")]

use std::io;

use aya::maps::{MapData, RingBuf};
use bytemuck::AnyBitPattern;
use tokio::io::{Interest, unix::AsyncFd};

/// A value of the maps' layout, in the form that aya takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: bytemuck's `Pod` asks for more than aya's: no padding, no pointers, every bit pattern is a value.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

/// A value out of bytes of the kernel, if there are as many.
pub(crate) fn from_bytes<T: AnyBitPattern>(bytes: &[u8]) -> Option<T> {
    bytemuck::try_pod_read_unaligned(bytes).ok()
}

/// Registers the ring buffer with tokio's runtime, for its being readable.
pub(crate) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its descriptor, gives the same one each time, and goes after its registration.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? })
}
