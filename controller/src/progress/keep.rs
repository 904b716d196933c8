//! Keeps this controller's record in the store, at most one write a second.
use std::sync::Arc;

use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_proto::v1;

use crate::{
    keys, limits,
    store::{Operation, Store, StoreError, Transaction},
    stream::Hub,
};

pub async fn keep(store: Arc<dyn Store>, hub: Arc<Hub>, stop: CancellationToken) {
    let mut progress = hub.progress();
    let mut written: Option<(v1::ControllerProgress, Instant)> = None;
    loop {
        progress.see();
        let record = hub.own_record();
        let due = written
            .as_ref()
            .is_none_or(|(last, at)| *last != record || at.elapsed() >= limits::PROGRESS_HEARTBEAT);
        if due {
            match write(store.as_ref(), &record).await {
                Ok(()) => written = Some((record, Instant::now())),
                // Told again as soon as it can be.
                Err(error) => tracing::warn!(%error, "what nodes have realised is not in the store"),
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(limits::PROGRESS_INTERVAL) => {}
        }
        let heartbeat =
            written.as_ref().map_or_else(Instant::now, |(_, at)| *at + limits::PROGRESS_HEARTBEAT);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = progress.changed() => {}
            () = tokio::time::sleep_until(heartbeat) => {}
        }
    }
    // A store that hangs must not keep the controller from stopping.
    let last =
        tokio::time::timeout(limits::PROGRESS_INTERVAL, write(store.as_ref(), &hub.own_record())).await;
    if !matches!(last, Ok(Ok(()))) {
        tracing::warn!("the last of what nodes have realised is not in the store");
    }
}

async fn write(store: &dyn Store, record: &v1::ControllerProgress) -> Result<(), StoreError> {
    let mut record = record.clone();
    record.written_at = Some(std::time::SystemTime::now().into());
    let put = Operation::put(keys::progress(&record.controller), record.encode_to_vec());
    store.transact(Transaction { then: vec![put], ..Transaction::default() }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{fleet::Change, store::Memory};

    fn identity(number: u32) -> Change {
        Change::Identity { number, labels: Some(std::collections::BTreeMap::new()) }
    }

    /// How many records were written while this went on.
    async fn written(during: impl AsyncFnOnce(&Hub)) -> u64 {
        let (store, hub) = (Arc::new(Memory::default()), Arc::new(Hub::new("c".to_owned())));
        let stop = CancellationToken::new();
        let kept = tokio::spawn(keep(Arc::clone(&store) as _, Arc::clone(&hub), stop.clone()));
        during(&hub).await;
        stop.cancel();
        kept.await.unwrap();
        store.get(&keys::progress("c")).await.unwrap().0.unwrap().version
    }

    #[tokio::test(start_paused = true)]
    async fn while_nothing_happens_only_the_heartbeat_is_written() {
        let written = written(async |_| tokio::time::sleep(Duration::from_secs(65)).await).await;
        assert_eq!(written, 1 + 6 + 1, "the first, each heartbeat, and the last at the stop");
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_happens_there_is_at_most_one_write_a_second() {
        let written = written(async |hub| {
            for revision in 2..502 {
                hub.apply(revision, vec![identity(256 + u32::try_from(revision).unwrap())]);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(written <= 1 + 5 + 1, "{written} writes in five seconds");
    }
}
