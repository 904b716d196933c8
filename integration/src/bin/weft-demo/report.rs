//! What the demo found, as a table for people and as JSON for machines.
use std::{fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use weft_integration::{fleet::Fleet, traffic::Protocol};

use crate::{flows::Tried, outage::Outage, revocation::Revocation};

const MIB: f64 = 1_048_576.0;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    store: String,
    nodes: usize,
    endpoints: u64,
    flows: Vec<Row>,
    /// From the store's commit to the last node's acknowledgement.
    apply_to_realised_ms: f64,
    /// See [`Revocation::milliseconds`].
    revocation_ms: f64,
    #[serde(flatten)]
    outages: Outages,
    daemon_rss_mib: Vec<f64>,
    /// Of the daemons' BPF maps in the kernel.
    daemon_map_mib: Vec<f64>,
    controller_rss_mib: f64,
}

/// What became of traffic while parts of Weft were gone.
#[derive(Debug, Serialize)]
pub(crate) struct Outages {
    pub(crate) daemon_kill: Outage,
    pub(crate) controller_stop: Outage,
    /// Where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) etcd_kill: Option<Outage>,
}

impl Outages {
    fn named(&self) -> impl Iterator<Item = (&'static str, &Outage)> {
        let always = [("daemon killed", &self.daemon_kill), ("controller stopped", &self.controller_stop)];
        always.into_iter().chain(self.etcd_kill.as_ref().map(|etcd| ("etcd killed", etcd)))
    }
}

#[derive(Debug, Serialize)]
struct Row {
    from: &'static str,
    to: &'static str,
    family: u8,
    protocol: &'static str,
    /// Of an echo: 0.
    port: u16,
    expected: String,
    observed: String,
}

impl Report {
    pub(crate) fn gather(
        fleet: &Fleet,
        flows: &[Tried],
        apply_to_realised_ms: f64,
        revocation: &Revocation,
        outages: Outages,
    ) -> Result<Self> {
        let status = fleet.weft(&["fleet", "status", "--output", "json"])?.success()?.json()?;
        let nodes = fleet.nodes();
        let resident = nodes.iter().map(|node| node.process()?.resident_mib());
        // Megabytes at most: exact in a float.
        #[expect(clippy::cast_precision_loss, reason = "maps are far below 2^52 bytes")]
        let maps = nodes.iter().map(|node| Ok(node.status()?.map_bytes as f64 / MIB));
        Ok(Self {
            store: status["store"].as_str().context("no store in the status")?.to_owned(),
            nodes: nodes.len(),
            endpoints: status["endpoints"].as_u64().context("no endpoints in the status")?,
            flows: flows.iter().map(row).collect(),
            apply_to_realised_ms,
            revocation_ms: revocation.milliseconds,
            outages,
            daemon_rss_mib: resident.collect::<Result<_>>()?,
            daemon_map_mib: maps.collect::<Result<_>>()?,
            controller_rss_mib: fleet.controller().process()?.resident_mib()?,
        })
    }

    pub(crate) fn as_expected(&self) -> bool {
        self.flows.iter().all(|flow| flow.expected == flow.observed)
            && self.outages.named().all(|(_, outage)| outage.as_expected())
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn summary(&self) -> String {
        let right = self.flows.iter().filter(|flow| flow.expected == flow.observed).count();
        let mib = |all: &[f64]| all.iter().map(|one| format!("{one:.1}")).collect::<Vec<_>>().join(", ");
        let mut table = new_table(["", ""]);
        let mut row = |name: &str, value: String| {
            table.add_row([name.to_owned(), value]);
        };
        row("flows as expected", format!("{right} of {}", self.flows.len()));
        row("apply to realised", format!("{:.1} ms", self.apply_to_realised_ms));
        row(
            "established connection revoked",
            format!("{:.1} ms after apply was started", self.revocation_ms),
        );
        for (what, outage) in self.outages.named() {
            row(&format!("{what}: connections survived"), outage.established_survived.to_string());
            row(&format!("{what}: packets lost"), outage.packets_lost.to_string());
            row(&format!("{what}: denied stayed denied"), outage.denied_stayed_denied.to_string());
        }
        row("daemons, resident MiB", mib(&self.daemon_rss_mib));
        row("daemons, maps MiB", mib(&self.daemon_map_mib));
        row("controller, resident MiB", mib(&[self.controller_rss_mib]));
        table.to_string()
    }
}

/// The flows, tried and expected, those that differ marked.
pub(crate) fn table(flows: &[Tried]) -> String {
    let mut table = new_table(["from", "to", "family", "flow", "expected", "observed", "", "because"]);
    for flow in flows {
        let (protocol, port) = named(flow.protocol, flow.family);
        let what = if port == 0 { format!("{protocol} echo") } else { format!("{protocol}/{port}") };
        let (expected, observed) = (flow.expected.to_string(), flow.observed.to_string());
        let mark = if expected == observed { "" } else { "DIFFERS" };
        let family = format!("IPv{}", flow.family);
        table.add_row([flow.from, flow.to, &family, &what, &expected, &observed, mark, flow.why]);
    }
    table.to_string()
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

fn row(flow: &Tried) -> Row {
    let (protocol, port) = named(flow.protocol, flow.family);
    Row {
        from: flow.from,
        to: flow.to,
        family: flow.family,
        protocol,
        port,
        expected: flow.expected.to_string(),
        observed: flow.observed.to_string(),
    }
}

fn named(protocol: Protocol, family: u8) -> (&'static str, u16) {
    match protocol {
        Protocol::Tcp(port) | Protocol::Http(port) => ("tcp", port),
        Protocol::Udp(port) => ("udp", port),
        Protocol::Echo if family == 4 => ("icmp", 0),
        Protocol::Echo => ("icmpv6", 0),
    }
}
