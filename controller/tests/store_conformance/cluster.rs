//! A cluster of three members, and what becomes of the store when one is lost.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{task::JoinSet, time::Instant};
use weft_controller::{
    identity,
    plan::Plan,
    store::{Compare, Store, StoreError, Transaction},
};
use weft_test_etcd::{Cluster, Options};

use crate::{
    etcd::connect,
    words::{DEADLINE, next, put, value, write},
};

const WRITERS: usize = 8;

fn three() -> Cluster {
    Cluster::start(3, &Options::default()).unwrap()
}

/// Writes its own keys one after the other until told to stop; returns the number of the last that was acknowledged.
async fn write_until(
    store: Arc<dyn Store>,
    writer: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> BTreeSet<String> {
    let mut done = BTreeSet::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("w{writer}/{number:06}");
        let claim = Transaction { compares: vec![Compare::absent(&*key)], ..put(&key, &key) };
        match store.transact(claim).await {
            Ok(outcome) => {
                assert!(outcome.succeeded, "{key} was called taken, and nobody else writes it");
                acknowledged.fetch_add(1, Ordering::Relaxed);
                done.insert(key);
            }
            Err(StoreError::Uncertain { .. } | StoreError::Unreachable { .. }) => {}
            Err(error) => panic!("{key}: {error}"),
        }
    }
    done
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_resume_when_the_leader_is_killed_and_nothing_acknowledged_is_lost() {
    let mut etcd = three();
    let store: Arc<dyn Store> = Arc::new(connect(&etcd).await);
    let mut watch = store.watch("w", 1).await.unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        writers.spawn(write_until(Arc::clone(&store), writer, stop, acknowledged));
    }
    until("100 writes", || acknowledged.load(Ordering::Relaxed) >= 100).await;
    let leader = etcd.leader().unwrap();
    let (killed_at, before) = (Instant::now(), acknowledged.load(Ordering::Relaxed));
    etcd.member(leader).kill().unwrap();
    // More than the writes that may have been answered already when it died.
    let enough = before + 2 * WRITERS as u64;
    until("writes resume", || acknowledged.load(Ordering::Relaxed) >= enough).await;
    println!("writes resumed {:.1} s after the leader was killed", killed_at.elapsed().as_secs_f64());
    until("100 more writes", || acknowledged.load(Ordering::Relaxed) >= before + 100).await;
    stop.store(true, Ordering::Relaxed);

    let mut acknowledged = BTreeSet::new();
    for done in writers.join_all().await {
        acknowledged.extend(done);
    }
    for key in &acknowledged {
        assert_eq!(value(store.as_ref(), key).await.as_deref(), Some(key.as_str()), "acknowledged and lost");
    }
    // The watch saw each of them once, in order.
    let end = write(store.as_ref(), put("w/end", "")).await;
    let (mut told, mut last) = (BTreeSet::new(), 1);
    while last < end {
        let batch = next(&mut watch).await.unwrap();
        assert!(batch.revision > last, "revision {} after {last}", batch.revision);
        last = batch.revision;
        for event in batch.events {
            assert!(told.insert(event.key.clone()), "{} was told twice", event.key);
        }
    }
    assert!(told.is_superset(&acknowledged), "not told: {:?}", acknowledged.difference(&told));
}

/// Each with a store of its own, as several controllers have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_identity_is_given_twice_while_leaders_are_killed() {
    let mut etcd = three();
    let mut allocators = JoinSet::new();
    let (stop, given) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    for allocator in 0..4 {
        let store = connect(&etcd).await;
        let (stop, given) = (Arc::clone(&stop), Arc::clone(&given));
        allocators.spawn(async move {
            let mut numbers = Vec::new();
            for set in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Two allocators want each set.
                let labels = BTreeMap::from([("app".to_owned(), format!("{}-{set}", allocator / 2))]);
                let number = allocate(&store, &labels).await;
                given.fetch_add(1, Ordering::Relaxed);
                numbers.push((labels, number));
            }
            numbers
        });
    }
    for round in 1..=2 {
        let wanted = given.load(Ordering::Relaxed) + 30;
        until("identities are given", || given.load(Ordering::Relaxed) >= wanted).await;
        let leader = etcd.leader().unwrap();
        etcd.member(leader).kill().unwrap();
        let wanted = given.load(Ordering::Relaxed) + 30;
        until(&format!("identities are given after kill {round}"), || {
            given.load(Ordering::Relaxed) >= wanted
        })
        .await;
        etcd.member(leader).start().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (mut by_labels, mut by_number) = (BTreeMap::new(), BTreeMap::new());
    for (labels, number) in allocators.join_all().await.into_iter().flatten() {
        let known = *by_labels.entry(labels.clone()).or_insert(number);
        assert_eq!(known, number, "two numbers for {labels:?}");
        let known = by_number.entry(number).or_insert_with(|| labels.clone());
        assert_eq!(*known, labels, "number {number} for two label sets");
    }
}

/// As the controller does it: whatever fails is planned again from what the store holds.
async fn allocate(store: &dyn Store, labels: &BTreeMap<String, String>) -> u32 {
    let end = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < end, "no identity in time for {labels:?}");
        let mut made = Plan::default();
        let Ok(number) = identity::plan(store, labels, &mut made).await else { continue };
        if made.changes_nothing() || matches!(made.commit(store).await, Ok(Some(_))) {
            return number;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_holds_up_neither_calls_nor_a_watch() {
    let etcd = three();
    let store = connect(&etcd).await;
    let mut watch = store.watch("", 1).await.unwrap();
    write(&store, put("a", "1")).await;
    assert_eq!(next(&mut watch).await.unwrap().revision, 2);
    // The first of the list is the one that is asked and watched.
    etcd.members()[0].freeze().unwrap();
    let mut expected = 3;
    for number in 0..10 {
        // In doubt only what was on its way.
        let wrote = store.transact(put("a", &number.to_string())).await;
        match wrote {
            Ok(outcome) => assert!(outcome.succeeded),
            Err(StoreError::Uncertain { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let last = write(&store, put("a", "last")).await;
    while expected <= last {
        assert_eq!(next(&mut watch).await.unwrap().revision, expected);
        expected += 1;
    }
    etcd.members()[0].thaw().unwrap();
    assert_eq!(value(&store, "a").await.as_deref(), Some("last"));
}
