//! Who an address is, and the nodes and subjects that answers point to.

use super::{Address, CLASS_RULEBOOKS};
use bytemuck::{Pod, Zeroable};

/// Value of `IPCACHE` (exact addresses) and `PREFIXES` (longest prefix). No match at all is [`Class::World`].
///
/// [`Class::World`]: super::Class::World
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Peer {
    /// Global, local (a prefix), or the class's own number where nothing more is known.
    pub identity: u32,
    /// Number of the [`Class`](super::Class).
    pub class: u32,
    /// Index into `NODES` of the node behind which the address is; 0: this node, or none (world).
    pub node: u32,
    /// Interface index of the host's side, where the address is an endpoint of this node; 0 otherwise.
    pub ifindex: u32,
}

/// Value of the array `NODES`; index 0 is this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Node {
    /// Underlay address that carries the overlay; [`Address::UNSPECIFIED`]: the slot is free.
    pub address: Address,
    /// Bumped when the address changes, or which addresses are behind it: see [`RuntimeState::epoch`].
    pub epoch: u64,
    /// Of the node's labels.
    pub identity: u32,
    pub reserved: u32,
}

/// Value of the array `SUBJECTS`: an identity that endpoints of this node have, or the node's own where host policies
/// select it. Index 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Subject {
    /// Bumped after the policy was written: see [`RuntimeState::epoch`].
    pub epoch: u64,
    /// 0: the slot is free.
    pub identity: u32,
    /// What the policy says of peers that have no row of their own, by [`class_rulebook`]; 0: nothing, which drops. A
    /// program reads its one *before* it looks for the peer's row.
    ///
    /// [`class_rulebook`]: super::class_rulebook
    pub rulebooks: [u32; CLASS_RULEBOOKS],
    pub reserved: u32,
}

/// The one value of the array `RUNTIME`: what changes all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RuntimeState {
    /// The node's counter of changes; it never goes back. A change of a subject's policy (or of a node's place) is
    /// written first; then the counter's next value into the subject's (node's) epoch and here. A program reads this
    /// *before* it reads any table and writes it into the flow it judged: the flow's verdict holds as long as no epoch
    /// of its subjects and next hop is greater.
    pub epoch: u64,
    /// Every global identity up to this is classified on this node; a packet that carries a higher one is dropped.
    pub identities_through: u32,
    /// How the node itself is judged: in [`host::SUBJECT`] the slot of its subject, and flags. 0: it is not judged, and its
    /// traffic passes untouched.
    pub host: u32,
}

/// Parts of [`RuntimeState::host`].
pub mod host {
    /// Index into `SUBJECTS`.
    pub const SUBJECT: u32 = 0xffff;
    /// What the node sends to its own endpoints is not judged.
    pub const OWN_ENDPOINTS_FREE: u32 = 1 << 31;

    const _: () = assert!(crate::layout::maps::SUBJECTS_MAX <= SUBJECT as usize);
}
