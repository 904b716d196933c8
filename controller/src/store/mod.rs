//! The store behind one trait, drawn from etcd's semantics: revisions that only ascend, compare-and-set transactions,
//! reads at a revision, ordered watches, compaction. What is above the trait cannot tell which store is below.
mod embedded;
mod etcd;
mod file;
mod memory;
mod records;
mod watch;

use std::{error::Error, path::PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

pub use embedded::Embedded;
pub use etcd::{Etcd, EtcdConfig, EtcdConfigError, EtcdTls, EtcdUser};
pub use memory::Memory;
pub use watch::Watch;

use crate::limits;

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// "embedded", "etcd", …
    fn kind(&self) -> &'static str;
    /// The revision of the last change. An empty store is at 1, like etcd's.
    async fn revision(&self) -> Result<u64, StoreError>;
    /// The key as of now, and the store's revision.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError>;
    /// Keys in order, byte by byte.
    async fn range(&self, range: Range) -> Result<Page, StoreError>;
    /// All operations of one branch as one revision, or nothing. A transaction that changes nothing makes no revision.
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError>;
    /// Every change below `prefix` after revision `after`, in order, all of a revision in one batch. A revision that was
    /// compacted is the watch's first answer.
    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError>;
    /// Forgets what was before `revision`; reads at `revision` and later still work.
    async fn compact(&self, revision: u64) -> Result<(), StoreError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
    /// 1 when created, one more with each put.
    pub version: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Range {
    pub prefix: String,
    /// Only keys behind this one.
    pub after: Option<String>,
    pub limit: usize,
    /// As of this revision; `None`: now.
    pub revision: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Page {
    /// The revision that the items show.
    pub revision: u64,
    pub items: Vec<KeyValue>,
    pub more: bool,
}

/// `then` when all compares hold, else `otherwise`.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    pub compares: Vec<Compare>,
    pub then: Vec<Operation>,
    pub otherwise: Vec<Operation>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    pub target: Target,
    pub relation: Relation,
    pub value: u64,
}

/// What of a key is compared; all are 0 while the key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    CreateRevision,
    ModRevision,
    Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    Greater,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Put { key: String, value: Bytes },
    Delete { key: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub succeeded: bool,
    /// Of the store after the transaction.
    pub revision: u64,
}

/// All changes of one revision below the watched prefix. Without events (which a store may send): nothing else happened
/// there up to this revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub revision: u64,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub key: String,
    /// `None`: deleted.
    pub value: Option<KeyValue>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("revision {requested} was compacted, the oldest kept is {oldest}")]
    Compacted { requested: u64, oldest: u64 },
    #[error("revision {requested} is in the future, the store is at {current}")]
    Future { requested: u64, current: u64 },
    #[error("a transaction of {operations} operations, the limit is {}", limits::TRANSACTION_MAX_OPERATIONS)]
    TooManyOperations { operations: usize },
    #[error("a transaction changes key {key} twice")]
    DuplicateKey { key: String },
    #[error("{} is in use by another process: one controller at a time can use an embedded store", path.display())]
    InUse { path: PathBuf },
    #[error("cannot open the store {}: {source}", path.display())]
    Open { path: PathBuf, source: Box<dyn Error + Send + Sync> },
    #[error("the store was written by a newer release (format {found}, this one knows {known})")]
    Format { found: u64, known: u64 },
    #[error("the store holds a record that cannot be read: {key}")]
    Corrupt { key: String },
    #[error("the store failed: {0}")]
    Backend(Box<dyn Error + Send + Sync>),
    /// Nothing was changed.
    #[error("the store cannot be reached: {reason}")]
    Unreachable { reason: String },
    #[error(
        "the store was lost while it was asked to change something, which may or may not have been done: {reason}"
    )]
    Uncertain { reason: String },
    #[error("the store was replaced by another one: its id was {was}, now it is {is}")]
    Replaced { was: String, is: String },
    #[error("the store refuses: {reason}")]
    Refused { reason: String },
    #[error("the store was closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call may work when it is made again.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Backend(_) | Self::Unreachable { .. })
    }
}

impl Compare {
    pub fn absent(key: impl Into<String>) -> Self {
        Self::revision(key, Relation::Equal, 0)
    }

    /// Not changed since it was read at `mod_revision` (0: it was absent).
    pub fn unchanged(key: impl Into<String>, mod_revision: u64) -> Self {
        Self::revision(key, Relation::Equal, mod_revision)
    }

    pub fn not_changed_after(key: impl Into<String>, revision: u64) -> Self {
        Self::revision(key, Relation::Less, revision.saturating_add(1))
    }

    fn revision(key: impl Into<String>, relation: Relation, value: u64) -> Self {
        Self { key: key.into(), target: Target::ModRevision, relation, value }
    }

    fn holds(&self, current: Option<&Stamp>) -> bool {
        let stamp = current.copied().unwrap_or_default();
        let left = match self.target {
            Target::CreateRevision => stamp.create_revision,
            Target::ModRevision => stamp.mod_revision,
            Target::Version => stamp.version,
        };
        match self.relation {
            Relation::Equal => left == self.value,
            Relation::NotEqual => left != self.value,
            Relation::Less => left < self.value,
            Relation::Greater => left > self.value,
        }
    }
}

impl Operation {
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into() }
    }

    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl Transaction {
    /// Refuses what etcd would refuse, so that nothing works on one store alone.
    fn check(&self) -> Result<(), StoreError> {
        for branch in [&self.then, &self.otherwise] {
            let operations = branch.len().max(self.compares.len());
            if operations > limits::TRANSACTION_MAX_OPERATIONS {
                return Err(StoreError::TooManyOperations { operations });
            }
            let mut keys: Vec<&str> = branch.iter().map(Operation::key).collect();
            keys.sort_unstable();
            if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(StoreError::DuplicateKey { key: pair[0].to_owned() });
            }
        }
        Ok(())
    }
}

/// A key's revisions, without its value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp {
    create_revision: u64,
    mod_revision: u64,
    version: u64,
}

impl Stamp {
    /// The stamp after a put at `revision`.
    fn next(current: Option<Self>, revision: u64) -> Self {
        match current {
            Some(stamp) => Self { mod_revision: revision, version: stamp.version + 1, ..stamp },
            None => Self { create_revision: revision, mod_revision: revision, version: 1 },
        }
    }
}
