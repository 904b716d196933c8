//! A controller that says what the test tells it to, over a real socket.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{
    StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use weft_noded::limits::STREAM_MESSAGE_BYTES;
use weft_proto::v1::{
    self, ControllerMessage, NodeMessage, controller_message, node_message,
    node_report::Report,
    node_stream_service_server::{NodeStreamService, NodeStreamServiceServer},
};

/// For everything that must come.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One stream of the node, seen from the controller.
pub(crate) struct Stream {
    pub(crate) hello: v1::Hello,
    incoming: Streaming<NodeMessage>,
    outgoing: mpsc::Sender<Result<ControllerMessage, Status>>,
}

impl Stream {
    pub(crate) async fn send(&self, message: controller_message::Message) {
        self.outgoing.send(Ok(ControllerMessage { message: Some(message) })).await.expect("the node is gone");
    }

    pub(crate) async fn welcome(&self, store_id: &str, revision: u64) {
        let welcome = v1::Welcome { store_id: store_id.to_owned(), revision, ..v1::Welcome::default() };
        self.send(controller_message::Message::Welcome(welcome)).await;
    }

    pub(crate) async fn delta(&self, delta: v1::Delta) {
        self.send(controller_message::Message::Delta(delta)).await;
    }

    /// The next message; `None`: the node ended the stream.
    pub(crate) async fn next(&mut self) -> Option<node_message::Message> {
        let message = timeout(SOON, self.incoming.next()).await.expect("the node says nothing");
        message.and_then(Result::ok).and_then(|message| message.message)
    }

    /// The next acknowledgement; reports before it are passed over.
    pub(crate) async fn ack(&mut self) -> v1::Ack {
        loop {
            match self.next().await.expect("the node ended the stream") {
                node_message::Message::Ack(ack) => return ack,
                node_message::Message::Report(_) => {}
                node_message::Message::Hello(_) => panic!("a second Hello"),
            }
        }
    }

    /// The next report that `pick` takes; everything before it is passed over.
    pub(crate) async fn report<T>(&mut self, pick: impl Fn(Report) -> Option<T>) -> T {
        loop {
            if let node_message::Message::Report(report) =
                self.next().await.expect("the node ended the stream")
                && let Some(picked) = report.report.and_then(&pick)
            {
                return picked;
            }
        }
    }
}

struct Service {
    streams: mpsc::Sender<Stream>,
}

#[tonic::async_trait]
impl NodeStreamService for Service {
    type StreamStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut incoming = request.into_inner();
        let streams = self.streams.clone();
        let (outgoing, answers) = mpsc::channel(64);
        tokio::spawn(async move {
            let first = incoming.next().await.and_then(Result::ok).and_then(|message| message.message);
            let Some(node_message::Message::Hello(hello)) = first else {
                panic!("the first message is no Hello")
            };
            // The test may be over.
            drop(streams.send(Stream { hello, incoming, outgoing }).await);
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// The controller.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) url: String,
    streams: Arc<Mutex<mpsc::Receiver<Stream>>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let (streams, waiting) = mpsc::channel(16);
        let service =
            NodeStreamServiceServer::new(Service { streams }).max_decoding_message_size(STREAM_MESSAGE_BYTES);
        let server =
            Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(async move { drop(server.await) });
        Self { url, streams: Arc::new(Mutex::new(waiting)) }
    }

    /// The node's next stream.
    pub(crate) async fn stream(&self) -> Stream {
        let mut streams = self.streams.lock().await;
        timeout(SOON, streams.recv()).await.expect("no stream comes").expect("the fake controller lives")
    }
}
