//! Ports as prefixes: the kernel's tables match prefixes only.

/// Splits `first..=last` into aligned prefixes: (value, significant bits), ascending, at most 30.
pub(super) fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut found = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let fitting = (end - next).ilog2();
        let free = aligned.min(fitting).min(16);
        // `next` is below 2^16 as long as it is below `end`.
        found.push((u16::try_from(next).unwrap_or(u16::MAX), 16 - free));
        next += 1 << free;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_ports_are_one_prefix_and_the_worst_range_takes_thirty() {
        assert_eq!(prefixes(0, u16::MAX), [(0, 0)]);
        assert_eq!(prefixes(80, 80), [(80, 16)]);
        assert_eq!(prefixes(1, 65_534).len(), 30);
    }

    proptest! {
        #[test]
        fn prefixes_cover_the_range_exactly(a: u16, b: u16, port: u16) {
            let (first, last) = (a.min(b), a.max(b));
            for probe in [port, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let covering = prefixes(first, last)
                    .into_iter()
                    .filter(|(value, bits)| bits == &0 || (probe ^ value) >> (16 - bits) == 0)
                    .count();
                prop_assert_eq!(covering, usize::from((first..=last).contains(&probe)));
            }
        }
    }
}
