//! The bridge from the layout's plain values to aya's maps: the one place of this crate's `unsafe`.
#![expect(unsafe_code, reason = "aya's marker of plain values can only be given to types of this crate")]

use bytemuck::AnyBitPattern;

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
