//! Moving a fleet's data from the embedded store to etcd, all of it or, as far as any controller is concerned, nothing.
//!
//! A mark in the target says that the move is under way, and which store's; no controller serves a store that has it. It is
//! taken away last, after everything was compared. A move that broke off is started over by the next one. The source is left
//! as it was, except for a mark, set just before the end, that it was moved: two stores of one id must never both be served.
//!
//! Nodes refuse a store whose revision is below theirs. The target's revisions therefore start behind the source's, by
//! [`keys::REVISION_BASE`], and not by as many writes: those would take hours for a store of some years.
use std::{collections::BTreeMap, time::Duration};

use crate::{
    keys, limits,
    store::{Compare, KeyValue, Operation, Range, Store, StoreError, Transaction},
};

#[derive(Debug, thiserror::Error)]
pub enum RelocationError {
    #[error(
        "the data of store {store_id} is being moved here, or the move broke off: finish it with `weft-controller move` \
         (it starts over)"
    )]
    Unfinished { store_id: String },
    #[error("this store was moved to {target}: serve that one, with --etcd")]
    Moved { target: String },
    #[error("the source has no store id: it was never served, there is nothing to move")]
    NothingToMove,
    #[error("the target is not empty: it holds store {store_id}")]
    TargetInUse { store_id: String },
    #[error("the target is not empty: it holds {key}, and no store id")]
    TargetForeign { key: String },
    #[error(
        "a move of another store, {store_id}, into the target broke off; finish that one, or empty the target"
    )]
    OtherMove { store_id: String },
    #[error("another move into the target has taken over")]
    Overtaken,
    #[error("after the copy, {key} is not the same in both stores; the target is not served, move again")]
    Differs { key: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub store_id: String,
    pub keys: usize,
}

/// Keys that are the stores' own, and not the fleet's.
const NOT_MOVED: [&str; 3] = [keys::MOVING, keys::MOVED_TO, keys::REVISION_BASE];

/// Whether a controller may serve it.
pub async fn refuse_unfinished(store: &dyn Store) -> Result<(), RelocationError> {
    if let Some(store_id) = text(store, keys::MOVING).await? {
        return Err(RelocationError::Unfinished { store_id });
    }
    match text(store, keys::MOVED_TO).await? {
        Some(target) => Err(RelocationError::Moved { target }),
        None => Ok(()),
    }
}

/// Moves everything. The caller holds the source alone; `target_name` is what the source will say it was moved to. Progress
/// is told as the number of keys done.
pub async fn relocate(
    source: &dyn Store,
    target: &dyn Store,
    target_name: &str,
    mut progress: impl FnMut(Step, usize),
) -> Result<Moved, RelocationError> {
    let store_id = text(source, keys::STORE_ID).await?.ok_or(RelocationError::NothingToMove)?;
    // The source's revision once its mark is set.
    let base = source.revision().await? + 1;
    let job = begin(source, target, &store_id, base).await?;
    job.clear(target, &mut progress).await?;
    let copied = job.copy(source, target, &mut progress).await?;
    compare(source, target, &mut progress).await?;
    let mark = Transaction {
        then: vec![Operation::put(keys::MOVED_TO, target_name.to_owned())],
        ..Transaction::default()
    };
    source.transact(mark).await?;
    job.write(target, vec![Operation::delete(keys::MOVING)]).await?;
    Ok(Moved { store_id, keys: copied })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Clear,
    Copy,
    Compare,
}

/// The move that holds the target, as long as its mark is as it was set.
struct Job {
    mark: Compare,
}

/// Sets the mark, if the target is empty or an earlier move of the same store broke off.
async fn begin(
    source: &dyn Store,
    target: &dyn Store,
    store_id: &str,
    base: u64,
) -> Result<Job, RelocationError> {
    let (mark, _) = target.get(keys::MOVING).await?;
    match &mark {
        Some(mark) if mark.value != store_id.as_bytes() => {
            let store_id = String::from_utf8_lossy(&mark.value).into_owned();
            return Err(RelocationError::OtherMove { store_id });
        }
        Some(_) => {}
        None => {
            if let Some(target) = text(source, keys::MOVED_TO).await? {
                return Err(RelocationError::Moved { target });
            }
            refuse_unless_empty(target).await?;
        }
    }
    let mut compares =
        vec![Compare::unchanged(keys::MOVING, mark.as_ref().map_or(0, |mark| mark.mod_revision))];
    if mark.is_none() {
        // A controller that comes at the same time initialises the store, with this key.
        compares.push(Compare::absent(keys::STORE_ID));
    }
    let begin = Transaction {
        compares,
        then: vec![
            Operation::put(keys::MOVING, store_id.to_owned()),
            Operation::put(keys::REVISION_BASE, base.to_string()),
        ],
        otherwise: Vec::new(),
    };
    let outcome = target.transact(begin).await?;
    if !outcome.succeeded {
        return Err(RelocationError::Overtaken);
    }
    Ok(Job { mark: Compare::unchanged(keys::MOVING, outcome.revision) })
}

async fn refuse_unless_empty(target: &dyn Store) -> Result<(), RelocationError> {
    if let Some(store_id) = text(target, keys::STORE_ID).await? {
        return Err(RelocationError::TargetInUse { store_id });
    }
    let range = Range { prefix: keys::ROOT.to_owned(), limit: 1, ..Range::default() };
    match target.range(range).await?.items.pop() {
        Some(item) => Err(RelocationError::TargetForeign { key: item.key }),
        None => Ok(()),
    }
}

impl Job {
    /// Written while the mark is ours. May be done twice, so it is tried again when nobody knows.
    async fn write(&self, target: &dyn Store, then: Vec<Operation>) -> Result<(), RelocationError> {
        let mut attempt = 1;
        loop {
            let compares = vec![self.mark.clone()];
            let wrote =
                target.transact(Transaction { compares, then: then.clone(), ..Transaction::default() });
            match wrote.await {
                Ok(outcome) if outcome.succeeded => return Ok(()),
                Ok(_) => return Err(RelocationError::Overtaken),
                Err(error @ (StoreError::Uncertain { .. } | StoreError::Unreachable { .. })) => {
                    if attempt == limits::MOVE_ATTEMPTS {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "trying again");
                    attempt += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes away what a move that broke off had brought.
    async fn clear(
        &self,
        target: &dyn Store,
        progress: &mut impl FnMut(Step, usize),
    ) -> Result<(), RelocationError> {
        let mut pages = Pages::new(target).await?;
        let mut cleared = 0;
        while let Some(items) = pages.next().await? {
            if items.is_empty() {
                continue;
            }
            cleared += items.len();
            let deletes = items.into_iter().map(|item| Operation::delete(item.key)).collect();
            self.write(target, deletes).await?;
            progress(Step::Clear, cleared);
        }
        Ok(())
    }

    async fn copy(
        &self,
        source: &dyn Store,
        target: &dyn Store,
        progress: &mut impl FnMut(Step, usize),
    ) -> Result<usize, RelocationError> {
        let mut pages = Pages::new(source).await?;
        let mut copied = 0;
        while let Some(items) = pages.next().await? {
            for group in groups(items) {
                copied += group.len();
                let puts = group.into_iter().map(|item| Operation::put(item.key, item.value)).collect();
                self.write(target, puts).await?;
                progress(Step::Copy, copied);
            }
        }
        Ok(copied)
    }
}

/// So many at once as a transaction takes.
fn groups(items: Vec<KeyValue>) -> Vec<Vec<KeyValue>> {
    let mut groups: Vec<Vec<KeyValue>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = item.key.len() + item.value.len();
        match groups.last_mut() {
            Some(group) if bytes + size <= limits::MOVE_GROUP_BYTES => group.push(item),
            _ => {
                bytes = 0;
                groups.push(vec![item]);
            }
        }
        bytes += size;
    }
    groups
}

async fn compare(
    source: &dyn Store,
    target: &dyn Store,
    progress: &mut impl FnMut(Step, usize),
) -> Result<(), RelocationError> {
    let mut differing: BTreeMap<String, bytes::Bytes> = BTreeMap::new();
    let (mut ours, mut theirs) = (Pages::new(source).await?, Pages::new(target).await?);
    let mut compared = 0;
    loop {
        let (left, right) = (ours.next().await?, theirs.next().await?);
        if left.is_none() && right.is_none() {
            break;
        }
        compared += left.as_ref().map_or(0, Vec::len);
        // Pages of the two may end at different keys: what is in one only waits for its like.
        for item in left.into_iter().chain(right).flatten() {
            match differing.remove(&item.key) {
                Some(value) if value == item.value => {}
                Some(_) => return Err(RelocationError::Differs { key: item.key }),
                None => drop(differing.insert(item.key, item.value)),
            }
        }
        progress(Step::Compare, compared);
    }
    match differing.pop_first() {
        Some((key, _)) => Err(RelocationError::Differs { key }),
        None => Ok(()),
    }
}

/// All that is the fleet's in a store, as of one revision.
struct Pages<'a> {
    store: &'a dyn Store,
    range: Option<Range>,
}

impl<'a> Pages<'a> {
    async fn new(store: &'a dyn Store) -> Result<Self, StoreError> {
        let revision = Some(store.revision().await?);
        let limit = limits::MOVE_PAGE_KEYS;
        let range = Range { prefix: keys::ROOT.to_owned(), limit, revision, after: None };
        Ok(Self { store, range: Some(range) })
    }

    /// `None`: that was everything.
    async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, StoreError> {
        let Some(range) = self.range.take() else { return Ok(None) };
        let page = self.store.range(range.clone()).await?;
        if page.more {
            let after = page.items.last().map(|item| item.key.clone());
            self.range = Some(Range { after, ..range });
        }
        let fleets = page.items.into_iter().filter(|item| !NOT_MOVED.contains(&item.key.as_str()));
        Ok(Some(fleets.collect()))
    }
}

async fn text(store: &dyn Store, key: &str) -> Result<Option<String>, StoreError> {
    let (item, _) = store.get(key).await?;
    Ok(item.map(|item| String::from_utf8_lossy(&item.value).into_owned()))
}
