//! Waiting for a condition with a deadline; the only place that pauses.
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::time::Instant;

use crate::limits::POLL;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait of this process end with an error, so that everything unwinds and cleans up.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Looks until `check` gives a value. An error of `check` ends the wait at once; so does the deadline, naming `what`.
pub fn until<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if interrupted() {
            bail!("interrupted");
        }
        if Instant::now() >= end {
            bail!("not within {} s: {what}", deadline.as_secs_f64());
        }
        thread::park_timeout(POLL);
    }
}

/// Like [`until`] for a condition without a value.
pub fn until_true(what: &str, deadline: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, deadline, || Ok(check()?.then_some(())))
}
