//! The queue in front of the core, and the handle that fills it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use weft_proto::v1;

use super::{
    attach::{AttachError, AttachSpec},
    tables::TablesError,
};
use crate::{
    desired::{
        Batch,
        digests::{Listing, QuestionError},
    },
    health::Probed,
    kernel::links::Changes,
    observe::names::Names,
};

/// The core has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct CoreGone;

/// The controller did not take an endpoint in; it was torn down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    /// Its name or an address is another's.
    pub taken: bool,
}

/// Who answered the last Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcomed {
    pub store_id: String,
    /// The store may replace what is held of another.
    pub adopts: bool,
    /// The store has the endpoints that Hello had the digest of, and no others of this node.
    pub endpoints_known: bool,
    pub controller: String,
}

/// Where an endpoint stands.
#[derive(Clone, Debug, PartialEq)]
pub enum EndpointState {
    Ready(v1::Endpoint),
    Init(v1::Endpoint),
    Refused(Refusal),
    Gone,
}

pub(super) enum Command {
    Hello { reply: oneshot::Sender<v1::Hello> },
    Connected { welcomed: Welcomed, reports: mpsc::Sender<v1::NodeReport> },
    Disconnected { why: String, guard: bool },
    Realise { batch: Batch, reply: oneshot::Sender<Result<v1::Ack, String>> },
    Buckets { wanted: Vec<v1::WantBuckets>, reply: oneshot::Sender<Result<v1::DigestBuckets, QuestionError>> },
    Items { wanted: v1::WantItems, reply: oneshot::Sender<Result<(v1::DigestItems, Listing), QuestionError>> },
    Answer(v1::EndpointAnswer),
    Attach { spec: AttachSpec, reply: oneshot::Sender<Result<v1::Endpoint, AttachError>> },
    Detach { name: String, reply: oneshot::Sender<Result<bool, String>> },
    Endpoint { name: String, reply: oneshot::Sender<EndpointState> },
    Endpoints { reply: oneshot::Sender<Vec<v1::Endpoint>> },
    Status { reply: oneshot::Sender<v1::StatusResponse> },
    Dump { map: String, reply: oneshot::Sender<Result<Vec<v1::DumpMapResponse>, String>> },
    EventsLost { reply: oneshot::Sender<u64> },
    LinkGone { ifindex: u32 },
    NetworkChanged { changes: Changes },
    Enforced { after: Duration },
    ServiceTables { name: String, reply: oneshot::Sender<Result<v1::ServiceTablesResponse, TablesError>> },
    Found { services: Vec<v1::ServiceHealth> },
    Check { reply: oneshot::Sender<()> },
}

/// Handle of the core; clones share it.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) changed: watch::Receiver<u64>,
    pub(super) names: Arc<ArcSwap<Names>>,
    pub(super) probed: watch::Receiver<Arc<Probed>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Command")
    }
}

impl Core {
    async fn tell(&self, command: Command) -> Result<(), CoreGone> {
        self.commands.send(command).await.map_err(|_| CoreGone)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, CoreGone> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| CoreGone)
    }

    /// What this node says of itself and of what it holds.
    pub async fn hello(&self) -> Result<v1::Hello, CoreGone> {
        self.ask(|reply| Command::Hello { reply }).await
    }

    /// A stream is up; the core reports its endpoints through `reports`.
    pub async fn connected(
        &self,
        welcomed: Welcomed,
        reports: mpsc::Sender<v1::NodeReport>,
    ) -> Result<(), CoreGone> {
        self.tell(Command::Connected { welcomed, reports }).await
    }

    /// There is no stream; `guard`: because the store is not the one this node knows.
    pub async fn disconnected(&self, why: String, guard: bool) -> Result<(), CoreGone> {
        self.tell(Command::Disconnected { why, guard }).await
    }

    /// Writes a batch to disk and kernel; the acknowledgement is for after that.
    pub async fn realise(&self, batch: Batch) -> Result<Result<v1::Ack, String>, CoreGone> {
        self.ask(|reply| Command::Realise { batch, reply }).await
    }

    /// Digests of what is held, in buckets.
    pub async fn buckets(
        &self,
        wanted: Vec<v1::WantBuckets>,
    ) -> Result<Result<v1::DigestBuckets, QuestionError>, CoreGone> {
        self.ask(|reply| Command::Buckets { wanted, reply }).await
    }

    /// What is held in some of the buckets.
    pub async fn items(
        &self,
        wanted: v1::WantItems,
    ) -> Result<Result<(v1::DigestItems, Listing), QuestionError>, CoreGone> {
        self.ask(|reply| Command::Items { wanted, reply }).await
    }

    pub async fn answer(&self, answer: v1::EndpointAnswer) -> Result<(), CoreGone> {
        self.tell(Command::Answer(answer)).await
    }

    /// Attaches in state init.
    pub async fn attach(&self, spec: AttachSpec) -> Result<Result<v1::Endpoint, AttachError>, CoreGone> {
        self.ask(|reply| Command::Attach { spec, reply }).await
    }

    /// `false`: there is none of this name.
    pub async fn detach(&self, name: String) -> Result<Result<bool, String>, CoreGone> {
        self.ask(|reply| Command::Detach { name, reply }).await
    }

    pub async fn endpoint(&self, name: String) -> Result<EndpointState, CoreGone> {
        self.ask(|reply| Command::Endpoint { name, reply }).await
    }

    pub async fn endpoints(&self) -> Result<Vec<v1::Endpoint>, CoreGone> {
        self.ask(|reply| Command::Endpoints { reply }).await
    }

    pub async fn status(&self) -> Result<v1::StatusResponse, CoreGone> {
        self.ask(|reply| Command::Status { reply }).await
    }

    /// Rows of a map by its name, decoded; the error names the maps there are.
    pub async fn dump(&self, map: String) -> Result<Result<Vec<v1::DumpMapResponse>, String>, CoreGone> {
        self.ask(|reply| Command::Dump { map, reply }).await
    }

    /// What the kernel holds of a service.
    pub async fn service_tables(
        &self,
        name: String,
    ) -> Result<Result<v1::ServiceTablesResponse, TablesError>, CoreGone> {
        self.ask(|reply| Command::ServiceTables { name, reply }).await
    }

    /// Events of the kernel programs that nobody will read, ever since.
    pub async fn events_lost(&self) -> Result<u64, CoreGone> {
        self.ask(|reply| Command::EventsLost { reply }).await
    }

    /// An interface is no more.
    pub async fn link_gone(&self, ifindex: u32) -> Result<(), CoreGone> {
        self.tell(Command::LinkGone { ifindex }).await
    }

    /// Something in the node's network is not as it was.
    pub async fn network_changed(&self, changes: Changes) -> Result<(), CoreGone> {
        self.tell(Command::NetworkChanged { changes }).await
    }

    /// For status: how long after the start of the process the last known state was enforced.
    pub async fn enforced(&self, after: Duration) -> Result<(), CoreGone> {
        self.tell(Command::Enforced { after }).await
    }

    /// Compares the kernel with what is desired now, as is done periodically, and mends it.
    pub async fn check(&self) -> Result<(), CoreGone> {
        self.ask(|reply| Command::Check { reply }).await
    }

    /// Services of which this node probes a backend.
    pub fn probed(&self) -> watch::Receiver<Arc<Probed>> {
        self.probed.clone()
    }

    /// What probes have found out: of each of these services, all that is probed of it.
    pub async fn found(&self, services: Vec<v1::ServiceHealth>) -> Result<(), CoreGone> {
        self.tell(Command::Found { services }).await
    }

    /// Changes when something that a caller may wait for has changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Names for numbers, as of the last change.
    pub fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }
}
