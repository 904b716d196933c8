//! Waiting for a condition with a deadline.
use std::{thread, time::Duration};

use anyhow::{Result, bail};
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(20);

/// Looks until `check` gives a value; its error ends the wait at once.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("not within {} s: {what}", deadline.as_secs());
        }
        thread::park_timeout(POLL);
    }
}
