//! What the controllers have written of their nodes. Knows no clock: times are passed in, and count from the start of this
//! controller, so that those of other machines need not agree.
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use prost::Message as _;
use weft_proto::v1::{self, ResourceType};

use super::Standing;
use crate::{
    fleet::Rejected,
    keys, limits,
    store::{Event, KeyValue},
};

#[derive(Debug, Default)]
pub struct Records {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    record: v1::ControllerProgress,
    exceptions: BTreeMap<String, Standing>,
    heard: Duration,
}

impl Records {
    /// Returns the name of the controller whose record it was; `None`: something else.
    pub fn take_event(&mut self, event: &Event, now: Duration) -> Option<String> {
        if let Some(item) = &event.value {
            return self.take_item(item, now);
        }
        let controller = event.key.strip_prefix(keys::PROGRESS)?;
        self.known.remove(controller);
        Some(controller.to_owned())
    }

    pub fn take_item(&mut self, item: &KeyValue, now: Duration) -> Option<String> {
        let controller = item.key.strip_prefix(keys::PROGRESS)?.to_owned();
        let record = match v1::ControllerProgress::decode(item.value.clone()) {
            Ok(record) => record,
            Err(error) => {
                // Its nodes count as not connected until it writes again.
                tracing::error!(controller, %error, "what a controller wrote of its nodes cannot be read");
                return None;
            }
        };
        let exceptions =
            record.exceptions.iter().map(|node| (node.node.clone(), standing(&controller, node)));
        let exceptions = exceptions.collect();
        self.known.insert(controller.clone(), Known { record, exceptions, heard: now });
        Some(controller)
    }

    /// Whether the controller has written lately.
    pub fn is_alive(&self, controller: &str, now: Duration) -> bool {
        self.known
            .get(controller)
            .is_some_and(|known| now.saturating_sub(known.heard) < limits::PROGRESS_STALE)
    }

    /// What the other controllers that live say of nodes that wait for adoption.
    pub fn waiting_for_adoption(&self, own: &str, now: Duration) -> Vec<v1::WaitingNode> {
        let others =
            self.known.iter().filter(|(controller, _)| *controller != own && self.is_alive(controller, now));
        let waiting = others.flat_map(|(_, known)| &known.record.waiting_for_adoption);
        waiting.filter_map(|node| v1::WaitingNode::decode(&**node).ok()).collect()
    }

    /// Of which run the controller's record is.
    pub fn run(&self, controller: &str) -> Option<&str> {
        self.known.get(controller).map(|known| known.record.run.as_str())
    }

    /// What the controller says of a node that it serves.
    pub fn standing(&self, node: &str, controller: &str) -> Option<Standing> {
        let known = self.known.get(controller)?;
        let standing = known.exceptions.get(node).cloned().unwrap_or_else(|| Standing {
            connected: true,
            controller: controller.to_owned(),
            realised: known.record.floor,
            answered: known.record.floor,
            rejections: Vec::new(),
            last_seen: None,
        });
        let written_at = known.record.written_at.and_then(|at| SystemTime::try_from(at).ok());
        let last_seen = standing.last_seen.or(written_at);
        Some(Standing { last_seen, ..standing })
    }

    /// The most that anybody says of a node that is not connected; `controller` served it last.
    pub fn last_standing(&self, node: &str, controller: &str) -> Option<Standing> {
        let others = self.known.values().filter_map(|known| known.exceptions.get(node).cloned());
        let last = others.chain(self.standing(node, controller)).max_by_key(|standing| standing.realised);
        last.map(|standing| Standing { connected: false, controller: controller.to_owned(), ..standing })
    }
}

fn standing(controller: &str, node: &v1::NodeProgress) -> Standing {
    let rejections = node.rejected.iter().map(|rejected| Rejected {
        kind: i32::try_from(rejected.r#type)
            .ok()
            .and_then(|kind| ResourceType::try_from(kind).ok())
            .unwrap_or_default(),
        name: rejected.name.clone(),
        reason: rejected.reason.clone(),
        revision: rejected.revision,
    });
    Standing {
        connected: node.connected,
        controller: controller.to_owned(),
        realised: node.realised,
        answered: node.answered,
        rejections: rejections.collect(),
        last_seen: node.last_seen.and_then(|at| SystemTime::try_from(at).ok()),
    }
}
