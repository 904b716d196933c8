//! The embedded store: redb, one file, for one controller. One thread writes; transactions that wait together share
//! one durable commit, each with a revision of its own.
use std::{path::PathBuf, sync::Arc, thread::JoinHandle};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::{
    KeyValue, Outcome, Page, Range, Store, StoreError, Transaction, Watch,
    file::{self, File},
    watch::History,
};
use crate::{limits, signal};

#[derive(Debug)]
pub struct Embedded {
    file: Arc<File>,
    /// `None` only while it is dropped.
    writer: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    head: Arc<signal::Sender<u64>>,
}

#[derive(Debug)]
enum Command {
    Transact(Transaction, Answer<Outcome>),
    Compact(u64, Answer<()>),
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

impl Embedded {
    /// Opens the file, or makes it. The history it keeps is bounded.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let opened = tokio::task::spawn_blocking(move || file::open(&path)).await;
        let (file, revision) = opened.map_err(|_| StoreError::Closed)??;
        let file = Arc::new(file);
        let head = Arc::new(signal::Sender::new(revision));
        let (writer, commands) = mpsc::channel(limits::STORE_QUEUE_TRANSACTIONS);
        let thread = {
            let (file, head) = (Arc::clone(&file), Arc::clone(&head));
            let write = move || write_until_closed(&file, &head, commands);
            std::thread::Builder::new()
                .name("store-writer".to_owned())
                .spawn(write)
                .map_err(|error| StoreError::Backend(Box::new(error)))?
        };
        Ok(Self { file, writer: Some(writer), thread: Some(thread), head })
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let writer = self.writer.as_ref().ok_or(StoreError::Closed)?;
        writer.send(command(answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || read(&file)).await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Embedded {
    /// Waits for the writer, so that the file can be opened again at once.
    fn drop(&mut self) {
        self.writer = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn write_until_closed(file: &File, head: &signal::Sender<u64>, mut commands: mpsc::Receiver<Command>) {
    let mut compacted_to = 0;
    while let Some(command) = commands.blocking_recv() {
        let mut group = Vec::new();
        let mut next = Some(command);
        while let Some(command) = next.take() {
            match command {
                Command::Transact(transaction, answer) => group.push((transaction, answer)),
                Command::Compact(revision, answer) => drop(answer.send(file.compact(revision))),
            }
            if group.len() < limits::STORE_GROUP_TRANSACTIONS {
                next = commands.try_recv().ok();
            }
        }
        let (transactions, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let results = file.commit(&transactions);
        if let Some(outcome) = results.iter().rev().find_map(|result| result.as_ref().ok()) {
            head.send_replace(outcome.revision);
            keep_history_bounded(file, outcome.revision, &mut compacted_to);
        }
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever asked may be gone; the commit stands.
            drop(answer.send(result));
        }
    }
}

fn keep_history_bounded(file: &File, revision: u64, compacted_to: &mut u64) {
    let keep_from = revision.saturating_sub(limits::STORE_HISTORY_REVISIONS);
    if keep_from > *compacted_to + limits::STORE_COMPACTION_SLACK_REVISIONS {
        match file.compact(keep_from) {
            Ok(()) | Err(StoreError::Compacted { .. }) => *compacted_to = keep_from,
            Err(error) => tracing::error!(%error, keep_from, "compaction of the store failed"),
        }
    }
}

#[async_trait]
impl Store for Embedded {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.head.get())
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        let key = key.to_owned();
        self.read(move |file| file.get(&key)).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.read(move |file| file.range(&range)).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.ask(|answer| Command::Transact(transaction, answer)).await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        let history: Arc<dyn History> = Arc::clone(&self.file) as _;
        Ok(Watch::start(history, self.head.subscribe(), prefix.to_owned(), after))
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.ask(|answer| Command::Compact(revision, answer)).await
    }
}
