//! Sets of addresses of one family, as ranges of numbers.
use ipnet::IpNet;

/// Ascending, apart from each other by at least one number; both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u128, u128)>);

/// How much of a prefix is in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Covers {
    Whole,
    Part,
    Nothing,
}

impl Ranges {
    pub(super) fn of(prefix: IpNet) -> Self {
        let number = |address| match address {
            std::net::IpAddr::V4(address) => u128::from(u32::from(address)),
            std::net::IpAddr::V6(address) => u128::from(address),
        };
        Self(vec![(number(prefix.network()), number(prefix.broadcast()))])
    }

    /// What is in either.
    pub(super) fn add(&mut self, other: &Self) {
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        self.0.clear();
        for (first, last) in all {
            match self.0.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => self.0.push((first, last)),
            }
        }
    }

    pub(super) fn remove(&mut self, other: &Self) {
        for (from, to) in &other.0 {
            let mut left = Vec::new();
            for (first, last) in self.0.drain(..) {
                // In each arm there is a number below `from`, or above `to`, so neither step leaves the range.
                if first < *from {
                    left.push((first, last.min(from - 1)));
                }
                if last > *to {
                    left.push((first.max(to + 1), last));
                }
            }
            self.0 = left;
        }
    }

    pub(super) fn covers(&self, other: &Self) -> Covers {
        let mut rest = other.clone();
        rest.remove(self);
        if rest.0.is_empty() {
            Covers::Whole
        } else if rest == *other {
            Covers::Nothing
        } else {
            Covers::Part
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(prefixes: &[&str]) -> Ranges {
        let mut ranges = Ranges::default();
        for prefix in prefixes {
            ranges.add(&Ranges::of(prefix.parse().unwrap()));
        }
        ranges
    }

    #[test]
    fn halves_make_a_whole_and_holes_a_part() {
        let pool = ranges(&["10.0.0.0/8"]);
        assert_eq!(ranges(&["10.0.0.0/9", "10.128.0.0/9"]), pool);
        assert_eq!(ranges(&["10.128.0.0/9", "10.0.0.0/9"]).covers(&pool), Covers::Whole);
        assert_eq!(ranges(&["10.0.0.0/9"]).covers(&pool), Covers::Part);
        assert_eq!(ranges(&["11.0.0.0/8", "9.0.0.0/8"]).covers(&pool), Covers::Nothing);
        let mut all = ranges(&["0.0.0.0/0"]);
        all.remove(&ranges(&["10.1.0.0/16"]));
        assert_eq!(all.covers(&pool), Covers::Part);
        assert_eq!(all.covers(&ranges(&["10.1.2.0/24"])), Covers::Nothing);
        assert_eq!(all.covers(&ranges(&["10.2.0.0/16"])), Covers::Whole);
    }

    #[test]
    fn the_ends_of_the_numbers_are_no_trap() {
        let mut all = ranges(&["::/0"]);
        all.remove(&ranges(&["::/128"]));
        all.remove(&ranges(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]));
        assert_eq!(all.0, [(1, u128::MAX - 1)]);
        all.remove(&ranges(&["::/0"]));
        assert_eq!(all, Ranges::default());
    }
}
