//! The embedded store's own promises.
use std::sync::Arc;

use tokio::task::JoinSet;
use weft_controller::{
    limits,
    store::{Embedded, Store, StoreError},
};

use crate::{
    Subject,
    words::{next, put, value, write},
};

pub(crate) async fn subject() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path().join("weft.redb")).await.unwrap());
    Subject { store, _beneath: Box::new(directory) }
}

#[tokio::test]
async fn an_embedded_store_that_is_opened_again_holds_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weft.redb");
    let store = Embedded::open(&path).await.unwrap();
    write(&store, put("a", "1")).await;
    let revision = write(&store, put("a", "2")).await;
    drop(store);

    let store = Embedded::open(&path).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), revision);
    assert_eq!(value(&store, "a").await.as_deref(), Some("2"));
    let mut watch = store.watch("", 1).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, 2, "the history is still there");
}

#[tokio::test]
async fn a_second_opening_of_an_embedded_store_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weft.redb");
    let _store = Embedded::open(&path).await.unwrap();
    let error = Embedded::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }));
    assert!(error.to_string().contains("weft.redb is in use by another process"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weft.redb");
    let garbage = vec![7; 8192];
    std::fs::write(&path, &garbage).unwrap();
    let error = Embedded::open(&path).await.unwrap_err();
    assert!(error.to_string().contains("weft.redb"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

#[tokio::test]
async fn the_history_of_an_embedded_store_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path().join("weft.redb")).await.unwrap());
    let writes = limits::STORE_HISTORY_REVISIONS + 2 * limits::STORE_COMPACTION_SLACK_REVISIONS;
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for number in 0..=writes / 64 {
                write(store.as_ref(), put("a", &number.to_string())).await;
            }
        });
    }
    tasks.join_all().await;
    let mut watch = store.watch("", 1).await.unwrap();
    let Err(StoreError::Compacted { oldest, .. }) = next(&mut watch).await else {
        panic!("nothing was compacted")
    };
    let kept = store.revision().await.unwrap() - oldest;
    assert!(kept <= limits::STORE_HISTORY_REVISIONS + 2 * limits::STORE_COMPACTION_SLACK_REVISIONS, "{kept}");
    assert!(kept >= limits::STORE_HISTORY_REVISIONS);
}
