//! The servers, each a process of its own: the controller, and what does nothing but fan out.
use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};
use weft_controller::{
    Config, Controller,
    store::{Etcd, EtcdConfig},
};
use weft_proto::v1::{
    self,
    controller_message::Message,
    node_message,
    node_stream_service_server::{NodeStreamService, NodeStreamServiceServer},
};

/// How long the store may take to come.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// The stream whose messages start rounds.
pub(super) const STARTER: &str = "starter";

#[derive(Debug, Args)]
pub struct ControllerOptions {
    #[arg(long)]
    etcd: String,
}

#[derive(Debug, Args)]
pub struct FanOutOptions {
    /// Of what is sent to each stream
    #[arg(long)]
    bytes: usize,
}

fn tell(address: SocketAddr) -> Result<()> {
    println!("{address}");
    Ok(std::io::stdout().flush()?)
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn controller(options: &ControllerOptions) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let etcd = EtcdConfig { members: vec![options.etcd.clone()], tls: None, user: None };
        let store = Etcd::connect(&etcd, STORE_PATIENCE).await?;
        let config = Config { listen: loopback(), name: "bench".to_owned(), insecure: false };
        let mut controller = Controller::start_with(config, Arc::new(store)).await?;
        tell(controller.address())?;
        Err(controller.failed().await.into())
    })
}

pub fn fan_out(options: &FanOutOptions) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(loopback()).await?;
        tell(listener.local_addr()?)?;
        let service = NodeStreamServiceServer::new(FanOut::new(options.bytes));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Ok(Server::builder().add_service(service).serve_with_incoming(incoming).await?)
    })
}

type Outbound = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

#[derive(Clone)]
struct FanOut {
    delta: v1::Delta,
    streams: Arc<Mutex<Vec<Outbound>>>,
    answered: Arc<Semaphore>,
}

impl FanOut {
    fn new(bytes: usize) -> Self {
        let upsert = v1::Upsert {
            r#type: v1::ResourceType::Policy.into(),
            name: "bench".to_owned(),
            requires: Vec::new(),
            bytes: vec![0x55; bytes].into(),
        };
        let delta = v1::Delta { nonce: 1, revision: 1 << 14, upserts: vec![upsert], ..v1::Delta::default() };
        let (streams, answered) = (Arc::default(), Arc::new(Semaphore::new(0)));
        Self { delta, streams, answered }
    }

    /// To all, then an answer from each.
    async fn round(&self) -> Result<(), Status> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for stream in &streams {
            let message = v1::ControllerMessage { message: Some(Message::Delta(self.delta.clone())) };
            stream.send(Ok(message)).await.map_err(|_| Status::aborted("a stream ended"))?;
        }
        let all = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        let answers = self.answered.acquire_many(all).await;
        answers.map_err(|_| Status::aborted("stopping"))?.forget();
        Ok(())
    }

    async fn serve(self, mut inbound: Streaming<v1::NodeMessage>, outbound: Outbound) -> Result<(), Status> {
        let mut starter = false;
        while let Some(message) = inbound.message().await? {
            match message.message {
                Some(node_message::Message::Hello(hello)) if hello.node == STARTER => starter = true,
                Some(node_message::Message::Hello(_)) => {
                    self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(outbound.clone());
                }
                _ if starter => {
                    self.round().await?;
                    let done = Message::Welcome(v1::Welcome::default());
                    drop(outbound.send(Ok(v1::ControllerMessage { message: Some(done) })).await);
                }
                _ => self.answered.add_permits(1),
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl NodeStreamService for FanOut {
    type StreamStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (outbound, messages) = mpsc::channel(2);
        tokio::spawn(self.clone().serve(request.into_inner(), outbound));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}
