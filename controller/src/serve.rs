//! Puts the parts together: the store, the fleet that follows it, the services, the listener.
use std::{fmt, io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};
use weft_proto::v1::{
    node_stream_service_server::NodeStreamServiceServer, operator_service_server::OperatorServiceServer,
};

use crate::{
    api::Operator,
    collector, expiry,
    fleet::EventError,
    fleet_config, guard, limits,
    opening::{self, OpenError, StoreConfig},
    plan::Registry,
    progress::keep,
    store::{EtcdConfigError, Store, StoreError},
    stream::{self, Context, Hub, NodeStreams},
};

#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// What this controller calls itself.
    pub name: String,
    /// Anybody who can reach the listener is trusted: needed where it is not loopback.
    pub insecure: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "{0} is not a loopback address: connections are neither encrypted nor authenticated yet, so anybody who \
         reaches it controls the fleet. Listen on 127.0.0.1 or [::1], or say --insecure if the network itself is \
         trusted"
    )]
    NotLoopback(SocketAddr),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Etcd(#[from] EtcdConfigError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot serve what the store holds: {0}")]
    Contents(#[from] EventError),
    #[error("the store is not the one that was served, nodes were told nothing of it: {0}")]
    Replaced(EventError),
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    #[error("a part of the controller failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl ServeError {
    /// Whether the configuration itself is refused.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotLoopback(_) | Self::Etcd(_))
    }
}

/// Everything of a controller but its listener.
pub struct Services {
    pub operator: Operator,
    pub nodes: NodeStreams,
    store_id: String,
    stop: CancellationToken,
    follower: JoinHandle<Result<(), EventError>>,
    upkeep: JoinHandle<()>,
}

impl fmt::Debug for Services {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Services").field("store_id", &self.store_id).finish_non_exhaustive()
    }
}

impl Services {
    /// Initialises a new store, takes in what it holds, and follows it until [`Services::stopper`] is cancelled. `name`: what this
    /// controller calls itself.
    pub async fn start(name: String, store: Arc<dyn Store>) -> Result<Self, ServeError> {
        let store_id = fleet_config::initialise(store.as_ref()).await?;
        let (hub, stop) = (Arc::new(Hub::new(name.clone())), CancellationToken::new());
        let revision = stream::load(store.as_ref(), &hub).await?;
        let following = stream::follow(Arc::clone(&store), Arc::clone(&hub), Some(revision), stop.clone());
        let keeping = keep::keep(Arc::clone(&store), Arc::clone(&hub), stop.clone());
        let follower = tokio::spawn(async {
            let keeping = async {
                keeping.await;
                Ok(())
            };
            tokio::try_join!(following, keeping).map(|((), ())| ())
        });
        let expiring = expiry::run(Arc::clone(&store), Arc::clone(&hub), stop.clone());
        let collecting = collector::run(Arc::clone(&store), Arc::clone(&hub), stop.clone());
        let upkeep = tokio::spawn(async {
            tokio::join!(expiring, collecting);
        });
        let context = Context {
            registry: Arc::new(Registry::new(Arc::clone(&store)).followed_by(Arc::clone(&hub))),
            store_id: store_id.clone(),
            hub: Arc::clone(&hub),
            controller: name,
            stop: stop.clone(),
        };
        let operator = Operator::new(store, store_id.clone(), hub, stop.clone());
        Ok(Self { operator, nodes: NodeStreams::new(context), store_id, stop, follower, upkeep })
    }

    /// Cancelled, it ends streams and following. Calls in progress end by themselves.
    pub fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }
}

/// A controller that serves.
pub struct Controller {
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    follower: JoinHandle<Result<(), EventError>>,
    upkeep: JoinHandle<()>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Controller").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Controller {
    /// Serves until [`Controller::stop`]. Once this returns, connections are accepted.
    pub async fn start(config: Config, store: &StoreConfig) -> Result<Self, ServeError> {
        refuse_open_listener(&config)?;
        if let StoreConfig::Etcd(etcd) = store {
            etcd.check(config.insecure)?;
        }
        let store = opening::open(store).await?;
        Self::start_with(config, store).await
    }

    /// Serves with this store.
    pub async fn start_with(config: Config, store: Arc<dyn Store>) -> Result<Self, ServeError> {
        refuse_open_listener(&config)?;
        let address = config.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address, source })?;
        let Services { operator, nodes, store_id, stop, follower, upkeep } =
            Services::start(config.name, store).await?;
        let server = tokio::spawn(serve(listener, operator, nodes, stop.clone()));
        tracing::info!(%address, store_id, "serving");
        Ok(Self { address, stop, server, follower, upkeep })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends streams, lets calls in progress end, and closes the store.
    pub async fn stop(self) -> Result<(), ServeError> {
        self.stop.cancel();
        let mut server = self.server;
        match tokio::time::timeout(limits::SHUTDOWN_GRACE, &mut server).await {
            Ok(ended) => ended??,
            Err(_late) => {
                tracing::warn!("calls in progress did not end in time");
                server.abort();
            }
        }
        // What it ended with was said already.
        drop(self.follower.await?);
        self.upkeep.await?;
        Ok(())
    }

    /// Returns only if the server fails by itself, or the store is not the one any more that is served.
    pub async fn failed(&mut self) -> ServeError {
        tokio::select! {
            ended = &mut self.server => match ended {
                Ok(Err(error)) => error.into(),
                Err(error) => error.into(),
                Ok(Ok(())) => StoreError::Closed.into(),
            },
            ended = &mut self.follower => match ended {
                Ok(Err(error)) => ServeError::Replaced(error),
                Err(error) => error.into(),
                Ok(Ok(())) => StoreError::Closed.into(),
            },
        }
    }
}

fn refuse_open_listener(config: &Config) -> Result<(), ServeError> {
    if config.listen.ip().is_loopback() {
        return Ok(());
    }
    if !config.insecure {
        return Err(ServeError::NotLoopback(config.listen));
    }
    tracing::warn!(address = %config.listen, "insecure: whoever reaches this address controls the fleet");
    Ok(())
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(weft_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

#[expect(clippy::expect_used, reason = "see its text")]
async fn serve(
    listener: TcpListener,
    operator: Operator,
    nodes: NodeStreams,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<OperatorServiceServer<Operator>>().await;
    health_reporter.set_serving::<NodeStreamServiceServer<NodeStreams>>().await;
    let operator = OperatorServiceServer::new(operator).max_decoding_message_size(limits::REQUEST_MAX_BYTES);
    let nodes = NodeStreamServiceServer::new(nodes).max_decoding_message_size(limits::REQUEST_MAX_BYTES);
    let reflected = "the descriptors were encoded by the compiler that made this program";
    Server::builder()
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .layer(guard::GuardLayer::default())
        .add_service(operator)
        .add_service(nodes)
        .add_service(health)
        .add_service(reflection().build_v1().expect(reflected))
        // What many clients of other languages still ask for.
        .add_service(reflection().build_v1alpha().expect(reflected))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.cancelled_owned(),
        )
        .await
}
