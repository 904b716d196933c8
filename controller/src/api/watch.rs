//! Watch: what the store tells, by revision. A slow client is not waited for: its watch stays behind in the store's
//! history until that is compacted.
use std::collections::BTreeSet;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_proto::v1::{self, Change, Kind, Object};

use super::{Answers, Operator, errors, read::known_kind};
use crate::{
    keys, limits, resource,
    store::{Batch, Event, StoreError, Watch},
};

type Sender = mpsc::Sender<Result<v1::WatchResponse, Status>>;

impl Operator {
    pub(super) async fn watch_objects(
        &self,
        request: v1::WatchRequest,
    ) -> Result<Answers<v1::WatchResponse>, Status> {
        let kinds = request.kinds.into_iter().map(known_kind).collect::<Result<BTreeSet<Kind>, Status>>()?;
        let current = self.store.revision().await.map_err(errors::store)?;
        let after = if request.from_revision == 0 { current } else { request.from_revision };
        if after > current {
            return Err(errors::store(StoreError::Future { requested: after, current }));
        }
        let room = self.room_for_a_stream()?;
        let watch = self.store.watch(keys::ROOT, after).await.map_err(errors::store)?;
        let (sender, answers) = mpsc::channel(limits::WATCH_QUEUE_MESSAGES);
        tokio::spawn(send_changes(watch, after, kinds, sender, self.stop.clone(), room));
        Ok(Box::pin(ReceiverStream::new(answers)))
    }
}

async fn send_changes(
    mut watch: Watch,
    after: u64,
    kinds: BTreeSet<Kind>,
    sender: Sender,
    stop: CancellationToken,
    _room: OwnedSemaphorePermit,
) {
    // From here on nothing is missed.
    let mut answer = Ok(v1::WatchResponse { revision: after, events: Vec::new() });
    loop {
        let failed = answer.is_err();
        tokio::select! {
            sent = sender.send(answer) => if sent.is_err() || failed { return },
            () = stop.cancelled() => return,
        }
        answer = loop {
            let batch = tokio::select! {
                batch = watch.next() => batch,
                () = sender.closed() => return,
                () = stop.cancelled() => Some(Err(StoreError::Closed)),
            };
            match batch.unwrap_or(Err(StoreError::Closed)).and_then(|batch| changes(&batch, &kinds)) {
                Ok(response) if response.events.is_empty() => {}
                Ok(response) => break Ok(response),
                Err(error) => break Err(errors::store(error)),
            }
        };
    }
}

fn changes(batch: &Batch, kinds: &BTreeSet<Kind>) -> Result<v1::WatchResponse, StoreError> {
    let mut events = Vec::new();
    for event in &batch.events {
        let Some((kind, name)) = keys::parse(&event.key) else { continue };
        if kinds.is_empty() || kinds.contains(&kind) {
            events.extend(watch_event(event, kind, name)?);
        }
    }
    Ok(v1::WatchResponse { revision: batch.revision, events })
}

fn watch_event(event: &Event, kind: Kind, name: &str) -> Result<Option<v1::WatchEvent>, StoreError> {
    let (change, object) = match &event.value {
        Some(item) if item.version == 1 => (Change::Created, resource::decode(item)?),
        Some(item) => (Change::Configured, resource::decode(item)?),
        None => match deleted(kind, name) {
            Some(object) => (Change::Deleted, object),
            None => return Ok(None),
        },
    };
    Ok(Some(v1::WatchEvent { change: change.into(), object: Some(object) }))
}

fn deleted(kind: Kind, name: &str) -> Option<Object> {
    let mut object = resource::empty(kind)?;
    name.clone_into(&mut resource::metadata_mut(&mut object)?.name);
    Some(object)
}
