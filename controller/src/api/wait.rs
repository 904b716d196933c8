//! `WaitRealised`: tells who has realised a revision until all have, one has rejected it, or time is up.
use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weft_proto::v1;

use super::{Answers, Operator, errors};
use crate::{fleet::Fleet, limits, store::StoreError};

/// Names of nodes in one answer.
const NAMES_MAX: usize = 10;

type Sender = mpsc::Sender<Result<v1::WaitRealisedResponse, Status>>;

impl Operator {
    pub(super) async fn wait(
        &self,
        request: v1::WaitRealisedRequest,
    ) -> Result<Answers<v1::WaitRealisedResponse>, Status> {
        let timeout = match request.timeout {
            None => limits::WAIT_REALISED_DEFAULT,
            Some(timeout) => Duration::try_from(timeout)
                .map_err(|_| errors::bad_field("timeout", "expected a duration that is not negative"))?,
        };
        let timeout = timeout.min(limits::WAIT_REALISED_MAX);
        let current = self.store.revision().await.map_err(errors::store)?;
        if request.revision > current {
            return Err(errors::store(StoreError::Future { requested: request.revision, current }));
        }
        let room = self.room_for_a_stream()?;
        let (sender, answers) = mpsc::channel(1);
        let operator = self.clone();
        tokio::spawn(async move {
            let deadline = Instant::now() + timeout;
            if let Err(status) = operator.tell_until_realised(request.revision, deadline, &sender).await {
                // Who waited may have gone.
                drop(sender.send(Err(status)).await);
            }
            drop(room);
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    async fn tell_until_realised(
        &self,
        revision: u64,
        deadline: Instant,
        sender: &Sender,
    ) -> Result<(), Status> {
        let mut progress = self.hub.progress();
        let mut told = None;
        loop {
            progress.mark_unchanged();
            let answer = self.hub.ask(|fleet| look(fleet, revision))?;
            if told.as_ref() != Some(&answer) {
                let took = answer.done.then(|| self.hub.since_commit(revision)).flatten();
                let took = took.and_then(|took| took.try_into().ok());
                let response = v1::WaitRealisedResponse { took, ..answer.clone() };
                if sender.send(Ok(response)).await.is_err() || answer.done {
                    return Ok(());
                }
            }
            told = Some(answer);
            tokio::select! {
                changed = progress.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep_until(deadline) => return Err(timed_out(revision, told.as_ref())),
                () = self.stop.cancelled() => return Err(Status::unavailable("the controller is stopping")),
                () = sender.closed() => return Ok(()),
            }
        }
    }
}

/// Fails when a node has rejected something up to the revision.
fn look(fleet: &Fleet, revision: u64) -> Result<v1::WaitRealisedResponse, Status> {
    let mut answer = v1::WaitRealisedResponse::default();
    let known = fleet.revision() >= revision;
    for (node, _) in fleet.nodes() {
        answer.nodes += 1;
        // What is not answered yet may take the place of what was rejected.
        let answered = known && fleet.answered(node) >= revision;
        let rejections = fleet.rejections(node);
        if let Some(rejected) = rejections.iter().find(|rejected| answered && rejected.revision <= revision) {
            let kind = rejected.kind.as_str_name().trim_start_matches("RESOURCE_TYPE_").to_lowercase();
            let text = format!("node {node} rejected {kind} {}: {}", rejected.name, rejected.reason);
            return Err(Status::failed_precondition(text));
        }
        if known && fleet.realised(node) >= revision {
            answer.realised += 1;
        } else if answer.waiting_for.len() < NAMES_MAX {
            answer.waiting_for.push(node.to_owned());
        }
    }
    answer.done = known && answer.realised == answer.nodes;
    Ok(answer)
}

fn timed_out(revision: u64, last: Option<&v1::WaitRealisedResponse>) -> Status {
    let (realised, nodes, names) =
        last.map_or((0, 0, String::new()), |last| (last.realised, last.nodes, last.waiting_for.join(", ")));
    let text = format!("{realised} of {nodes} nodes have realised revision {revision}; waiting for {names}");
    Status::deadline_exceeded(text)
}
