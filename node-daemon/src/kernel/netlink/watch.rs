//! Tells when interfaces go.

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

use super::removed_link;
use crate::{kernel::KernelError, limits::COMMANDS_QUEUED_MAX};

/// Interface indices as they go. One may be missed when the kernel's queue runs over: the drift check finds it.
pub fn watch_removals() -> Result<mpsc::Receiver<u32>, KernelError> {
    let opened = rtnetlink::new_multicast_connection(&[MulticastGroup::Link]);
    let (connection, _, mut messages) =
        opened.map_err(|error| KernelError::new("watch interfaces", error))?;
    let (sender, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
    tokio::spawn(connection);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            if let Some(ifindex) = removed_link(&message)
                && sender.send(ifindex).await.is_err()
            {
                return;
            }
        }
    });
    Ok(receiver)
}
