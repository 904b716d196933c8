//! Servers that answer with their names, and clients that ask who answers: of several behind one address, which one is it?
use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket;

use super::Namespace;
use crate::limits::READY;

/// How often a waiting server looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// Answers on one port of every address of a namespace, TCP and UDP, until it is dropped. A TCP client is told the name at once,
/// and has its bytes sent back from then on.
#[derive(Debug)]
pub struct NamedServer {
    listener: Arc<TcpListener>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Who answered, and who the client was told that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub by: String,
    pub from: SocketAddr,
}

impl NamedServer {
    pub fn start(namespace: &Namespace, port: u16, name: &str) -> Result<Self> {
        let (listener, datagrams) = namespace.within(move || {
            let everywhere = (Ipv6Addr::UNSPECIFIED, port);
            Ok((
                TcpListener::bind(everywhere).context("listen")?,
                UdpSocket::bind(everywhere).context("bind")?,
            ))
        })?;
        datagrams.set_read_timeout(Some(LOOK))?;
        let (listener, ended) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let (accepting, greeting) = (Arc::clone(&listener), format!("{name}\n"));
        let connections = thread::spawn(move || {
            while let Ok((connection, _)) = accepting.accept() {
                let greeting = greeting.clone();
                // A client that goes away is no failure of the server.
                thread::spawn(move || drop(serve(&connection, &greeting)));
            }
        });
        let (end, name) = (Arc::clone(&ended), name.to_owned());
        let answers = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if let Ok((_, from)) = datagrams.recv_from(&mut [0; 64]) {
                    // As above.
                    let _ = datagrams.send_to(name.as_bytes(), from);
                }
            }
        });
        Ok(Self { listener, ended, threads: vec![connections, answers] })
    }
}

impl Drop for NamedServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // On Linux this wakes a thread that waits in accept.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut connection: &TcpStream, greeting: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(READY))?;
    connection.write_all(greeting.as_bytes())?;
    let mut buffer = [0; 64];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            length => connection.write_all(&buffer[..length])?,
        }
    }
}

/// Connects from the calling thread's namespace.
pub fn connect_and_ask(to: SocketAddr) -> io::Result<(TcpStream, Answered)> {
    let mut connection = TcpStream::connect(to)?;
    connection.set_read_timeout(Some(READY))?;
    let (mut by, mut byte) = (String::new(), [0]);
    loop {
        connection.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        by.push(byte[0].into());
    }
    let from = connection.peer_addr()?;
    Ok((connection, Answered { by, from }))
}

/// Sends a datagram by a socket that is not connected, and receives the answer.
pub fn send_and_ask(socket: &UdpSocket, to: SocketAddr) -> io::Result<Answered> {
    socket.set_read_timeout(Some(READY))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok(Answered { by: String::from_utf8_lossy(&buffer[..length]).into_owned(), from })
}
