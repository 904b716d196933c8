//! Prefixes that must not meet: which of many overlaps one, found without trying all.
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// Prefixes, each with what it is.
#[derive(Debug, Default)]
pub struct Prefixes {
    by_prefix: BTreeMap<IpNet, String>,
    /// How long prefixes are that are there: only so long ones can be around another.
    lengths: BTreeSet<u8>,
}

impl Prefixes {
    /// The first to come says what it is.
    pub fn insert(&mut self, net: IpNet, what: impl FnOnce() -> String) {
        self.lengths.insert(net.prefix_len());
        self.by_prefix.entry(net.trunc()).or_insert_with(what);
    }

    /// One that has an address in common with `net`, and what it is.
    pub fn overlapping(&self, net: IpNet) -> Option<(IpNet, &str)> {
        let inside = || {
            let first = IpNet::new(net.network(), 0).ok()?;
            let last = IpNet::new(net.broadcast(), net.max_prefix_len()).ok()?;
            self.by_prefix.range(first..=last).find(|(other, _)| net.contains(*other))
        };
        let around = || {
            let lengths = self.lengths.range(..=net.prefix_len());
            lengths
                .filter_map(|length| IpNet::new(net.network(), *length).ok())
                .find_map(|outer| self.by_prefix.get_key_value(&outer.trunc()))
        };
        around().or_else(inside).map(|(other, what)| (*other, what.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn what_is_around_inside_or_the_same_overlaps() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut prefixes = Prefixes::default();
        prefixes.insert(net("10.0.0.0/8"), || "ten".to_owned());
        prefixes.insert(net("192.0.2.7/32"), || "one".to_owned());
        prefixes.insert(net("2001:db8::/32"), || "six".to_owned());
        let found = |text: &str| prefixes.overlapping(net(text)).map(|(_, what)| what);
        assert_eq!(found("10.1.2.0/24"), Some("ten"));
        assert_eq!(found("10.0.0.0/8"), Some("ten"));
        assert_eq!(found("8.0.0.0/5"), Some("ten"));
        assert_eq!(found("192.0.2.0/24"), Some("one"));
        assert_eq!(found("192.0.2.7/32"), Some("one"));
        assert_eq!(found("2001:db8:1::/48"), Some("six"));
        assert_eq!(found("192.0.2.8/32"), None);
        assert_eq!(found("11.0.0.0/8"), None);
        assert_eq!(found("2001:db9::/32"), None);
    }

    proptest::proptest! {
        #[test]
        fn it_finds_one_exactly_where_a_search_of_all_does(
            nets in proptest::collection::vec((0..=15_u8, 8..=32_u8), 0..20),
            asked in (0..=15_u8, 0..=32_u8),
        ) {
            let net = |(part, length): (u8, u8)| {
                IpNet::new(IpAddr::from([part, part, part, part]), length).unwrap().trunc()
            };
            let asked = net(asked);
            let mut prefixes = Prefixes::default();
            for one in &nets {
                prefixes.insert(net(*one), String::new);
            }
            let searched = nets.iter().map(|one| net(*one)).any(|one| one.contains(&asked) || asked.contains(&one));
            proptest::prop_assert_eq!(prefixes.overlapping(asked).is_some(), searched);
        }
    }
}
