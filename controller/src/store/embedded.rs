//! The embedded store: redb, one file, for one controller. One thread writes; transactions that wait together share
//! one durable commit, each with a revision of its own.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use async_trait::async_trait;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, Table};
use tokio::sync::{mpsc, oneshot, watch as signal};

use super::{
    Batch, KeyValue, Operation, Outcome, Page, Range, Stamp, Store, StoreError, Transaction, Watch,
    records::{self, CHANGES, FORMAT, META, VERSIONS, backend},
    watch::History,
};
use crate::limits;

#[derive(Debug)]
pub struct Embedded {
    file: Arc<File>,
    /// `None` only while it is dropped.
    writer: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    head: signal::Sender<u64>,
}

struct File(Database);

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
        let opened = tokio::task::spawn_blocking(move || open_file(&path)).await;
        let (database, revision) = opened.map_err(|_| StoreError::Closed)??;
        let file = Arc::new(File(database));
        let head = signal::Sender::new(revision);
        let (writer, commands) = mpsc::channel(limits::STORE_QUEUE_TRANSACTIONS);
        let thread = {
            let (file, head) = (Arc::clone(&file), head.clone());
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

impl std::fmt::Debug for File {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("File")
    }
}

fn open_file(path: &Path) -> Result<(Database, u64), StoreError> {
    let opened = Database::builder().set_cache_size(limits::STORE_CACHE_BYTES).create(path);
    let database = opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        other => StoreError::Open { path: path.to_owned(), source: Box::new(other) },
    })?;
    let write = database.begin_write().map_err(backend)?;
    let revision = {
        let mut meta = write.open_table(META).map_err(backend)?;
        write.open_table(VERSIONS).map_err(backend)?;
        write.open_table(CHANGES).map_err(backend)?;
        match number(&meta, "format")? {
            0 => {
                meta.insert("format", FORMAT).map_err(backend)?;
                meta.insert("revision", 1).map_err(backend)?;
            }
            FORMAT => {}
            found => return Err(StoreError::Format { found, known: FORMAT }),
        }
        number(&meta, "revision")?
    };
    write.commit().map_err(backend)?;
    Ok((database, revision))
}

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, StoreError> {
    Ok(meta.get(name).map_err(backend)?.map_or(0, |value| value.value()))
}

// ---- Writing ----

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

impl File {
    /// All transactions in one durable commit; if that fails, none happened.
    fn commit(&self, transactions: &[Transaction]) -> Vec<Result<Outcome, StoreError>> {
        if transactions.is_empty() {
            return Vec::new();
        }
        self.try_commit(transactions).unwrap_or_else(|error| {
            let text = error.to_string();
            transactions.iter().map(|_| Err(StoreError::Backend(text.clone().into()))).collect()
        })
    }

    fn try_commit(
        &self,
        transactions: &[Transaction],
    ) -> Result<Vec<Result<Outcome, StoreError>>, StoreError> {
        let write = self.0.begin_write().map_err(backend)?;
        let mut results = Vec::with_capacity(transactions.len());
        {
            let mut meta = write.open_table(META).map_err(backend)?;
            let mut versions = write.open_table(VERSIONS).map_err(backend)?;
            let mut changes = write.open_table(CHANGES).map_err(backend)?;
            let mut revision = number(&meta, "revision")?;
            for transaction in transactions {
                if let Err(refused) = transaction.check() {
                    results.push(Err(refused));
                    continue;
                }
                let succeeded = all_hold(transaction, &versions, revision)?;
                let operations = if succeeded { &transaction.then } else { &transaction.otherwise };
                revision = perform(operations, revision, &mut versions, &mut changes)?;
                results.push(Ok(Outcome { succeeded, revision }));
            }
            meta.insert("revision", revision).map_err(backend)?;
        }
        write.commit().map_err(backend)?;
        Ok(results)
    }

    fn compact(&self, to: u64) -> Result<(), StoreError> {
        let write = self.0.begin_write().map_err(backend)?;
        {
            let mut meta = write.open_table(META).map_err(backend)?;
            let (revision, compacted) = (number(&meta, "revision")?, number(&meta, "compacted")?);
            check_readable(to, revision, compacted)?;
            let mut versions = write.open_table(VERSIONS).map_err(backend)?;
            let mut changes = write.open_table(CHANGES).map_err(backend)?;
            let forgotten = changes.extract_from_if((0, 0)..=(to, u32::MAX), |_, _| true).map_err(backend)?;
            for entry in forgotten {
                let (place, key) = entry.map_err(backend)?;
                let (at, key) = (place.value().0, key.value());
                // A version behind a newer kept one is not read any more; a deletion needs no record at all.
                versions.retain_in((key, 0)..(key, at), |_, _| false).map_err(backend)?;
                versions.retain_in((key, at)..=(key, at), |_, record| !record.is_empty()).map_err(backend)?;
            }
            meta.insert("compacted", to).map_err(backend)?;
        }
        write.commit().map_err(backend)
    }
}

fn all_hold(
    transaction: &Transaction,
    versions: &Table<'_, (&'static str, u64), &'static [u8]>,
    revision: u64,
) -> Result<bool, StoreError> {
    for compare in &transaction.compares {
        let current = records::at(versions, &compare.key, revision)?;
        if !compare.holds(current.as_ref().map(stamp_of).as_ref()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the store's revision afterwards: one more, if anything changed.
fn perform(
    operations: &[Operation],
    revision: u64,
    versions: &mut Table<'_, (&'static str, u64), &'static [u8]>,
    changes: &mut Table<'_, (u64, u32), &'static str>,
) -> Result<u64, StoreError> {
    let next = revision + 1;
    let mut place = 0;
    for operation in operations {
        let key = operation.key();
        let current = records::at(versions, key, revision)?;
        let record = match operation {
            Operation::Put { value, .. } => {
                records::encode(Stamp::next(current.as_ref().map(stamp_of), next), value)
            }
            Operation::Delete { .. } if current.is_none() => continue,
            Operation::Delete { .. } => Vec::new(),
        };
        versions.insert((key, next), record.as_slice()).map_err(backend)?;
        changes.insert((next, place), key).map_err(backend)?;
        place += 1;
    }
    Ok(if place > 0 { next } else { revision })
}

fn stamp_of(item: &KeyValue) -> Stamp {
    Stamp { create_revision: item.create_revision, mod_revision: item.mod_revision, version: item.version }
}

fn check_readable(requested: u64, current: u64, compacted: u64) -> Result<(), StoreError> {
    if requested < compacted {
        return Err(StoreError::Compacted { requested, oldest: compacted });
    }
    if requested > current {
        return Err(StoreError::Future { requested, current });
    }
    Ok(())
}

// ---- Reading ----

impl File {
    fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        let read = self.0.begin_read().map_err(backend)?;
        let revision = number(&read.open_table(META).map_err(backend)?, "revision")?;
        Ok((records::at(&read.open_table(VERSIONS).map_err(backend)?, key, revision)?, revision))
    }

    fn range(&self, range: &Range) -> Result<Page, StoreError> {
        let read = self.0.begin_read().map_err(backend)?;
        let meta = read.open_table(META).map_err(backend)?;
        let current = number(&meta, "revision")?;
        let revision = range.revision.unwrap_or(current);
        check_readable(revision, current, number(&meta, "compacted")?)?;
        let versions = read.open_table(VERSIONS).map_err(backend)?;
        let (items, more) =
            records::range(&versions, &range.prefix, range.after.as_deref(), range.limit, revision)?;
        Ok(Page { revision, items, more })
    }
}

impl History for File {
    fn changes(&self, prefix: &str, after: u64) -> Result<(Vec<Batch>, u64), StoreError> {
        let read = self.0.begin_read().map_err(backend)?;
        let meta = read.open_table(META).map_err(backend)?;
        let (head, compacted) = (number(&meta, "revision")?, number(&meta, "compacted")?);
        if after < compacted {
            return Err(StoreError::Compacted { requested: after, oldest: compacted });
        }
        let changes = read.open_table(CHANGES).map_err(backend)?;
        records::changes(&changes, &read.open_table(VERSIONS).map_err(backend)?, prefix, after, head)
    }
}

#[async_trait]
impl Store for Embedded {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(*self.head.borrow())
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
