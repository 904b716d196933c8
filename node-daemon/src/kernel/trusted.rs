//! The one place of `unsafe` of the daemon's BPF half: values that aya may copy as bytes, the ring buffer's descriptor in
//! tokio's hands, and the calls of bpf(2) that aya does not have.
#![expect(
    unsafe_code,
    reason = "aya's marker of plain values, tokio's registration of a descriptor, and bpf(2)"
)]

pub(super) mod links;
pub(super) mod namespace;
pub(super) mod tables;

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use aya::maps::{HashMap, IterableMap, MapData, RingBuf};
use bytemuck::{AnyBitPattern, Pod, Zeroable};
use tokio::io::{Interest, unix::AsyncFd};

/// A value of the maps' layout, in the form that aya takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: bytemuck's `Pod` asks for more than aya's: no padding, no pointers, every bit pattern is a value.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

/// A value out of bytes of the kernel, if there are as many.
pub(crate) fn from_bytes<T: AnyBitPattern>(bytes: &[u8]) -> Option<T> {
    bytemuck::try_pod_read_unaligned(bytes).ok()
}

/// Registers the ring buffer with tokio's runtime, for its being readable.
pub(crate) fn watch(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its descriptor, gives the same one each time, and goes after its registration.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? })
}

/// `BPF_MAP_LOOKUP_BATCH`; of hashes since kernel 5.6 (057996380a42).
const LOOKUP_BATCH: libc::c_int = 24;
/// `BPF_MAP_UPDATE_BATCH`; of hashes since kernel 5.6 (aa2e93b8e58e).
const UPDATE_BATCH: libc::c_int = 26;

/// `union bpf_attr`, as the calls on one element have it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, as the calls on many elements have it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// A hash map of plain values; aya has checked that their sizes are the map's.
pub(crate) type PlainHash<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;

/// Sets rows of a map, one after the other, each as a single call would: a packet meets what is there and what shall be
/// there, never half a row. After an error, those before the one at fault are set.
pub(crate) fn write<K: Pod, V: Pod>(map: &mut PlainHash<K, V>, keys: &[K], values: &[V]) -> io::Result<()> {
    let count = u32::try_from(keys.len().min(values.len())).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attribute = Batch {
        from: 0,
        to: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: descriptor(map)?,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: as many keys and values as the kernel is told of, each of the map's sizes, see `PlainHash`. The kernel only
    // reads them, and they live until the call is over.
    unsafe { bpf(UPDATE_BATCH, &mut attribute) }
}

fn descriptor<K: Pod, V: Pod>(map: &PlainHash<K, V>) -> io::Result<u32> {
    let descriptor = IterableMap::map(map).fd().as_fd().as_raw_fd();
    u32::try_from(descriptor).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn number(descriptor: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(descriptor.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// # Safety
///
/// The addresses in the attribute are what the call wants them to be.
unsafe fn bpf<T: Pod>(call: libc::c_int, attribute: &mut T) -> io::Result<()> {
    // SAFETY: the caller's.
    unsafe { bpf_answer(call, attribute) }.map(drop)
}

/// # Safety
///
/// As of [`bpf`], and the call is one that gives a descriptor.
unsafe fn bpf_descriptor<T: Pod>(call: libc::c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's; nobody else has the descriptor.
    unsafe { bpf_answer(call, attribute).map(|descriptor| OwnedFd::from_raw_fd(descriptor)) }
}

/// # Safety
///
/// The addresses in the attribute are what the call wants them to be.
unsafe fn bpf_answer<T: Pod>(call: libc::c_int, attribute: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the attribute is as long as is said; of what it points to, the caller has answered for.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, call, ptr::from_mut(attribute), size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}
