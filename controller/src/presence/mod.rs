//! Which nodes have a stream to any controller, and which have been without for how long. Where the store is shared, each
//! controller keeps a record there of the nodes that it serves; one that falls silent serves nobody.
//!
//! Nothing here outlives the controller: what happened while it was down, or without its store, it does not know, so it
//! counts anew. A node is then removed later than it might be, never earlier.
mod expiry;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub use expiry::run;
pub use record::{Record, read};

use crate::limits;

/// A state machine over values: the time is passed in.
#[derive(Debug, Default)]
pub struct Presence {
    /// The instance of this controller.
    own: String,
    /// How long a node may be absent.
    expiry: Option<Duration>,
    /// The other controllers.
    others: BTreeMap<String, Other>,
    /// Since when nodes are known to be without a stream.
    absent: BTreeMap<String, Duration>,
}

#[derive(Debug)]
struct Other {
    record: Record,
    /// When its record was last seen to change.
    heard: Duration,
}

impl Presence {
    /// Begins to watch.
    pub fn begin(&mut self, instance: String) {
        self.own = instance;
    }

    /// Takes the records of all controllers, as they are now.
    pub fn take(&mut self, records: Vec<Record>, now: Duration) {
        let mut others = std::mem::take(&mut self.others);
        for record in records.into_iter().filter(|record| record.instance != self.own) {
            let before = others.remove(&record.instance);
            let heard = match before {
                Some(before) if before.record.revision == record.revision => before.heard,
                _ => now,
            };
            self.others.insert(record.instance.clone(), Other { record, heard });
        }
    }

    /// The store was away: how long nodes have been absent is not known any more.
    pub fn forget(&mut self) {
        self.others.clear();
        self.absent.clear();
    }

    /// The other controller that serves the node.
    pub fn serving(&self, node: &str, now: Duration) -> Option<&str> {
        let serves = |other: &&Other| !other.is_silent(now) && other.record.nodes.contains(node);
        self.others.values().find(serves).map(|other| other.record.controller.as_str())
    }

    /// Looks who is absent, of all nodes; `own`: those with a stream here.
    pub fn look(&mut self, nodes: &BTreeSet<String>, own: &BTreeSet<String>, now: Duration) {
        let mut absent = std::mem::take(&mut self.absent);
        for node in nodes.iter().filter(|node| !own.contains(*node)) {
            if self.serving(node, now).is_none() {
                self.absent.insert(node.clone(), absent.remove(node).unwrap_or(now));
            }
        }
    }

    /// How long a node may be absent; `None`: for ever.
    pub fn allow(&mut self, expiry: Option<Duration>) {
        self.expiry = expiry;
    }

    /// Nodes that have been absent for too long.
    pub fn expired(&self, now: Duration) -> Vec<String> {
        let over = self.absent.keys().filter(|node| self.expires_in(node, now) == Some(Duration::ZERO));
        over.cloned().collect()
    }

    /// When the node is removed if it stays away; `None`: it is not away, or may be.
    pub fn expires_in(&self, node: &str, now: Duration) -> Option<Duration> {
        let away = now.saturating_sub(*self.absent.get(node)?);
        Some(self.expiry?.saturating_sub(away))
    }

    /// Records of controllers that will hardly come back.
    pub fn dead(&self, now: Duration) -> impl Iterator<Item = &Record> {
        let dead = move |other: &&Other| now.saturating_sub(other.heard) > limits::PRESENCE_DEAD;
        self.others.values().filter(dead).map(|other| &other.record)
    }
}

impl Other {
    fn is_silent(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) > limits::PRESENCE_SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRY: Duration = Duration::from_mins(10);

    fn presence() -> Presence {
        let mut presence = Presence::default();
        presence.allow(Some(EXPIRY));
        presence
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn record(revision: u64, nodes: &[&str]) -> Record {
        Record { instance: "other".to_owned(), controller: "c2".to_owned(), nodes: set(nodes), revision }
    }

    #[test]
    fn a_node_is_absent_from_when_it_was_first_missed_and_not_once_it_is_back() {
        let mut presence = presence();
        let nodes = set(&["a", "b"]);
        presence.look(&nodes, &set(&["a"]), at(0));
        presence.look(&nodes, &set(&["a"]), at(599));
        assert_eq!(presence.expired(at(599)), Vec::<String>::new());
        assert_eq!(presence.expired(at(600)), ["b"]);
        presence.look(&nodes, &nodes, at(600));
        presence.look(&nodes, &set(&["a"]), at(601));
        assert_eq!(presence.expired(at(1200)), Vec::<String>::new());
    }

    #[test]
    fn a_node_of_another_controller_is_absent_once_that_one_is_silent() {
        let mut presence = presence();
        let nodes = set(&["a"]);
        for second in 0..700 {
            // It is heard until 99.
            presence.take(vec![record(second.min(99), &["a"])], at(second));
            presence.look(&nodes, &set(&[]), at(second));
        }
        let silent = 99 + limits::PRESENCE_SILENCE.as_secs() + 1;
        assert_eq!(presence.serving("a", at(silent - 1)), Some("c2"));
        assert_eq!(presence.serving("a", at(silent)), None);
        assert_eq!(presence.expired(at(silent + 599)), Vec::<String>::new());
        assert_eq!(presence.expired(at(silent + 600)), ["a"]);
    }

    #[test]
    fn after_the_store_was_away_everything_counts_anew() {
        let mut presence = presence();
        let nodes = set(&["a"]);
        presence.look(&nodes, &set(&[]), at(0));
        presence.forget();
        presence.look(&nodes, &set(&[]), at(5_000));
        assert_eq!(presence.expired(at(5_599)), Vec::<String>::new());
        assert_eq!(presence.expired(at(5_600)), ["a"]);
    }
}
