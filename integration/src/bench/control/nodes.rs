//! Nodes without a kernel: the daemon's own connection, session and desired state. And the other ends of the bare fan-out.
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    sync::{Mutex, Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_noded::{
    desired::Desired,
    stream::{
        client::{Network, Reach as _},
        handler::{Event, Session},
    },
};
use weft_proto::v1::{
    self, node_message::Message, node_report::Report, node_stream_service_client::NodeStreamServiceClient,
};

use super::PATIENCE;

/// Connections that are made at once.
const CONNECTING_MAX: usize = 32;

type Outgoing = mpsc::Sender<v1::NodeMessage>;
type Incoming = Streaming<v1::ControllerMessage>;

/// As many nodes as are measured, each with one endpoint that the policy selects.
pub(super) struct Fleet {
    nodes: JoinSet<Result<()>>,
    /// Of each node, what it has acknowledged.
    acknowledged: Vec<watch::Receiver<u64>>,
    last_delta_bytes: watch::Receiver<usize>,
}

impl Fleet {
    /// Returns when all are in sync and their endpoints are open.
    pub(super) async fn start(url: &str, count: usize) -> Result<Self> {
        let (bytes, last_delta_bytes) = watch::channel(0);
        let (bytes, room) = (Arc::new(bytes), Arc::new(Semaphore::new(CONNECTING_MAX)));
        let (mut nodes, mut acknowledged, mut open) = (JoinSet::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let (realised, seen) = watch::channel(0);
            let (opened, is_open) = watch::channel(false);
            let node = Node {
                name: format!("node-{number}"),
                address: Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + u32::try_from(number)?)
                    .into(),
                desired: Desired::default(),
                realised,
                opened,
                bytes: Arc::clone(&bytes),
            };
            let (url, room) = (url.to_owned(), Arc::clone(&room));
            nodes.spawn(async move { node.run(&url, &room).await });
            acknowledged.push(seen);
            open.push(is_open);
        }
        for is_open in &mut open {
            let opened = tokio::time::timeout(PATIENCE, is_open.wait_for(|open| *open)).await;
            opened.context("an endpoint does not open")?.context("a node ended")?;
        }
        Ok(Self { nodes, acknowledged, last_delta_bytes })
    }

    /// Returns when every node has acknowledged the revision.
    pub(super) async fn realised(&self, revision: u64) -> Result<()> {
        for seen in &self.acknowledged {
            let mut seen = seen.clone();
            let realised = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| *seen >= revision)).await;
            realised.context("a node does not realise")?.context("a node ended")?;
        }
        Ok(())
    }

    /// Payload of the delta that came last.
    pub(super) fn last_delta_bytes(&self) -> usize {
        *self.last_delta_bytes.borrow()
    }

    pub(super) async fn stop(mut self) {
        self.nodes.shutdown().await;
    }
}

struct Node {
    name: String,
    address: IpAddr,
    desired: Desired,
    realised: watch::Sender<u64>,
    opened: watch::Sender<bool>,
    bytes: Arc<watch::Sender<usize>>,
}

impl Node {
    async fn run(mut self, url: &str, room: &Semaphore) -> Result<()> {
        let (outgoing, mut incoming) = {
            let _permit = room.acquire().await?;
            connect(url, &self.name, self.address).await?
        };
        let mut session = Session::new(&v1::Have::default());
        let mut reported = false;
        while let Some(message) = incoming.message().await? {
            match session.handle(message)? {
                Some(Event::Batch(batch)) => {
                    self.bytes.send_replace(batch.upserts.iter().map(|upsert| upsert.bytes.len()).sum());
                    let (nonce, revision) = (batch.nonce, batch.revision);
                    self.desired.apply(batch);
                    if self.desired.rejected().next().is_some() {
                        bail!("{} rejects what it was sent", self.name);
                    }
                    let ack = v1::Ack { nonce, revision, apply_micros: 1, rejected: Vec::new() };
                    say(&outgoing, Message::Ack(ack)).await?;
                    self.realised.send_replace(revision);
                    if !reported {
                        reported = true;
                        self.attach(&outgoing).await?;
                    }
                    let open = self.desired.endpoints().values().any(|word| word.open);
                    self.opened.send_if_modified(|known| !std::mem::replace(known, open) && open);
                }
                Some(Event::Answer(answer)) if !answer.accepted => bail!("{}: {}", self.name, answer.reason),
                _ => {}
            }
        }
        bail!("the controller closed the stream of {}", self.name)
    }

    async fn attach(&self, outgoing: &Outgoing) -> Result<()> {
        let route = self.desired.nodes().get(&self.name).context("a node without itself")?;
        let cidr = route.endpoint_cidrs.iter().find(|cidr| cidr.addr().is_ipv4()).context("no prefix")?;
        let address = cidr.hosts().nth(4).context("an empty prefix")?;
        let endpoint = v1::Endpoint {
            metadata: Some(v1::Metadata {
                name: format!("on-{}", self.name),
                labels: [("app".to_owned(), "every".to_owned())].into(),
                ..v1::Metadata::default()
            }),
            addresses: vec![address.to_string()],
            mac: "02:00:00:00:00:01".to_owned(),
            status: Some(v1::EndpointStatus {
                state: v1::EndpointState::Init.into(),
                ..v1::EndpointStatus::default()
            }),
            ..v1::Endpoint::default()
        };
        let report = Report::Endpoint(v1::EndpointReport { endpoint: Some(endpoint) });
        say(outgoing, Message::Report(v1::NodeReport { report: Some(report) })).await
    }
}

async fn connect(url: &str, name: &str, address: IpAddr) -> Result<(Outgoing, Incoming)> {
    let channel = Network.connect(url).await?;
    let (outgoing, messages) = mpsc::channel(16);
    let hello = v1::Hello {
        node: name.to_owned(),
        addresses: vec![address.to_string()],
        boot_id: "boot".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..v1::Hello::default()
    };
    say(&outgoing, Message::Hello(hello)).await?;
    let incoming = NodeStreamServiceClient::new(channel).stream(ReceiverStream::new(messages)).await?;
    Ok((outgoing, incoming.into_inner()))
}

async fn say(outgoing: &Outgoing, message: Message) -> Result<()> {
    let sent = outgoing.send(v1::NodeMessage { message: Some(message) }).await;
    sent.map_err(|_| anyhow!("the stream is over"))
}

/// Streams to the bare server, and the one that starts its rounds.
pub(super) struct FanOut {
    _streams: JoinSet<Result<()>>,
    starter: Mutex<(Outgoing, Incoming)>,
}

impl FanOut {
    pub(super) async fn start(url: &str, count: usize) -> Result<Self> {
        let room = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut streams = JoinSet::new();
        let (up, mut ready) = mpsc::channel(count.max(1));
        let nowhere = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        for number in 0..count {
            let (url, room, up) = (url.to_owned(), Arc::clone(&room), up.clone());
            streams.spawn(async move {
                let (outgoing, mut incoming) = {
                    let _permit = room.acquire().await?;
                    connect(&url, &format!("node-{number}"), nowhere).await?
                };
                up.send(()).await?;
                while let Some(message) = incoming.message().await? {
                    if let Some(v1::controller_message::Message::Delta(delta)) = message.message {
                        let ack = v1::Ack { nonce: delta.nonce, ..v1::Ack::default() };
                        say(&outgoing, Message::Ack(ack)).await?;
                    }
                }
                Ok(())
            });
        }
        for _ in 0..count {
            tokio::time::timeout(PATIENCE, ready.recv()).await?.context("a stream ended")?;
        }
        let starter = Mutex::new(connect(url, super::servers::STARTER, nowhere).await?);
        Ok(Self { _streams: streams, starter })
    }

    /// From the word to begin to the last answer.
    pub(super) async fn round(&self) -> Result<Duration> {
        let mut starter = self.starter.lock().await;
        let began = Instant::now();
        say(&starter.0, Message::Ack(v1::Ack::default())).await?;
        tokio::time::timeout(PATIENCE, starter.1.message()).await??.context("the server ended")?;
        Ok(began.elapsed())
    }
}
