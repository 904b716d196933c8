//! What a transaction is made of, gathered from several places: each adds what it read (as compares) and what it wants
//! written. Committed at once, so that nothing shows half of it.
use crate::{
    limits,
    store::{Compare, KeyValue, Operation, Store, StoreError, Transaction},
};

#[derive(Debug, Default)]
pub struct Plan {
    compares: Vec<Compare>,
    operations: Vec<Operation>,
}

impl Plan {
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
