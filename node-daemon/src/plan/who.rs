//! Who an address is, as the kernel programs find it in a set of tables.

use std::collections::BTreeSet;

use weft_shared::layout::{Address, Class, Peer, PrefixKey};

use super::tables::Tables;

/// No match at all.
pub const WORLD: Peer =
    Peer { identity: Class::World as u32, class: Class::World as u32, node: 0, ifindex: 0 };

/// Lengths that prefixes of some tables have; more than there are do no harm.
#[derive(Clone, Debug, Default)]
pub struct Lengths(BTreeSet<u32>);

impl Lengths {
    pub fn of<'a>(tables: impl IntoIterator<Item = &'a Tables>) -> Self {
        Self(tables.into_iter().flat_map(|tables| tables.prefixes.keys().map(|key| key.bits)).collect())
    }

    /// All prefixes around an address. The lengths are (at least) those of the tables.
    pub fn around<'a>(
        &'a self,
        tables: &'a Tables,
        address: Address,
    ) -> impl Iterator<Item = (PrefixKey, Peer)> + 'a {
        let keys = self.0.iter().map(move |bits| PrefixKey { bits: *bits, address: masked(address, *bits) });
        keys.filter_map(|key| Some((key, *tables.prefixes.get(&key)?)))
    }
}

/// Tables with an index over the lengths of their prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    tables: &'a Tables,
    lengths: &'a Lengths,
}

impl<'a> Who<'a> {
    /// `lengths` are (at least) those of the tables.
    pub fn new(tables: &'a Tables, lengths: &'a Lengths) -> Self {
        Self { tables, lengths }
    }

    /// The exact address first, then the longest prefix.
    pub fn is(&self, address: Address) -> Peer {
        self.tables.ipcache.get(&address).copied().unwrap_or_else(|| self.within(address, 128))
    }

    /// What the longest prefix of at most so many bits says.
    pub fn within(&self, address: Address, most_bits: u32) -> Peer {
        let lengths = self.lengths.0.range(..=most_bits).rev();
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
