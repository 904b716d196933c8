//! The flow table's collection: a pass now and then, a slice at a time, between the commands.

use std::time::Duration;

use tracing::{debug, warn};

use super::State;
use crate::{
    kernel::{Collected, Datapath, links::Links},
    limits::{FLOWS_PASS_SECONDS, FLOWS_SLICE_ENTRIES, FLOWS_SLICE_MILLISECONDS},
};

/// What was seen of the flow table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flows {
    /// Left in the table by the last whole pass.
    pub(super) entries: u64,
    /// Taken out since the daemon's start.
    pub(super) collected: u64,
    /// Left in the table by the pass that goes on.
    left: u64,
}

impl Flows {
    fn note(&mut self, slice: Collected) {
        self.left += slice.seen.saturating_sub(slice.removed);
        self.collected += slice.removed;
        if slice.finished {
            self.entries = std::mem::take(&mut self.left);
        }
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// One slice; gives the time to the next.
    pub(super) fn collect_flows(&mut self) -> Duration {
        let slice = match self.datapath.collect_flows(FLOWS_SLICE_ENTRIES) {
            Ok(slice) => slice,
            Err(error) => {
                warn!(%error, "the flow table can't be collected; tried again");
                return Duration::from_secs(FLOWS_PASS_SECONDS);
            }
        };
        self.flows.note(slice);
        if slice.finished {
            debug!(
                entries = self.flows.entries,
                collected = self.flows.collected,
                "the flow table is collected"
            );
            return Duration::from_secs(FLOWS_PASS_SECONDS);
        }
        Duration::from_millis(FLOWS_SLICE_MILLISECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_last_whole_pass() {
        let mut flows = Flows::default();
        let slice = |seen, removed, finished| Collected { seen, removed, finished };
        flows.note(slice(100, 10, false));
        assert_eq!((flows.entries, flows.collected), (0, 10));
        flows.note(slice(50, 0, true));
        assert_eq!((flows.entries, flows.collected), (140, 10));
        flows.note(slice(140, 140, true));
        assert_eq!((flows.entries, flows.collected), (0, 150));
    }
}
