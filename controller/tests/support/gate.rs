//! A store before whose transactions something happens.

use std::sync::Arc;

use async_trait::async_trait;
use weft_controller::store::{KeyValue, Outcome, Page, Range, Store, StoreError, Transaction, Watch};

/// What happens before each transaction.
#[async_trait]
pub(crate) trait Gate: Send + Sync + 'static {
    /// Returns when it may be made, or why it never is.
    async fn pass(&self, transaction: &Transaction) -> Result<(), StoreError>;
}

pub(crate) struct Gated<G> {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) gate: G,
}

#[async_trait]
impl<G: Gate> Store for Gated<G> {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        self.store.get(key).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.store.range(range).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.gate.pass(&transaction).await?;
        self.store.transact(transaction).await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}
