//! Devices and programs: what is ours and nobody desires goes. The maps' part of this is the planner's.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::State;
use crate::kernel::{Datapath, Hook, KernelError, links::Links};

impl<D: Datapath, L: Links> State<D, L> {
    /// Only after a controller has said that all was sent: what nobody desires is ours by its name or its pin.
    pub(super) async fn sweep_links(&mut self) {
        if let Err(error) = self.try_sweep_links().await {
            warn!(%error, "something of ours that nobody desires stays");
        }
    }

    async fn try_sweep_links(&mut self) -> Result<(), KernelError> {
        let desired: BTreeSet<u32> = self.attachments.endpoints.values().map(|own| own.ifindex).collect();
        for link in self.links.ours().await? {
            if !desired.contains(&link.ifindex) {
                info!(interface = %link.name, "nobody desires this interface of ours: it is removed");
                self.links.remove(&link.name).await?;
            }
        }
        let mut carriers = desired;
        carriers.insert(self.overlay_ifindex);
        carriers.extend(self.uplinks.iter().map(|uplink| uplink.ifindex));
        for (ifindex, hook) in self.datapath.attached()? {
            if carriers.contains(&ifindex) {
                continue;
            }
            if hook == Hook::Endpoint {
                // Of an attachment that nobody remembers, on an interface that somebody gave. Up and without programs, what
                // is behind it would reach all that the host reaches.
                warn!(ifindex, "nobody knows the endpoint on this interface any more: it is set down");
                self.links.disconnect_endpoint(ifindex, &[]).await?;
            }
            info!(ifindex, "nobody desires programs on this interface: they are detached");
            self.datapath.detach(ifindex)?;
        }
        Ok(())
    }
}
