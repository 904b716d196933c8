//! etcd's own promises, with one member.
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use weft_controller::{
    keys, limits,
    store::{Compare, Etcd, EtcdConfig, Operation, Range, Store, StoreError, Transaction},
};
use weft_test_etcd::{Cluster, Options};

use crate::{
    Subject,
    words::{DEADLINE, next, put, value, write},
};

/// A member alone elects itself: it need not wait long for others.
pub(crate) fn alone() -> Cluster {
    let flags = ["--heartbeat-interval=10", "--election-timeout=100"].map(str::to_owned).to_vec();
    Cluster::start(1, &Options { flags, ..Options::default() }).unwrap()
}

pub(crate) async fn connect(etcd: &Cluster) -> Etcd {
    Etcd::connect(&config(etcd), DEADLINE).await.unwrap()
}

pub(crate) fn config(etcd: &Cluster) -> EtcdConfig {
    EtcdConfig { members: etcd.urls(), tls: None, user: None }
}

pub(crate) async fn subject() -> Subject {
    let etcd = alone();
    let store = Arc::new(connect(&etcd).await);
    Subject { store, _beneath: Box::new(Mutex::new(etcd)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_when_etcd_comes_back_with_its_data() {
    let mut etcd = alone();
    let store = connect(&etcd).await;
    let mut watch = store.watch("", 1).await.unwrap();
    let mut expected = 2;
    for round in 0..3 {
        for number in 0..50 {
            write(&store, put(&format!("k{}", number % 7), &number.to_string())).await;
        }
        // Part of it was handed out, part of it not.
        for _ in 0..30 {
            assert_eq!(next(&mut watch).await.unwrap().revision, expected, "round {round}");
            expected += 1;
        }
        etcd.member(0).kill().unwrap();
        etcd.member(0).start().unwrap();
    }
    let last = write(&store, put("last", "")).await;
    for revision in expected..=last {
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_history_was_compacted_under_while_etcd_was_away_says_so() {
    let mut etcd = alone();
    let store = connect(&etcd).await;
    let mut watch = store.watch("a", 1).await.unwrap();
    write(&store, put("a", "seen")).await;
    assert_eq!(next(&mut watch).await.unwrap().revision, 2);
    etcd.member(0).kill().unwrap();
    etcd.member(0).start().unwrap();
    // Whether the watch is back yet or not: it must never go on as if nothing had been lost.
    let other = connect(&etcd).await;
    for _ in 0..10 {
        write(&other, put("b", "")).await;
    }
    other.compact(12).await.unwrap();
    write(&other, put("a", "news")).await;
    match next(&mut watch).await {
        Ok(batch) => assert_eq!(batch.revision, 13),
        Err(error) => assert!(matches!(error, StoreError::Compacted { requested: 2, oldest: 12 }), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_does_not_go_on_in_another_store() {
    let mut etcd = alone();
    let store = connect(&etcd).await;
    let last = write(&store, put(keys::STORE_ID, "one")).await;
    let mut watch = store.watch(keys::ROOT, 1).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, last);
    // The member's client port is taken over by a store that is further on.
    etcd.member(0).freeze().unwrap();
    etcd.member(0).kill().unwrap();
    etcd.member(0).wipe().unwrap();
    etcd.member(0).start().unwrap();
    let other = connect(&etcd).await;
    for number in 0..10 {
        write(&other, put(keys::STORE_ID, &format!("two-{number}"))).await;
    }
    // Whichever is noticed first.
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, StoreError::Replaced { .. } | StoreError::Future { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_went_back_to_an_older_state_is_not_watched_as_if_nothing_had_happened() {
    let mut etcd = alone();
    let store = connect(&etcd).await;
    for number in 0..5 {
        write(&store, put("a", &number.to_string())).await;
    }
    let mut watch = store.watch("", 1).await.unwrap();
    for _ in 0..5 {
        next(&mut watch).await.unwrap();
    }
    etcd.member(0).kill().unwrap();
    etcd.member(0).wipe().unwrap();
    etcd.member(0).start().unwrap();
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, StoreError::Future { requested: 6, current: 1 }), "{error}");
}

/// etcd sends a watcher that catches up a thousand revisions in one answer, here some 100 MiB, in fragments that may end
/// within a revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_of_large_revisions_arrives_whole_and_in_order() {
    let etcd = alone();
    let store = connect(&etcd).await;
    let value = "v".repeat(100 * 1024);
    for _ in 0..100 {
        let then = (0..10).map(|number| Operation::put(format!("k{number}"), value.clone())).collect();
        write(&store, Transaction { then, ..Transaction::default() }).await;
    }
    let mut watch = store.watch("k", 1).await.unwrap();
    for revision in 2..=101 {
        let batch = next(&mut watch).await.unwrap();
        assert_eq!((batch.revision, batch.events.len()), (revision, 10));
    }
    let range = Range { prefix: "k".to_owned(), limit: 10, ..Range::default() };
    assert_eq!(store.range(range).await.unwrap().items.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_larger_than_an_answer_may_be_comes_in_parts() {
    let etcd = alone();
    let store = connect(&etcd).await;
    let value = "v".repeat(1024 * 1024);
    let count = limits::ETCD_ANSWER_MAX_BYTES / value.len() + 3;
    for number in 0..count {
        write(&store, put(&format!("k{number:03}"), &value)).await;
    }
    let mut range = Range { prefix: "k".to_owned(), limit: 1000, ..Range::default() };
    let mut found = 0;
    loop {
        let page = store.range(range.clone()).await.unwrap();
        found += page.items.len();
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
        if !page.more {
            break;
        }
    }
    assert_eq!(found, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_is_an_error_in_bounded_time_and_works_once_it_is_back() {
    let mut etcd = alone();
    let store = connect(&etcd).await;
    write(&store, put("a", "1")).await;
    etcd.member(0).kill().unwrap();
    let error = store.get("a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(etcd.member(0).url()), "{error}");
    let error = store.transact(put("a", "2")).await.unwrap_err();
    assert!(error.is_retryable(), "nothing was sent: {error}");
    etcd.member(0).start().unwrap();
    assert_eq!(value(&store, "a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_is_an_error_in_bounded_time_and_works_once_it_goes_on() {
    let mut etcd = alone();
    let store = connect(&etcd).await;
    write(&store, put("a", "1")).await;
    etcd.member(0).freeze().unwrap();
    let error = store.get("a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let error = store.transact(put("a", "2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Uncertain { .. } | StoreError::Unreachable { .. }), "{error}");
    etcd.member(0).thaw().unwrap();
    write(&store, put("a", "3")).await;
    assert_eq!(value(&store, "a").await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_of_etcd_is_bounded() {
    let etcd = alone();
    let store = Arc::new(connect(&etcd).await);
    let writes = limits::STORE_HISTORY_REVISIONS + 2 * limits::STORE_COMPACTION_SLACK_REVISIONS;
    let mut tasks = JoinSet::new();
    for task in 0..64 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for number in 0..=writes / 64 {
                write(store.as_ref(), put(&format!("k{task}"), &number.to_string())).await;
            }
        });
    }
    tasks.join_all().await;
    store.cut_history().await.unwrap();
    let mut watch = store.watch("", 1).await.unwrap();
    let Err(StoreError::Compacted { oldest, .. }) = next(&mut watch).await else {
        panic!("nothing was compacted")
    };
    assert_eq!(store.revision().await.unwrap() - oldest, limits::STORE_HISTORY_REVISIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_moved_here_counts_on_from_its_base_everywhere() {
    let etcd = alone();
    write(&connect(&etcd).await, put(keys::REVISION_BASE, "1000")).await;
    let store = connect(&etcd).await;
    assert_eq!(store.revision().await.unwrap(), 1002);
    assert_eq!(write(&store, put("a", "1")).await, 1003);
    let item = store.get("a").await.unwrap().0.unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (1003, 1003, 1));

    for (compare, holds) in [
        (Compare::unchanged("a", 1003), true),
        (Compare::unchanged("a", 3), false),
        (Compare::not_changed_after("a", 1002), false),
        (Compare::not_changed_after("a", 500), false),
        (Compare::not_changed_after("absent", 500), true),
        (Compare::absent("absent"), true),
    ] {
        let asked = Transaction { compares: vec![compare.clone()], ..Transaction::default() };
        assert_eq!(store.transact(asked).await.unwrap().succeeded, holds, "{compare:?}");
    }

    assert_eq!(write(&store, put("a", "2")).await, 1004);
    let at = |revision| Range { prefix: "a".to_owned(), limit: 1, revision: Some(revision), after: None };
    assert_eq!(store.range(at(1003)).await.unwrap().items[0].value, "1");
    let before = store.range(at(1000)).await;
    assert!(matches!(before, Err(StoreError::Compacted { requested: 1000, oldest: 1001 })), "{before:?}");
    let ahead = store.range(at(1005)).await;
    assert!(matches!(ahead, Err(StoreError::Future { requested: 1005, current: 1004 })), "{ahead:?}");

    let mut watch = store.watch("a", 1002).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().revision, 1003);
    let mut before = store.watch("a", 999).await.unwrap();
    let before = next(&mut before).await;
    assert!(matches!(before, Err(StoreError::Compacted { requested: 999, oldest: 1001 })), "{before:?}");
    store.compact(1004).await.unwrap();
    let late = store.range(at(1003)).await;
    assert!(matches!(late, Err(StoreError::Compacted { requested: 1003, oldest: 1004 })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_two_clusters_are_not_one_store() {
    let (one, other) = (alone(), alone());
    let members = [one.urls(), other.urls()].concat();
    let config = EtcdConfig { members, tls: None, user: None };
    let refused = Etcd::connect(&config, DEADLINE).await.unwrap_err().to_string();
    assert!(refused.contains("another etcd cluster") && refused.contains(&other.urls()[0]), "{refused}");
}

/// The foreign one was away when the store was connected, and the others are when it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_cluster_that_comes_later_is_not_asked_either() {
    let (mut one, mut other) = (alone(), alone());
    other.member(0).kill().unwrap();
    let members = [one.urls(), other.urls()].concat();
    let store = Etcd::connect(&EtcdConfig { members, tls: None, user: None }, DEADLINE).await.unwrap();
    write(&store, put("a", "1")).await;
    other.member(0).start().unwrap();
    one.member(0).kill().unwrap();
    let error = store.transact(put("a", "2")).await.unwrap_err();
    assert!(error.to_string().contains("another etcd cluster"), "{error}");
    assert_eq!(value(&connect(&other).await, "a").await, None);
}
