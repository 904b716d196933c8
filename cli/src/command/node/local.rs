//! What this node's daemon says of itself: its state, and the rows of its maps.
use std::fmt::Write;

use serde_json::json;
use weft_proto::v1;

use crate::{
    arguments::Socket,
    client::{self, request},
    command::Global,
    failure::Failure,
    manifest,
    output::{count, note, table, time},
};

/// Show what the daemon of this node says of itself: problems, drops, how full its maps are
///
/// Run it on the node. Exit code 1 if there are problems; they are in the output all the same.
///
/// JSON: the fields of the message `StatusResponse`, drops and maps among them.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    #[command(flatten)]
    socket: Socket,
}

/// Show the rows of one of the kernel's maps on this node, as they are just now
///
/// Run it on the node. JSON: {items: [{key, value}…]}.
#[derive(Debug, clap::Args)]
pub(crate) struct Map {
    /// Such as endpoints, ipcache, subjects or rules; a name that there is not is answered with all names
    name: String,
    #[command(flatten)]
    socket: Socket,
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut node = client::node_local(&self.socket.path).await?;
        let answer = node.client.status(request(v1::StatusRequest {})).await;
        let status = answer.map_err(|status| node.remote.failure(&status))?.into_inner();
        global.output.write(|| text(&status), || manifest::answer("StatusResponse", &status))?;
        match status.problems.len() {
            0 => Ok(()),
            problems => Err(Failure::Failed(format!(
                "node {} has {}",
                status.node,
                count(problems, "problem", "problems")
            ))),
        }
    }
}

fn text(status: &v1::StatusResponse) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String never fails.
        let _ = writeln!(text, "{name:<20}{value}");
    };
    line("node", status.node.clone());
    line("version", status.version.clone());
    let controller = if status.connected { status.controller.clone() } else { "not connected".to_owned() };
    line("controller", controller);
    line("realised revision", status.realised_revision.to_string());
    line("identities through", status.identities_through.to_string());
    line("endpoints", status.endpoints.to_string());
    line("maps", format!("{} KiB", status.map_bytes / 1024));
    if let Some(flows) = &status.flows {
        let v1::FlowTable { entries, capacity } = flows;
        line("flows", format!("{entries} of {capacity}"));
    }
    line("events lost", status.events_lost.to_string());
    for device in status.capabilities.iter().flat_map(|capabilities| &capabilities.devices) {
        line("uplink", format!("{}, XDP: {}", device.name, xdp(device.xdp())));
    }
    for problem in &status.problems {
        line("problem", problem.clone());
    }
    for repair in &status.repairs {
        let last = repair.last.map(time).unwrap_or_default();
        line("repaired", format!("{}: {}, last {last}", repair.what, count(repair.times, "time", "times")));
    }
    let (maps, drops) = (maps(&status.maps), drops(&status.drops));
    text + "\n" + &maps + "\n" + &prefilters(&status.prefilters) + &round_trips(&status.round_trips) + &drops
}

fn maps(maps: &[v1::MapFill]) -> String {
    let rows = maps.iter().map(|map| {
        let percent = (map.entries * 100).checked_div(map.capacity).unwrap_or_default();
        [map.name.clone(), map.entries.to_string(), map.capacity.to_string(), format!("{percent} %")]
    });
    table(["MAP", "ENTRIES", "CAPACITY", "FULL"], rows)
}

/// Where the program of a device runs.
const fn xdp(mode: v1::XdpMode) -> &'static str {
    match mode {
        v1::XdpMode::Unspecified => "not known",
        v1::XdpMode::None => "no program",
        v1::XdpMode::Generic => "generic",
        v1::XdpMode::Native => "native",
    }
}

/// Nothing, where there are none.
fn prefilters(prefilters: &[v1::PrefilterDrops]) -> String {
    if prefilters.is_empty() {
        return String::new();
    }
    let rows = prefilters.iter().map(|list| {
        let numbers =
            [list.prefixes, list.arp_senders, list.packets, list.bytes].map(|number| number.to_string());
        let [prefixes, senders, packets, bytes] = numbers;
        [list.name.clone(), prefixes, senders, packets, bytes]
    });
    table(["PREFILTER", "PREFIXES", "ARP SENDERS", "DROPPED", "BYTES"], rows) + "\n"
}

/// Nothing, where none were measured.
fn round_trips(pairs: &[v1::RoundTrips]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let rows = pairs.iter().map(|pair| {
        let mean = format!("{}.{:03} ms", pair.mean_microseconds / 1000, pair.mean_microseconds % 1000);
        [pair.local_identity.to_string(), pair.remote_identity.to_string(), pair.samples.to_string(), mean]
    });
    table(["IDENTITY", "PEER", "ROUND TRIPS", "MEAN"], rows) + "\n"
}

/// Most packets first. Reasons that are no drops are among them: what was delivered, and whereto.
fn drops(drops: &[v1::DropCount]) -> String {
    let mut drops: Vec<_> = drops.iter().filter(|count| count.packets > 0).collect();
    drops.sort_by_key(|count| std::cmp::Reverse(count.packets));
    let rows = drops.into_iter().map(|count| {
        [count.reason.clone(), count.point.clone(), count.packets.to_string(), count.bytes.to_string()]
    });
    table(["OUTCOME", "AT", "PACKETS", "BYTES"], rows)
}

impl Map {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut node = client::node_local(&self.socket.path).await?;
        let answer = node.client.dump_map(request(v1::DumpMapRequest { map: self.name.clone() })).await;
        let mut answers = answer.map_err(|status| node.remote.failure(&status))?.into_inner();
        let mut rows = Vec::new();
        while let Some(row) = answers.message().await.map_err(|status| node.remote.failure(&status))? {
            rows.push(row);
        }
        if rows.is_empty() {
            note(&format!("the map {} is empty", self.name));
        }
        let text = || table(["KEY", "VALUE"], rows.iter().map(|row| [row.key.clone(), row.value.clone()]));
        let items = || rows.iter().map(|row| json!({"key": row.key, "value": row.value})).collect::<Vec<_>>();
        global.output.write(text, || json!({"items": items()}))
    }
}
