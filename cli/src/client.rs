//! Connections: to a controller over TCP, to the daemon of this node over its UNIX socket.
use std::{fmt, path::Path, time::Duration};

use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use weft_proto::v1::{
    node_local_service_client::NodeLocalServiceClient, operator_service_client::OperatorServiceClient,
};

use crate::{
    failure::Failure,
    limits::{CALL_TIMEOUT, CONNECT_TIMEOUT, RESPONSE_BYTES_MAX, STATUS_BYTES_MAX},
};

/// The other end, for messages.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    address: String,
    help: &'static str,
}

impl Remote {
    fn unreachable(&self, why: &dyn fmt::Display) -> Failure {
        Failure::Unreachable {
            message: format!("cannot reach {}: {why}", self.address),
            help: self.help.to_owned(),
        }
    }

    /// What a status means for the command.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        match status.code() {
            Code::Unavailable => self.unreachable(&status.message()),
            _ if timed_out(status) => Failure::TimedOut(format!("{} did not answer in time", self.address)),
            _ => Failure::refused(status),
        }
    }
}

/// A deadline passed, here or there: tonic says "cancelled" for the deadlines that it keeps itself.
pub(crate) fn timed_out(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded
        || (status.code() == Code::Cancelled && status.message().contains("Timeout expired"))
}

/// A request with the usual deadline.
pub(crate) fn request<T>(message: T) -> Request<T> {
    with_deadline(message, CALL_TIMEOUT)
}

pub(crate) fn with_deadline<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

#[derive(Debug, Clone)]
pub(crate) struct Operator {
    pub client: OperatorServiceClient<Channel>,
    pub remote: Remote,
}

/// Connects to a controller, given as `http://host:port` or `host:port`.
pub(crate) async fn operator(server: &str) -> Result<Operator, Failure> {
    let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    if !url.starts_with("http://") {
        return Err(Failure::Usage(format!("--server {server}: expected http://HOST:PORT")));
    }
    let endpoint = Endpoint::from_shared(url.clone())
        .ok()
        .filter(|endpoint| endpoint.uri().host().is_some_and(|host| !host.is_empty()))
        .ok_or_else(|| Failure::Usage(format!("--server {server}: expected http://HOST:PORT")))?;
    let help = "is weft-controller running there? Name another one with --server or WEFT_SERVER";
    let remote = Remote { address: url, help };
    let channel = connect(endpoint, &remote).await?;
    let client = OperatorServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    Ok(Operator { client, remote })
}

#[derive(Debug, Clone)]
pub(crate) struct NodeLocal {
    pub client: NodeLocalServiceClient<Channel>,
    pub remote: Remote,
}

/// Connects to the daemon of this node.
pub(crate) async fn node_local(socket: &Path) -> Result<NodeLocal, Failure> {
    let path = socket.display().to_string();
    let help = "is weft-noded running on this node, and may you use its socket? Name another one with --socket or WEFT_SOCKET";
    let endpoint = Endpoint::from_shared(format!("unix://{path}"))
        .map_err(|error| Failure::Usage(format!("--socket {path}: {error}")))?;
    let remote = Remote { address: path, help };
    let channel = connect(endpoint, &remote).await?;
    let client = NodeLocalServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    Ok(NodeLocal { client, remote })
}

async fn connect(endpoint: Endpoint, remote: &Remote) -> Result<Channel, Failure> {
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_max_header_list_size(STATUS_BYTES_MAX)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|error| remote.unreachable(&innermost(&error)))
}

/// The error at the bottom says what happened ("Connection refused"); those above say "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
