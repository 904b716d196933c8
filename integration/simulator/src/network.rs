//! The network between daemons and controllers: gRPC calls go to the controller's service in this process, and what the
//! two say on a stream passes through here, frame by frame, late, held up by partitions, or cut off.
//!
//! A stream keeps the order of what is said in one direction (as TCP does); streams overtake each other.
use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::{Service, ServiceExt};
use weft_controller::{signal, stream::NodeStreams};
use weft_noded::stream::client::Reach;
use weft_proto::v1::node_stream_service_server::NodeStreamServiceServer;

use crate::{chance::Chance, history::History};

pub(crate) type Server = NodeStreamServiceServer<NodeStreams>;

/// Frames between the two ends of a stream.
const FRAMES_IN_FLIGHT: usize = 16;
/// An address that answers nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// When an end that hears nothing gives up, at the earliest.
const SILENCE_MILLISECONDS: std::ops::Range<u64> = 4_000..9_000;

/// Sees what a node says, at the moment it is said.
pub(crate) type Observer = Arc<dyn Fn(&str, Bytes) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Network {
    chance: Chance,
    history: History,
    state: Arc<Mutex<State>>,
    observer: Observer,
}

#[derive(Default)]
struct State {
    servers: BTreeMap<String, Server>,
    links: BTreeMap<(String, String), Link>,
    /// Frames of a node take this much longer.
    slow: BTreeMap<String, Duration>,
    streams: Vec<Arc<Stream>>,
}

struct Link {
    up: signal::Sender<bool>,
}

/// One call, from a node to a controller.
struct Stream {
    node: String,
    controller: String,
    up: signal::Receiver<bool>,
    node_end: CancellationToken,
    controller_end: CancellationToken,
}

impl Network {
    pub(crate) fn new(chance: Chance, history: History, observer: Observer) -> Self {
        Self { chance, history, state: Arc::default(), observer }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn serve(&self, controller: &str, server: Server) {
        self.state().servers.insert(controller.to_owned(), server);
    }

    /// The controller's process is no more: its ends of all streams go, and the others learn of it when packets pass.
    pub(crate) fn controller_died(&self, controller: &str) {
        let mut state = self.state();
        state.servers.remove(controller);
        for stream in state.streams.iter().filter(|stream| stream.controller == controller) {
            stream.controller_end.cancel();
        }
    }

    pub(crate) fn node_died(&self, node: &str) {
        for stream in self.state().streams.iter().filter(|stream| stream.node == node) {
            stream.node_end.cancel();
        }
    }

    /// As by a reset connection.
    pub(crate) fn cut(&self, node: &str, controller: &str) {
        let state = self.state();
        let streams = state.streams.iter();
        for stream in streams.filter(|stream| stream.node == node && stream.controller == controller) {
            if self.chance.percent(50) { stream.node_end.cancel() } else { stream.controller_end.cancel() }
        }
    }

    pub(crate) fn set_link(&self, node: &str, controller: &str, up: bool) {
        self.link(node, controller, |link| link.up.send_replace(up));
    }

    pub(crate) fn set_slow(&self, node: &str, by: Duration) {
        self.state().slow.insert(node.to_owned(), by);
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.slow.clear();
        for link in state.links.values() {
            link.up.send_replace(true);
        }
    }

    fn link<T>(&self, node: &str, controller: &str, ask: impl FnOnce(&Link) -> T) -> T {
        let mut state = self.state();
        let link = state.links.entry((node.to_owned(), controller.to_owned()));
        ask(link.or_insert_with(|| Link { up: signal::Sender::new(true) }))
    }

    /// Most packets are quick, some are not.
    fn delay(&self, node: &str) -> Duration {
        let slow = self.state().slow.get(node).copied().unwrap_or_default();
        let chance = &self.chance;
        slow + if chance.percent(90) { chance.milliseconds(0..8) } else { chance.milliseconds(8..400) }
    }

    async fn call(
        self,
        stream: Arc<Stream>,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        let lost = || Status::unavailable("simulated: the connection was reset");
        let Some(server) = self.state().servers.get(&stream.controller).cloned() else { return Err(lost()) };
        self.state().streams.push(Arc::clone(&stream));
        tokio::spawn(self.clone().supervise(Arc::clone(&stream)));
        let request = request.map(|body| self.carry(body, &stream, Direction::ToController));
        let answered = tokio::select! {
            biased;
            () = stream.node_end.cancelled() => return Err(lost()),
            answered = server.oneshot(request) => answered,
        };
        let response = answered.unwrap_or_else(|never: Infallible| match never {});
        Ok(response.map(|body| self.carry(body, &stream, Direction::ToNode)))
    }

    /// Ends the other end of a stream some time after the one.
    async fn supervise(self, stream: Arc<Stream>) {
        let mut up = stream.up.clone();
        let other = loop {
            tokio::select! {
                biased;
                () = stream.node_end.cancelled() => break &stream.controller_end,
                () = stream.controller_end.cancelled() => break &stream.node_end,
                _ = up.wait_for(|up| !up) => {}
            }
            // No packet passes: who hears nothing for long enough gives up first.
            let first = if self.chance.percent(50) { &stream.node_end } else { &stream.controller_end };
            let patience = tokio::time::sleep(self.chance.milliseconds(SILENCE_MILLISECONDS));
            tokio::select! {
                biased;
                () = stream.node_end.cancelled() => {}
                () = stream.controller_end.cancelled() => {}
                _ = up.wait_for(|up| *up) => {}
                () = patience => first.cancel(),
            }
        };
        let told = async {
            // The sender lives as long as the network.
            up.wait_for(|up| *up).await.ok();
            tokio::time::sleep(self.delay(&stream.node)).await;
        };
        let patience = tokio::time::sleep(self.chance.milliseconds(SILENCE_MILLISECONDS));
        tokio::select! {
            biased;
            () = told => {}
            () = patience => {}
        }
        other.cancel();
        self.state().streams.retain(|known| !Arc::ptr_eq(known, &stream));
        self.history.note(&stream.node, format!("its stream to {} is over", stream.controller));
    }

    fn carry(&self, body: Body, stream: &Arc<Stream>, direction: Direction) -> Body {
        let (said, underway) = mpsc::channel(FRAMES_IN_FLIGHT);
        let (sender, frames) = mpsc::channel(1);
        tokio::spawn(self.clone().take(body, Arc::clone(stream), direction, said));
        tokio::spawn(deliver(Arc::clone(stream), direction, underway, sender));
        Body::new(Frames(frames))
    }

    /// Takes what one end says; `said` is when it arrives if nothing is in the way.
    async fn take(
        self,
        mut body: Body,
        stream: Arc<Stream>,
        direction: Direction,
        said: mpsc::Sender<(Instant, Frame<Bytes>)>,
    ) {
        let near = direction.near(&stream);
        loop {
            let frame = tokio::select! {
                biased;
                () = near.cancelled() => return,
                frame = body.frame() => frame,
            };
            let Some(Ok(frame)) = frame else { return };
            if let (Direction::ToController, Some(data)) = (direction, frame.data_ref()) {
                (self.observer)(&stream.node, data.clone()).await;
            }
            let arrives = Instant::now() + self.delay(&stream.node);
            tracing::debug!(?arrives, node = stream.node, ?direction, frame = ?frame.data_ref(), "said");
            if said.send((arrives, frame)).await.is_err() {
                return;
            }
        }
    }
}

async fn deliver(
    stream: Arc<Stream>,
    direction: Direction,
    mut underway: mpsc::Receiver<(Instant, Frame<Bytes>)>,
    sender: mpsc::Sender<Result<Frame<Bytes>, Status>>,
) {
    let far = direction.far(&stream);
    let mut up = stream.up.clone();
    let pass = async {
        while let Some((arrives, frame)) = underway.recv().await {
            tokio::time::sleep_until(arrives).await;
            up.wait_for(|up| *up).await.ok();
            tracing::debug!(?arrives, node = stream.node, ?direction, "arrives");
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    };
    let cut = tokio::select! {
        biased;
        () = far.cancelled() => true,
        () = sender.closed() => false,
        () = pass => false,
    };
    if cut {
        drop(sender.try_send(Err(Status::unavailable("simulated: the connection was reset"))));
    } else {
        far.cancel();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToController,
    ToNode,
}

impl Direction {
    fn near(self, stream: &Stream) -> &CancellationToken {
        if self == Self::ToController { &stream.node_end } else { &stream.controller_end }
    }

    fn far(self, stream: &Stream) -> &CancellationToken {
        if self == Self::ToController { &stream.controller_end } else { &stream.node_end }
    }
}

/// What arrives, as a body.
struct Frames(mpsc::Receiver<Result<Frame<Bytes>, Status>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(context)
    }
}

/// The network as one node sees it. Controllers are reached by their names.
#[derive(Clone)]
pub(crate) struct Uplink {
    pub(crate) network: Network,
    pub(crate) node: String,
}

impl Reach for Uplink {
    type Channel = Line;
    type Error = Status;

    async fn connect(&self, controller: &str) -> Result<Line, Status> {
        let network = &self.network;
        let up = network.link(&self.node, controller, |link| link.up.subscribe());
        tokio::time::sleep(network.delay(&self.node)).await;
        let reached = tokio::time::timeout(CONNECT_TIMEOUT, up.clone().wait_for(|up| *up)).await.is_ok();
        if !reached || !network.state().servers.contains_key(controller) {
            return Err(Status::unavailable("simulated: nobody answers"));
        }
        let stream = Stream {
            node: self.node.clone(),
            controller: controller.to_owned(),
            up,
            node_end: CancellationToken::new(),
            controller_end: CancellationToken::new(),
        };
        Ok(Line { network: network.clone(), stream: Arc::new(stream) })
    }

    fn random(&self) -> f64 {
        self.network.chance.unit()
    }
}

/// A connection: one call at a time.
pub(crate) struct Line {
    network: Network,
    stream: Arc<Stream>,
}

impl Service<http::Request<Body>> for Line {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.network.clone().call(Arc::clone(&self.stream), request))
    }
}
