//! Where the compiler and the streams meet: one fleet, the sessions of its nodes, and who waits for what.
mod standing;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use weft_proto::v1::{self, ResourceType};

use crate::{
    adoption::Waiting as WaitingForAdoption,
    expiry::Absence,
    fleet::{Change, Delta, Fleet, Have},
    progress::{records::Records, waiters::Waiters},
    resource, signal,
};

pub use standing::Waiting;

/// Commit times that are remembered, for telling how long a revision took to be realised.
const COMMITS_KEPT: usize = 1024;

/// Of the configuration, what a node's registration depends on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registration {
    /// Nodes get endpoint CIDRs of them.
    pools: Vec<v1::Pool>,
    /// Of which labels a node's identity is.
    identity_labels: Option<v1::IdentityLabels>,
}

impl Registration {
    fn of(config: &v1::FleetConfig) -> Self {
        Self { pools: config.pools.clone(), identity_labels: config.identity_labels.clone() }
    }
}

#[derive(Debug)]
pub struct Hub {
    /// What this controller calls itself.
    controller: String,
    /// Of this run of it.
    run: String,
    state: Mutex<State>,
    /// The revision that the fleet has taken in.
    applied: signal::Sender<u64>,
    identities_through: signal::Sender<u32>,
    /// What nodes are registered by.
    registration: signal::Sender<Registration>,
    /// Counts what may have changed who has realised what, for [`keep`](crate::progress::keep).
    progress: signal::Sender<u64>,
    absence: Mutex<Absence>,
    started: Instant,
}

#[derive(Debug, Default)]
struct State {
    fleet: Fleet,
    sessions: BTreeMap<String, Handle>,
    seen: BTreeMap<String, Seen>,
    commits: VecDeque<Commit>,
    next_session: u64,
    /// Of the other controllers, and of this one's earlier runs.
    records: Records,
    /// When another controller of this one's name was heard of last.
    namesake_heard: Option<Duration>,
    waiters: Waiters,
    waiting_for_adoption: WaitingForAdoption,
}

#[derive(Debug)]
struct Handle {
    session: u64,
    news: Arc<Notify>,
    replaced: CancellationToken,
}

/// What was last seen of a node.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub at: SystemTime,
    pub last_apply: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    revision: u64,
    at: Instant,
    wall: SystemTime,
}

/// A node's connection. Dropping it ends it.
#[derive(Debug)]
pub struct Session {
    hub: Arc<Hub>,
    pub node: String,
    number: u64,
    pub news: Arc<Notify>,
    /// A newer stream of the same node took over, or the node was removed.
    pub replaced: CancellationToken,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(String::new())
    }
}

impl Hub {
    pub fn new(controller: String) -> Self {
        Self {
            controller,
            run: resource::new_uid(),
            state: Mutex::default(),
            applied: signal::Sender::new(0),
            identities_through: signal::Sender::new(0),
            progress: signal::Sender::new(0),
            registration: signal::Sender::default(),
            absence: Mutex::default(),
            started: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since this controller began.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Asks the fleet something.
    pub fn ask<T>(&self, question: impl FnOnce(&Fleet) -> T) -> T {
        question(&self.lock().fleet)
    }

    /// Which nodes are away, with the time that it counts in.
    pub fn absence<T>(&self, act: impl FnOnce(&mut Absence, Duration) -> T) -> T {
        act(&mut self.absence.lock().unwrap_or_else(PoisonError::into_inner), self.now())
    }

    pub fn apply(&self, revision: u64, changes: Vec<Change>) {
        let mut state = self.lock();
        if !changes.is_empty() {
            state.commits.push_back(Commit { revision, at: Instant::now(), wall: SystemTime::now() });
        }
        if state.commits.len() > COMMITS_KEPT {
            state.commits.pop_front();
        }
        for change in &changes {
            if let Change::Node { name, facts: None } = change {
                state.seen.remove(name);
                state.waiters.forget(name);
                if let Some(handle) = state.sessions.get(name) {
                    handle.replaced.cancel();
                }
            }
        }
        let registration = changes.iter().rev().find_map(|change| match change {
            Change::Config(Some(config)) => Some(Registration::of(config)),
            _ => None,
        });
        state.fleet.apply(revision, self.now(), changes);
        let through = state.fleet.identities_through();
        self.wake(&mut state);
        drop(state);
        self.applied.send_replace(revision);
        self.identities_through.send_if_modified(|known| std::mem::replace(known, through) != through);
        if let Some(new) = registration {
            self.registration.send_if_modified(|known| std::mem::replace(known, new.clone()) != new);
        }
    }

    /// Time has passed. Returns when this is next needed.
    pub fn tick(&self) -> Option<Instant> {
        let mut state = self.lock();
        state.fleet.tick(self.now());
        self.wake(&mut state);
        state.fleet.next_deadline().map(|deadline| self.started + deadline)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.lock().fleet.next_deadline().map(|deadline| self.started + deadline)
    }

    fn wake(&self, state: &mut State) {
        for node in state.fleet.take_news() {
            if let Some(handle) = state.sessions.get(&node) {
                handle.news.notify_one();
            }
        }
        self.tell_progress();
    }

    fn tell_progress(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Returns once the fleet has taken in `revision`.
    pub async fn wait_applied(&self, revision: u64) {
        // The sender lives as long as the hub, so this ends only with the condition.
        let applied = self.applied.subscribe().wait_for(|applied| *applied >= revision).await;
        debug_assert!(applied.is_ok(), "the sender outlives who asks");
    }

    pub fn progress(&self) -> signal::Receiver<u64> {
        self.progress.subscribe()
    }

    pub fn identities_through(&self) -> signal::Receiver<u32> {
        self.identities_through.subscribe()
    }

    pub fn registration(&self) -> signal::Receiver<Registration> {
        self.registration.subscribe()
    }

    pub fn seen(&self, node: &str) -> Option<Seen> {
        self.lock().seen.get(node).copied()
    }

    pub fn since_commit(&self, revision: u64) -> Option<Duration> {
        self.lock()
            .commits
            .iter()
            .find(|commit| commit.revision == revision)
            .map(|commit| commit.at.elapsed())
    }

    pub fn committed_at(&self, revision: u64) -> Option<SystemTime> {
        self.lock().commits.iter().rev().find(|commit| commit.revision == revision).map(|commit| commit.wall)
    }

    /// Starts the node anew, with what it says that it holds; an older stream of it is told to end. Returns what to ask
    /// the node.
    pub fn connect(self: &Arc<Self>, node: &str, have: Option<&Have>) -> (Session, Vec<v1::WantBuckets>) {
        let mut state = self.lock();
        state.next_session += 1;
        let number = state.next_session;
        let (news, replaced) = (Arc::new(Notify::new()), CancellationToken::new());
        let handle = Handle { session: number, news: Arc::clone(&news), replaced: replaced.clone() };
        if let Some(older) = state.sessions.insert(node.to_owned(), handle) {
            older.replaced.cancel();
            state.fleet.disconnect(node);
        }
        let questions = state.fleet.connect(node, have);
        state.waiting_for_adoption.forget(node);
        state.seen.insert(node.to_owned(), Seen { at: SystemTime::now(), last_apply: None });
        self.wake(&mut state);
        (Session { hub: Arc::clone(self), node: node.to_owned(), number, news, replaced }, questions)
    }
}

impl Session {
    /// Runs with the fleet, while this is the node's current session.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.hub.lock();
        let current = state.sessions.get(&self.node).is_some_and(|handle| handle.session == self.number);
        current.then(|| act(&mut state))
    }

    /// What to ask the node next.
    pub fn take_buckets(&self, report: &v1::DigestBuckets) -> Option<v1::WantItems> {
        self.with(|state| state.fleet.take_buckets(&self.node, report)).flatten()
    }

    pub fn take_items(&self, report: &v1::DigestItems) {
        self.with(|state| state.fleet.take_items(&self.node, report));
    }

    pub fn give_up_resume(&self) {
        self.with(|state| state.fleet.give_up_resume(&self.node));
    }

    pub fn drain(&self) -> Option<Delta> {
        self.with(|state| {
            let delta = state.fleet.drain(&self.node);
            if delta.is_none() {
                // What was pending may have cancelled itself out.
                self.hub.look(state, &self.node);
            }
            delta
        })
        .flatten()
    }

    pub fn drain_identities_through(&self) -> Option<Delta> {
        self.with(|state| state.fleet.drain_identities_through(&self.node)).flatten()
    }

    /// `false`: the node was sent no such delta.
    pub fn acknowledge(
        &self,
        nonce: u64,
        apply: Duration,
        rejected: Vec<(ResourceType, String, String)>,
    ) -> bool {
        let known = self.with(|state| {
            let may_open = state.fleet.next_deadline().is_some();
            let known = state.fleet.acknowledge(&self.node, nonce, rejected);
            let seen = Seen { at: SystemTime::now(), last_apply: Some(apply) };
            state.seen.insert(self.node.clone(), seen);
            self.hub.look(state, &self.node);
            if may_open {
                // An endpoint of another node may have waited for this.
                self.hub.wake(state);
            } else {
                self.hub.tell_progress();
            }
            known
        });
        known.unwrap_or(false)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.with(|state| {
            state.sessions.remove(&self.node);
            state.fleet.disconnect(&self.node);
            if let Some(seen) = state.seen.get_mut(&self.node) {
                seen.at = SystemTime::now();
            }
            self.hub.wake(state);
        });
    }
}

#[cfg(test)]
mod tests;
