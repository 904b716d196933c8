//! The store in memory: the twin that tests use, and small enough to be obviously right.
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Batch, Event, KeyValue, Operation, Outcome, Page, Range, Stamp, Store, StoreError, Transaction, Watch,
    watch::History,
};
use crate::{limits, signal};

#[derive(Debug)]
pub struct Memory {
    state: Arc<Shared>,
    head: signal::Sender<u64>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    revision: u64,
    compacted: u64,
    /// Every kept version of every key; `None`: deleted.
    versions: BTreeMap<String, BTreeMap<u64, Option<(Stamp, Bytes)>>>,
    /// Which keys each kept revision changed.
    changes: BTreeMap<u64, BTreeSet<String>>,
}

impl Default for State {
    fn default() -> Self {
        Self { revision: 1, compacted: 0, versions: BTreeMap::new(), changes: BTreeMap::new() }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { state: Arc::default(), head: signal::Sender::new(1) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn at(&self, key: &str, revision: u64) -> Option<KeyValue> {
        let (_, version) = self.versions.get(key)?.range(..=revision).next_back()?;
        let (stamp, value) = version.as_ref()?;
        Some(key_value(key, *stamp, value))
    }

    fn apply(&mut self, operations: &[Operation]) -> u64 {
        let revision = self.revision + 1;
        let mut changed = BTreeSet::new();
        for operation in operations {
            let key = operation.key();
            let current = self.at(key, self.revision);
            let version = match operation {
                Operation::Put { value, .. } => {
                    Some((Stamp::next(current.as_ref().map(stamp_of), revision), value.clone()))
                }
                Operation::Delete { .. } if current.is_none() => continue,
                Operation::Delete { .. } => None,
            };
            self.versions.entry(key.to_owned()).or_default().insert(revision, version);
            changed.insert(key.to_owned());
        }
        if !changed.is_empty() {
            self.changes.insert(revision, changed);
            self.revision = revision;
        }
        self.revision
    }

    fn check_readable(&self, revision: u64) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, oldest: self.compacted });
        }
        if revision > self.revision {
            return Err(StoreError::Future { requested: revision, current: self.revision });
        }
        Ok(())
    }

    fn compact(&mut self, revision: u64) {
        for versions in self.versions.values_mut() {
            if let Some((&last, version)) = versions.range(..=revision).next_back() {
                let first_kept = if version.is_some() { last } else { last + 1 };
                versions.retain(|&at, _| at >= first_kept);
            }
        }
        self.versions.retain(|_, versions| !versions.is_empty());
        self.changes.retain(|&at, _| at > revision);
        self.compacted = revision;
    }
}

impl History for Shared {
    fn changes(&self, prefix: &str, after: u64) -> Result<(Vec<Batch>, u64), StoreError> {
        let state = self.lock();
        if after < state.compacted {
            return Err(StoreError::Compacted { requested: after, oldest: state.compacted });
        }
        let through = after.saturating_add(limits::WATCH_READ_REVISIONS).min(state.revision);
        if through <= after {
            return Ok((Vec::new(), after));
        }
        let batches = state.changes.range(after + 1..=through).filter_map(|(&revision, keys)| {
            let below = keys.iter().filter(|key| key.starts_with(prefix));
            let events: Vec<Event> =
                below.map(|key| Event { key: key.clone(), value: state.at(key, revision) }).collect();
            (!events.is_empty()).then_some(Batch { revision, events })
        });
        Ok((batches.collect(), through))
    }

    fn blocks(&self) -> bool {
        false
    }
}

#[async_trait]
impl Store for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.state.lock().revision)
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        let state = self.state.lock();
        Ok((state.at(key, state.revision), state.revision))
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        let state = self.state.lock();
        let revision = range.revision.unwrap_or(state.revision);
        state.check_readable(revision)?;
        let start = range.after.filter(|after| *after >= range.prefix);
        let start = start.map_or(Bound::Included(range.prefix.clone()), Bound::Excluded);
        let mut items: Vec<KeyValue> = state
            .versions
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&range.prefix))
            .filter_map(|(key, _)| state.at(key, revision))
            .take(range.limit + 1)
            .collect();
        let more = items.len() > range.limit;
        items.truncate(range.limit);
        Ok(Page { revision, items, more })
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let mut state = self.state.lock();
        let succeeded = transaction.compares.iter().all(|compare| {
            let current = state.at(&compare.key, state.revision);
            compare.holds(current.as_ref().map(stamp_of).as_ref())
        });
        let revision = state.apply(if succeeded { &transaction.then } else { &transaction.otherwise });
        self.head.send_replace(revision);
        Ok(Outcome { succeeded, revision })
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        let history: Arc<dyn History> = Arc::clone(&self.state) as _;
        Ok(Watch::start(history, self.head.subscribe(), prefix.to_owned(), after))
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.check_readable(revision)?;
        state.compact(revision);
        Ok(())
    }
}

fn key_value(key: &str, stamp: Stamp, value: &Bytes) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: value.clone(),
        create_revision: stamp.create_revision,
        mod_revision: stamp.mod_revision,
        version: stamp.version,
    }
}

fn stamp_of(item: &KeyValue) -> Stamp {
    Stamp { create_revision: item.create_revision, mod_revision: item.mod_revision, version: item.version }
}
