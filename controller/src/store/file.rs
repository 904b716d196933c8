//! The embedded store's file: redb's tables, written in groups and read at a revision.
use std::{fmt, path::Path};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, Table};

use super::{
    Batch, KeyValue, Operation, Outcome, Page, Range, Stamp, StoreError, Transaction,
    records::{self, CHANGES, FORMAT, META, VERSIONS, backend},
    watch::History,
};
use crate::limits;

pub(super) struct File(Database);

impl fmt::Debug for File {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("File")
    }
}

/// Opens it, or makes it. Returns the store's revision too.
pub(super) fn open(path: &Path) -> Result<(File, u64), StoreError> {
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
    Ok((File(database), revision))
}

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, StoreError> {
    Ok(meta.get(name).map_err(backend)?.map_or(0, |value| value.value()))
}

impl File {
    /// All transactions in one durable commit; if that fails, none happened.
    pub(super) fn commit(&self, transactions: &[Transaction]) -> Vec<Result<Outcome, StoreError>> {
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

    pub(super) fn compact(&self, to: u64) -> Result<(), StoreError> {
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

impl File {
    pub(super) fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        let read = self.0.begin_read().map_err(backend)?;
        let revision = number(&read.open_table(META).map_err(backend)?, "revision")?;
        Ok((records::at(&read.open_table(VERSIONS).map_err(backend)?, key, revision)?, revision))
    }

    pub(super) fn range(&self, range: &Range) -> Result<Page, StoreError> {
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
