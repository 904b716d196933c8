//! Streams of nodes: sessions, first sync, deltas, acknowledgements, reports.
mod chunks;
mod follow;
mod hub;
mod reports;
mod session;

use std::{fmt, pin::Pin, sync::Arc};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1::{self, node_stream_service_server::NodeStreamService};

pub use chunks::Chunks;
pub use follow::{follow, load};
pub use hub::{Hub, Registration, Waiting};
pub use session::Context;

use crate::limits;

/// Messages between a session and its HTTP/2 stream.
const OUTBOUND_MESSAGES: usize = 2;

#[derive(Clone)]
pub struct NodeStreams {
    context: Context,
    room: Arc<Semaphore>,
}

impl NodeStreams {
    pub fn new(context: Context) -> Self {
        Self { context, room: Arc::new(Semaphore::new(limits::NODE_STREAMS_MAX)) }
    }
}

impl fmt::Debug for NodeStreams {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NodeStreams")
    }
}

#[tonic::async_trait]
impl NodeStreamService for NodeStreams {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::ControllerMessage, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "this controller serves {} nodes already",
                limits::NODE_STREAMS_MAX
            ))
        })?;
        let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES);
        let context = self.context.clone();
        tokio::spawn(async move {
            session::run(context, request.into_inner(), outbound).await;
            drop(room);
        });
        let messages = ReceiverStream::new(messages).map(|message| message.map(|message| *message));
        Ok(Response::new(Box::pin(messages)))
    }
}
