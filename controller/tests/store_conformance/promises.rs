//! The promises, each for any store.
use std::sync::Arc;

use tokio::task::JoinSet;
use weft_controller::{
    limits,
    store::{Compare, Operation, Range, Relation, Store, StoreError, Target, Transaction},
};

use crate::{
    Subject,
    words::{changed, delete, keys, next, put, value, write},
};

pub(crate) async fn an_empty_store_is_at_revision_one(store: &dyn Store, _: &Subject) {
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(store.get("a").await.unwrap(), (None, 1));
    assert_eq!(keys(store, "", None).await.unwrap(), Vec::<String>::new());
}

pub(crate) async fn a_put_is_read_back_with_its_revisions(store: &dyn Store, _: &Subject) {
    let created = write(store, put("a", "1")).await;
    let changed = write(store, put("a", "2")).await;
    assert_eq!((created, changed), (2, 3));
    let (item, revision) = store.get("a").await.unwrap();
    let item = item.unwrap();
    assert_eq!((&*item.value, revision), (&b"2"[..], 3));
    assert_eq!((item.create_revision, item.mod_revision, item.version), (2, 3, 2));

    write(store, delete("a")).await;
    assert_eq!(value(store, "a").await, None);
    let created_again = write(store, put("a", "3")).await;
    let item = store.get("a").await.unwrap().0.unwrap();
    assert_eq!((item.create_revision, item.version), (created_again, 1));
}

pub(crate) async fn a_compare_that_does_not_hold_takes_the_other_branch(store: &dyn Store, _: &Subject) {
    let read_at = write(store, put("a", "1")).await;
    write(store, put("a", "2")).await;
    let transaction = Transaction {
        compares: vec![Compare::unchanged("a", read_at)],
        then: vec![Operation::put("a", "then")],
        otherwise: vec![Operation::put("b", "otherwise")],
    };
    let outcome = store.transact(transaction).await.unwrap();
    assert_eq!((outcome.succeeded, outcome.revision), (false, 4));
    assert_eq!(value(store, "a").await.as_deref(), Some("2"));
    assert_eq!(value(store, "b").await.as_deref(), Some("otherwise"));
}

pub(crate) async fn every_target_and_relation_compares(store: &dyn Store, _: &Subject) {
    write(store, put("a", "1")).await;
    write(store, put("a", "2")).await;
    let targets = [(Target::CreateRevision, 2), (Target::ModRevision, 3), (Target::Version, 2)];
    for (key, targets) in [("a", targets), ("absent", targets.map(|(target, _)| (target, 0)))] {
        for (target, actual) in targets {
            for value in [0, actual, actual + 1] {
                for (relation, expected) in [
                    (Relation::Equal, actual == value),
                    (Relation::NotEqual, actual != value),
                    (Relation::Less, actual < value),
                    (Relation::Greater, actual > value),
                ] {
                    let compare = Compare { key: key.to_owned(), target, relation, value };
                    let transaction =
                        Transaction { compares: vec![compare.clone()], ..Transaction::default() };
                    let outcome = store.transact(transaction).await.unwrap();
                    assert_eq!(outcome.succeeded, expected, "{compare:?}");
                }
            }
        }
    }
}

pub(crate) async fn a_transaction_is_one_revision_or_nothing(store: &dyn Store, _: &Subject) {
    write(store, put("taken", "1")).await;
    let both = |compare| Transaction {
        compares: vec![Compare::absent("new"), compare],
        then: vec![Operation::put("new", "1"), Operation::put("other", "1"), Operation::delete("taken")],
        otherwise: Vec::new(),
    };
    let refused = store.transact(both(Compare::absent("taken"))).await.unwrap();
    assert_eq!((refused.succeeded, refused.revision), (false, 2));
    assert_eq!(keys(store, "", None).await.unwrap(), ["taken"]);

    let done = store.transact(both(Compare::unchanged("taken", 2))).await.unwrap();
    assert_eq!((done.succeeded, done.revision), (true, 3));
    assert_eq!(keys(store, "", None).await.unwrap(), ["new", "other"]);
    for key in ["new", "other"] {
        assert_eq!(store.get(key).await.unwrap().0.unwrap().mod_revision, 3);
    }
}

pub(crate) async fn a_transaction_that_changes_nothing_makes_no_revision(store: &dyn Store, _: &Subject) {
    assert_eq!(write(store, delete("absent")).await, 1);
    assert_eq!(write(store, Transaction::default()).await, 1);
}

pub(crate) async fn what_etcd_would_refuse_is_refused(store: &dyn Store, _: &Subject) {
    let many = limits::TRANSACTION_MAX_OPERATIONS + 1;
    let then = (0..many).map(|number| Operation::put(format!("k{number}"), "")).collect();
    let refused = store.transact(Transaction { then, ..Transaction::default() }).await;
    assert!(matches!(refused, Err(StoreError::TooManyOperations { operations }) if operations == many));
    let then = vec![Operation::put("a", "1"), Operation::delete("a")];
    let refused = store.transact(Transaction { then, ..Transaction::default() }).await;
    assert!(matches!(refused, Err(StoreError::DuplicateKey { key }) if key == "a"));
    assert_eq!(store.revision().await.unwrap(), 1);
}

pub(crate) async fn of_many_who_race_for_a_key_one_wins(_: &dyn Store, subject: &Subject) {
    let mut racers = JoinSet::new();
    for racer in 0..32 {
        let store = Arc::clone(&subject.store);
        racers.spawn(async move {
            let claim =
                Transaction { compares: vec![Compare::absent("prize")], ..put("prize", &racer.to_string()) };
            (racer, store.transact(claim).await.unwrap().succeeded)
        });
    }
    let winners: Vec<i32> =
        racers.join_all().await.into_iter().filter_map(|(racer, won)| won.then_some(racer)).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(value(subject.store.as_ref(), "prize").await, Some(winners[0].to_string()));
}

pub(crate) async fn pages_show_one_revision_whatever_is_written_between_them(store: &dyn Store, _: &Subject) {
    for number in 0..10 {
        write(store, put(&format!("a/{number}"), "old")).await;
    }
    write(store, put("b/other", "")).await;
    let mut range = Range { prefix: "a/".to_owned(), limit: 3, ..Range::default() };
    let mut found = Vec::new();
    loop {
        let page = store.range(range.clone()).await.unwrap();
        found.extend(page.items.iter().map(|item| (item.key.clone(), item.value.clone())));
        if !page.more {
            break;
        }
        assert_eq!(page.items.len(), 3);
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
        write(store, put("a/7", "new")).await;
        write(store, delete("a/8")).await;
        write(store, put(&format!("a/{}x", page.items[0].key.len()), "new")).await;
    }
    let expected: Vec<_> = (0..10).map(|number| (format!("a/{number}"), "old".into())).collect();
    assert_eq!(found, expected);
}

pub(crate) async fn a_watch_tells_every_change_in_order_and_whole_revisions(store: &dyn Store, _: &Subject) {
    write(store, put("a/before", "")).await;
    let mut watch = store.watch("a/", store.revision().await.unwrap()).await.unwrap();
    write(store, put("a/1", "")).await;
    write(store, put("b/1", "")).await;
    let then = vec![Operation::put("a/2", ""), Operation::put("b/2", ""), Operation::delete("a/1")];
    write(store, Transaction { then, ..Transaction::default() }).await;

    let first = next(&mut watch).await.unwrap();
    assert_eq!((first.revision, changed(&first)), (3, vec![("a/1", true)]));
    let second = next(&mut watch).await.unwrap();
    let mut events = changed(&second);
    events.sort_unstable();
    assert_eq!((second.revision, events), (5, vec![("a/1", false), ("a/2", true)]));
}

pub(crate) async fn a_watch_starts_behind_an_old_revision(store: &dyn Store, _: &Subject) {
    for number in 0..600 {
        write(store, put("a", &number.to_string())).await;
    }
    let mut watch = store.watch("", 100).await.unwrap();
    for revision in 101..=601 {
        let batch = next(&mut watch).await.unwrap();
        assert_eq!(batch.revision, revision);
        let item = batch.events[0].value.as_ref().unwrap();
        assert_eq!(item.value, (revision - 2).to_string(), "the value as it was then");
    }
}

pub(crate) async fn a_watch_below_a_compacted_revision_says_so(store: &dyn Store, _: &Subject) {
    for number in 0..10 {
        write(store, put("a", &number.to_string())).await;
    }
    store.compact(6).await.unwrap();
    let mut late = store.watch("", 5).await.unwrap();
    let late = next(&mut late).await;
    assert!(matches!(late, Err(StoreError::Compacted { requested: 5, oldest: 6 })), "{late:?}");
    let mut in_time = store.watch("", 6).await.unwrap();
    assert_eq!(next(&mut in_time).await.unwrap().revision, 7);
}

pub(crate) async fn a_watch_waits_for_a_consumer_that_is_slow(store: &dyn Store, _: &Subject) {
    let mut watch = store.watch("", 1).await.unwrap();
    for number in 0..1_000 {
        write(store, put(&format!("k{}", number % 7), &number.to_string())).await;
    }
    for revision in 2..=1_001 {
        assert_eq!(next(&mut watch).await.unwrap().revision, revision);
    }
}

pub(crate) async fn compaction_keeps_what_is_read_now_and_later(store: &dyn Store, _: &Subject) {
    write(store, put("stays", "1")).await;
    write(store, put("changes", "1")).await;
    write(store, put("goes", "1")).await;
    write(store, put("changes", "2")).await;
    let compacted = write(store, delete("goes")).await;
    write(store, put("changes", "3")).await;
    store.compact(compacted).await.unwrap();

    assert!(matches!(keys(store, "", Some(compacted - 1)).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.compact(compacted - 1).await, Err(StoreError::Compacted { .. })));
    assert_eq!(keys(store, "", Some(compacted)).await.unwrap(), ["changes", "stays"]);
    let range = Range { prefix: "changes".to_owned(), limit: 1, revision: Some(compacted), after: None };
    assert_eq!(store.range(range).await.unwrap().items[0].value, "2");
    assert_eq!(value(store, "changes").await.as_deref(), Some("3"));
    assert_eq!(value(store, "stays").await.as_deref(), Some("1"));
    let item = store.get("changes").await.unwrap().0.unwrap();
    assert_eq!((item.create_revision, item.version), (3, 3));
    write(store, put("goes", "again")).await;
    assert_eq!(store.get("goes").await.unwrap().0.unwrap().version, 1);
}

pub(crate) async fn a_revision_that_is_not_there_yet_cannot_be_read(store: &dyn Store, _: &Subject) {
    assert!(matches!(keys(store, "", Some(2)).await, Err(StoreError::Future { requested: 2, current: 1 })));
    assert!(matches!(store.compact(2).await, Err(StoreError::Future { .. })));
}

pub(crate) async fn twenty_thousand_objects_are_listed_whole(store: &dyn Store, _: &Subject) {
    let names: Vec<String> = (0..20_000).map(|number| format!("object/{number:05}")).collect();
    for chunk in names.chunks(limits::TRANSACTION_MAX_OPERATIONS) {
        let then = chunk.iter().map(|name| Operation::put(name, name.clone())).collect();
        write(store, Transaction { then, ..Transaction::default() }).await;
    }
    let mut range = Range { prefix: "object/".to_owned(), limit: 1_000, ..Range::default() };
    let mut found = Vec::new();
    loop {
        let page = store.range(range.clone()).await.unwrap();
        found.extend(page.items.into_iter().map(|item| item.key));
        if !page.more {
            break;
        }
        range.after = found.last().cloned();
        range.revision = Some(page.revision);
    }
    assert_eq!(found, names);
}
