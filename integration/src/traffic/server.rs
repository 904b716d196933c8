//! Servers that answer on every address of a namespace, both families: TCP (HTTP to a `GET`, an echo of lines
//! otherwise) and UDP (an echo).
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::Namespace;
use crate::limits::READY;

/// How often a waiting server looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// Answers TCP connections until it is dropped.
#[derive(Debug)]
pub struct TcpServer {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    pub fn start(namespace: &Namespace, port: u16, name: &str) -> Result<Self> {
        let listener = namespace.within(move || TcpListener::bind(("::", port)).context("listen"))?;
        let listener = Arc::new(listener);
        let (accepting, name) = (Arc::clone(&listener), name.to_owned());
        let thread = thread::spawn(move || {
            // Ends when the listener is shut down.
            while let Ok((connection, _)) = accepting.accept() {
                let name = name.clone();
                // A client that goes away is no failure of the server.
                thread::spawn(move || drop(serve(&connection, &name)));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // On Linux this wakes a thread that waits in accept.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(connection: &TcpStream, name: &str) -> Result<()> {
    connection.set_read_timeout(Some(READY))?;
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let mut answer = connection;
        if line.starts_with("GET ") {
            let body = format!("hello from {name}\n");
            write!(
                answer,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )?;
            connection.shutdown(Shutdown::Write)?;
            return Ok(());
        }
        answer.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Echoes datagrams until it is dropped, and counts them.
#[derive(Debug)]
pub struct UdpServer {
    end: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let socket = namespace.within(move || UdpSocket::bind(("::", port)).context("bind"))?;
        socket.set_read_timeout(Some(LOOK))?;
        let (end, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ending, counting) = (Arc::clone(&end), Arc::clone(&received));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            while !ending.load(Ordering::Relaxed) {
                // A timeout, or an ICMP error for an earlier answer: neither ends a server.
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                counting.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        Ok(Self { end, received, thread: Some(thread) })
    }

    /// Datagrams that have arrived.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
