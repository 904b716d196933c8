//! What failsafe entries hold open for everybody, as the bits that `xdp_uplink` looks at where a source is listed. Entries
//! with prefixes are not here: no list meets these.

use std::collections::BTreeMap;

use weft_shared::{
    layout::prefilter::{has_ports, open_bit},
    policy::model::Failsafe,
};

/// Words with a bit that is set, by their numbers.
pub(super) fn words(failsafe: &[Failsafe]) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for entry in failsafe.iter().filter(|entry| entry.prefixes.is_empty()) {
        let ports = if has_ports(entry.protocol) { entry.first..=entry.last } else { 0..=0 };
        for port in ports {
            let (word, bit) = open_bit(entry.direction, entry.protocol, port);
            *words.entry(word).or_default() |= bit;
        }
    }
    words
}
