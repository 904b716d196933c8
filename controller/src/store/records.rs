//! How the embedded store lays itself out in redb's tables, and reading it: every kept version of every key, and which
//! keys each revision changed.
use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use super::{Batch, Event, KeyValue, Stamp, StoreError};
use crate::limits;

/// The format that this release writes.
pub(super) const FORMAT: u64 = 1;

/// "format", "revision", "compacted".
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// (key, revision) → the version it got there; empty: deleted.
pub(super) const VERSIONS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("versions");
/// (revision, place in it) → key.
pub(super) const CHANGES: TableDefinition<'_, (u64, u32), &str> = TableDefinition::new("changes");

/// create revision (8 bytes), version (8 bytes), value.
const HEADER_BYTES: usize = 16;

pub(super) fn encode(stamp: Stamp, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + value.len());
    record.extend_from_slice(&stamp.create_revision.to_le_bytes());
    record.extend_from_slice(&stamp.version.to_le_bytes());
    record.extend_from_slice(value);
    record
}

/// `None`: deleted at that revision.
fn decode(key: &str, mod_revision: u64, record: &[u8]) -> Result<Option<KeyValue>, StoreError> {
    if record.is_empty() {
        return Ok(None);
    }
    let number = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (Some(create_revision), Some(version)) = (number(0), number(8)) else {
        return Err(StoreError::Corrupt { key: key.to_owned() });
    };
    let value = Bytes::copy_from_slice(&record[HEADER_BYTES..]);
    Ok(Some(KeyValue { key: key.to_owned(), value, create_revision, mod_revision, version }))
}

/// The key as of `revision`.
pub(super) fn at(
    versions: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    key: &str,
    revision: u64,
) -> Result<Option<KeyValue>, StoreError> {
    let last = versions.range((key, 0)..=(key, revision)).map_err(backend)?.next_back();
    let Some(entry) = last else { return Ok(None) };
    let (place, record) = entry.map_err(backend)?;
    decode(key, place.value().1, record.value())
}

/// Up to `limit` keys that start with `prefix` and come after `after`, as of `revision`, and whether there are more.
pub(super) fn range(
    versions: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
    revision: u64,
) -> Result<(Vec<KeyValue>, bool), StoreError> {
    let mut items: Vec<KeyValue> = Vec::new();
    // The latest version so far of the key that is being walked.
    let mut latest: Option<(String, Option<KeyValue>)> = None;
    let start = after.filter(|after| *after >= prefix).map_or((prefix, 0), |after| (after, u64::MAX));
    for entry in versions.range(start..).map_err(backend)? {
        let (place, record) = entry.map_err(backend)?;
        let (key, at) = place.value();
        if !key.starts_with(prefix) {
            break;
        }
        if latest.as_ref().is_none_or(|(walked, _)| walked != key) {
            items.extend(latest.take().and_then(|(_, item)| item));
            if items.len() > limit {
                break;
            }
        }
        if at <= revision {
            latest = Some((key.to_owned(), decode(key, at, record.value())?));
        }
    }
    items.extend(latest.and_then(|(_, item)| item));
    let more = items.len() > limit;
    items.truncate(limit);
    Ok((items, more))
}

/// What changed below `prefix` after `after`, not beyond `head`, and the revision through which that is everything.
pub(super) fn changes(
    changes: &impl ReadableTable<(u64, u32), &'static str>,
    versions: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    prefix: &str,
    after: u64,
    head: u64,
) -> Result<(Vec<Batch>, u64), StoreError> {
    let last = after.saturating_add(limits::WATCH_READ_REVISIONS).min(head);
    if last <= after {
        return Ok((Vec::new(), after));
    }
    let mut batches: Vec<Batch> = Vec::new();
    let mut bytes = 0;
    for entry in changes.range((after + 1, 0)..=(last, u32::MAX)).map_err(backend)? {
        let (place, key) = entry.map_err(backend)?;
        let (revision, key) = (place.value().0, key.value());
        if !key.starts_with(prefix) {
            continue;
        }
        if batches.last().is_none_or(|batch| batch.revision != revision) {
            if bytes > limits::WATCH_READ_BYTES {
                return Ok((batches, revision - 1));
            }
            batches.push(Batch { revision, events: Vec::new() });
        }
        let value = at(versions, key, revision)?;
        bytes += value.as_ref().map_or(0, |item| item.value.len());
        if let Some(batch) = batches.last_mut() {
            batch.events.push(Event { key: key.to_owned(), value });
        }
    }
    Ok((batches, last))
}

pub(super) fn backend(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Backend(Box::new(error.into()))
}
