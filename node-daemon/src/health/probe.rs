//! One probe of a backend: a TCP connection, and with HTTP a request on it (HTTP/1.1, RFC 9112). Connections are reset in the end,
//! so that none is left waiting on either side.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::Mark};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use weft_shared::layout::service::PROBE_MARK;

use super::{Http, targets::Target};
use crate::limits::{PROBE_ANSWER_BYTES_MAX, PROBE_ERROR_BYTES_MAX};

/// Why a backend did not answer as it should.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("no answer within {milliseconds} ms")]
    Late { milliseconds: u128 },
    #[error("cannot mark the socket: {0}")]
    Mark(nix::Error),
    #[error("{0}")]
    Connection(#[from] std::io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("HTTP: {0}")]
    Request(#[from] http::Error),
    #[error("HTTP: status {found}, expected {expected}")]
    Status { found: u16, expected: u16 },
}

/// What a probe that got no good answer says.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Of the backend, for people; at most [`PROBE_ERROR_BYTES_MAX`] long.
    Backend(String),
    /// Nothing of the backend: this node could not ask.
    Own(String),
}

/// All ports, one after the other.
pub async fn probe(address: IpAddr, target: &Target) -> Result<(), Failure> {
    for port in &target.ports {
        let place = SocketAddr::new(address, *port);
        let answered = timeout(target.check.timeout, ask(place, target.check.http.as_ref())).await;
        let milliseconds = target.check.timeout.as_millis();
        let answered = answered.unwrap_or(Err(ProbeError::Late { milliseconds }));
        answered.map_err(|error| match target.ports.len() {
            _ if error.is_own() => Failure::Own(error.to_string()),
            1 => Failure::Backend(shortened(error.to_string())),
            _ => Failure::Backend(shortened(format!("port {port}: {error}"))),
        })?;
    }
    Ok(())
}

impl ProbeError {
    /// No descriptor, memory or port was left for it, or it could not be told from a client.
    fn is_own(&self) -> bool {
        const LACKS: [i32; 5] =
            [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL];
        let error = match self {
            Self::Mark(_) => return true,
            Self::Connection(error) => error,
            _ => return false,
        };
        error.raw_os_error().is_some_and(|number| LACKS.contains(&number))
    }
}

async fn ask(place: SocketAddr, http: Option<&Http>) -> Result<(), ProbeError> {
    let socket = if place.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // The place itself is meant, also where a service has it.
    setsockopt(&socket, Mark, &PROBE_MARK).map_err(ProbeError::Mark)?;
    let connection = socket.connect(place).await?;
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

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use tokio::net::TcpListener;

    use super::*;
    use crate::health::Check;

    #[test]
    fn what_this_node_lacks_says_nothing_of_the_backend() {
        let failed = |number| ProbeError::from(io::Error::from_raw_os_error(number)).is_own();
        assert!(failed(libc::EMFILE) && failed(libc::EADDRNOTAVAIL));
        assert!(!failed(libc::ECONNREFUSED) && !failed(libc::EHOSTUNREACH) && !failed(libc::EPERM));
    }

    #[tokio::test]
    async fn each_port_must_answer_and_the_one_that_does_not_is_named() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = server.local_addr().unwrap().port();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let second = Duration::from_secs(1);
        let check =
            Check { interval: second, timeout: second, unhealthy_after: 1, healthy_after: 1, http: None };
        let asked = async |ports: &[u16]| {
            let target = Target { ports: ports.to_vec(), check: check.clone() };
            probe([127, 0, 0, 1].into(), &target).await
        };
        assert_eq!(asked(&[open]).await, Ok(()));
        let refused = format!("port {closed}: Connection refused (os error 111)");
        assert_eq!(asked(&[open, closed]).await, Err(Failure::Backend(refused)));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let long = "é".repeat(PROBE_ERROR_BYTES_MAX);
        assert_eq!(shortened(long), "é".repeat(PROBE_ERROR_BYTES_MAX / 2));
    }
}
