//! A node as the store and the controller know it, in one.
use std::fmt::Write;

use serde_json::{Value, json};
use weft_proto::v1::{self, object::Kind as K};
use weft_shared::version::Release;

use crate::{
    manifest,
    output::{self, count, labels, time},
};

pub(super) struct View {
    node: v1::Node,
    status: v1::NodeStatus,
    summary: v1::NodeSummary,
    /// Revisions that it has not realised.
    behind: u64,
    /// Than the controller that answers.
    newer: bool,
}

impl View {
    /// `None`: not a node, or one that was removed since it was read.
    pub(super) fn new(object: v1::Object, fleet: &v1::FleetStatusResponse) -> Option<Self> {
        let Some(K::Node(node)) = object.kind else { return None };
        let name = &node.metadata.as_ref()?.name;
        let summary = fleet.nodes.iter().find(|summary| summary.name == *name)?.clone();
        let status = node.status.clone().unwrap_or_default();
        let behind = fleet.revision.saturating_sub(summary.realised_revision);
        let newer = is_newer(&status.version, &fleet.version);
        Some(Self { node, status, summary, behind, newer })
    }

    pub(super) fn value(&self) -> Value {
        let mut value = manifest::answer("NodeSummary", &self.summary);
        let metadata = self.node.metadata.clone().unwrap_or_default();
        let capabilities = self.status.capabilities.clone().unwrap_or_default();
        value["controller"] = json!(self.status.controller);
        value["version"] = json!(self.status.version);
        value["features"] = json!(self.status.features);
        value["capabilities"] = manifest::answer("NodeCapabilities", &capabilities);
        value["bootId"] = json!(self.status.boot_id);
        value["addresses"] = json!(self.node.addresses);
        value["endpointCidrs"] = json!(self.node.endpoint_cidrs);
        value["identity"] = json!(self.status.identity);
        value["labels"] = json!(metadata.labels);
        value["behind"] = json!(self.behind);
        value
    }

    fn last_apply(&self) -> String {
        let took = self.summary.last_apply.and_then(|took| std::time::Duration::try_from(took).ok());
        took.map(|took| format!("{:.1} ms", took.as_secs_f64() * 1e3)).unwrap_or_default()
    }

    fn expires_in(&self) -> Option<std::time::Duration> {
        self.summary.expires_in.and_then(|left| left.try_into().ok())
    }

    fn last_seen(&self) -> String {
        self.summary.last_seen.map(time).unwrap_or_default()
    }

    fn ready(&self) -> String {
        format!("{}/{}", self.summary.endpoints_ready, self.summary.endpoints)
    }

    /// Everything but its endpoints and rejections, a line each.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let capabilities = self.status.capabilities.clone().unwrap_or_default();
        let metadata = self.node.metadata.clone().unwrap_or_default();
        let mut line = |name: &str, value: &str| {
            let value = if value.is_empty() { "-" } else { value };
            // Writing to a String never fails.
            let _ = writeln!(text, "{name:<16}{value}");
        };
        line("name", &metadata.name);
        let connected = match (self.summary.connected, self.status.controller.as_str()) {
            (false, _) => match self.expires_in() {
                None => "no".to_owned(),
                Some(left) => format!("no, is removed in {} s if it stays away", left.as_secs()),
            },
            (true, "") => "yes".to_owned(),
            (true, controller) => format!("yes, to {controller}"),
        };
        line("connected", &connected);
        line("last seen", &self.last_seen());
        let newer = if self.newer { ", newer than the controller: upgrade controllers first" } else { "" };
        line("version", &format!("{}{newer}", self.status.version));
        line("features", &self.status.features.join(", "));
        line("kernel", &kernel(&capabilities));
        line("boot id", &self.status.boot_id);
        line("addresses", &self.node.addresses.join(", "));
        line("endpoint CIDRs", &self.node.endpoint_cidrs.join(", "));
        line("identity", &self.status.identity.to_string());
        line("labels", &labels(&metadata.labels));
        let behind = match self.behind {
            0 => String::new(),
            behind => format!(", {} behind", count(behind, "revision", "revisions")),
        };
        line("realised", &format!("revision {}{behind}", self.summary.realised_revision));
        line("last apply", &self.last_apply());
        line("endpoints ready", &self.ready());
        text
    }

    pub(super) fn rejections(&self) -> String {
        let mut text = String::new();
        for v1::Rejection { r#type, name, reason } in &self.summary.rejections {
            // Writing to a String never fails.
            let _ = writeln!(text, "\nrejected {type} {name}: {reason}");
        }
        text
    }
}

/// What is not a version is not compared.
fn is_newer(node: &str, controller: &str) -> bool {
    let releases = node.parse::<Release>().ok().zip(controller.parse::<Release>().ok());
    releases.is_some_and(|(node, controller)| node > controller)
}

fn kernel(capabilities: &v1::NodeCapabilities) -> String {
    let has = |there: bool, name: &str| format!("{}{name}", if there { "" } else { "no " });
    let v1::NodeCapabilities { kernel, btf, tcx, esp, .. } = capabilities;
    if kernel.is_empty() {
        return String::new();
    }
    format!("{kernel} ({}, {}, {})", has(*btf, "BTF"), has(*tcx, "TCX"), has(*esp, "ESP"))
}

pub(super) fn table(nodes: &[View]) -> String {
    let rows = nodes.iter().map(|view| {
        let zero_is_nothing = |number: u64| if number == 0 { String::new() } else { number.to_string() };
        [
            view.summary.name.clone(),
            if view.summary.connected { "yes" } else { "no" }.to_owned(),
            view.status.controller.clone(),
            view.status.version.clone(),
            view.status.capabilities.clone().unwrap_or_default().kernel,
            view.node.addresses.join(","),
            view.ready(),
            view.summary.realised_revision.to_string(),
            zero_is_nothing(view.behind),
            zero_is_nothing(view.summary.rejections.len() as u64),
            view.last_seen(),
        ]
    });
    let header = [
        "NODE",
        "CONNECTED",
        "CONTROLLER",
        "VERSION",
        "KERNEL",
        "ADDRESSES",
        "ENDPOINTS READY",
        "REALISED",
        "BEHIND",
        "REJECTED",
        "LAST SEEN",
    ];
    output::table(header, rows)
}
