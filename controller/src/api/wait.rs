//! `WaitRealised`: tells who has realised a revision until all have, one has rejected it, or time is up.
use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weft_proto::v1;

use super::{Answers, Operator, errors};
use crate::{limits, progress::waiters::Outlook, store::StoreError};

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
        let known = tokio::time::timeout_at(deadline, self.hub.wait_applied(revision)).await;
        known.map_err(|_| Status::unavailable("this controller does not keep up with its store"))?;
        let waiting = self.hub.wait(revision);
        let mut told = None;
        let mut tell_at = Instant::now();
        loop {
            let outlook = waiting.outlook();
            if let Some(why) = outlook.rejected.clone() {
                return Err(Status::failed_precondition(why));
            }
            let done = outlook.realised == outlook.nodes;
            let news = told.as_ref() != Some(&outlook);
            if news && (done || Instant::now() >= tell_at) {
                let took = done.then(|| self.hub.since_commit(revision)).flatten();
                let response = response(&outlook, took);
                if sender.send(Ok(response)).await.is_err() || done {
                    return Ok(());
                }
                tell_at = Instant::now() + limits::WAIT_TOLD_INTERVAL;
                told = Some(outlook.clone());
            }
            let untold = told.as_ref() != Some(&outlook);
            tokio::select! {
                () = waiting.news() => {}
                () = tokio::time::sleep_until(tell_at), if untold => {}
                () = tokio::time::sleep_until(deadline) => return Err(timed_out(revision, &waiting.outlook())),
                () = self.stop.cancelled() => return Err(Status::unavailable("the controller is stopping")),
                () = sender.closed() => return Ok(()),
            }
        }
    }
}

fn response(outlook: &Outlook, took: Option<Duration>) -> v1::WaitRealisedResponse {
    v1::WaitRealisedResponse {
        nodes: u32::try_from(outlook.nodes).unwrap_or(u32::MAX),
        realised: u32::try_from(outlook.realised).unwrap_or(u32::MAX),
        waiting_for: outlook.waiting_for.clone(),
        done: outlook.realised == outlook.nodes,
        took: took.and_then(|took| took.try_into().ok()),
    }
}

fn timed_out(revision: u64, outlook: &Outlook) -> Status {
    let Outlook { nodes, realised, waiting_for, .. } = outlook;
    let names = waiting_for.join(", ");
    let text = format!("{realised} of {nodes} nodes have realised revision {revision}; waiting for {names}");
    Status::deadline_exceeded(text)
}
