//! The shell of the stream: connects, moves messages between the controller and the daemon's core, reconnects. It decides
//! nothing: [`super::handler`] and the core do.

use std::time::Duration;

use rand::Rng;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Streaming,
    body::Body,
    client::GrpcService,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};
use weft_proto::v1::{
    self, ControllerMessage, NodeMessage, node_message::Message, node_report::Report,
    node_stream_service_client::NodeStreamServiceClient,
};

use super::{
    backoff::Backoff,
    handler::{Event, Session, SessionError},
};
use crate::{
    daemon::{Core, CoreGone, Welcomed},
    desired::digests::QuestionError,
    limits::{
        CONNECT_TIMEOUT_SECONDS, KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS, REPORTS_QUEUED_MAX,
        STREAM_MESSAGE_BYTES, STREAM_STABLE_SECONDS,
    },
};

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot reach {url}: {source}")]
    Connect { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the stream to {url} ended: {source}")]
    Status { url: String, source: Box<tonic::Status> },
    #[error("the controller {url} closed the stream")]
    Closed { url: String },
    #[error("the stream could not take all reports of this node")]
    Overrun,
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Question(#[from] QuestionError),
    #[error("what came could not be realised: {0}")]
    Realise(String),
    #[error(transparent)]
    Core(#[from] CoreGone),
}

/// How controllers are reached, and where chance comes from. There is the network, and what simulates it.
pub trait Reach: Send + Sync {
    type Channel: GrpcService<Body, ResponseBody = Body, Future: Send> + Send;
    type Error: std::error::Error + Send + Sync + 'static;

    fn connect(&self, url: &str) -> impl Future<Output = Result<Self::Channel, Self::Error>> + Send;

    /// Uniform in 0..1.
    fn random(&self) -> f64;
}

/// TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl Reach for Network {
    type Channel = Channel;
    type Error = tonic::transport::Error;

    async fn connect(&self, url: &str) -> Result<Channel, Self::Error> {
        Endpoint::from_shared(url.to_owned())?
            .connect_timeout(Duration::from_secs(CONNECT_TIMEOUT_SECONDS))
            .http2_keep_alive_interval(Duration::from_secs(KEEPALIVE_SECONDS))
            .keep_alive_timeout(Duration::from_secs(KEEPALIVE_TIMEOUT_SECONDS))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect()
            .await
    }

    fn random(&self) -> f64 {
        rand::rng().random()
    }
}

/// Keeps a stream to one of the controllers until cancelled.
pub async fn run(core: Core, controllers: Vec<String>, cancel: CancellationToken) {
    run_over(&Network, core, controllers, cancel).await;
}

/// As [`run`], over something else than the network.
pub async fn run_over(reach: &impl Reach, core: Core, controllers: Vec<String>, cancel: CancellationToken) {
    let mut backoff = Backoff::default();
    // Each node begins elsewhere, so that the fleet spreads over its controllers.
    let mut next = begin(reach.random(), controllers.len());
    while let Some(url) = controllers.get(next) {
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            ended = stream(reach, &core, url) => ended,
            () = cancel.cancelled() => return,
        };
        let Err(error) = ended;
        if core.disconnected(error.to_string(), is_guard(&error)).await.is_err() {
            return;
        }
        warn!(controller = %url, %error, "no stream to a controller; the kernel goes on with what it has");
        if began.elapsed() > Duration::from_secs(STREAM_STABLE_SECONDS) {
            backoff.reset();
        }
        next = (next + 1) % controllers.len();
        let wait = backoff.next(reach.random());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return,
        }
    }
}

fn is_guard(error: &StreamError) -> bool {
    matches!(error, StreamError::Session(session) if session.is_guard())
}

/// Which of them comes first.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "controllers are few, and chance is not negative"
)]
fn begin(random: f64, controllers: usize) -> usize {
    ((random * controllers as f64) as usize).min(controllers.saturating_sub(1))
}

/// One stream, from connection to its end.
async fn stream(reach: &impl Reach, core: &Core, url: &str) -> Result<std::convert::Infallible, StreamError> {
    let status =
        |source: tonic::Status| StreamError::Status { url: url.to_owned(), source: Box::new(source) };
    let channel = reach
        .connect(url)
        .await
        .map_err(|source| StreamError::Connect { url: url.to_owned(), source: source.into() })?;
    let mut client = NodeStreamServiceClient::new(channel)
        .max_decoding_message_size(STREAM_MESSAGE_BYTES)
        .max_encoding_message_size(STREAM_MESSAGE_BYTES);
    let hello = core.hello().await?;
    let have = hello.have.clone().unwrap_or_default();
    let (outgoing, messages) = mpsc::channel(REPORTS_QUEUED_MAX);
    send(&outgoing, Message::Hello(hello), url).await?;
    let incoming = client.stream(ReceiverStream::new(messages)).await.map_err(status)?.into_inner();
    let session = Session::new(&have);
    exchange(core, url, session, incoming, outgoing).await
}

async fn exchange(
    core: &Core,
    url: &str,
    mut session: Session,
    mut incoming: Streaming<ControllerMessage>,
    outgoing: mpsc::Sender<NodeMessage>,
) -> Result<std::convert::Infallible, StreamError> {
    let (reports, mut reported) = mpsc::channel(REPORTS_QUEUED_MAX);
    // The core's from Welcome on: when it drops them, it wants a new stream.
    let mut reports = Some(reports);
    loop {
        let message = tokio::select! {
            // The controller first: reports wait until it reads again anyway.
            biased;
            message = incoming.next() => message.ok_or_else(|| StreamError::Closed { url: url.to_owned() })?,
            report = reported.recv() => {
                let report = report.ok_or(StreamError::Overrun)?;
                send(&outgoing, Message::Report(report), url).await?;
                continue;
            }
        };
        let message = message
            .map_err(|source| StreamError::Status { url: url.to_owned(), source: Box::new(source) })?;
        match session.handle(message)? {
            None => {}
            Some(Event::Welcomed {
                store_id,
                controller,
                version,
                adopts,
                endpoints_known,
                want_buckets,
            }) => {
                info!(controller = %url, %store_id, %version, "stream is up");
                let controller = if controller.is_empty() { url.to_owned() } else { controller };
                if let Some(reports) = reports.take() {
                    let welcomed = Welcomed { store_id, adopts, endpoints_known, controller };
                    core.connected(welcomed, reports).await?;
                }
                if !want_buckets.is_empty() {
                    let buckets = core.buckets(want_buckets).await??;
                    send(&outgoing, report(Report::Buckets(buckets)), url).await?;
                }
            }
            Some(Event::WantItems(wanted)) => {
                let (items, listing) = core.items(wanted).await??;
                session.listed_items(listing);
                send(&outgoing, report(Report::Items(items)), url).await?;
            }
            Some(Event::Batch(batch)) => {
                let ack = core.realise(batch).await?.map_err(StreamError::Realise)?;
                send(&outgoing, Message::Ack(ack), url).await?;
            }
            Some(Event::Answer(answer)) => core.answer(answer).await?,
        }
    }
}

fn report(report: Report) -> Message {
    Message::Report(v1::NodeReport { report: Some(report) })
}

async fn send(outgoing: &mpsc::Sender<NodeMessage>, message: Message, url: &str) -> Result<(), StreamError> {
    let sent = outgoing.send(NodeMessage { message: Some(message) }).await;
    sent.map_err(|_| StreamError::Closed { url: url.to_owned() })
}
