//! Who an address is, as the kernel programs find it in a set of tables.

use std::collections::BTreeSet;

use weft_shared::layout::{Address, Class, Peer, PrefixKey};

use super::tables::Tables;

/// No match at all.
pub const WORLD: Peer =
    Peer { identity: Class::World as u32, class: Class::World as u32, node: 0, ifindex: 0 };

/// Tables with an index over the lengths of their prefixes.
#[derive(Debug)]
pub struct Who<'a> {
    tables: &'a Tables,
    lengths: BTreeSet<u32>,
}

impl<'a> Who<'a> {
    pub fn new(tables: &'a Tables) -> Self {
        Self { tables, lengths: tables.prefixes.keys().map(|key| key.bits).collect() }
    }

    /// The exact address first, then the longest prefix.
    pub fn is(&self, address: Address) -> Peer {
        self.tables.ipcache.get(&address).copied().unwrap_or_else(|| self.within(address, 128))
    }

    /// What the longest prefix of at most so many bits says.
    pub fn within(&self, address: Address, most_bits: u32) -> Peer {
        let lengths = self.lengths.range(..=most_bits).rev();
        let mut keys = lengths.map(|bits| PrefixKey { bits: *bits, address: masked(address, *bits) });
        keys.find_map(|key| self.tables.prefixes.get(&key)).copied().unwrap_or(WORLD)
    }
}

/// The address with all but its first bits cleared.
pub fn masked(address: Address, bits: u32) -> Address {
    let octets: [u8; 16] = bytemuck::cast(address.words);
    let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
    Address { words: bytemuck::cast((u128::from_be_bytes(octets) & mask).to_be_bytes()) }
}
