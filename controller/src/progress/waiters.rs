//! Who waits for a revision, and for which nodes. What an acknowledgement costs does not grow with the fleet.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::Notify;

use super::Reached;

#[derive(Debug, Default)]
pub struct Waiters {
    waiting: BTreeMap<u64, Waiter>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    target: u64,
    nodes: usize,
    remaining: BTreeSet<String>,
    rejected: Option<String>,
    news: Arc<Notify>,
}

/// How far one who waits has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    pub nodes: usize,
    pub realised: usize,
    /// Not all of them.
    pub waiting_for: Vec<String>,
    pub rejected: Option<String>,
}

/// Names of nodes in one outlook.
const NAMES_MAX: usize = 10;

impl Waiters {
    /// Begins to wait for nodes. Returns by which number to ask, and what tells when.
    pub fn begin(&mut self, target: u64, nodes: BTreeSet<String>) -> (u64, Arc<Notify>) {
        self.next += 1;
        let news = Arc::new(Notify::new());
        let waiter =
            Waiter { target, nodes: nodes.len(), remaining: nodes, rejected: None, news: Arc::clone(&news) };
        self.waiting.insert(self.next, waiter);
        (self.next, news)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn end(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// Something has changed about this node.
    pub fn look(&mut self, node: &str, reached: impl Fn(u64) -> Reached) {
        for waiter in self.waiting.values_mut().filter(|waiter| waiter.remaining.contains(node)) {
            match reached(waiter.target) {
                Reached::NotYet => continue,
                Reached::Realised => drop(waiter.remaining.remove(node)),
                Reached::Rejected(why) => waiter.rejected = Some(why),
            }
            waiter.news.notify_one();
        }
    }

    /// The node is no more.
    pub fn forget(&mut self, node: &str) {
        for waiter in self.waiting.values_mut() {
            if waiter.remaining.remove(node) {
                waiter.nodes -= 1;
                waiter.news.notify_one();
            }
        }
    }

    /// Whom anybody waits for.
    pub fn waited_for(&self) -> BTreeSet<String> {
        self.waiting.values().flat_map(|waiter| waiter.remaining.iter().cloned()).collect()
    }

    pub fn outlook(&self, number: u64) -> Option<Outlook> {
        let waiter = self.waiting.get(&number)?;
        Some(Outlook {
            nodes: waiter.nodes,
            realised: waiter.nodes - waiter.remaining.len(),
            waiting_for: waiter.remaining.iter().take(NAMES_MAX).cloned().collect(),
            rejected: waiter.rejected.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_node_is_done_once_it_has_reached_the_target() {
        let mut waiters = Waiters::default();
        let (number, _) = waiters.begin(7, names(&["a", "b"]));
        let at =
            |revision| move |target| if revision >= target { Reached::Realised } else { Reached::NotYet };
        waiters.look("a", at(6));
        waiters.look("b", at(9));
        waiters.look("b", at(3));
        let outlook = waiters.outlook(number).unwrap();
        assert_eq!((outlook.nodes, outlook.realised, outlook.waiting_for), (2, 1, vec!["a".to_owned()]));
        waiters.look("a", at(7));
        assert_eq!(waiters.outlook(number).unwrap().realised, 2);
    }

    #[test]
    fn a_node_that_is_removed_is_not_waited_for() {
        let mut waiters = Waiters::default();
        let (number, _) = waiters.begin(7, names(&["a", "b"]));
        waiters.forget("a");
        let outlook = waiters.outlook(number).unwrap();
        assert_eq!((outlook.nodes, outlook.realised), (1, 0));
        waiters.end(number);
        assert_eq!(waiters.outlook(number), None);
    }
}
