//! What is probed, and what was found: from the desired state to the prober, and from there to the controllers.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;
use tokio::sync::watch;
use weft_proto::v1::{self, node_report::Report};

use super::State;
use crate::{
    balance,
    health::{Probed, targets},
    kernel::{Datapath, links::Links},
    limits::HEALTH_REPORT_BYTES,
};

pub(super) struct Health {
    probed: watch::Sender<Arc<Probed>>,
    /// What the prober said last, by service.
    found: BTreeMap<String, v1::ServiceHealth>,
}

impl Health {
    pub(super) fn begin() -> (Self, watch::Receiver<Arc<Probed>>) {
        let (probed, receiver) = watch::channel(Arc::default());
        (Self { probed, found: BTreeMap::new() }, receiver)
    }

    /// Services may be others.
    pub(super) fn probe(&self, desired: &balance::Desired, node: &str) {
        let new = targets::probed(desired, node);
        self.probed.send_if_modified(|probed| {
            let same = probed.len() == new.len()
                && probed.iter().zip(&new).all(|((name, service), (other, another))| {
                    name == other && Arc::ptr_eq(service, another)
                });
            if !same {
                *probed = Arc::new(new);
            }
            !same
        });
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    pub(super) fn found(&mut self, services: Vec<v1::ServiceHealth>) {
        for health in &services {
            if health.backends.is_empty() {
                self.health.found.remove(&health.service);
            } else {
                self.health.found.insert(health.service.clone(), health.clone());
            }
        }
        self.report_health(services);
    }

    /// A stream begins: the controller hears all that is known, and of what nothing is known yet it keeps what it has.
    pub(super) fn begin_to_report_health(&mut self) {
        let services = self.health.probed.borrow().keys().cloned().collect();
        self.report(Report::HealthInventory(v1::HealthInventory { services }));
        self.report_health(self.health.found.values().cloned().collect());
    }

    fn report_health(&mut self, services: Vec<v1::ServiceHealth>) {
        let (mut some, mut bytes) = (Vec::new(), 0);
        for health in services {
            bytes += health.encoded_len();
            some.push(health);
            if bytes >= HEALTH_REPORT_BYTES {
                bytes = 0;
                self.report(Report::Health(v1::HealthReport { services: std::mem::take(&mut some) }));
            }
        }
        if !some.is_empty() {
            self.report(Report::Health(v1::HealthReport { services: some }));
        }
    }
}
