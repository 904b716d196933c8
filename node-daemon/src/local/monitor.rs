//! Events as they happen, for one monitor.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};
use weft_proto::v1::{self, monitor_response::Item};

use crate::{
    daemon::Core,
    limits::MONITOR_LOSSES_SECONDS,
    observe::{
        events::{Events, Subscription},
        filter::{Filter, FilterError},
        words::{Epoch, in_words},
    },
};

struct Monitor {
    core: Core,
    events: Subscription,
    filter: Filter,
    epoch: Epoch,
    /// The kernel's count of lost events as it was told last.
    lost_in_kernel: u64,
    losses: Interval,
}

/// From now on, once this has answered.
pub(super) async fn monitor(
    core: Core,
    events: &Events,
    request: v1::MonitorRequest,
) -> Result<impl Stream<Item = Result<v1::MonitorResponse, Status>> + Send + use<>, Status> {
    let filter = Filter::parse(request).map_err(|error| wrong(&error))?;
    let events = events
        .subscribe(filter.wants_allowed())
        .map_err(|error| Status::internal(format!("ask the kernel programs: {error}")))?;
    let lost_in_kernel = core.events_lost().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut losses = interval(Duration::from_secs(MONITOR_LOSSES_SECONDS));
    losses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let monitor = Monitor { core, events, filter, epoch: Epoch::now(), lost_in_kernel, losses };
    Ok(stream::unfold(monitor, |mut monitor| async {
        let item = monitor.next().await?;
        Some((Ok(v1::MonitorResponse { item: Some(item) }), monitor))
    })
    .boxed())
}

fn wrong(error: &FilterError) -> Status {
    let details = ErrorDetails::with_bad_request_violation(&error.field, &error.message);
    Status::with_error_details(tonic::Code::InvalidArgument, error.to_string(), details)
}

impl Monitor {
    /// `None` ends the stream: the daemon stops.
    async fn next(&mut self) -> Option<Item> {
        loop {
            tokio::select! {
                event = self.events.next() => match event? {
                    Ok(event) => {
                        let event = in_words(&event, &self.core.names(), self.epoch);
                        if self.filter.passes(&event) {
                            return Some(Item::Event(event));
                        }
                    }
                    Err(lost) => return Some(Item::Lost(v1::MonitorLost { in_kernel: 0, in_stream: lost })),
                },
                _ = self.losses.tick() => {
                    self.epoch = Epoch::now();
                    let lost = self.core.events_lost().await.ok()?;
                    let new = lost.saturating_sub(self.lost_in_kernel);
                    self.lost_in_kernel = lost;
                    if new > 0 {
                        return Some(Item::Lost(v1::MonitorLost { in_kernel: new, in_stream: 0 }));
                    }
                }
            }
        }
    }
}
