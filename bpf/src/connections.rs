//! The table of connections to services whose packets are translated one by one: `weft_shared::layout::Connection`.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weft_shared::layout::{Connection, ConnectionKey};

use crate::maps::CONNECTIONS;

/// What is remembered of a packet's connection. Shared with other CPUs: what is read from it is right for itself, and the whole is
/// no more than the kernel promises of such tables.
#[inline(always)]
pub fn find(key: &ConnectionKey) -> Option<NonNull<Connection>> {
    NonNull::new(CONNECTIONS.get_ptr_mut(key)?)
}

/// Whether the row is there now, where there was none.
#[inline(always)]
pub fn add(key: &ConnectionKey, row: &Connection) -> bool {
    CONNECTIONS.insert(key, row, BPF_NOEXIST.into()).is_ok()
}

/// Whether the row is there now.
#[inline(always)]
pub fn put(key: &ConnectionKey, row: &Connection) -> bool {
    CONNECTIONS.insert(key, row, BPF_ANY.into()).is_ok()
}
