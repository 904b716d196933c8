//! What every store must do, tried on each of them. The semantics are etcd's.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod cluster;
mod embedded;
mod etcd;
mod promises;
mod words;

use std::{any::Any, sync::Arc};

use weft_controller::store::{Memory, Store};

/// A store, and what must outlive it.
pub(crate) struct Subject {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) _beneath: Box<dyn Any + Send + Sync>,
}

fn memory() -> impl Future<Output = Subject> {
    std::future::ready(Subject { store: Arc::new(Memory::default()), _beneath: Box::new(()) })
}

/// Makes a module for each store, with a test for each promise.
macro_rules! conformance {
    ($($promise:ident),+ $(,)?) => {
        conformance!(@store on_memory, crate::memory, $($promise),+);
        conformance!(@store on_embedded, crate::embedded::subject, $($promise),+);
        conformance!(@store on_etcd, crate::etcd::subject, $($promise),+);
    };
    (@store $module:ident, $make:path, $($promise:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let subject = $make().await;
                    crate::promises::$promise(subject.store.as_ref(), &subject).await;
                }
            )+
        }
    };
}

conformance!(
    an_empty_store_is_at_revision_one,
    a_put_is_read_back_with_its_revisions,
    a_compare_that_does_not_hold_takes_the_other_branch,
    every_target_and_relation_compares,
    a_transaction_is_one_revision_or_nothing,
    a_transaction_that_changes_nothing_makes_no_revision,
    what_etcd_would_refuse_is_refused,
    of_many_who_race_for_a_key_one_wins,
    pages_show_one_revision_whatever_is_written_between_them,
    a_watch_tells_every_change_in_order_and_whole_revisions,
    a_watch_starts_behind_an_old_revision,
    a_watch_below_a_compacted_revision_says_so,
    a_watch_waits_for_a_consumer_that_is_slow,
    compaction_keeps_what_is_read_now_and_later,
    a_revision_that_is_not_there_yet_cannot_be_read,
    twenty_thousand_objects_are_listed_whole,
);
