//! Asking a member how it is, at its listener for metrics, which needs neither TLS nor a user.
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether it serves: knows a leader, and can read through it.
pub(crate) fn is_healthy(metrics: SocketAddr) -> bool {
    get(metrics, "/health").is_some_and(|answer| answer.contains(r#""health":"true""#))
}

/// Whether it thinks that it is the leader.
pub(crate) fn is_leader(metrics: SocketAddr) -> bool {
    get(metrics, "/metrics")
        .is_some_and(|answer| answer.lines().any(|line| line == "etcd_server_is_leader 1"))
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
