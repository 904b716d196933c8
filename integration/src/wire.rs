//! A wire that counts: TCP connections are carried on to the server, and what passes in either direction is summed up.
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Debug)]
pub struct Wire {
    pub url: String,
    passed: Arc<AtomicU64>,
    /// Connections end, and none is taken, while it is down.
    up: watch::Sender<bool>,
}

impl Wire {
    /// To the server at this URL.
    pub async fn start(server: &str) -> Result<Self> {
        let server: SocketAddr = server.strip_prefix("http://").context("a URL of http")?.parse()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (passed, up) = (Arc::<AtomicU64>::default(), watch::Sender::new(true));
        let (counter, state) = (Arc::clone(&passed), up.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (counter, mut state) = (Arc::clone(&counter), state.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = carry(client, server, counter) => {}
                        _ = state.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        Ok(Self { url, passed, up })
    }

    /// Cuts the connections, or lets new ones through.
    pub fn set_up(&self, up: bool) {
        self.up.send_replace(up);
    }

    /// Bytes in both directions since this was last asked.
    pub fn take_passed(&self) -> u64 {
        self.passed.swap(0, Ordering::Relaxed)
    }
}

async fn carry(client: TcpStream, server: SocketAddr, counter: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    tokio::join!(copy(client_in, server_out, &counter), copy(server_in, client_out, &counter),);
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    counter: &AtomicU64,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        counter.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
