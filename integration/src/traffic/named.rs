//! Servers that answer with their names, and with whom they take for the client: of several behind one address, which one is
//! it, and as whom is one seen there?
use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket;

use super::{Namespace, Transport};
use crate::limits::READY;

/// How often a waiting server looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// Answers by each transport that the kernel has, until it is dropped. A client that connects is told the name at once, and has its bytes sent back from then on.
#[derive(Debug)]
pub struct NamedServer {
    listeners: Vec<Arc<TcpListener>>,
    served: Arc<Served>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Served {
    name: String,
    ended: AtomicBool,
    clients: Mutex<BTreeSet<IpAddr>>,
}

impl NamedServer {
    /// On one port of every address of a namespace.
    pub fn start(namespace: &Namespace, port: u16, name: &str) -> Result<Self> {
        Self::start_at(namespace, (Ipv6Addr::UNSPECIFIED, port).into(), name)
    }

    /// On one address: datagrams to one of several are answered by that one.
    pub fn start_at(namespace: &Namespace, at: SocketAddr, name: &str) -> Result<Self> {
        let (listeners, datagrams) = namespace.within(move || {
            let connected = Transport::available().filter(|transport| *transport != Transport::Udp);
            let listeners: io::Result<Vec<_>> = connected.map(|transport| transport.listen(at)).collect();
            Ok((listeners.context("listen")?, UdpSocket::bind(at).context("bind")?))
        })?;
        datagrams.set_read_timeout(Some(LOOK))?;
        let served =
            Served { name: name.to_owned(), ended: AtomicBool::new(false), clients: Mutex::default() };
        let served = Arc::new(served);
        let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
        let mut threads = Vec::new();
        for listener in &listeners {
            let (listener, served) = (Arc::clone(listener), Arc::clone(&served));
            threads.push(thread::spawn(move || served.connections(&listener)));
        }
        let answering = Arc::clone(&served);
        threads.push(thread::spawn(move || answering.datagrams(&datagrams)));
        Ok(Self { listeners, served, threads })
    }

    /// Whom it has heard so far.
    pub fn clients(&self) -> BTreeSet<IpAddr> {
        self.served.clients().clone()
    }
}

impl Served {
    fn clients(&self) -> std::sync::MutexGuard<'_, BTreeSet<IpAddr>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client is told.
    fn greeting(&self, client: SocketAddr) -> String {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        self.clients().insert(client.ip());
        format!("{} {client}\n", self.name)
    }

    fn connections(&self, listener: &TcpListener) {
        // Ends when the listener is shut down.
        while let Ok((connection, client)) = listener.accept() {
            let greeting = self.greeting(client);
            // A client that goes away is no failure of the server.
            thread::spawn(move || drop(serve(&connection, &greeting)));
        }
    }

    fn datagrams(&self, socket: &UdpSocket) {
        while !self.ended.load(Ordering::Relaxed) {
            if let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
                // As above.
                let _ = socket.send_to(self.greeting(client).as_bytes(), client);
            }
        }
    }
}

impl Drop for NamedServer {
    fn drop(&mut self) {
        self.served.ended.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // On Linux this wakes a thread that waits in accept.
            let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut connection: &TcpStream, greeting: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(READY))?;
    connection.write_all(greeting.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            length => connection.write_all(&buffer[..length])?,
        }
    }
}
