//! Since when nodes have been without a stream to any controller. A state machine over values: the time is passed in.
//!
//! Nothing here outlives the controller: what happened while it was down, or without its store, it does not know, so it
//! counts anew. A node is then removed later than it might be, never earlier.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

#[derive(Debug, Default)]
pub struct Absence {
    /// How long a node may be away; `None`: for ever.
    expiry: Option<Duration>,
    since: BTreeMap<String, Duration>,
}

impl Absence {
    /// Takes which nodes are away now.
    pub fn look(&mut self, away: BTreeSet<String>, expiry: Option<Duration>, now: Duration) {
        let mut before = std::mem::take(&mut self.since);
        let since = |node: String| {
            let since = before.remove(&node).unwrap_or(now);
            (node, since)
        };
        self.since = away.into_iter().map(since).collect();
        self.expiry = expiry;
    }

    /// It is not known any more how long nodes have been away.
    pub fn forget(&mut self) {
        self.since.clear();
    }

    /// Nodes that have been away for too long.
    pub fn expired(&self, now: Duration) -> Vec<String> {
        let over = self.since.keys().filter(|node| self.expires_in(node, now) == Some(Duration::ZERO));
        over.cloned().collect()
    }

    /// Nodes that have been away for so long.
    pub fn longer_than(&self, time: Duration, now: Duration) -> BTreeSet<String> {
        let away = self.since.iter().filter(|(_, since)| now.saturating_sub(**since) >= time);
        away.map(|(node, _)| node.clone()).collect()
    }

    /// When the node is removed if it stays away; `None`: it is not away, or may be.
    pub fn expires_in(&self, node: &str, now: Duration) -> Option<Duration> {
        let away = now.saturating_sub(*self.since.get(node)?);
        Some(self.expiry?.saturating_sub(away))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRY: Option<Duration> = Some(Duration::from_mins(10));

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_node_is_away_from_when_it_was_first_missed_and_not_once_it_is_back() {
        let mut absence = Absence::default();
        absence.look(set(&["b"]), EXPIRY, at(0));
        absence.look(set(&["b"]), EXPIRY, at(599));
        assert_eq!(absence.expired(at(599)), Vec::<String>::new());
        assert_eq!(absence.expires_in("b", at(599)), Some(at(1)));
        assert_eq!(absence.expired(at(600)), ["b"]);
        absence.look(set(&[]), EXPIRY, at(600));
        absence.look(set(&["b"]), EXPIRY, at(601));
        assert_eq!(absence.expired(at(1200)), Vec::<String>::new());
    }

    #[test]
    fn after_the_store_was_away_everything_counts_anew() {
        let mut absence = Absence::default();
        absence.look(set(&["a"]), EXPIRY, at(0));
        absence.forget();
        absence.look(set(&["a"]), EXPIRY, at(5_000));
        assert_eq!(absence.expired(at(5_599)), Vec::<String>::new());
        assert_eq!(absence.expired(at(5_600)), ["a"]);
    }

    #[test]
    fn where_nodes_may_be_away_none_expires() {
        let mut absence = Absence::default();
        absence.look(set(&["a"]), None, at(0));
        assert_eq!((absence.expired(at(1_000_000)), absence.expires_in("a", at(0))), (Vec::new(), None));
    }
}
