//! Services' tables: arrays of elements in an array of arrays.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr,
};

use bytemuck::{Pod, Zeroable as _};
use weft_shared::layout::service::Element;

use super::{Batch, LOOKUP_BATCH, bpf, bpf_descriptor, number};

const CREATE: libc::c_int = 0;
const LOOKUP: libc::c_int = 1;
const FREEZE: libc::c_int = 22;
/// Of arrays since kernel 5.6 (aa2e93b8e58e), of arrays of maps since 5.13 (f008d732ab18).
const UPDATE_BATCH: libc::c_int = 26;

const ARRAY: u32 = 2;
/// `BPF_F_INNER_MAP` (kernel 5.10) and `BPF_F_RDONLY_PROG`, as the object's definition has them.
const FLAGS: u32 = 1 << 12 | 1 << 7;

/// `union bpf_attr`, as the making of a map has it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct New {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// … as a call about one element has it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct One {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// … and one that has a number alone.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Number {
    number: u32,
    padding: [u32; 2],
}

/// A table with these elements, which nobody can write any more.
pub(in crate::kernel) fn create(elements: &[Element]) -> io::Result<OwnedFd> {
    let entries = u32::try_from(elements.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut new = New {
        kind: ARRAY,
        key_bytes: 4,
        value_bytes: u32::try_from(size_of::<Element>()).map_err(|_| io::ErrorKind::InvalidInput)?,
        entries,
        flags: FLAGS,
        name: *b"service\0\0\0\0\0\0\0\0\0",
        ..New::zeroed()
    };
    // SAFETY: there is no address in it.
    let map = unsafe { bpf_descriptor(CREATE, &mut new)? };
    let keys: Vec<u32> = (0..entries).collect();
    update(map.as_fd(), &keys, elements)?;
    let mut attribute = Number { number: number(map.as_fd())?, padding: [0; 2] };
    // SAFETY: as above.
    unsafe { bpf(FREEZE, &mut attribute)? };
    Ok(map)
}

/// Puts tables into the slots of an array of arrays, one each. When it returns, no program has a former one in hand any more.
pub(in crate::kernel) fn put(
    array: BorrowedFd<'_>,
    slots: &[u32],
    tables: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let numbers = tables.iter().map(|table| number(*table)).collect::<io::Result<Vec<u32>>>()?;
    if numbers.len() != slots.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    update(array, slots, &numbers)
}

/// The number by which the kernel knows the table in a slot; `None`: there is none.
pub(in crate::kernel) fn id(array: BorrowedFd<'_>, slot: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut attribute = One {
        map: number(array)?,
        padding: 0,
        key: ptr::from_ref(&slot) as u64,
        value: ptr::from_mut(&mut id) as u64,
        flags: 0,
    };
    // SAFETY: one key and one value of an array of maps, which are u32s and live until the call is over.
    match unsafe { bpf(LOOKUP, &mut attribute) } {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first elements of an array of plain values.
pub(in crate::kernel) fn read<V: Pod>(array: BorrowedFd<'_>, entries: u32) -> io::Result<Vec<V>> {
    read_after(array, None, entries)
}

/// At most so many elements of an array of plain values, behind one of them.
pub(in crate::kernel) fn read_after<V: Pod>(
    array: BorrowedFd<'_>,
    after: Option<u32>,
    entries: u32,
) -> io::Result<Vec<V>> {
    let mut keys = vec![0_u32; entries as usize];
    let mut values = vec![V::zeroed(); entries as usize];
    let mut to = 0_u32;
    let mut attribute = Batch {
        from: after.as_ref().map_or(0, |after| ptr::from_ref(after) as u64),
        to: ptr::from_mut(&mut to) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: entries,
        map: number(array)?,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: as many keys and values as the kernel is told of, of the sizes of the map, which is an array of ours; all of it
    // lives until the call is over.
    match unsafe { bpf(LOOKUP_BATCH, &mut attribute) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        // The end was reached.
        _ => {}
    }
    values.truncate(attribute.count as usize);
    Ok(values)
}

/// Writes elements of an array of plain values.
pub(in crate::kernel) fn write<V: Pod>(array: BorrowedFd<'_>, keys: &[u32], values: &[V]) -> io::Result<()> {
    if keys.len() != values.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    update(array, keys, values)
}

fn update<V: Pod>(map: BorrowedFd<'_>, keys: &[u32], values: &[V]) -> io::Result<()> {
    let mut attribute = Batch {
        from: 0,
        to: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        map: number(map)?,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: as many keys and values as the kernel is told of, of the sizes of the map, which is an array of ours; both live
    // until the call is over.
    unsafe { bpf(UPDATE_BATCH, &mut attribute) }
}
