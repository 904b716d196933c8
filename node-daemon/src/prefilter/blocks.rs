//! Which blocks prefixes meet: the bits that `xdp_uplink` looks at before it looks for a prefix.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_shared::layout::prefilter::{
    BLOCK4_BITS, BlockBit, LONG6_BITS, MIDDLE6_BITS, SHORT6_BITS, block4, long6, middle6, short6,
};

/// Words with a bit that is set, by their numbers.
pub(super) fn words<'a>(prefixes: impl Iterator<Item = &'a IpNet>) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    let mut add = |(word, bit): BlockBit| *words.entry(word).or_default() |= bit;
    for net in prefixes {
        let bits = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) => {
                let from = net.network().to_bits();
                blocks_met(bits, BLOCK4_BITS)
                    .for_each(|block| add(block4(from | block << (32 - BLOCK4_BITS))));
            }
            IpNet::V6(net) => {
                // Fits: the upper half.
                let first = (net.network().to_bits() >> 64) as u64;
                if bits >= LONG6_BITS {
                    add(long6(first));
                } else if bits >= MIDDLE6_BITS {
                    add(middle6(first));
                } else {
                    let block = |block: u32| short6(first | u64::from(block) << (64 - SHORT6_BITS));
                    blocks_met(bits, SHORT6_BITS).for_each(|number| add(block(number)));
                }
            }
        }
    }
    words
}

/// Blocks named by so many bits that a prefix meets, counted from its first.
fn blocks_met(prefix_bits: u32, block_bits: u32) -> std::ops::Range<u32> {
    0..1 << block_bits.saturating_sub(prefix_bits)
}
