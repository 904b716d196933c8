//! The node's own network, as it is and as it changes: uplinks, addresses, MTU, forwarding, the overlay's device.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use tracing::{info, warn};

use super::{Settings, StartError, State, repairs::Repair};
use crate::{
    kernel::{
        Datapath, Hook, KernelError,
        links::{Ensured, Link, Links},
    },
    limits::{MTU_BYTES_MIN, OVERLAY_BYTES_V4, OVERLAY_BYTES_V6},
};

/// What is known of the node's network before programs are loaded.
#[derive(Clone, Debug)]
pub struct Ground {
    pub uplinks: Vec<Link>,
    /// Of the underlay.
    pub addresses: Vec<IpAddr>,
    /// Of the host, whatever for.
    pub host_addresses: Vec<IpAddr>,
    pub endpoint_mtu_bytes: u32,
    pub overlay_ifindex: u32,
}

impl Ground {
    /// Finds uplinks and addresses, sets forwarding, makes the overlay's device. That stays down until it has its
    /// program.
    pub async fn prepare(settings: &Settings, links: &impl Links) -> Result<Self, StartError> {
        let uplinks = find_uplinks(settings, links).await?;
        let addresses = underlay_addresses(settings, &uplinks, links).await?;
        let endpoint_mtu_bytes = endpoint_mtu(&uplinks, &addresses).ok_or(StartError::NoAddress)?;
        links.prepare_node(&uplinks).await?;
        let overlay = links
            .ensure_overlay(&settings.vxlan_device, settings.vxlan_port, endpoint_mtu_bytes, None)
            .await?;
        let host_addresses = links.host_addresses().await?;
        Ok(Self { uplinks, addresses, host_addresses, endpoint_mtu_bytes, overlay_ifindex: overlay.ifindex })
    }
}

async fn find_uplinks(settings: &Settings, links: &impl Links) -> Result<Vec<Link>, StartError> {
    if settings.uplinks.is_empty() {
        let found = links.default_uplinks().await?;
        return if found.is_empty() { Err(StartError::NoDefaultRoute) } else { Ok(found) };
    }
    let mut found = Vec::new();
    for name in &settings.uplinks {
        found.push(links.find(name).await?.ok_or_else(|| StartError::NoUplink(name.clone()))?);
    }
    Ok(found)
}

async fn underlay_addresses(
    settings: &Settings,
    uplinks: &[Link],
    links: &impl Links,
) -> Result<Vec<IpAddr>, KernelError> {
    let mut addresses = settings.addresses.clone();
    if addresses.is_empty() {
        for uplink in uplinks {
            addresses.extend(links.addresses(uplink.ifindex).await?);
        }
    }
    Ok(addresses)
}

/// `None`: there is no address that the overlay could leave by.
fn endpoint_mtu(uplinks: &[Link], addresses: &[IpAddr]) -> Option<u32> {
    let first = addresses.iter().min_by_key(|address| address.is_ipv6())?;
    let overhead = if first.is_ipv4() { OVERLAY_BYTES_V4 } else { OVERLAY_BYTES_V6 };
    let uplink_mtu = uplinks.iter().map(|uplink| uplink.mtu_bytes).min().unwrap_or(1500);
    Some(uplink_mtu.saturating_sub(overhead).max(MTU_BYTES_MIN))
}

impl<D: Datapath, L: Links> State<D, L> {
    /// Takes over what has changed in the node's network, and mends what is ours there. What can't be done is a problem
    /// that is shown until it can.
    pub(super) async fn follow_network(&mut self) {
        let mut problems = Vec::new();
        if let Err(error) = self.follow_uplinks().await {
            problems.push(error.to_string());
        }
        if let Err(error) = self.follow_addresses().await {
            problems.push(error.to_string());
        }
        if let Err(error) = self.follow_queues().await {
            problems.push(error.to_string());
        }
        if let Err(error) = self.mend_overlay().await {
            problems.push(error.to_string());
        }
        if let Err(error) = self.mend_overlay_routes().await {
            problems.push(error.to_string());
        }
        if let Err(error) = self.mend_neighbours().await {
            problems.push(error.to_string());
        }
        for problem in problems.iter().filter(|problem| !self.network_problems.contains(problem)) {
            warn!(%problem, "the node's network is not as it should be");
        }
        self.network_problems = problems;
    }

    /// New ones get programs. One that only is no default route's any more keeps them: programs on too many interfaces
    /// open nothing.
    async fn follow_uplinks(&mut self) -> Result<(), StartError> {
        for known in self.uplinks.clone() {
            let found = self.links.find_at(known.ifindex).await?;
            self.uplinks.retain(|uplink| uplink.ifindex != known.ifindex);
            if let Some(found) = found {
                self.uplinks.push(found);
            } else {
                info!(uplink = %known.name, "the uplink is gone");
                self.datapath.detach(known.ifindex)?;
                self.datapath.detach_xdp(known.ifindex)?;
            }
        }
        let known = self.uplinks.len();
        let wanted = find_uplinks(&self.settings, self.links.as_ref()).await;
        for found in wanted.iter().flatten().cloned() {
            if self.uplinks.iter().all(|uplink| uplink.ifindex != found.ifindex) {
                self.datapath.attach(found.ifindex, Hook::Uplink)?;
                info!(uplink = %found.name, "an uplink came");
                self.uplinks.push(found);
            }
        }
        let came = self.uplinks.len() > known;
        if came {
            self.hold_xdp();
        }
        if self.links.prepare_node(&self.uplinks).await? && !came {
            warn!("somebody had changed the kernel's settings that forwarding needs: they are set again");
            self.repairs.note(Repair::Settings);
        }
        wanted.map(drop)
    }

    async fn follow_addresses(&mut self) -> Result<(), StartError> {
        let host_addresses = self.links.host_addresses().await?;
        let own = underlay_addresses(&self.settings, &self.uplinks, self.links.as_ref()).await?;
        if let Some(mtu_bytes) = endpoint_mtu(&self.uplinks, &own)
            && mtu_bytes != self.endpoint_mtu_bytes
        {
            info!(mtu_bytes, "endpoints have another MTU from now on");
            self.endpoint_mtu_bytes = mtu_bytes;
            self.ensure_overlay().await?;
        }
        let told = own.is_empty() || own == self.own_addresses;
        if told && host_addresses == self.host_addresses {
            return if own.is_empty() { Err(StartError::NoAddress) } else { Ok(()) };
        }
        info!(underlay = ?own, host = ?host_addresses, "the node's addresses have changed");
        self.host_addresses = host_addresses;
        if !told {
            self.own_addresses = own;
            // The controller hears of them with the next stream's first word.
            self.connection = None;
        }
        self.write_kernel()?;
        self.after_change();
        Ok(())
    }

    async fn ensure_overlay(&self) -> Result<Ensured, KernelError> {
        let (name, port) = (&self.settings.vxlan_device, self.settings.vxlan_port);
        self.links.ensure_overlay(name, port, self.endpoint_mtu_bytes, Some(self.overlay_ifindex)).await
    }

    /// A device that was deleted comes again under the index that the programs know.
    async fn mend_overlay(&mut self) -> Result<(), KernelError> {
        let overlay = self.ensure_overlay().await?;
        self.hold(self.overlay_ifindex, Hook::Overlay)?;
        if self.links.set_up(self.overlay_ifindex).await? || overlay.changed {
            warn!(device = %self.settings.vxlan_device, "somebody had changed the overlay's device: it is mended");
            self.repairs.note(Repair::Overlay);
            // It took its routes along.
            self.routed.clear();
        }
        Ok(())
    }

    /// To the pools, each with the address that other nodes know this one by; none of a family that it has no such address
    /// of. The node's own endpoints have routes of their own.
    fn overlay_routes(&self) -> BTreeMap<IpNet, IpAddr> {
        let pools = self.desired.fleet().filter(|_| self.desired.complete).map(|fleet| &fleet.pools);
        let source = |pool: &IpNet| {
            let known = self.own_addresses.iter().filter(|address| self.host_addresses.contains(address));
            known.copied().find(|address| address.is_ipv4() == pool.addr().is_ipv4())
        };
        pools.into_iter().flatten().filter_map(|pool| Some((pool.trunc(), source(pool)?))).collect()
    }

    /// Follows the pools and the node's addresses. What can't be done is tried again with all of the node's network.
    pub(super) async fn follow_overlay_routes(&mut self) {
        if self.overlay_routes() != self.routed
            && let Err(error) = self.mend_overlay_routes().await
        {
            warn!(%error, "the node's own processes may not reach endpoints of other nodes; tried again");
        }
    }

    async fn mend_overlay_routes(&mut self) -> Result<(), KernelError> {
        let wanted = self.overlay_routes();
        let changed = self.links.route_to_overlay(self.overlay_ifindex, &wanted).await?;
        if changed && wanted == self.routed {
            warn!("somebody had changed the routes to the overlay's device: they are mended");
            self.repairs.note(Repair::Routes);
        }
        self.routed = wanted;
        Ok(())
    }
}
