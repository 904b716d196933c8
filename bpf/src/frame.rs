//! Looking at and writing a frame's linear part. The verifier wants each access checked against the end, at an offset
//! that is a constant; what lies at a computed offset is read with [`load`].

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_csum_diff, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};
use weft_shared::layout::Reason;

pub const ETHERNET: usize = 14;
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
/// Up to the flags of TCP without IPv4 options.
pub const HEADERS_V4: usize = ETHERNET + IPV4 + 14;
/// Up to the flags of TCP without IPv6 extension headers.
pub const HEADERS_V6: usize = ETHERNET + IPV6 + 14;

/// The linear part of a packet. Not valid after a helper that may move the packet.
#[derive(Clone, Copy)]
pub struct Frame {
    data: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end() }
    }

    /// What XDP has of a packet.
    #[inline(always)]
    pub fn between(data: usize, end: usize) -> Self {
        Self { data, end }
    }

    /// The first bytes, if the linear part has as many.
    #[inline(always)]
    pub fn head<const BYTES: usize>(&self) -> Option<Head<BYTES>> {
        if self.data + BYTES <= self.end { Some(Head { data: self.data }) } else { None }
    }

    /// How many there are.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        (self.end - self.data) as u32
    }

    /// With the headers in the linear part, if the packet has that many bytes.
    #[inline(always)]
    pub fn with_headers(ctx: &TcContext) -> Self {
        let frame = Self::of(ctx);
        if frame.data + HEADERS_V4 <= frame.end { frame } else { Self::pull(ctx) }
    }

    /// The same, for IPv6.
    #[inline(always)]
    pub fn with_headers_v6(self, ctx: &TcContext) -> Self {
        if self.data + HEADERS_V6 <= self.end { self } else { Self::pull(ctx) }
    }

    /// Short packets, and those of which the driver left the headers in pages. What is a list of packets of SCTP is left as it is: its
    /// headers are there, and of the first packet in the list, whatever was taken from it would be missing, at which the kernel's receiver
    /// halts the machine.
    #[inline(always)]
    fn pull(ctx: &TcContext) -> Self {
        /// The kernel's `GSO_BY_FRAGS`.
        const LIST: u32 = 0xffff;
        if meta(ctx).gso_size == LIST {
            return Self::of(ctx);
        }
        let length = ctx.len();
        let wanted = if length < HEADERS_V6 as u32 { length } else { HEADERS_V6 as u32 };
        // Where it fails, the accesses below fail, too.
        let _ = ctx.pull_data(wanted);
        Self::of(ctx)
    }

    /// Reads at a constant offset. Not aligned for the strict: the kernel's network headers start at two bytes after a
    /// multiple of four.
    #[inline(always)]
    pub fn read<T: Copy>(&self, offset: usize) -> Result<T, Reason> {
        if self.data + offset + size_of::<T>() > self.end {
            return Err(Reason::Malformed);
        }
        // SAFETY: checked above; any bytes are a `T` (integers and arrays of them only). LLVM reads bytewise what it is
        // told may be unaligned; the kernels that Weft runs on allow it (x86-64, arm64).
        Ok(unsafe { *((self.data + offset) as *const T) })
    }

    #[inline(always)]
    pub fn write<T: Copy>(&self, offset: usize, value: T) -> Result<(), Reason> {
        if self.data + offset + size_of::<T>() > self.end {
            return Err(Reason::Malformed);
        }
        // SAFETY: as above.
        unsafe { *((self.data + offset) as *mut T) = value };
        Ok(())
    }

    /// The sum of bytes at a constant offset, in ones' complement of 32 bits. A multiple of four, and constant as well.
    #[inline(always)]
    pub fn sum(&self, offset: usize, bytes: usize) -> Result<u64, Reason> {
        if self.data + offset + bytes > self.end {
            return Err(Reason::Malformed);
        }
        let start = (self.data + offset) as *mut u32;
        // SAFETY: checked above; the helper reads that, and of nothing else any bytes.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start, bytes as u32, 0) };
        if sum < 0 { Err(Reason::KernelError) } else { Ok(sum as u64) }
    }
}

/// The first bytes of a frame, checked once for all of them.
#[derive(Clone, Copy)]
pub struct Head<const BYTES: usize> {
    data: usize,
}

impl<const BYTES: usize> Head<BYTES> {
    /// Reads at a constant offset.
    #[inline(always)]
    pub fn read<T: Copy, const OFFSET: usize>(&self) -> T {
        const { assert!(OFFSET + size_of::<T>() <= BYTES) };
        // SAFETY: checked when this was made; otherwise as in `Frame::read`.
        unsafe { *((self.data + OFFSET) as *const T) }
    }

    /// Writes at a constant offset.
    #[inline(always)]
    pub fn write<T: Copy, const OFFSET: usize>(&self, value: T) {
        const { assert!(OFFSET + size_of::<T>() <= BYTES) };
        // SAFETY: as above.
        unsafe { *((self.data + OFFSET) as *mut T) = value };
    }
}

/// Reads at any offset, also beyond the linear part.
#[inline(always)]
pub fn load<T: Copy + Default>(ctx: &TcContext, offset: u32) -> Result<T, Reason> {
    // Not zero before: for large ones that were a call, whose frame the stack of kernel 6.1 has no room for.
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes exactly the value's bytes.
    let failed =
        unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
    // SAFETY: they are written, and any bytes are a `T`.
    if failed == 0 { Ok(unsafe { value.assume_init() }) } else { Err(Reason::Malformed) }
}

/// Writes at any offset, also beyond the linear part. No checksum changes along.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: u32, value: &T) -> Result<(), Reason> {
    // SAFETY: the helper reads the value's bytes.
    let failed = unsafe {
        bpf_skb_store_bytes(
            ctx.as_ptr().cast(),
            offset,
            core::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
            0,
        )
    };
    if failed == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

/// The packet's metadata.
#[inline(always)]
pub fn meta(ctx: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel's context, valid as long as the program runs.
    unsafe { &*ctx.skb.skb }
}
