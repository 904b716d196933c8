//! Waiting until every affected node has written a revision to its kernel.
use std::{fmt::Write, time::Duration};

use tonic::{Code, Status};
use weft_proto::v1;

use crate::{
    client::{Operator, request, timed_out, with_deadline},
    failure::Failure,
    limits::DEADLINE_GRACE,
    output::Progress,
};

/// The flags of a command that can wait for the fleet.
#[derive(Debug, clap::Args)]
pub(super) struct WaitFlags {
    /// Wait until every affected node has realised the change: exit 1 if one rejects it, 3 if it takes too long
    #[arg(long)]
    pub(super) wait: bool,
    #[command(flatten)]
    pub(super) limit: crate::arguments::Timeout,
}

/// What was last known, also when waiting failed.
pub(super) struct Waited {
    pub(super) last: v1::WaitRealisedResponse,
    pub(super) outcome: Result<(), Failure>,
}

pub(super) async fn realised(operator: &mut Operator, revision: u64, timeout: Duration) -> Waited {
    let mut last = v1::WaitRealisedResponse::default();
    let progress = Progress::new("Realising", "nodes");
    // The server keeps the deadline and says whom it waited for; the grace is for a server that hangs.
    let follow = follow(operator, revision, timeout, &progress, &mut last);
    let ended = tokio::time::timeout(timeout + DEADLINE_GRACE, follow).await;
    drop(progress);
    let outcome = match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
            Err(rejected(operator, &status).await)
        }
        Ok(Err(status)) if !timed_out(&status) => Err(operator.remote.failure(&status)),
        Ok(Err(_)) | Err(_) => Err(late(operator, revision, timeout, &last).await),
    };
    Waited { last, outcome }
}

async fn follow(
    operator: &mut Operator,
    revision: u64,
    timeout: Duration,
    progress: &Progress,
    last: &mut v1::WaitRealisedResponse,
) -> Result<(), Status> {
    let wire_timeout = prost_types::Duration::try_from(timeout).ok();
    let message = v1::WaitRealisedRequest { revision, timeout: wire_timeout };
    let request = with_deadline(message, timeout + DEADLINE_GRACE);
    let mut answers = operator.client.wait_realised(request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        progress.set(answer.realised.into(), answer.nodes.into(), waiting_for(&answer));
        *last = answer;
        if last.done {
            return Ok(());
        }
    }
    Err(Status::unavailable("the server stopped answering before the revision was realised"))
}

fn waiting_for(answer: &v1::WaitRealisedResponse) -> String {
    if answer.waiting_for.is_empty() {
        String::new()
    } else {
        format!("waiting for {}", answer.waiting_for.join(", "))
    }
}

async fn late(
    operator: &mut Operator,
    revision: u64,
    timeout: Duration,
    last: &v1::WaitRealisedResponse,
) -> Failure {
    let mut waiting = String::new();
    if !last.waiting_for.is_empty() {
        let away = not_connected(operator).await;
        let shown = |name: &String| {
            if away.contains(name) { format!("{name} (not connected)") } else { name.clone() }
        };
        let names: Vec<_> = last.waiting_for.iter().map(shown).collect();
        waiting = format!(", waiting for {}", names.join(", "));
    }
    Failure::TimedOut(format!(
        "revision {revision} was applied but not realised everywhere within {timeout:?}: {} of {} nodes{waiting}",
        last.realised, last.nodes
    ))
}

/// Nobody, if the server does not say.
async fn not_connected(operator: &mut Operator) -> Vec<String> {
    let fleet = operator.client.fleet_status(request(v1::FleetStatusRequest {}));
    let fleet = tokio::time::timeout(DEADLINE_GRACE, fleet).await;
    let nodes = fleet.ok().and_then(Result::ok).map(|fleet| fleet.into_inner().nodes).unwrap_or_default();
    nodes.into_iter().filter(|node| !node.connected).map(|node| node.name).collect()
}

/// A node kept its last good form of something: which node, what, and why.
async fn rejected(operator: &mut Operator, status: &Status) -> Failure {
    let mut message = status.message().to_owned();
    if let Ok(fleet) = operator.client.fleet_status(request(v1::FleetStatusRequest {})).await {
        for node in fleet.into_inner().nodes {
            for rejection in node.rejections {
                let v1::Rejection { r#type, name, reason } = rejection;
                // Writing to a String never fails.
                let _ = write!(message, "\n  node {} rejected {type} {name}: {reason}", node.name);
            }
        }
    }
    Failure::Failed(message)
}
