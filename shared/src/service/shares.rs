//! How new connections are shared among backends, and how far a Maglev table can honour their weights.
//!
//! Each backend of a table of `M` slots gets its part of them, rounded: one slot more or less. Of a part of `s` slots that is
//! `1/s`, so that shares are within 2 % of the weights as long as the least of them is [`SLOTS_MIN`] slots, which is: as long
//! as all weights together are at most `M / 50` times the least.

/// Of the table of most services.
pub const SLOTS: u32 = 16_381;
/// Of the table of services that need a larger one. Both are primes, and a slot's number fits 16 bits.
pub const SLOTS_LARGE: u32 = 65_521;
/// What one slot more or less is 2 % of.
pub const SLOTS_MIN: u32 = 50;
/// The largest weight.
pub const WEIGHT_MAX: u16 = 256;
/// How often the least weight may be in all weights together: 327 for [`SLOTS`], ...
pub const RATIO: u32 = SLOTS / SLOTS_MIN;
/// ...and 1,310 for [`SLOTS_LARGE`].
pub const RATIO_LARGE: u32 = SLOTS_LARGE / SLOTS_MIN;
/// Backends of one family: with equal weights, what the larger table honours.
pub const BACKENDS_MAX: usize = RATIO_LARGE as usize;

/// How often the least of the weights is in all of them together, rounded up; 0 of none.
pub fn ratio(weights: impl IntoIterator<Item = u16>) -> u32 {
    let (mut sum, mut least) = (0_u32, u32::MAX);
    for weight in weights {
        sum = sum.saturating_add(weight.into());
        least = least.min(u32::from(weight).max(1));
    }
    sum.div_ceil(least)
}

/// Slots of the table for weights of this ratio.
pub const fn slots(ratio: u32) -> u32 {
    if ratio <= RATIO { SLOTS } else { SLOTS_LARGE }
}

/// A share of all new connections in hundredths of a percent, rounded; 0 where nobody gets any.
pub fn basis_points(weight: u16, all: u32) -> u32 {
    let points = (u64::from(weight) * 10_000 + u64::from(all) / 2).checked_div(all.into());
    points.and_then(|points| u32::try_from(points).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_as_large_as_the_weights_need() {
        assert_eq!(ratio([]), 0);
        assert_eq!(ratio([1; 100]), 100);
        assert_eq!(ratio([256, 1]), 257);
        assert_eq!(ratio([3, 2]), 3, "rounded up");
        assert_eq!((slots(0), slots(327), slots(328)), (16_381, 16_381, 65_521));
    }

    #[test]
    fn within_the_ratio_one_slot_more_or_less_is_at_most_2_percent() {
        for (table, ratio) in [(SLOTS, RATIO), (SLOTS_LARGE, RATIO_LARGE)] {
            let least_part = f64::from(table) / f64::from(ratio);
            assert!(1.0 / least_part <= 0.02, "{table}: {least_part} slots");
            let beyond = f64::from(table) / f64::from(ratio + 1);
            assert!(1.0 / beyond > 0.02, "{table} would honour more: {beyond} slots");
        }
    }

    #[test]
    fn shares_are_rounded_to_hundredths_of_a_percent() {
        assert_eq!(basis_points(1, 3), 3_333);
        assert_eq!(basis_points(2, 3), 6_667);
        assert_eq!(basis_points(256, 256), 10_000);
        assert_eq!(basis_points(1, 0), 0);
    }
}
