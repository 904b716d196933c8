//! A continuous stream of datagrams to an echo server, which counts what did not come back.
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::{Namespace, namespace::join};
use crate::{
    limits::{READY, STREAM_INTERVAL, STREAM_TAIL},
    wait,
};

/// A running stream.
#[derive(Debug)]
pub struct EchoStream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Echoes>>>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Echoes {
    pub sent: u64,
    pub received: u64,
    /// The longest time between two echoes.
    pub longest_gap: Duration,
}

impl Echoes {
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl EchoStream {
    /// Starts sending from the namespace to a [`super::UdpServer`].
    pub fn start(from: &Namespace, to: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let sending = Arc::clone(&shared);
        Self { shared, thread: Some(from.spawn(move || run(to, &sending))) }
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until this many more echoes have come back on each of the streams.
    pub fn all_more(streams: &[Self], echoes: u64) -> Result<()> {
        let goals: Vec<_> = streams.iter().map(|stream| stream.received() + echoes).collect();
        wait::until_true(&format!("{echoes} more echoes on each stream"), READY, || {
            Ok(streams.iter().zip(&goals).all(|(stream, goal)| stream.received() >= *goal))
        })
    }

    fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for the echoes under way, and counts.
    pub fn stop(mut self) -> Result<Echoes> {
        self.shared.end.store(true, Ordering::Relaxed);
        join(self.thread.take().context("a stream is stopped once")?)
    }
}

impl Drop for EchoStream {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
    }
}

fn run(to: SocketAddr, shared: &Shared) -> Result<Echoes> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(STREAM_INTERVAL))?;
    let mut seen = BTreeSet::new();
    let (mut sent, mut last, mut longest_gap) = (0_u64, Instant::now(), Duration::ZERO);
    let mut tail = None;
    loop {
        let now = Instant::now();
        if tail.is_none() {
            if shared.end.load(Ordering::Relaxed) {
                tail = Some(now + STREAM_TAIL);
            } else {
                socket.send(&sent.to_be_bytes())?;
                sent += 1;
                shared.sent.store(sent, Ordering::Relaxed);
            }
        }
        if tail.is_some_and(|end| now >= end || seen.len() as u64 == sent) {
            return Ok(Echoes { sent, received: seen.len() as u64, longest_gap });
        }
        // The socket's timeout paces the stream: receive for one interval, whatever comes.
        while now.elapsed() < STREAM_INTERVAL {
            let mut buffer = [0; 8];
            match socket.recv(&mut buffer) {
                Ok(_) if seen.insert(u64::from_be_bytes(buffer)) => {
                    longest_gap = longest_gap.max(last.elapsed());
                    last = Instant::now();
                    shared.received.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("echo stream"),
            }
        }
    }
}
