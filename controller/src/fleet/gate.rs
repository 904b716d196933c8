//! The order of opening: an endpoint opens only after the connected nodes that must know it have acknowledged, or when
//! its hold has passed.
use std::{collections::BTreeMap, time::Duration};

use roaring::RoaringBitmap;

use crate::limits;

#[derive(Debug, Default)]
pub(super) struct Gates {
    closed: BTreeMap<String, Gate>,
}

#[derive(Debug)]
struct Gate {
    /// Acknowledged through this, a node knows the endpoint.
    revision: u64,
    until: Duration,
    /// Numbers of nodes ([`Watchers`](super::watchers::Watchers)).
    waiting_for: RoaringBitmap,
}

impl Gates {
    pub(super) fn is_empty(&self) -> bool {
        self.closed.is_empty()
    }

    pub(super) fn is_open(&self, endpoint: &str) -> bool {
        !self.closed.contains_key(endpoint)
    }

    pub(super) fn close(&mut self, endpoint: &str, revision: u64, now: Duration) {
        let gate = Gate { revision, until: now + limits::OPEN_HOLD, waiting_for: RoaringBitmap::new() };
        self.closed.insert(endpoint.to_owned(), gate);
    }

    pub(super) fn forget(&mut self, endpoint: &str) {
        self.closed.remove(endpoint);
    }

    /// Whom a closed endpoint waits for.
    pub(super) fn wait_for(&mut self, endpoint: &str, nodes: RoaringBitmap) {
        if let Some(gate) = self.closed.get_mut(endpoint) {
            gate.waiting_for = nodes;
        }
    }

    /// Removes and returns what may open now. `answered`: the revision up to which a node has
    /// acknowledged; `None` when it is not connected.
    pub(super) fn take_open(
        &mut self,
        now: Option<Duration>,
        answered: impl Fn(u32) -> Option<u64>,
    ) -> Vec<String> {
        let mut open = Vec::new();
        self.closed.retain(|endpoint, gate| {
            // One that has not answered is enough to stay closed: the others are asked when it has.
            while let Some(node) = gate.waiting_for.max()
                && answered(node).is_none_or(|revision| revision >= gate.revision)
            {
                gate.waiting_for.remove(node);
            }
            let keep = !gate.waiting_for.is_empty() && now.is_none_or(|now| now < gate.until);
            if !keep {
                open.push(endpoint.clone());
            }
            keep
        });
        open
    }

    /// When the next hold passes.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.closed.values().map(|gate| gate.until).min()
    }
}
