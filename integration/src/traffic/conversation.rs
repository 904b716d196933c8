//! A long TCP connection on which both sides keep talking, and that remembers when each message was written and
//! whether it arrived: so "nothing written after this moment arrived" can be said exactly.
use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::Namespace;
use crate::{
    limits::{DENIED, READY},
    wait,
};

/// Between two messages of one side.
const INTERVAL: Duration = Duration::from_millis(2);
/// Written by each side of a connection that should be silent; none may arrive.
const SILENT_MESSAGES: u64 = 200;

/// An established connection with a writer and a reader on both sides.
#[derive(Debug)]
pub struct Conversation {
    end: Arc<AtomicBool>,
    forward: Arc<Way>,
    backward: Arc<Way>,
    sockets: [TcpStream; 2],
    threads: Vec<JoinHandle<()>>,
}

/// One direction. A message is its number, from 0.
#[derive(Debug, Default)]
struct Way {
    written: AtomicU64,
    arrived: AtomicU64,
    last_arrival: Mutex<Option<Instant>>,
    /// Why nothing more can be written.
    ended: Mutex<Option<String>>,
}

/// How far both directions were at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    forward_written: u64,
    backward_written: u64,
}

impl Conversation {
    /// Connects from a namespace to an address of another, where it listens for this connection only.
    pub fn establish(from: &Namespace, to: &Namespace, address: IpAddr, port: u16) -> Result<Self> {
        let listener = to.within(move || TcpListener::bind(("::", port)).context("listen"))?;
        let client = from
            .within(move || Ok(TcpStream::connect_timeout(&SocketAddr::new(address, port), DENIED)?))
            .with_context(|| format!("connect to {address} port {port}"))?;
        let (server, _) = listener.accept()?;
        let end = Arc::new(AtomicBool::new(false));
        let (forward, backward) = (Arc::new(Way::default()), Arc::new(Way::default()));
        let mut threads = Vec::new();
        for (writer, reader, way) in [(&client, &server, &forward), (&server, &client, &backward)] {
            writer.set_nodelay(true)?;
            writer.set_write_timeout(Some(INTERVAL))?;
            let (mut writer, mut reader) = (writer.try_clone()?, reader.try_clone()?);
            let (writing, reading, ending) = (Arc::clone(way), Arc::clone(way), Arc::clone(&end));
            threads.push(thread::spawn(move || write(&mut writer, &writing, &ending)));
            threads.push(thread::spawn(move || read(&mut reader, &reading)));
        }
        Ok(Self { end, forward, backward, sockets: [client, server], threads })
    }

    /// This moment: what each side has begun to write.
    pub fn mark(&self) -> Mark {
        Mark { forward_written: self.forward.written(), backward_written: self.backward.written() }
    }

    /// Waits until messages have passed both ways that were written after the mark.
    pub fn passes_after(&self, mark: Mark) -> Result<()> {
        wait::until_true("messages pass both ways", READY, || Ok(self.passed_since(mark) == (true, true)))
    }

    /// Whether any message written after the mark has arrived: from the client, from the server.
    pub fn passed_since(&self, mark: Mark) -> (bool, bool) {
        (self.forward.arrived() > mark.forward_written, self.backward.arrived() > mark.backward_written)
    }

    /// An error if anything arrives that either side writes from now on, for a good many messages.
    pub fn is_silent(&self) -> Result<()> {
        let mark = self.mark();
        self.speaks_after(mark, SILENT_MESSAGES)?;
        match self.passed_since(mark) {
            (false, false) => Ok(()),
            passed => bail!("the connection goes on (from the client, from the server: {passed:?})"),
        }
    }

    /// Waits until one of the sides was told that the connection is no more.
    pub fn ends(&self) -> Result<()> {
        wait::until_true("the connection ends", READY, || {
            Ok(self.forward.check().is_err() || self.backward.check().is_err())
        })
    }

    /// Waits until each side has written this many messages after the mark, whether they arrive or not.
    pub fn speaks_after(&self, mark: Mark, messages: u64) -> Result<()> {
        wait::until_true("both sides go on speaking", READY, || {
            self.forward.check()?;
            self.backward.check()?;
            Ok(self.forward.written() >= mark.forward_written + messages
                && self.backward.written() >= mark.backward_written + messages)
        })
    }

    /// When the last message arrived, in either direction.
    pub fn last_arrival(&self) -> Option<Instant> {
        self.forward.last_arrival().max(self.backward.last_arrival())
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // Wakes its reader; already closed by the other side is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Way {
    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }

    fn end(&self, error: &io::Error) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    fn check(&self) -> Result<()> {
        match &*self.ended.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => bail!("the connection ended: {error}"),
            None => Ok(()),
        }
    }

    fn last_arrival(&self) -> Option<Instant> {
        *self.last_arrival.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts before it writes: a message that is not counted was not written yet. Where nothing gets through, the socket's
/// buffer fills up: then messages are spoken, and counted, but never written.
fn write(socket: &mut TcpStream, way: &Way, end: &AtomicBool) {
    let mut unwritten = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let number = way.written.fetch_add(1, Ordering::SeqCst);
        if unwritten.is_empty() {
            unwritten.extend(number.to_be_bytes());
        }
        match socket.write(&unwritten) {
            Ok(length) => drop(unwritten.drain(..length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return way.end(&error),
        }
        thread::park_timeout(INTERVAL);
    }
}

fn read(socket: &mut TcpStream, way: &Way) {
    let mut message = [0; 8];
    while socket.read_exact(&mut message).is_ok() {
        way.arrived.store(u64::from_be_bytes(message) + 1, Ordering::SeqCst);
        *way.last_arrival.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}
