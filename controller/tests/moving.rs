//! Data moves from the embedded store to etcd with the store's id, all of it or nothing.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use support::{
    fleet, fleet_on,
    gate::{Gate, Gated},
    name, policy, within,
};
use weft_controller::{
    StoreConfig, keys,
    opening::{self, OpenError},
    relocation::{self, RelocationError, refuse_unfinished},
    store::{EtcdConfig, KeyValue, Memory, Operation, Range, Store, StoreError, Transaction},
};
use weft_proto::v1;
use weft_test_etcd::{Cluster, Options};

fn etcd() -> (Cluster, EtcdConfig) {
    let flags = ["--heartbeat-interval=10", "--election-timeout=100"].map(str::to_owned).to_vec();
    let etcd = Cluster::start(1, &Options { flags, ..Options::default() }).unwrap();
    let config = EtcdConfig { members: etcd.urls(), tls: None, user: None };
    (etcd, config)
}

async fn listed(fleet: &mut support::Fleet, kind: v1::Kind) -> Vec<v1::Object> {
    let request = v1::ListRequest { kind: kind.into(), ..v1::ListRequest::default() };
    let mut objects = within(fleet.operator.list(request)).await.unwrap().into_inner().objects;
    for object in &mut objects {
        // The revision of the last change is another one, and that is all.
        let metadata = weft_controller::resource::metadata_mut(object).unwrap();
        assert!(metadata.revision > 0);
        metadata.revision = 0;
    }
    objects
}

async fn status(fleet: &mut support::Fleet) -> v1::FleetStatusResponse {
    within(fleet.operator.fleet_status(v1::FleetStatusRequest {})).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_goes_on_in_etcd_as_the_same_store_above_its_last_revision() {
    let (_etcd, config) = etcd();
    let mut old = fleet().await;
    for number in 0..40 {
        old.apply(vec![policy(&format!("p{number}"), "api", "web")]).await.unwrap();
        old.apply(vec![policy("changes-often", "api", &format!("web{number}"))]).await.unwrap();
    }
    let mut node = old.node("node-1", "192.0.2.1").await.in_sync().await;
    let addresses = node.address(9);
    node.attach("web", &[("app", "web")], &[&addresses]).await;
    let (before, policies) = (status(&mut old).await, listed(&mut old, v1::Kind::Policy).await);
    let nodes = listed(&mut old, v1::Kind::Identity).await;
    drop(node);
    let directory = old.stop().await;

    let (moved, revision) = opening::move_to_etcd(directory.path(), &config, |_, _| {}).await.unwrap();
    assert_eq!(moved.store_id, before.store_id);
    assert!(revision > before.revision, "{revision} after {}", before.revision);

    // The old one is not served beside it.
    let embedded = StoreConfig::Embedded { directory: directory.path().to_owned() };
    let refused = fleet_on(&embedded, tempfile::tempdir().unwrap()).await.err().unwrap();
    assert!(refused.to_string().contains(&config.members[0]), "{refused}");

    let mut new = fleet_on(&StoreConfig::Etcd(config), directory).await.unwrap();
    let after = status(&mut new).await;
    assert_eq!((after.store_id, after.store.as_str()), (before.store_id, "etcd"));
    assert!(after.revision > before.revision);
    assert_eq!(listed(&mut new, v1::Kind::Policy).await, policies);
    assert_eq!(listed(&mut new, v1::Kind::Identity).await, nodes);
    // It works on: revisions are one sequence for writers, readers and nodes.
    let applied = new.apply(vec![policy("new", "api", "web")]).await.unwrap();
    assert!(applied.revision > after.revision);
    let again = v1::ApplyRequest {
        objects: vec![policy("new", "db", "web")],
        if_revision: Some(applied.revision),
        ..v1::ApplyRequest::default()
    };
    let again = within(new.operator.apply(again)).await.unwrap().into_inner();
    assert!(again.revision > applied.revision);
    let mut node = new.node("node-1", "192.0.2.1").await.in_sync().await;
    assert!(node.welcome.revision > before.revision);
    let answer = node.attach("api", &[("app", "api")], &[&node.address(10)]).await;
    assert!(answer.accepted, "{}", answer.reason);
    let names: Vec<_> = listed(&mut new, v1::Kind::Policy).await.iter().map(name).collect();
    assert!(names.contains(&"new".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_use_or_not_empty_or_not_there_is_not_moved() {
    let (_etcd, config) = etcd();
    let running = fleet().await;
    let refused = opening::move_to_etcd(running.directory.path(), &config, |_, _| {}).await.unwrap_err();
    assert!(matches!(refused, OpenError::Store(StoreError::InUse { .. })), "{refused}");

    let nothing = tempfile::tempdir().unwrap();
    let refused = opening::move_to_etcd(nothing.path(), &config, |_, _| {}).await.unwrap_err();
    assert!(matches!(refused, OpenError::NoStore(_)), "{refused}");
    assert_eq!(nothing.path().read_dir().unwrap().count(), 0, "nothing was made");

    let there = tempfile::tempdir().unwrap();
    let there = fleet_on(&StoreConfig::Etcd(config.clone()), there).await.unwrap();
    let directory = running.stop().await;
    let refused = opening::move_to_etcd(directory.path(), &config, |_, _| {}).await.unwrap_err();
    assert!(
        matches!(refused, OpenError::Relocation(RelocationError::TargetInUse { .. })),
        "it holds another fleet: {refused}"
    );
    drop(there.stop().await);
    let _still_served = support::fleet_in(directory).await;
}

/// The store is lost after so many writes.
struct Breaking {
    writes_left: AtomicUsize,
}

#[async_trait]
impl Gate for Breaking {
    async fn pass(&self, _: &Transaction) -> Result<(), StoreError> {
        let left =
            self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| StoreError::Refused { reason: "broken".to_owned() })
    }
}

async fn put(store: &Memory, key: &str, value: &str) {
    let then = vec![Operation::put(key, value.to_owned())];
    store.transact(Transaction { then, ..Transaction::default() }).await.unwrap();
}

async fn contents(store: &dyn Store) -> Vec<(String, String)> {
    let range = Range { prefix: keys::ROOT.to_owned(), limit: 10_000, ..Range::default() };
    let items = store.range(range).await.unwrap().items;
    let text = |item: KeyValue| (item.key, String::from_utf8(item.value.to_vec()).unwrap());
    let own = [keys::MOVED_TO, keys::REVISION_BASE];
    items.into_iter().map(text).filter(|(key, _)| !own.contains(&key.as_str())).collect()
}

/// At every single write the target may be lost for good, with the source served and changed before the next try.
#[tokio::test]
async fn a_move_that_breaks_off_anywhere_is_never_served_and_the_next_one_completes_it() {
    let mut writes = 0;
    loop {
        let source = Memory::default();
        put(&source, keys::STORE_ID, "the-id").await;
        for number in 0..250 {
            put(&source, &format!("{}policy/p{number}", keys::ROOT), &number.to_string()).await;
        }
        let gate = Breaking { writes_left: AtomicUsize::new(writes) };
        let target = Gated { store: Arc::new(Memory::default()), gate };
        let broken = relocation::relocate(&source, &target, "there", |_, _| {}).await;
        if broken.is_ok() {
            assert!(writes > 4, "it was never broken off");
            return;
        }
        let begun = writes > 0;
        assert_eq!(refuse_unfinished(&target).await.is_err(), begun, "after {writes} writes");
        if refuse_unfinished(&source).await.is_ok() {
            // It was not done, so the fleet went on where it was.
            let gone = Operation::delete(format!("{}policy/p7", keys::ROOT));
            source.transact(Transaction { then: vec![gone], ..Transaction::default() }).await.unwrap();
            put(&source, &format!("{}policy/new", keys::ROOT), "new").await;
        }
        target.gate.writes_left.store(usize::MAX, Ordering::Relaxed);
        relocation::relocate(&source, &target, "there", |_, _| {}).await.unwrap();
        refuse_unfinished(&target).await.unwrap();
        assert_eq!(contents(&target).await, contents(&source).await, "after {writes} writes");
        let base = target.get(keys::REVISION_BASE).await.unwrap().0.unwrap();
        let base: u64 = std::str::from_utf8(&base.value).unwrap().parse().unwrap();
        assert!(base >= source.revision().await.unwrap(), "revisions would go back");
        let Err(RelocationError::Moved { target }) = refuse_unfinished(&source).await else {
            panic!("the source would still be served")
        };
        assert_eq!(target, "there");
        writes += 1;
    }
}

#[tokio::test]
async fn a_move_of_another_store_that_broke_off_is_not_overwritten() {
    let (source, target) = (Memory::default(), Memory::default());
    put(&source, keys::STORE_ID, "this").await;
    put(&target, keys::MOVING, "that").await;
    let refused = relocation::relocate(&source, &target, "there", |_, _| {}).await;
    assert!(matches!(refused, Err(RelocationError::OtherMove { store_id }) if store_id == "that"));
    assert!(refuse_unfinished(&source).await.is_ok());
}
