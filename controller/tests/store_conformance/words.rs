//! The vocabulary of these tests.
use std::time::Duration;

use weft_controller::store::{Batch, Event, Operation, Range, Store, StoreError, Transaction, Watch};

/// Nothing takes as long unless something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

pub(crate) fn put(key: &str, value: &str) -> Transaction {
    Transaction { then: vec![Operation::put(key, value.to_owned())], ..Transaction::default() }
}

pub(crate) fn delete(key: &str) -> Transaction {
    Transaction { then: vec![Operation::delete(key)], ..Transaction::default() }
}

pub(crate) async fn write(store: &dyn Store, transaction: Transaction) -> u64 {
    let outcome = store.transact(transaction).await.unwrap();
    assert!(outcome.succeeded);
    outcome.revision
}

pub(crate) async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let (item, _) = store.get(key).await.unwrap();
    item.map(|item| String::from_utf8(item.value.to_vec()).unwrap())
}

pub(crate) async fn keys(
    store: &dyn Store,
    prefix: &str,
    revision: Option<u64>,
) -> Result<Vec<String>, StoreError> {
    let range = Range { prefix: prefix.to_owned(), limit: 1000, revision, after: None };
    Ok(store.range(range).await?.items.into_iter().map(|item| item.key).collect())
}

pub(crate) async fn next(watch: &mut Watch) -> Result<Batch, StoreError> {
    tokio::time::timeout(DEADLINE, watch.next()).await.expect("no change came").expect("the watch ended")
}

pub(crate) fn changed(batch: &Batch) -> Vec<(&str, bool)> {
    batch.events.iter().map(|Event { key, value }| (key.as_str(), value.is_some())).collect()
}
