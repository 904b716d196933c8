//! What this node's kernel holds of a service.
use std::fmt::Write;

use weft_proto::v1;

use crate::{
    arguments::Socket,
    client::{self, request},
    command::{
        Global,
        service::{algorithm, forwarding},
    },
    failure::Failure,
    manifest,
    output::{frontends, note, place, table},
};

/// Show a service as this node's kernel has it just now: where each frontend leads, and the tables, backend by backend
///
/// Run it on the node. Exit code 1 if the node could not realise the service as it was told last; what there is is in the
/// output all the same.
///
/// JSON: {frontends: [{frontend, ipv6, inside, outside}], tables: [{slot, maglevSlots, algorithm, forwardingMode, sources,
/// affinitySeconds, backends: [{address, port, weight, newFlows, local, slots, shareBasisPoints}], endConnections}], rejected}; inside: the
/// table for flows that begin on the node, by its slot; outside: for those from elsewhere; 0: the frontend is not in the
/// kernel; port 0: the frontend's; slots: counted in the table; local: an endpoint of this node.
#[derive(Debug, clap::Args)]
pub(crate) struct Service {
    name: String,
    #[command(flatten)]
    socket: Socket,
}

impl Service {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut node = client::node_local(&self.socket.path).await?;
        let asked = v1::ServiceTablesRequest { name: self.name.clone() };
        let answer = node.client.service_tables(request(asked)).await;
        let held = answer.map_err(|status| node.remote.failure(&status))?.into_inner();
        if held.frontends.is_empty() {
            note(&format!("the kernel has nothing of service {}", self.name));
        }
        global.output.write(|| text(&held), || manifest::answer("ServiceTablesResponse", &held))?;
        if held.rejected.is_empty() {
            return Ok(());
        }
        Err(Failure::Failed(format!("service {} is not what it should be: {}", self.name, held.rejected)))
    }
}

fn text(held: &v1::ServiceTablesResponse) -> String {
    if held.frontends.is_empty() {
        return String::new();
    }
    let slot = |slot: u32| if slot == 0 { "none".to_owned() } else { format!("table {slot}") };
    let rows = held.frontends.iter().map(|row| {
        let family = if row.ipv6 { "IPv6" } else { "IPv4" };
        [frontends(row.frontend.as_slice()), family.to_owned(), slot(row.inside), slot(row.outside)]
    });
    let mut text = table(["FRONTEND", "FAMILY", "FROM THIS NODE", "FROM ELSEWHERE"], rows);
    for table in &held.tables {
        // Writing to a String never fails.
        let _ = write!(text, "\n{}\n{}", heading(table), backends(&table.backends));
    }
    text
}

fn heading(table: &v1::ServiceTable) -> String {
    let (algorithm, forwarding) = (algorithm(table.algorithm()), forwarding(table.forwarding_mode()));
    let mut text = format!("table {}: {algorithm}, {forwarding}", table.slot);
    if table.affinity_seconds > 0 {
        let _ = write!(text, ", affinity {} s", table.affinity_seconds);
    }
    if table.sources {
        text.push_str(", sources are judged");
    }
    if table.end_connections {
        text.push_str(", ends connections");
    }
    match table.maglev_slots {
        0 => text.push_str(", rejecting: nobody takes new flows"),
        1 => text.push_str(", 1 slot"),
        slots => drop(write!(text, ", {slots} slots")),
    }
    text
}

fn backends(backends: &[v1::TableBackend]) -> String {
    let rows = backends.iter().map(|backend| {
        let share = f64::from(backend.share_basis_points) / 100.0;
        [
            place(&backend.address, backend.port),
            backend.weight.to_string(),
            if backend.new_flows { "takes new flows" } else { "keeps its flows" }.to_owned(),
            if backend.local { "this node" } else { "elsewhere" }.to_owned(),
            backend.slots.to_string(),
            format!("{share:.2}%"),
        ]
    });
    table(["BACKEND", "WEIGHT", "FLOWS", "ON", "SLOTS", "SHARE"], rows)
}
