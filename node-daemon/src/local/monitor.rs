//! Drops as they happen, for one monitor.

use std::collections::BTreeSet;

use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, errors::BroadcastStreamRecvError},
};
use tonic::Status;
use weft_proto::v1::{self, monitor_response::Item};

use crate::{
    daemon::Core,
    observe::events::{Events, in_words},
};

/// `endpoints`: only theirs; empty: all.
pub(super) fn drops(
    core: Core,
    events: &Events,
    endpoints: BTreeSet<String>,
) -> impl Stream<Item = Result<v1::MonitorResponse, Status>> + Send + use<> {
    BroadcastStream::new(events.subscribe()).filter_map(move |event| {
        let item = match event {
            Ok(event) => {
                let drop = in_words(&event, &core.names());
                if !endpoints.is_empty() && !endpoints.contains(&drop.endpoint) {
                    return None;
                }
                Item::Drop(drop)
            }
            Err(BroadcastStreamRecvError::Lagged(lost)) => Item::Lost(lost),
        };
        Some(Ok(v1::MonitorResponse { item: Some(item) }))
    })
}
