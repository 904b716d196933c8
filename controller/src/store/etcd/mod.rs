//! etcd: one store for several controllers, on several machines. What other stores do in one place is asked of whichever
//! member answers; calls are bounded in time, watches outlive the loss of members.
mod assembler;
mod config;
mod convert;
mod fault;
mod members;
mod settle;
mod watch;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Client, GetOptions, GetResponse, ResponseHeader, Txn, TxnOpResponse, TxnResponse};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

pub use config::{EtcdConfig, EtcdConfigError, EtcdTls, EtcdUser};
use convert::Base;
use fault::Fault;
use members::{Members, to_error};

use super::{KeyValue, Outcome, Page, Range, Store, StoreError, Transaction, Watch};
use crate::{keys, limits};

pub struct Etcd {
    members: Arc<Members>,
    base: Base,
    /// The greatest revision of which an answer told.
    seen: AtomicU64,
    compactor: JoinHandle<()>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Etcd")
            .field("members", &self.members)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.compactor.abort();
    }
}

impl Etcd {
    /// Tries as long as `patience` has not passed, saying so in the log.
    pub async fn connect(config: &EtcdConfig, patience: Duration) -> Result<Self, StoreError> {
        if config.members.is_empty() {
            return Err(StoreError::Refused { reason: "no member of etcd is named".to_owned() });
        }
        let members = Arc::new(Members::new(config));
        let deadline = Instant::now() + patience;
        loop {
            match read_base(&members).await {
                Ok(base) => {
                    members.refuse_foreign().await.map_err(to_error)?;
                    return Ok(Self::new(members, base));
                }
                Err(StoreError::Unreachable { reason }) if Instant::now() < deadline => {
                    tracing::warn!(reason, "the store cannot be reached yet, trying again");
                }
                Err(StoreError::Unreachable { reason }) if config.lacks_identity() => {
                    // TLS 1.3 lets the member only close the connection.
                    let hint =
                        "the controller comes without a certificate of its own, which members may want";
                    return Err(StoreError::Unreachable { reason: format!("{reason} ({hint})") });
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn new(members: Arc<Members>, base: Base) -> Self {
        let compactor = tokio::spawn(keep_history_bounded(Arc::clone(&members)));
        Self { members, base, seen: AtomicU64::new(0), compactor }
    }

    /// Whether the revisions are still counted the way they were when this was connected. They change when data is moved
    /// into an empty store, and never once a controller has initialised it.
    pub async fn is_current(&self) -> Result<bool, StoreError> {
        Ok(read_base(&self.members).await? == self.base)
    }

    /// Forgets history beyond [`limits::STORE_HISTORY_REVISIONS`], as is done by itself now and then.
    pub async fn cut_history(&self) -> Result<(), StoreError> {
        cut_history(&self.members, &mut 0).await.map_err(to_error)
    }

    fn saw(&self, header: Option<&ResponseHeader>) -> u64 {
        let revision = self.base.ours(header.map_or(0, ResponseHeader::revision));
        self.seen.fetch_max(revision, Ordering::Relaxed);
        revision
    }

    async fn read(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Fault> {
        read(&self.members, key, options).await
    }

    fn outcome(&self, answer: &TxnResponse) -> Outcome {
        Outcome { succeeded: answer.succeeded(), revision: self.saw(answer.header()) }
    }

    /// The transaction was sent, its answer was lost. Returns what became of it where that can be told without doubt, else
    /// [`StoreError::Uncertain`]; it is never applied twice.
    async fn settle(&self, sent: &Transaction, sent_after: u64, lost: String) -> Result<Outcome, StoreError> {
        let is_guarded = settle::is_guarded(sent);
        let txn =
            if is_guarded { convert::transaction_or_look(sent, self.base) } else { convert::look(sent) };
        // Neither can do harm when it is done twice.
        let asked = self.members.read(|client| transact(client, txn.clone())).await;
        let answer = asked.map_err(|fault| StoreError::Uncertain { reason: format!("{lost}; {fault}") })?;
        if is_guarded && answer.succeeded() {
            return Ok(self.outcome(&answer));
        }
        self.saw(answer.header());
        match settle::applied_at(sent, &found(&answer, self.base)?, sent_after) {
            Some(revision) => Ok(Outcome { succeeded: true, revision }),
            None => Err(StoreError::Uncertain { reason: lost }),
        }
    }

    /// `Compacted` and `Future` with the revisions that etcd does not say.
    async fn explain(&self, fault: Fault, requested: u64) -> StoreError {
        match fault {
            Fault::Compacted => match watch::oldest_kept(&self.members, self.base).await {
                Ok(oldest) => StoreError::Compacted { requested, oldest },
                Err(error) => error,
            },
            Fault::Future => match self.revision().await {
                Ok(current) => StoreError::Future { requested, current },
                Err(error) => error,
            },
            fault => to_error(fault),
        }
    }
}

async fn read(members: &Members, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Fault> {
    let ask = |client: Client| {
        let (key, options) = (key.clone(), options.clone());
        async move {
            let mut client = client.kv_client().max_decoding_message_size(limits::ETCD_ANSWER_MAX_BYTES);
            client.get(key, Some(options)).await
        }
    };
    members.read(ask).await
}

async fn transact(client: Client, txn: Txn) -> Result<TxnResponse, etcd_client::Error> {
    client.kv_client().max_decoding_message_size(limits::ETCD_ANSWER_MAX_BYTES).txn(txn).await
}

async fn read_base(members: &Members) -> Result<Base, StoreError> {
    let answer = read(members, keys::REVISION_BASE.into(), GetOptions::new()).await.map_err(to_error)?;
    let Some(item) = answer.kvs().first() else { return Ok(Base::default()) };
    let text = item.value_str().ok().and_then(|text| text.parse().ok());
    text.map(Base).ok_or_else(|| StoreError::Corrupt { key: keys::REVISION_BASE.to_owned() })
}

fn found(answer: &TxnResponse, base: Base) -> Result<Vec<Option<KeyValue>>, StoreError> {
    let mut found = Vec::new();
    for response in answer.op_responses() {
        let TxnOpResponse::Get(response) = response else { continue };
        found.push(response.kvs().first().map(|item| convert::key_value(item, base)).transpose()?);
    }
    Ok(found)
}

/// etcd keeps all history until it is told otherwise. Several controllers may do this at once.
async fn keep_history_bounded(members: Arc<Members>) {
    let mut compacted_to = 0;
    loop {
        tokio::time::sleep(limits::ETCD_COMPACTION_INTERVAL).await;
        if let Err(fault) = cut_history(&members, &mut compacted_to).await {
            tracing::warn!(%fault, "compaction of the store failed");
        }
    }
}

async fn cut_history(members: &Members, compacted_to: &mut i64) -> Result<(), Fault> {
    let answer = read(members, keys::ROOT.into(), GetOptions::new()).await?;
    let head = answer.header().map_or(0, ResponseHeader::revision);
    let keep_from = head.saturating_sub(limits::STORE_HISTORY_REVISIONS.cast_signed());
    if keep_from < *compacted_to + limits::STORE_COMPACTION_SLACK_REVISIONS.cast_signed() {
        return Ok(());
    }
    match members.read(|mut client| async move { client.compact(keep_from, None).await }).await {
        Ok(_) | Err(Fault::Compacted) => *compacted_to = keep_from,
        Err(fault) => return Err(fault),
    }
    Ok(())
}

#[async_trait]
impl Store for Etcd {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        let answer = self.read(keys::ROOT.into(), GetOptions::new()).await.map_err(to_error)?;
        Ok(self.saw(answer.header()))
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        let answer = self.read(key.into(), GetOptions::new()).await.map_err(to_error)?;
        let item = answer.kvs().first().map(|item| convert::key_value(item, self.base)).transpose()?;
        Ok((item, self.saw(answer.header())))
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        let at = match range.revision {
            None => 0,
            Some(revision) => self
                .base
                .theirs(revision)
                .ok_or(StoreError::Compacted { requested: revision, oldest: self.base.0 + 1 })?,
        };
        let start = convert::start_of(&range.prefix, range.after.as_deref());
        let mut limit = range.limit.max(1);
        let answer = loop {
            let options = GetOptions::new()
                .with_range(convert::end_of(&range.prefix))
                .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
                .with_revision(at);
            match self.read(start.clone(), options).await {
                Ok(answer) => break answer,
                Err(Fault::TooLarge) if limit > 1 => limit /= 2,
                Err(fault) => return Err(self.explain(fault, range.revision.unwrap_or_default()).await),
            }
        };
        let now = self.saw(answer.header());
        let items = answer.kvs().iter().take(range.limit).map(|item| convert::key_value(item, self.base));
        let items = items.collect::<Result<Vec<_>, _>>()?;
        let more = answer.more() || items.len() < answer.kvs().len();
        Ok(Page { revision: range.revision.unwrap_or(now), items, more })
    }

    /// What was acknowledged was applied, once. An error of [`StoreError::is_retryable`] means that it was not applied. When
    /// the member is lost after it got the transaction, it is found out what became of it: a transaction that can be applied
    /// only once (see `settle::is_guarded`) is sent again, of others the keys are looked at. Where doubt remains, the error is
    /// [`StoreError::Uncertain`]: read again, then decide.
    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let txn = convert::transaction(&transaction, self.base);
        let sent_after = self.seen.load(Ordering::Relaxed);
        match self.members.write(|client| transact(client, txn.clone())).await {
            Ok(answer) => Ok(self.outcome(&answer)),
            Err(Fault::Unknown(reason)) => self.settle(&transaction, sent_after, reason).await,
            Err(fault) => Err(to_error(fault)),
        }
    }

    /// Nothing is asked before this returns: while etcd cannot be reached, the watch is silent, and then goes on.
    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        let (sender, batches) = mpsc::channel(limits::WATCH_QUEUE_BATCHES);
        let members = Arc::clone(&self.members);
        let follower = watch::Follower::new(members, self.base, prefix.to_owned(), sender);
        tokio::spawn(follower.run(after));
        Ok(Watch::receiving(batches))
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        let at = self
            .base
            .theirs(revision)
            .ok_or(StoreError::Compacted { requested: revision, oldest: self.base.0 + 1 })?;
        let compact = |mut client: Client| async move { client.compact(at, None).await };
        match self.members.read(compact).await {
            Ok(_) => Ok(()),
            Err(fault) => match self.explain(fault, revision).await {
                // It was done before.
                StoreError::Compacted { requested, oldest } if requested == oldest => Ok(()),
                error => Err(error),
            },
        }
    }
}
