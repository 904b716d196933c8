//! `weft node rm`: a node that will not come back.
use std::io::{self, BufRead, IsTerminal, Write};

use weft_proto::v1;

use super::super::{Global, delete::delete, wait::WaitFlags};
use crate::{client, failure::Failure, output::count};

/// Remove a node that is lost, with its endpoints: their names and addresses are free again
///
/// A node that is connected is refused: stop its daemon first. On a terminal it asks before. A removed node that comes
/// again is a new one.
///
/// JSON: {revision}; with --wait also realised, as of `weft apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    name: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Remove only if no resource that operators write has changed after this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    #[command(flatten)]
    waiting: WaitFlags,
}

impl Remove {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut operator = client::operator(&global.server).await?;
        let fleet = super::fleet(&mut operator).await?;
        let node = fleet.nodes.into_iter().find(|node| node.name == self.name);
        // A connected node and one that is not there are refused by the server; there is nothing to ask about.
        let to_go = node.filter(|node| !node.connected);
        let endpoints = to_go.as_ref().map_or(0, |node| node.endpoints);
        let ask = to_go.is_some() && !self.yes && io::stdin().is_terminal();
        if ask && !confirmed(&self.name, endpoints)? {
            return Err(Failure::Failed(format!("node {} was not removed", self.name)));
        }
        let message = v1::DeleteRequest {
            kind: v1::Kind::Node.into(),
            name: self.name.clone(),
            if_revision: self.if_revision,
        };
        let with = count(endpoints, "endpoint", "endpoints");
        let said = format!("node {} removed, with {with}", self.name);
        delete(&mut operator, global, message, &self.waiting, &said).await
    }
}

fn confirmed(name: &str, endpoints: u32) -> Result<bool, Failure> {
    let endpoints = count(endpoints, "endpoint", "endpoints");
    let mut out = io::stderr().lock();
    write!(out, "Remove node {name} and its {endpoints}? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
