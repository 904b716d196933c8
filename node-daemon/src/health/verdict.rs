//! From a probe's outcomes to whether a backend is healthy. Pure.

use super::Check;

/// What is known of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    healthy: Option<bool>,
    /// Outcomes in a row that say the contrary.
    against: u32,
}

impl Verdict {
    /// `None`: it was not probed yet.
    pub fn healthy(self) -> Option<bool> {
        self.healthy
    }

    /// Takes an outcome. The first one counts at once; later ones must be as many in a row as the check says. `true`: the backend
    /// is something else than it was.
    pub fn take(&mut self, answered: bool, check: &Check) -> bool {
        if self.healthy == Some(answered) {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = match (self.healthy, answered) {
            (None, _) => 1,
            (Some(_), true) => check.healthy_after,
            (Some(_), false) => check.unhealthy_after,
        };
        if self.against < needed {
            return false;
        }
        *self = Self { healthy: Some(answered), against: 0 };
        true
    }

    /// Of a check that has become another one: what was found out holds, what was counted does not.
    #[must_use]
    pub fn begin_anew(self) -> Self {
        Self { against: 0, ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(unhealthy_after: u32, healthy_after: u32) -> Check {
        let second = Duration::from_secs(1);
        Check { interval: second, timeout: second, unhealthy_after, healthy_after, http: None }
    }

    /// The verdict after each outcome: `+` answered, `-` did not.
    fn after(check: &Check, outcomes: &str) -> String {
        let mut verdict = Verdict::default();
        let words = outcomes.chars().map(|outcome| {
            let before = verdict.healthy();
            let changed = verdict.take(outcome == '+', check);
            assert_eq!(changed, verdict.healthy() != before);
            if verdict.healthy() == Some(true) { 'h' } else { 'u' }
        });
        words.collect()
    }

    #[test]
    fn the_first_outcome_counts_at_once_and_others_only_in_a_row() {
        assert_eq!(after(&check(3, 2), "+--+---+-++"), "hhhhhhuuuuh");
        assert_eq!(after(&check(3, 2), "-+-++"), "uuuuh");
        assert_eq!(after(&check(1, 1), "+-+-"), "huhu");
    }

    #[test]
    fn another_check_keeps_what_is_known_and_counts_anew() {
        let mut verdict = Verdict::default();
        verdict.take(true, &check(2, 2));
        verdict.take(false, &check(2, 2));
        verdict = verdict.begin_anew();
        assert!(!verdict.take(false, &check(2, 2)));
        assert_eq!(verdict.healthy(), Some(true));
        assert!(verdict.take(false, &check(2, 2)));
    }
}
