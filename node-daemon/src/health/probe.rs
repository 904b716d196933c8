//! One probe of a backend: a TCP connection, and with HTTP a request on it (HTTP/1.1, RFC 9112). Connections are reset in the end,
//! so that none is left waiting on either side.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{Http, targets::Target};
use crate::limits::{PROBE_ANSWER_BYTES_MAX, PROBE_ERROR_BYTES_MAX};

/// Why a backend did not answer as it should.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("no answer within {milliseconds} ms")]
    Late { milliseconds: u128 },
    #[error("{0}")]
    Connection(#[from] std::io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("HTTP: {0}")]
    Request(#[from] http::Error),
    #[error("HTTP: status {found}, expected {expected}")]
    Status { found: u16, expected: u16 },
}

/// All ports, one after the other. The error is for people, and at most [`PROBE_ERROR_BYTES_MAX`] long.
pub async fn probe(address: IpAddr, target: &Target) -> Result<(), String> {
    for port in &target.ports {
        let place = SocketAddr::new(address, *port);
        let answered = timeout(target.check.timeout, ask(place, target.check.http.as_ref())).await;
        let milliseconds = target.check.timeout.as_millis();
        let answered = answered.unwrap_or(Err(ProbeError::Late { milliseconds }));
        answered.map_err(|error| match target.ports.len() {
            1 => shortened(error.to_string()),
            _ => shortened(format!("port {port}: {error}")),
        })?;
    }
    Ok(())
}

async fn ask(place: SocketAddr, http: Option<&Http>) -> Result<(), ProbeError> {
    let connection = TcpStream::connect(place).await?;
    connection.set_zero_linger()?;
    match http {
        None => Ok(()),
        Some(http) => get(connection, place, http).await,
    }
}

async fn get(connection: TcpStream, place: SocketAddr, http: &Http) -> Result<(), ProbeError> {
    let request = Request::get(&http.path)
        .header(header::HOST, place.to_string())
        .header(header::USER_AGENT, concat!("weft-noded/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let mut builder = http1::Builder::new();
    let builder = builder.max_buf_size(PROBE_ANSWER_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(connection)).await?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer?,
        ended = connection => {
            ended?;
            // What came with the end.
            answer.await?
        }
    };
    let (found, expected) = (answer.status().as_u16(), http.expected_status);
    if found == expected { Ok(()) } else { Err(ProbeError::Status { found, expected }) }
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(PROBE_ERROR_BYTES_MAX));
    text
}
