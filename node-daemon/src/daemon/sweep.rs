//! Devices, routes and programs: what is ours and nobody desires goes, what is desired and was lost comes back. The maps'
//! part of this is the planner's.

use std::{collections::BTreeSet, net::IpAddr};

use tracing::{info, warn};

use super::State;
use crate::kernel::{Datapath, KernelError, links::Links};

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
        for ifindex in self.datapath.attached()? {
            if !carriers.contains(&ifindex) {
                info!(ifindex, "nobody desires programs on this interface: they are detached");
                self.datapath.detach(ifindex)?;
            }
        }
        Ok(())
    }

    /// Endpoints whose interfaces went unnoticed end; routes and neighbours of the others are set again.
    pub(super) async fn mend_links(&mut self) {
        let endpoints: Vec<_> = self.attachments.endpoints.values().cloned().collect();
        for own in endpoints {
            let found = self.links.find(&own.interface).await.map(|link| link.map(|link| link.ifindex));
            match found {
                Ok(Some(ifindex)) if ifindex == own.ifindex => {
                    let addresses: Vec<IpAddr> = own.addresses().collect();
                    if let Err(error) = self.links.connect_endpoint(own.ifindex, &addresses, own.mac).await {
                        warn!(endpoint = %own.name, %error, "the endpoint's routes can't be set");
                    }
                }
                Ok(_) => self.link_gone(own.ifindex).await,
                Err(error) => {
                    warn!(endpoint = %own.name, %error, "the endpoint's interface can't be asked for");
                }
            }
        }
    }
}
