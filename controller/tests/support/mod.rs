//! A real controller on a loopback port and nodes that are only a stream: enough to see the whole path without a kernel.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "tests fail this way, and each test program uses its own part"
)]
pub(crate) mod gate;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use weft_controller::{Config, Controller, ServeError, StoreConfig, store::Store};
use weft_proto::v1::{
    self, controller_message::Message, node_stream_service_client::NodeStreamServiceClient,
    object::Kind as Of, operator_service_client::OperatorServiceClient,
};

/// Nothing here takes as long unless something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) type Operator = OperatorServiceClient<Channel>;

pub(crate) struct Fleet {
    pub(crate) controller: Controller,
    pub(crate) operator: Operator,
    pub(crate) channel: Channel,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) async fn fleet() -> Fleet {
    fleet_in(tempfile::tempdir().unwrap()).await
}

pub(crate) async fn fleet_in(directory: tempfile::TempDir) -> Fleet {
    let store = StoreConfig::Embedded { directory: directory.path().to_owned() };
    fleet_on(&store, directory).await.unwrap()
}

pub(crate) async fn fleet_on(store: &StoreConfig, directory: tempfile::TempDir) -> Result<Fleet, ServeError> {
    let config =
        Config { listen: "127.0.0.1:0".parse().unwrap(), name: "controller-1".to_owned(), insecure: false };
    Ok(served_by(Controller::start(config, store).await?, directory).await)
}

/// A controller of this name on a store that others may use, too.
pub(crate) async fn fleet_beside(name: &str, store: Arc<dyn Store>) -> Fleet {
    let config = Config { listen: "127.0.0.1:0".parse().unwrap(), name: name.to_owned(), insecure: false };
    served_by(Controller::start_with(config, store).await.unwrap(), tempfile::tempdir().unwrap()).await
}

async fn served_by(controller: Controller, directory: tempfile::TempDir) -> Fleet {
    let address = format!("http://{}", controller.address());
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let operator = OperatorServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
    Fleet { controller, operator, channel, directory }
}

impl Fleet {
    pub(crate) async fn restart(self) -> Self {
        fleet_in(self.stop().await).await
    }

    /// Returns the data directory.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        drop((self.operator, self.channel));
        within(self.controller.stop()).await.unwrap();
        self.directory
    }

    pub(crate) async fn apply(&mut self, objects: Vec<v1::Object>) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest { objects, ..v1::ApplyRequest::default() };
        within(self.operator.apply(request)).await.map(tonic::Response::into_inner)
    }

    /// The last word of `WaitRealised`.
    pub(crate) async fn wait_realised(
        &mut self,
        revision: u64,
        timeout: Duration,
    ) -> Result<v1::WaitRealisedResponse, Status> {
        let request = v1::WaitRealisedRequest { revision, timeout: Some(timeout.try_into().unwrap()) };
        let mut answers = self.operator.wait_realised(request).await?.into_inner();
        let mut last = None;
        while let Some(answer) = within(answers.message()).await? {
            last = Some(answer);
        }
        Ok(last.expect("the stream ended without an answer"))
    }

    pub(crate) async fn node(&self, name: &str, address: &str) -> Node {
        self.try_node(hello(name, address)).await.unwrap()
    }

    pub(crate) async fn try_node(&self, hello: v1::Hello) -> Result<Node, Status> {
        let (sender, outbound) = mpsc::channel(64);
        let name = hello.node.clone();
        send(&sender, v1::node_message::Message::Hello(hello)).await;
        let mut client = NodeStreamServiceClient::new(self.channel.clone());
        let inbound = client.stream(ReceiverStream::new(outbound)).await?.into_inner();
        let mut node = Node {
            name,
            sender,
            inbound,
            held: BTreeMap::new(),
            staged: Vec::new(),
            answers: BTreeMap::new(),
            deltas: Vec::new(),
            welcome: v1::Welcome::default(),
            rejects: BTreeMap::new(),
        };
        match within(node.inbound.message()).await?.and_then(|message| message.message) {
            Some(Message::Welcome(welcome)) => node.welcome = welcome,
            other => panic!("expected Welcome, found {other:?}"),
        }
        Ok(node)
    }
}

pub(crate) fn hello(name: &str, address: &str) -> v1::Hello {
    v1::Hello {
        node: name.to_owned(),
        addresses: vec![address.to_owned()],
        boot_id: "boot".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..v1::Hello::default()
    }
}

/// A resource's type and name.
pub(crate) type Name = (v1::ResourceType, String);

pub(crate) struct Node {
    pub(crate) name: String,
    sender: mpsc::Sender<v1::NodeMessage>,
    pub(crate) inbound: Streaming<v1::ControllerMessage>,
    /// What it was sent and has acknowledged.
    pub(crate) held: BTreeMap<Name, Vec<u8>>,
    staged: Vec<v1::Delta>,
    pub(crate) answers: BTreeMap<String, v1::EndpointAnswer>,
    /// Of each delta taken, the last message.
    pub(crate) deltas: Vec<v1::Delta>,
    pub(crate) welcome: v1::Welcome,
    /// Resources that it says it cannot realise, with the reason.
    pub(crate) rejects: BTreeMap<Name, String>,
}

async fn send(sender: &mpsc::Sender<v1::NodeMessage>, message: v1::node_message::Message) {
    sender.send(v1::NodeMessage { message: Some(message) }).await.unwrap();
}

impl Node {
    /// Takes messages, acknowledging each delta, until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !condition(self) {
            let Ok(message) = tokio::time::timeout_at(deadline, self.inbound.message()).await else {
                panic!("node {}: not so in time: {what}; it holds {:#?}", self.name, self.held.keys());
            };
            let message = message.unwrap().and_then(|message| message.message);
            self.take(message.unwrap_or_else(|| panic!("node {}: the stream ended", self.name))).await;
        }
    }

    pub(crate) async fn in_sync(mut self) -> Self {
        self.until("in sync", |node| node.deltas.iter().any(|delta| delta.in_sync)).await;
        self
    }

    pub(crate) async fn take(&mut self, message: Message) {
        match message {
            Message::Welcome(_) => panic!("a second Welcome"),
            Message::EndpointAnswer(answer) => drop(self.answers.insert(answer.name.clone(), answer)),
            Message::WantItems(_) => panic!("a question that no Welcome led to"),
            Message::Delta(delta) if delta.more => self.staged.push(delta),
            Message::Delta(delta) => self.realise(delta).await,
        }
    }

    async fn realise(&mut self, last: v1::Delta) {
        self.staged.push(last.clone());
        let parts = std::mem::take(&mut self.staged);
        if last.full {
            let names = parts
                .iter()
                .flat_map(|part| &part.upserts)
                .map(|upsert| (upsert.r#type(), upsert.name.clone()));
            let names: BTreeSet<Name> = names.collect();
            self.held.retain(|name, _| names.contains(name));
        }
        for part in &parts {
            for upsert in &part.upserts {
                self.held.insert((upsert.r#type(), upsert.name.clone()), upsert.bytes.to_vec());
            }
            for remove in &part.removes {
                self.held.remove(&(remove.r#type(), remove.name.clone()));
            }
        }
        let rejects = self.rejects.iter().filter(|(name, _)| self.held.contains_key(*name));
        let rejected = rejects.map(|((kind, name), reason)| v1::RejectedResource {
            r#type: (*kind).into(),
            name: name.clone(),
            reason: reason.clone(),
        });
        let rejected = rejected.collect();
        let ack = v1::Ack { nonce: last.nonce, revision: last.revision, apply_micros: 1, rejected };
        send(&self.sender, v1::node_message::Message::Ack(ack)).await;
        self.deltas.push(last);
    }

    pub(crate) fn names(&self, kind: v1::ResourceType) -> Vec<String> {
        self.held.keys().filter(|(held, _)| *held == kind).map(|(_, name)| name.clone()).collect()
    }

    pub(crate) async fn report(&self, report: v1::node_report::Report) {
        let report = v1::NodeReport { report: Some(report) };
        send(&self.sender, v1::node_message::Message::Report(report)).await;
    }

    /// Attaches an endpoint and returns the controller's answer.
    pub(crate) async fn attach(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        addresses: &[&str],
    ) -> v1::EndpointAnswer {
        self.answers.remove(name);
        let endpoint = Some(endpoint(name, labels, addresses));
        self.report(v1::node_report::Report::Endpoint(v1::EndpointReport { endpoint })).await;
        self.until("an answer", |node| node.answers.contains_key(name)).await;
        self.answers[name].clone()
    }

    /// The `number`th address of the node's IPv4 prefix.
    pub(crate) fn address(&self, number: u8) -> String {
        let route: v1::NodeRoute =
            prost::Message::decode(&*self.held[&(v1::ResourceType::Node, self.name.clone())]).unwrap();
        let cidr = route.endpoint_cidrs.iter().find(|cidr| cidr.contains('.')).unwrap();
        let (network, _) = cidr.split_once('/').unwrap();
        let (prefix, _) = network.rsplit_once('.').unwrap();
        format!("{prefix}.{number}")
    }
}

pub(crate) fn endpoint(name: &str, labels: &[(&str, &str)], addresses: &[&str]) -> v1::Endpoint {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    v1::Endpoint {
        metadata: Some(v1::Metadata { name: name.to_owned(), labels, ..v1::Metadata::default() }),
        addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
        mac: "02:00:00:00:00:01".to_owned(),
        status: Some(v1::EndpointStatus {
            state: v1::EndpointState::Init.into(),
            ..v1::EndpointStatus::default()
        }),
        ..v1::Endpoint::default()
    }
}

pub(crate) fn selector(key: &str, value: &str) -> v1::Selector {
    v1::Selector {
        match_labels: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..v1::Selector::default()
    }
}

/// Allows `subject` to be reached on TCP 8080 by `peer`, by the label `app`.
pub(crate) fn policy(name: &str, subject: &str, peer: &str) -> v1::Object {
    let peers = vec![v1::Peer { endpoints: Some(selector("app", peer)), ..v1::Peer::default() }];
    let ports =
        vec![v1::Port { protocol: v1::Protocol::Tcp.into(), port: Some(8080), ..v1::Port::default() }];
    let rule = v1::Rule {
        name: "web".to_owned(),
        action: v1::Action::Allow.into(),
        peers: Some(v1::PeerList { items: peers }),
        ports: Some(v1::PortList { items: ports }),
    };
    let subject = v1::Subject { endpoints: Some(selector("app", subject)), nodes: None };
    let policy = v1::Policy {
        metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
        subject: Some(subject),
        ingress: Some(v1::RuleList { items: vec![rule] }),
        ..v1::Policy::default()
    };
    v1::Object { kind: Some(Of::Policy(policy)) }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("not done in time")
}

pub(crate) fn name(object: &v1::Object) -> String {
    let metadata = match object.kind.as_ref().unwrap() {
        Of::Policy(policy) => &policy.metadata,
        Of::Endpoint(endpoint) => &endpoint.metadata,
        Of::Node(node) => &node.metadata,
        Of::CidrSet(set) => &set.metadata,
        other => panic!("not expected here: {other:?}"),
    };
    metadata.as_ref().unwrap().name.clone()
}

pub(crate) fn config(pools: &[(&str, u32)]) -> v1::Object {
    let pools = pools.iter().map(|(cidr, node_prefix_length)| v1::Pool {
        cidr: (*cidr).to_owned(),
        node_prefix_length: *node_prefix_length,
    });
    let config = v1::FleetConfig {
        metadata: Some(v1::Metadata { name: "fleet".to_owned(), ..v1::Metadata::default() }),
        pools: pools.collect(),
        ..v1::FleetConfig::default()
    };
    v1::Object { kind: Some(Of::FleetConfig(config)) }
}
