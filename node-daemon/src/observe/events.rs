//! Events of the ring buffer, in words, for everyone who monitors.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::broadcast;
use weft_proto::v1;
use weft_shared::layout::{Direction, Event, Point, Reason};

use super::names::Names;
use crate::limits::MONITOR_QUEUED_MAX;

/// Where events are published; a monitor that is slow loses the oldest, and is told how many.
#[derive(Clone, Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(MONITOR_QUEUED_MAX) }
    }
}

impl Events {
    /// Nobody listening is no error.
    pub fn publish(&self, event: Event) {
        if self.sender.receiver_count() > 0 {
            drop(self.sender.send(Arc::new(event)));
        }
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }
}

/// An event with names for its numbers.
pub fn in_words(event: &Event, names: &Names) -> v1::DropEvent {
    let (policy, rule) = names.rule(event.rule);
    let number =
        |known: Option<&'static str>, number: u32| known.map_or_else(|| number.to_string(), str::to_owned);
    let direction = match event.direction {
        ingress if ingress == Direction::Ingress as u8 => v1::Direction::Ingress,
        egress if egress == Direction::Egress as u8 => v1::Direction::Egress,
        _ => v1::Direction::Unspecified,
    };
    v1::DropEvent {
        reason: number(Reason::from_number(event.reason).map(Reason::name), event.reason),
        point: number(Point::from_number(event.point).map(Point::name), event.point),
        source: IpAddr::from(event.source).to_string(),
        destination: IpAddr::from(event.destination).to_string(),
        protocol_number: event.protocol.into(),
        source_port: event.source_port.into(),
        destination_port: event.destination_port.into(),
        source_identity: event.source_identity,
        destination_identity: event.destination_identity,
        policy: policy.to_owned(),
        rule: rule.to_owned(),
        direction: direction.into(),
        length_bytes: event.length_bytes,
        endpoint: names.endpoint(event.ifindex).to_owned(),
    }
}
