//! What the controller is told of this node, and what it answers.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tracing::{info, warn};
use weft_proto::v1::{self, node_report::Report};
use weft_shared::{digest::Digest, layout::endpoint_flags};

use super::{Connection, Refusal, State, Wants, Welcomed};
use crate::{
    desired::{EndpointWord, FEATURES, attachments::Attachment},
    endpoint::interface::mac_text,
    kernel::{Datapath, links::Links},
    limits::ENDPOINTS_MAX,
};

impl<D: Datapath, L: Links> State<D, L> {
    pub(super) fn hello(&mut self) -> v1::Hello {
        self.told = digest(&self.reports());
        self.xdp.tell();
        v1::Hello {
            endpoint_reports: self.told.to_bytes().to_vec(),
            node: self.settings.node.clone(),
            labels: self.settings.labels.clone().into_iter().collect(),
            addresses: self.own_addresses.iter().map(ToString::to_string).collect(),
            boot_id: self.settings.boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: FEATURES.iter().map(ToString::to_string).collect(),
            have: Some(v1::Have {
                store_id: self.desired.store_id.clone(),
                revision: self.desired.revision,
                identities_through: self.desired.identities_through,
                endpoint_cidrs: self.endpoint_cidrs(),
                digests: match self.wants {
                    // What is not in the kernel is not held.
                    Wants::Differences if self.failure.is_none() => self.desired.digests(),
                    _ => Vec::new(),
                },
            }),
            capabilities: Some(self.capabilities()),
            snat_ports: Some(v1::SnatPorts {
                first: self.settings.snat_ports.first.into(),
                last: self.settings.snat_ports.last.into(),
            }),
        }
    }

    fn endpoint_cidrs(&self) -> Vec<String> {
        let own = self.desired.nodes().get(&self.settings.node);
        own.into_iter().flat_map(|route| &route.endpoint_cidrs).map(ToString::to_string).collect()
    }

    pub(super) fn connected(&mut self, welcomed: Welcomed, reports: mpsc::Sender<v1::NodeReport>) {
        let Welcomed { store_id, adopts, endpoints_known, controller } = welcomed;
        if adopts || self.desired.store_id != store_id {
            self.attachments.forget_identities();
            if let Err(error) = self.attachments.store(&self.disk) {
                self.failed(&error);
            }
        }
        if adopts {
            warn!(%store_id, former = %self.desired.store_id, "adopted: the state of this store is taken in");
            // Until all of it is here the former state is enforced, and is what this node holds.
            self.adopting = Some(store_id);
            self.attachments.begin_anew();
        } else {
            self.desired.store_id = store_id;
        }
        self.unconnected = None;
        self.connection = Some(Connection { controller, reports });
        let mut now = self.reports();
        if endpoints_known && digest(&now) == self.told {
            // One whose answer was lost is told of again: it waits for it.
            now.retain(|name, _| self.is_taken_in(name));
            self.reported = now;
        } else {
            self.begin_to_report();
        }
        self.set_right.clear();
        self.report_endpoints();
        self.begin_to_report_health();
    }

    /// The controller is told of all endpoints.
    fn begin_to_report(&mut self) {
        // A name that was given to another workload since: the former bearer ends before the new one is told of.
        let gone: Vec<String> = self.attachments.gone.iter().cloned().collect();
        for name in gone {
            if !self.is_taken_in(&name) {
                let instance = String::new();
                self.report(Report::EndpointGone(v1::EndpointGone { name, instance }));
            }
        }
        let names = self.attachments.endpoints.keys().cloned().collect();
        self.report(Report::Inventory(v1::EndpointInventory { names }));
        self.reported.clear();
    }

    /// Whether a controller has accepted the endpoint of this name.
    fn is_taken_in(&self, name: &str) -> bool {
        self.attachments.endpoints.get(name).is_some_and(|own| own.accepted.is_some())
    }

    /// What was said on an earlier stream may have been stored late, over what was said since. Where the controllers'
    /// word is not about what this node has, they are told again, once for each such word.
    pub(super) fn set_right(&mut self) {
        if self.connection.is_none() || !self.synced {
            return;
        }
        let words = self.desired.endpoints();
        let strays = words.iter().filter(|(name, _)| !self.attachments.endpoints.contains_key(*name));
        let mut wrong: BTreeMap<String, Option<EndpointWord>> =
            strays.map(|(name, word)| (name.clone(), Some(word.clone()))).collect();
        for own in self.attachments.endpoints.values() {
            let told = own.accepted.is_some_and(|accepted| self.desired.revision >= accepted);
            match words.get(&own.name) {
                Some(word) if !own.is_meant_by(&word.instance) => {
                    wrong.insert(own.name.clone(), Some(word.clone()));
                }
                None if told => drop(wrong.insert(own.name.clone(), None)),
                _ => {}
            }
        }
        for (name, word) in &wrong {
            if self.set_right.get(name) == Some(word) {
                continue;
            }
            info!(endpoint = %name, "what the controller says of it is not so any more: it is told again");
            if self.attachments.endpoints.contains_key(name) {
                self.reported.remove(name);
            } else {
                let instance = word.as_ref().map(|word| word.instance.clone()).unwrap_or_default();
                self.report(Report::EndpointGone(v1::EndpointGone { name: name.clone(), instance }));
            }
        }
        self.set_right = wrong;
    }

    /// Reports each endpoint whose state the controller was not told yet.
    pub(super) fn report_endpoints(&mut self) {
        if self.connection.is_none() {
            return;
        }
        for (name, endpoint) in self.reports() {
            if self.reported.get(&name) != Some(&endpoint) {
                self.reported.insert(name, endpoint.clone());
                self.report(Report::Endpoint(v1::EndpointReport { endpoint: Some(endpoint) }));
            }
        }
    }

    /// What there is to report of each endpoint, by their names.
    fn reports(&self) -> BTreeMap<String, v1::Endpoint> {
        let of = |own: &Attachment| {
            let mut endpoint = self.endpoint(own);
            if let Some(status) = &mut endpoint.status {
                // The controller knows the identity; why an endpoint is not ready yet changes often and is told locally.
                let failed = status.state() == v1::EndpointState::Failed;
                let reason = if failed { std::mem::take(&mut status.reason) } else { String::new() };
                *status = v1::EndpointStatus { identity: 0, state: status.state, reason };
            }
            endpoint
        };
        self.attachments.endpoints.iter().map(|(name, own)| (name.clone(), of(own))).collect()
    }

    pub(super) fn report(&mut self, report: Report) {
        let Some(connection) = &self.connection else { return };
        let report = v1::NodeReport { report: Some(report) };
        if connection.reports.try_send(report).is_err() {
            // Everything is reported again on the next stream.
            warn!("the stream does not take reports; it is ended");
            self.connection = None;
        }
    }

    pub(super) fn endpoint(&self, own: &Attachment) -> v1::Endpoint {
        let row = self.actual.endpoints.get(&own.ifindex);
        let open = row.is_some_and(|row| row.flags & endpoint_flags::OPEN != 0);
        let (state, reason) = match row.and_then(|row| self.closed.get(&row.identity)) {
            Some(why) => (v1::EndpointState::Failed, why.clone()),
            None if open => (v1::EndpointState::Ready, String::new()),
            None => (v1::EndpointState::Init, self.why_not_open(own)),
        };
        v1::Endpoint {
            metadata: Some(v1::Metadata {
                name: own.name.clone(),
                labels: own.labels.clone().into_iter().collect(),
                ..v1::Metadata::default()
            }),
            node: self.settings.node.clone(),
            attachment: Some(v1::Attachment {
                interface: own.interface.clone(),
                netns: own.netns.clone(),
                container_id: own.container_id.clone(),
                instance: own.instance.clone(),
            }),
            addresses: own.addresses().map(|address| address.to_string()).collect(),
            mac: mac_text(own.mac),
            limits: (own.ingress_bits_per_second.is_some() || own.egress_bits_per_second.is_some())
                .then_some(v1::EndpointLimits {
                    ingress_bits_per_second: own.ingress_bits_per_second,
                    egress_bits_per_second: own.egress_bits_per_second,
                }),
            status: Some(v1::EndpointStatus {
                identity: row.map_or(0, |row| row.identity),
                state: state.into(),
                reason,
            }),
        }
    }

    fn why_not_open(&self, own: &Attachment) -> String {
        if let Some(failure) = &self.failure {
            return format!("its policy could not be written: {failure}");
        }
        match (&self.unconnected, own.accepted) {
            (Some(why), None) => format!("no controller can be reached: {why}"),
            (None, None) => "the controller has not answered yet".to_owned(),
            (_, Some(_)) => match self.attachments.word(own, self.desired.endpoints()) {
                None => "the controller has not classified it yet".to_owned(),
                Some(word) if !word.open => "other nodes have not realised it yet".to_owned(),
                Some(_) => "its policy is not realised yet".to_owned(),
            },
        }
    }

    pub(super) async fn answer(&mut self, answer: v1::EndpointAnswer) {
        let Some(own) = self.attachments.endpoints.get_mut(&answer.name) else { return };
        if !own.is_meant_by(&answer.instance) {
            // The name had another bearer when this was said.
            return;
        }
        if !answer.accepted {
            warn!(endpoint = %answer.name, reason = %answer.reason, "the controller refuses the endpoint");
            let taken = answer.reason.contains("taken") || answer.reason.contains("exists");
            // Only one that never was taken in (on credit, too: its name or address is another's): a running workload is not torn down by a late refusal.
            if own.accepted.is_none() {
                if self.refused.len() >= ENDPOINTS_MAX {
                    // Callers that never asked.
                    self.refused.clear();
                }
                self.refused.insert(answer.name.clone(), Refusal { reason: answer.reason, taken });
                if let Err(error) = self.detach(&answer.name).await {
                    warn!(endpoint = %answer.name, %error, "the refused endpoint is not torn down");
                }
            }
            self.changed.send_modify(|changes| *changes += 1);
            return;
        }
        if own.accepted.is_none() {
            info!(endpoint = %answer.name, revision = answer.revision, "the controller took the endpoint in");
            own.accepted = Some(answer.revision);
            if let Err(error) = self.attachments.store(&self.disk) {
                self.failure = Some(error.to_string());
            }
            self.mend_now();
        }
    }

    /// Writes what an answer or an attachment changed.
    fn mend_now(&mut self) {
        match self.write_kernel() {
            Ok(()) => self.after_change(),
            Err(error) => {
                warn!(%error, "the kernel refuses; tried again");
                self.failure = Some(error.to_string());
            }
        }
    }
}

/// Of all reports together.
fn digest(reports: &BTreeMap<String, v1::Endpoint>) -> Digest {
    let mut sum = Digest::default();
    for report in reports.values() {
        sum += Digest::of_report(report);
    }
    sum
}
