//! How long a step took, for people.
#![expect(
    clippy::disallowed_types,
    reason = "steps are other programs: there is no tokio here, and no time to pause"
)]
use std::time::Instant;

/// Wall time since a step began.
#[derive(Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
