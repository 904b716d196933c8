//! When to try the next connection: exponential, with full jitter, so that the nodes of a fleet that lost a controller do
//! not come back all at once.

use std::time::Duration;

use crate::limits::{BACKOFF_BASE_MILLISECONDS, BACKOFF_MAX_MILLISECONDS};

/// Counts failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait; `random` is uniform in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = BACKOFF_BASE_MILLISECONDS
            .saturating_mul(1 << self.failures.min(32))
            .min(BACKOFF_MAX_MILLISECONDS);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(ceiling).mul_f64(random.clamp(0.0, 1.0))
    }

    /// After a stream that worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_ceiling_and_starts_afresh_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..12).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(&waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], u128::from(BACKOFF_MAX_MILLISECONDS));

        backoff.reset();

        assert_eq!(backoff.next(1.0).as_millis(), 100);
    }

    #[test]
    fn the_wait_is_spread_over_its_whole_range() {
        let mut backoff = Backoff { failures: 3 };
        assert_eq!(backoff.next(0.0).as_millis(), 0);
        assert_eq!(Backoff { failures: 3 }.next(0.5).as_millis(), 400);
    }
}
