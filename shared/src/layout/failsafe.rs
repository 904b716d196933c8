//! What no host policy can stop.

use bytemuck::{Pod, Zeroable};

use super::{Address, Direction, PrefixKey};

/// Key of `FAILSAFE`, a longest-prefix-match map: whom a node may talk with whatever its policies say. The value is the
/// number of a rulebook, in which a row that allows is about a flow that is held open; it says the whole of what holds for
/// an address in the prefix, shorter prefixes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FailsafeKey {
    /// Host order, as the kernel wants it.
    pub bits: u32,
    /// A [`Direction`], as the node sees it. Network order, so that it is matched before the address.
    pub direction: u32,
    pub address: Address,
}

impl FailsafeKey {
    /// Bits of the direction, which every key has.
    pub const DIRECTION_BITS: u32 = 32;
    /// All bits: what a look-up uses.
    pub const FULL_BITS: u32 = Self::DIRECTION_BITS + 128;

    /// A prefix in one direction.
    #[inline(always)]
    pub const fn new(direction: Direction, prefix: PrefixKey) -> Self {
        Self {
            bits: Self::DIRECTION_BITS + prefix.bits,
            direction: (direction as u32).to_be(),
            address: prefix.address,
        }
    }
}
