//! Continuous tries of a flow that must stay denied. The receiving side counts: not one datagram may arrive.
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};

use super::{Namespace, UdpServer, namespace::join};
use crate::limits::STREAM_INTERVAL;

/// Datagrams sent all the time from new source ports, so that each is a flow of its own, judged anew.
#[derive(Debug)]
pub struct DeniedProbes {
    server: UdpServer,
    end: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl DeniedProbes {
    /// Probes a port of the destination that no other server there has.
    pub fn start(from: &Namespace, destination: &Namespace, to: SocketAddr) -> Result<Self> {
        let server = UdpServer::start(destination, to.port())?;
        let (end, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ending, counting) = (Arc::clone(&end), Arc::clone(&sent));
        let thread = from.spawn(move || {
            let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
            while !ending.load(Ordering::Relaxed) {
                let socket = UdpSocket::bind(any)?;
                socket.set_read_timeout(Some(STREAM_INTERVAL))?;
                socket.send_to(b"denied", to).context("probe")?;
                counting.fetch_add(1, Ordering::Relaxed);
                // Paces; an answer would be counted by the server already.
                let _ = socket.recv(&mut [0; 16]);
            }
            Ok(())
        });
        Ok(Self { server, end, sent, thread: Some(thread) })
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many have arrived.
    pub fn arrived(&self) -> u64 {
        self.server.received()
    }

    /// Stops; how many were sent and how many arrived.
    pub fn stop(mut self) -> Result<(u64, u64)> {
        self.end.store(true, Ordering::Relaxed);
        join(self.thread.take().context("probes are stopped once")?)?;
        Ok((self.sent(), self.arrived()))
    }
}

impl Drop for DeniedProbes {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}
