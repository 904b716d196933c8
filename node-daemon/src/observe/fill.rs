//! How full the maps are that the daemon writes. One that is full closes whom it has no rows for; so it is told before.

use weft_proto::v1::MapFill;
use weft_shared::layout::maps as names;

use crate::plan::tables::Tables;

/// From here on it is a problem, in percent.
const PRESSING_PERCENT: u64 = 90;

/// Of each map, by the name it is dumped by.
pub fn of(tables: &Tables) -> Vec<MapFill> {
    let rules = tables.rulebooks.values().map(|book| book.len()).sum();
    let fills = [
        ("endpoints", tables.endpoints.len(), names::ENDPOINTS_MAX),
        ("ipcache", tables.ipcache.len(), names::IPCACHE_MAX),
        ("prefixes", tables.prefixes.len(), names::PREFIXES_MAX),
        ("nodes", tables.nodes.len(), names::NODES_MAX),
        ("node_addresses", tables.node_addresses.len(), names::NODE_ADDRESSES_MAX),
        ("subjects", tables.subjects.len(), names::SUBJECTS_MAX),
        ("peer_rules", tables.peer_rules.len(), names::PEER_RULES_MAX),
        ("rules", rules, names::RULES_MAX),
        ("failsafe", tables.failsafe.len(), names::FAILSAFE_MAX),
    ];
    let fill = |(name, entries, capacity): (&str, usize, usize)| MapFill {
        name: name.to_owned(),
        entries: entries as u64,
        capacity: capacity as u64,
    };
    fills.into_iter().map(fill).collect()
}

/// What is to be said of a map that is nearly full.
pub fn pressing(fill: &MapFill) -> Option<String> {
    let MapFill { name, entries, capacity } = fill;
    (entries * 100 >= capacity * PRESSING_PERCENT)
        .then(|| format!("the map {name} is nearly full: {entries} of {capacity} entries"))
}

#[cfg(test)]
mod tests {
    use weft_shared::layout::Address;

    use super::*;
    use crate::{observe::dump, plan::who::WORLD};

    #[test]
    fn every_map_that_has_rows_is_told_of() {
        let told: Vec<_> = of(&Tables::default()).into_iter().map(|fill| fill.name).collect();
        let dumped: Vec<_> = dump::MAPS.into_iter().filter(|name| *name != "runtime").collect();
        assert_eq!(told, dumped);
    }

    #[test]
    fn a_map_is_told_to_be_nearly_full_from_nine_tenths_on() {
        let mut tables = Tables::default();
        tables.ipcache.insert(Address::from_v4(1), WORLD);
        let fills = of(&tables);
        let mut fill = fills.into_iter().find(|fill| fill.entries == 1).expect("one row");
        assert_eq!((fill.name.as_str(), fill.capacity), ("ipcache", 512 * 1024));
        assert_eq!(pressing(&fill), None);
        fill.entries = fill.capacity * 9 / 10;
        assert_eq!(pressing(&fill), None);
        fill.entries += 1;
        let told = "the map ipcache is nearly full: 471860 of 524288 entries";
        assert_eq!(pressing(&fill).as_deref(), Some(told));
    }
}
