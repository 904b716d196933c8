//! The store between controllers: the one in memory, reached over a network of its own; and a ledger of what was ever
//! committed, which knows the truth about identities and addresses.
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_controller::{
    keys, signal,
    store::{
        Batch, KeyValue, Memory, Operation, Outcome, Page, Range, Store, StoreError, Transaction, Watch,
    },
};
use weft_proto::v1::{self, Kind, object::Kind as Of};
use weft_shared::policy::{
    model::{Labels, Peer, Policy, Selector},
    wire,
};

use crate::{chance::Chance, history::History};

/// How long a controller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What all controllers share.
pub(crate) struct Shared {
    pub(crate) memory: Memory,
    ledger: Mutex<Ledger>,
    history: History,
}

/// The truth, as of the last commit.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) revision: u64,
    /// Ever given.
    pub(crate) identities: BTreeMap<u32, Labels>,
    numbers: BTreeMap<Labels, u32>,
    pub(crate) endpoints: BTreeMap<String, v1::Endpoint>,
    /// Of every policy that was ever there, by the names of their sets.
    pub(crate) selectors: BTreeMap<String, Selector>,
}

impl Shared {
    pub(crate) fn new(history: History) -> Self {
        Self { memory: Memory::default(), ledger: Mutex::default(), history }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let (then, otherwise) = (transaction.then.clone(), transaction.otherwise.clone());
        let outcome = self.memory.transact(transaction).await?;
        let mut ledger = self.ledger();
        ledger.revision = outcome.revision;
        for operation in if outcome.succeeded { then } else { otherwise } {
            if let Err(what) = ledger.take(&operation) {
                self.history.violated(what);
            }
        }
        Ok(outcome)
    }
}

impl Ledger {
    fn take(&mut self, operation: &Operation) -> Result<(), String> {
        let Some((kind, name)) = keys::parse(operation.key()) else { return Ok(()) };
        let object = match operation {
            Operation::Put { value, .. } => {
                v1::Object::decode(value.clone()).ok().and_then(|object| object.kind)
            }
            Operation::Delete { .. } => None,
        };
        match (kind, object) {
            (Kind::Endpoint, Some(Of::Endpoint(endpoint))) => {
                self.endpoints.insert(name.to_owned(), endpoint);
            }
            (Kind::Endpoint, None) => drop(self.endpoints.remove(name)),
            (Kind::Identity, Some(Of::Identity(identity))) => return self.give(identity),
            // Nobody bore it. The label set may get another number, and the number nobody.
            (Kind::Identity, None) => {
                self.numbers.retain(|_, number| number.to_string() != name);
            }
            (Kind::Policy, Some(Of::Policy(policy))) => {
                let parsed = weft_shared::policy::parse::policy(&policy);
                self.note_selectors(&parsed.map_err(|_| format!("policy {name} is stored and wrong"))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// No number twice, and no label set twice.
    fn give(&mut self, identity: v1::Identity) -> Result<(), String> {
        let v1::Identity { number, security_labels: labels, .. } = identity;
        let known = self.identities.insert(number, labels.clone());
        if let Some(other) = known.filter(|known| *known != labels) {
            return Err(format!("identity {number} was given to {other:?} and to {labels:?}"));
        }
        match self.numbers.insert(labels.clone(), number) {
            Some(other) if other != number => {
                Err(format!("{labels:?} has two identities, {other} and {number}"))
            }
            _ => Ok(()),
        }
    }

    fn note_selectors(&mut self, policy: &Policy) {
        let peers = policy.peers().filter_map(|peer| match peer {
            Peer::Endpoints(selector) | Peer::Nodes(selector) => Some(selector),
            Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => None,
        });
        for selector in peers.chain([policy.subject.named()]) {
            for name in [wire::endpoint_set(selector), wire::node_set(selector)] {
                self.selectors.insert(name, selector.clone());
            }
        }
    }

    /// Addresses of endpoints of these nodes, and the endpoint's identity.
    pub(crate) fn addresses(&self, of: impl Fn(&str) -> bool) -> impl Iterator<Item = (IpAddr, u32)> {
        let endpoints = self.endpoints.values().filter(move |endpoint| of(&endpoint.node));
        endpoints.flat_map(|endpoint| {
            let identity = endpoint.status.as_ref().map_or(0, |status| status.identity);
            endpoint.addresses.iter().filter_map(move |text| Some((text.parse().ok()?, identity)))
        })
    }
}

/// The store as one controller reaches it, in one life of that controller.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) shared: Arc<Shared>,
    pub(crate) chance: Chance,
    /// Whether packets pass.
    pub(crate) up: signal::Receiver<bool>,
    /// Whether the member that watches are at says nothing any more. All else goes to another.
    pub(crate) stalled: signal::Receiver<bool>,
    /// The controller is no more: nothing is done or answered.
    pub(crate) dead: CancellationToken,
}

impl View {
    /// A packet to the store or from it.
    async fn pass(&self) -> Result<(), StoreError> {
        let late = if self.chance.percent(95) { 0..4 } else { 4..120 };
        tokio::time::sleep(self.chance.milliseconds(late)).await;
        let mut up = self.up.clone();
        let passed = tokio::time::timeout(PATIENCE, up.wait_for(|up| *up)).await.is_ok();
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
        if passed { Ok(()) } else { Err(StoreError::Backend("simulated: no answer".into())) }
    }

    /// What was asked may have been done although no answer comes.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.pass().await?;
        let answer = answer.await?;
        self.pass().await?;
        Ok(answer)
    }
}

impl View {
    /// Hands out what is watched. While it is stalled nothing comes; then it goes on at another member, behind the last
    /// revision that was handed out, as the client of etcd does: history may be gone by then.
    async fn carry(
        self,
        prefix: String,
        mut handed_out: u64,
        mut watch: Watch,
        sender: mpsc::Sender<Result<Batch, StoreError>>,
    ) {
        let mut stalled = self.stalled.clone();
        loop {
            let batch = tokio::select! {
                biased;
                () = sender.closed() => return,
                known = stalled.wait_for(|stalled| *stalled) => {
                    if known.is_err() || stalled.wait_for(|stalled| !stalled).await.is_err() {
                        return;
                    }
                    match self.ask(self.shared.memory.watch(&prefix, handed_out)).await {
                        Ok(anew) => {
                            watch = anew;
                            continue;
                        }
                        Err(error) => Some(Err(error)),
                    }
                }
                batch = watch.next() => batch,
            };
            let Some(batch) = batch else { return };
            let batch = self.pass().await.and(batch);
            let lost = batch.is_err();
            if let Ok(batch) = &batch {
                handed_out = batch.revision;
            }
            if sender.send(batch).await.is_err() || lost {
                return;
            }
        }
    }
}

#[async_trait]
impl Store for View {
    fn kind(&self) -> &'static str {
        "simulated"
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.ask(self.shared.memory.revision()).await
    }

    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, u64), StoreError> {
        self.ask(self.shared.memory.get(key)).await
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.ask(self.shared.memory.range(range)).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.ask(self.shared.commit(transaction)).await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch, StoreError> {
        let watch = self.ask(self.shared.memory.watch(prefix, after)).await?;
        let (sender, batches) = mpsc::channel::<Result<Batch, StoreError>>(1);
        tokio::spawn(self.clone().carry(prefix.to_owned(), after, watch, sender));
        Ok(Watch::new(batches))
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.ask(self.shared.memory.compact(revision)).await
    }
}
