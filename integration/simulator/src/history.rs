//! What happened in a run, for people, and what must not have happened.
use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

/// Clones share one.
#[derive(Clone, Debug)]
pub(crate) struct History {
    began: Instant,
    told: Arc<Mutex<Told>>,
}

#[derive(Debug, Default)]
struct Told {
    lines: Vec<String>,
    violations: Vec<String>,
}

impl History {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), told: Arc::default() }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, who: impl Display, what: impl Display) {
        let at = self.began.elapsed().as_secs_f64();
        self.told().lines.push(format!("{at:9.3} s  {who:<14} {what}"));
    }

    /// Something that must never be.
    pub(crate) fn violated(&self, what: impl Display) {
        self.note("VIOLATED", &what);
        self.told().violations.push(what.to_string());
    }

    pub(crate) fn first_violation(&self) -> Option<String> {
        self.told().violations.first().cloned()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.told().lines.clone()
    }
}
