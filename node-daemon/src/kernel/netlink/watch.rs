//! Tells when interfaces go, and when something in the node's network has changed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};
use tokio::sync::{Notify, mpsc};
use tracing::error;

use crate::{
    kernel::{KernelError, links::Changes},
    limits::{COMMANDS_QUEUED_MAX, NETWORK_SETTLES_MILLISECONDS},
};

/// What the kernel tells. What is missed when its queue runs over, the drift check finds.
#[derive(Debug)]
pub struct Watched {
    /// Indices of interfaces that went, at once.
    pub removals: mpsc::Receiver<u32>,
    pub changes: ChangesReader,
}

/// Changes, gathered until somebody asks: as many as there are interfaces, at most.
#[derive(Clone, Debug, Default)]
pub struct ChangesReader {
    gathered: Arc<Mutex<Changes>>,
    news: Arc<Notify>,
}

impl ChangesReader {
    /// The next changes, once a burst of them has settled a little.
    pub async fn next(&self) -> Changes {
        self.news.notified().await;
        tokio::time::sleep(Duration::from_millis(NETWORK_SETTLES_MILLISECONDS)).await;
        std::mem::take(&mut *self.gathered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn gather(&self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => {
                gathered.links.insert(link.header.index);
            }
            _ => gathered.others = true,
        }
        drop(gathered);
        self.news.notify_one();
    }
}

/// Begins to watch, with tasks of the current runtime.
pub fn watch() -> Result<Watched, KernelError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let opened = rtnetlink::new_multicast_connection(&groups);
    let (connection, _, mut messages) =
        opened.map_err(|error| KernelError::new("watch the node's network", error))?;
    let (sender, removals) = mpsc::channel(COMMANDS_QUEUED_MAX);
    let changes = ChangesReader::default();
    let gatherer = changes.clone();
    tokio::spawn(connection);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            gatherer.gather(&message);
            if let Some(ifindex) = removed_link(&message)
                && sender.send(ifindex).await.is_err()
            {
                return;
            }
        }
        error!("the kernel tells no more of the node's network; it is still compared now and then");
    });
    Ok(Watched { removals, changes })
}

/// The kernel's word that a link is no more.
fn removed_link(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<u32> {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => Some(link.header.index),
        _ => None,
    }
}
