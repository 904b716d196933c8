//! `weft fleet`: the fleet as a whole.
use std::fmt::Write;

use weft_proto::v1;

use super::Global;
use crate::{
    client::{self, request},
    failure::Failure,
    manifest,
    output::{count, table, time},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Fleet {
    /// Show the store, the nodes, and how far each has come
    ///
    /// JSON: {storeId, revision, nodes: [{name, connected, realisedRevision, endpoints, endpointsReady, rejections,
    /// lastApplyMilliseconds, lastSeen}], endpoints, identities, policies, version, store, waitingForAdoption: [{name,
    /// storeId, revision, identitiesThrough, digest}]}.
    Status,
    /// Let nodes take this store's word: those that hold the state of another store, or of a later revision of this one
    ///
    /// Such a node changes nothing and enforces what it has, because the store may be empty, another fleet's, or restored from
    /// an old backup. `weft fleet status` lists them. Adopt all nodes of a former fleet together: until the last has come,
    /// they number identities differently. A node comes within 15 s.
    ///
    /// JSON: {adopted: [{name, storeId, revision, identitiesThrough, digest}]}.
    Adopt {
        /// Names of nodes that wait for it
        #[arg(value_name = "NODE", required_unless_present = "all")]
        nodes: Vec<String>,
        /// All that wait
        #[arg(long, conflicts_with = "nodes")]
        all: bool,
    },
}

impl Fleet {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Status => status(global).await,
            Self::Adopt { nodes, all } => adopt(global, nodes, all).await,
        }
    }
}

async fn status(global: &Global) -> Result<(), Failure> {
    let mut operator = client::operator(&global.server).await?;
    let answer = operator.client.fleet_status(request(v1::FleetStatusRequest {})).await;
    let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
    global.output.write(|| text(&answer), || manifest::answer("FleetStatusResponse", &answer))
}

async fn adopt(global: &Global, nodes: Vec<String>, all: bool) -> Result<(), Failure> {
    let mut operator = client::operator(&global.server).await?;
    let answer = operator.client.fleet_adopt(request(v1::FleetAdoptRequest { nodes, all })).await;
    let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
    global.output.write(
        || match answer.adopted.len() {
            0 => "no node waits for adoption\n".to_owned(),
            _ => waiting(&answer.adopted),
        },
        || manifest::answer("FleetAdoptResponse", &answer),
    )
}

fn waiting(nodes: &[v1::WaitingNode]) -> String {
    let rows = nodes.iter().map(|node| [node.name.clone(), node.store_id.clone(), node.revision.to_string()]);
    table(["NODE", "HOLDS STORE", "REVISION"], rows)
}

fn text(answer: &v1::FleetStatusResponse) -> String {
    let mut text = String::new();
    // Writing to a String never fails.
    let _ = writeln!(text, "controller  {}, {} store {}", answer.version, answer.store, answer.store_id);
    let _ = writeln!(text, "revision    {}", answer.revision);
    let _ = writeln!(
        text,
        "holds       {}, {}, {}, {}",
        count(answer.policies, "policy", "policies"),
        count(answer.endpoints, "endpoint", "endpoints"),
        count(answer.identities, "identity", "identities"),
        count(answer.nodes.len(), "node", "nodes"),
    );
    if !answer.nodes.is_empty() {
        text.push('\n');
        text.push_str(&nodes(&answer.nodes));
    }
    if !answer.waiting_for_adoption.is_empty() {
        text.push_str("\nThese nodes hold another state and change nothing until they are adopted (weft fleet adopt):\n");
        text.push_str(&waiting(&answer.waiting_for_adoption));
    }
    for node in &answer.nodes {
        for rejection in &node.rejections {
            let v1::Rejection { r#type, name, reason } = rejection;
            let _ = writeln!(text, "\n{} rejected {type} {name}: {reason}", node.name);
        }
    }
    text
}

fn nodes(nodes: &[v1::NodeSummary]) -> String {
    let rows = nodes.iter().map(|node| {
        let took = node.last_apply.and_then(|took| std::time::Duration::try_from(took).ok());
        [
            node.name.clone(),
            if node.connected { "yes" } else { "no" }.to_owned(),
            node.realised_revision.to_string(),
            format!("{}/{}", node.endpoints_ready, node.endpoints),
            took.map(|took| format!("{:.1} ms", took.as_secs_f64() * 1e3)).unwrap_or_default(),
            if node.rejections.is_empty() { String::new() } else { node.rejections.len().to_string() },
            node.last_seen.map(time).unwrap_or_default(),
        ]
    });
    table(["NODE", "CONNECTED", "REALISED", "ENDPOINTS READY", "LAST APPLY", "REJECTED", "LAST SEEN"], rows)
}
