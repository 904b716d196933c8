//! How full the flow table is: counted now and then, a slice at a time, between the commands.

use std::time::Duration;

use tracing::warn;

use super::State;
use crate::{
    kernel::{Counted, Datapath, links::Links},
    limits::{FLOWS_PASS_SECONDS, FLOWS_SLICE_MILLISECONDS},
};

/// What was seen of the flow table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flows {
    /// By the last whole pass.
    pub(super) entries: u64,
    /// By the pass that goes on.
    so_far: u64,
}

impl Flows {
    fn note(&mut self, slice: Counted) {
        self.so_far += slice.entries;
        if slice.finished {
            self.entries = std::mem::take(&mut self.so_far);
        }
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// One slice; gives the time to the next.
    pub(super) fn count_flows(&mut self) -> Duration {
        let slice = match self.datapath.count_flows() {
            Ok(slice) => slice,
            Err(error) => {
                warn!(%error, "the flow table can't be looked at; tried again");
                return Duration::from_secs(FLOWS_PASS_SECONDS);
            }
        };
        self.flows.note(slice);
        if slice.finished {
            Duration::from_secs(FLOWS_PASS_SECONDS)
        } else {
            Duration::from_millis(FLOWS_SLICE_MILLISECONDS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_the_last_whole_pass() {
        let mut flows = Flows::default();
        let slice = |entries, finished| Counted { entries, finished };
        flows.note(slice(90, false));
        assert_eq!(flows.entries, 0);
        flows.note(slice(50, true));
        assert_eq!(flows.entries, 140);
        flows.note(slice(0, false));
        assert_eq!(flows.entries, 140, "the next pass goes on");
        flows.note(slice(3, true));
        assert_eq!(flows.entries, 3);
    }
}
