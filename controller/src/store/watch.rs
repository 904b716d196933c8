//! Watches: a task per watch that follows the store's head and reads what is new out of the history. Nothing is queued
//! for a slow watcher but a few batches: it waits in the history, and learns when it waited too long.
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Batch, StoreError};
use crate::{limits, signal};

/// An ordered stream of changes. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    batches: mpsc::Receiver<Result<Batch, StoreError>>,
}

impl Watch {
    /// For stores with watches of their own.
    pub fn new(batches: mpsc::Receiver<Result<Batch, StoreError>>) -> Self {
        Self { batches }
    }

    /// The next batch. After an error, or once the store was closed, there is nothing more.
    pub async fn next(&mut self) -> Option<Result<Batch, StoreError>> {
        self.batches.recv().await
    }

    /// What somebody else sends.
    pub(super) fn receiving(batches: mpsc::Receiver<Result<Batch, StoreError>>) -> Self {
        Self { batches }
    }

    pub(super) fn start(
        history: Arc<dyn History>,
        head: signal::Receiver<u64>,
        prefix: String,
        after: u64,
    ) -> Self {
        let (sender, batches) = mpsc::channel(limits::WATCH_QUEUE_BATCHES);
        tokio::spawn(follow(history, head, prefix, after, sender));
        Self { batches }
    }
}

/// What a store must offer for watches.
pub(super) trait History: Send + Sync + 'static {
    /// Changes below `prefix` after `after`, of some revisions, and the revision through which that is everything.
    fn changes(&self, prefix: &str, after: u64) -> Result<(Vec<Batch>, u64), StoreError>;

    /// Whether [`History::changes`] waits for a device.
    fn blocks(&self) -> bool {
        true
    }
}

async fn follow(
    history: Arc<dyn History>,
    mut head: signal::Receiver<u64>,
    prefix: String,
    after: u64,
    sender: mpsc::Sender<Result<Batch, StoreError>>,
) {
    let mut position = after;
    loop {
        // At least one read, so that a compacted revision is said at once.
        loop {
            let newest = head.see();
            let read = if history.blocks() {
                let (history, prefix) = (Arc::clone(&history), prefix.clone());
                tokio::task::spawn_blocking(move || history.changes(&prefix, position)).await
            } else {
                Ok(history.changes(&prefix, position))
            };
            let (batches, through) = match read {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return drop(sender.send(Err(error)).await),
                Err(_cancelled) => return,
            };
            for batch in batches {
                if sender.send(Ok(batch)).await.is_err() {
                    return;
                }
            }
            position = position.max(through);
            if position >= newest {
                break;
            }
        }
        tokio::select! {
            biased;
            changed = head.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}
