//! The loop of the core: one command after the other.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::warn;

use super::{EndpointState, StartError, State, command::Command};
use crate::{
    kernel::{Datapath, KernelError, links::Links},
    limits::{DOORS_CHECK_SECONDS, DRIFT_CHECK_SECONDS, RETRY_MILLISECONDS},
};

/// Runs the core on a thread of its own, until every handle is dropped.
pub(super) fn spawn<D: Datapath, L: Links>(
    state: State<D, L>,
    queue: mpsc::Receiver<Command>,
) -> Result<(), StartError> {
    let failed = |error: std::io::Error| KernelError::new("start the core's thread", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let run = move || runtime.block_on(state.run(queue));
    std::thread::Builder::new().name("weft-core".to_owned()).spawn(run).map_err(failed)?;
    Ok(())
}

impl<D: Datapath, L: Links> State<D, L> {
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut drift = interval(Duration::from_secs(DRIFT_CHECK_SECONDS));
        let mut retry = interval(Duration::from_millis(RETRY_MILLISECONDS));
        let mut doors = interval(Duration::from_secs(DOORS_CHECK_SECONDS));
        for ticker in [&mut drift, &mut doors, &mut retry] {
            ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is at once.
            ticker.tick().await;
        }
        let mut count = Instant::now();
        loop {
            tokio::select! {
                // Commands are answered before anything is looked after.
                biased;
                command = queue.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                _ = drift.tick() => self.mend_all().await,
                _ = doors.tick() => self.hold_doors().await,
                () = sleep_until(count) => count = Instant::now() + self.count_flows(),
                _ = retry.tick(), if self.failure.is_some() => self.mend(),
            }
        }
    }

    /// A caller that went away meanwhile is no error.
    async fn obey(&mut self, command: Command) {
        match command {
            Command::Hello { reply } => drop(reply.send(self.hello())),
            Command::Connected { welcomed, reports } => self.connected(welcomed, reports),
            Command::Disconnected { why, guard } => {
                self.connection = None;
                self.adopting = None;
                self.guarded = guard;
                self.unconnected = Some(why);
                self.changed.send_modify(|changes| *changes += 1);
            }
            Command::Realise { batch, reply } => {
                // Comes several times a second, and says nothing of services.
                let only_progress = batch.is_only_progress();
                let answer = self.realise(batch);
                self.follow_overlay_routes().await;
                if !only_progress {
                    self.follow_neighbours().await;
                }
                drop(reply.send(answer));
                if std::mem::take(&mut self.sweep_due) {
                    self.sweep_links().await;
                }
            }
            Command::Buckets { wanted, reply } => drop(reply.send(self.desired.digest_buckets(&wanted))),
            Command::Items { wanted, reply } => drop(reply.send(self.desired.digest_items(&wanted))),
            Command::Answer(answer) => self.answer(answer).await,
            Command::Attach { spec, reply } => drop(reply.send(self.attach(spec).await)),
            Command::Detach { name, reply } => drop(reply.send(self.detach(&name).await)),
            Command::Endpoint { name, reply } => drop(reply.send(self.endpoint_state(&name))),
            Command::Endpoints { reply } => {
                let endpoints = self.attachments.endpoints.values().map(|own| self.endpoint(own));
                drop(reply.send(endpoints.collect()));
            }
            Command::Status { reply } => drop(reply.send(self.status())),
            Command::Dump { map, reply } => drop(reply.send(self.dump(&map))),
            Command::EventsLost { reply } => {
                // Who asked may be gone.
                reply.send(self.datapath.events_lost().unwrap_or_default()).unwrap_or_default();
            }
            Command::LinkGone { ifindex } => self.link_gone(ifindex).await,
            Command::NetworkChanged { changes } => self.follow(changes).await,
            Command::Enforced { after } => self.enforced_after = Some(after),
            Command::ServiceTables { name, reply } => drop(reply.send(self.service_tables(&name))),
            Command::Found { services } => self.found(services),
            Command::Check { reply } => {
                self.mend_all().await;
                // Who asked may be gone.
                reply.send(()).unwrap_or_default();
            }
        }
    }

    fn endpoint_state(&mut self, name: &str) -> EndpointState {
        if let Some(own) = self.attachments.endpoints.get(name) {
            let endpoint = self.endpoint(own);
            let ready = endpoint
                .status
                .as_ref()
                .is_some_and(|status| status.state() == weft_proto::v1::EndpointState::Ready);
            return if ready { EndpointState::Ready(endpoint) } else { EndpointState::Init(endpoint) };
        }
        self.refused.remove(name).map_or(EndpointState::Gone, EndpointState::Refused)
    }

    pub(super) async fn link_gone(&mut self, ifindex: u32) {
        let names: Vec<String> = self
            .attachments
            .endpoints
            .values()
            .filter(|own| own.ifindex == ifindex)
            .map(|own| own.name.clone())
            .collect();
        for name in names {
            warn!(endpoint = %name, "the endpoint's interface is gone: it is detached");
            if let Err(error) = self.detach(&name).await {
                warn!(endpoint = %name, %error, "the rest of the endpoint stays");
            }
        }
    }
}
