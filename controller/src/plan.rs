//! What a transaction is made of, gathered from several places: each adds what it read (as compares) and what it wants
//! written. Committed at once, so that nothing shows half of it.
use std::{fmt, sync::Arc};

use tokio::sync::{Mutex, MutexGuard};

use crate::{
    limits,
    prefixes::Taken,
    store::{Compare, KeyValue, Operation, Store, StoreError, Transaction},
    stream::Hub,
};

/// The store, and whose turn it is to allocate. Allocators meet in the same keys, so that of many at once all but one
/// would have to try again; within one controller they queue instead. That nothing is given twice rests on the
/// transactions alone.
pub struct Registry {
    pub store: Arc<dyn Store>,
    /// What services and prefilters say of addresses; `None`: there are none.
    pub hub: Option<Arc<Hub>>,
    allocating: Mutex<Taken>,
}

impl Registry {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, hub: None, allocating: Mutex::default() }
    }

    /// Of a store that this hub follows.
    #[must_use]
    pub fn followed_by(self, hub: Arc<Hub>) -> Self {
        Self { hub: Some(hub), ..self }
    }

    /// Whose turn it is knows which prefixes are taken.
    pub async fn turn(&self) -> MutexGuard<'_, Taken> {
        self.allocating.lock().await
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Registry")
    }
}

#[derive(Debug, Default)]
pub struct Plan {
    compares: Vec<Compare>,
    operations: Vec<Operation>,
    allocates: bool,
}

impl Plan {
    /// Something is given out that others may want at this moment.
    pub fn note_allocation(&mut self) {
        self.allocates = true;
    }

    pub fn allocates(&self) -> bool {
        self.allocates
    }

    /// Holds only if the key is still as it was read.
    pub fn expect(&mut self, key: &str, read: Option<&KeyValue>) {
        self.compare(Compare::unchanged(key, read.map_or(0, |item| item.mod_revision)));
    }

    pub fn compare(&mut self, compare: Compare) {
        if !self.compares.contains(&compare) {
            self.compares.push(compare);
        }
    }

    pub fn put(&mut self, key: impl Into<String>, value: impl Into<bytes::Bytes>) {
        self.operations.push(Operation::put(key, value));
    }

    pub fn delete(&mut self, key: impl Into<String>) {
        self.operations.push(Operation::delete(key));
    }

    /// Whether the key would be changed.
    pub fn writes(&self, key: &str) -> bool {
        self.operations.iter().any(|operation| operation.key() == key)
    }

    pub fn changes_nothing(&self) -> bool {
        self.operations.is_empty()
    }

    /// `None`: something that was read has changed since; read again and make a new plan.
    pub async fn commit(self, store: &dyn Store) -> Result<Option<u64>, StoreError> {
        let transaction =
            Transaction { compares: self.compares, then: self.operations, otherwise: Vec::new() };
        let outcome = store.transact(transaction).await?;
        Ok(outcome.succeeded.then_some(outcome.revision))
    }
}

/// The store kept changing underneath, [`limits::TRANSACTION_ATTEMPTS`] times.
#[derive(Debug, thiserror::Error)]
#[error("the store kept changing underneath, tried {} times", limits::TRANSACTION_ATTEMPTS)]
pub struct Contended;
