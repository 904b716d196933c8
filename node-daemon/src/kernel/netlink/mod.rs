//! The real [`Links`]: rtnetlink.

mod endpoint;
mod neighbours;
mod overlay;
mod read;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use async_trait::async_trait;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::route::{RouteMessage, RouteProtocol, RouteScope},
};

pub use watch::{Watched, watch};

use super::{
    KernelError,
    links::{Ensured, Link, Links, MadeEndpoint, NewEndpoint},
    sysctl,
};
use crate::{desired::attachments::Mac, endpoint::interface};

/// Who made a route or a neighbour: ours are recognised by it. Free in `/etc/iproute2/rt_protos`.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(119);

/// A netlink connection.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Netlink")
    }
}

impl Netlink {
    /// Opens a connection, served by a task of the current runtime.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| KernelError::new("open netlink", error))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Routes that we made, wherever they lead.
    async fn remove_routes(&self) -> Result<(), KernelError> {
        for v4 in [true, false] {
            for route in read::routes(&self.handle, v4).await? {
                if route.header.protocol == ROUTE_PROTOCOL {
                    ignore_missing(self.handle.route().del(route).execute().await, "remove a route")?;
                }
            }
        }
        Ok(())
    }

    /// Takes away every device, route and neighbour of ours: for those who uninstall.
    pub async fn cleanup(&self, overlay: &str) -> Result<(), KernelError> {
        for link in self.ours().await? {
            self.remove(&link.name).await?;
        }
        self.remove(overlay).await?;
        neighbours::keep(&self.handle, &BTreeSet::new(), &BTreeSet::new()).await?;
        self.remove_routes().await
    }
}

#[async_trait]
impl Links for Netlink {
    async fn find(&self, name: &str) -> Result<Option<Link>, KernelError> {
        read::find(&self.handle, name).await
    }

    async fn find_at(&self, ifindex: u32) -> Result<Option<Link>, KernelError> {
        Ok(read::message_at(&self.handle, ifindex).await?.as_ref().map(read::link))
    }

    async fn default_uplinks(&self) -> Result<Vec<Link>, KernelError> {
        read::default_uplinks(&self.handle).await
    }

    async fn addresses(&self, ifindex: u32) -> Result<Vec<IpAddr>, KernelError> {
        read::addresses(&self.handle, ifindex).await
    }

    async fn host_addresses(&self) -> Result<Vec<IpAddr>, KernelError> {
        read::host_addresses(&self.handle).await
    }

    async fn ensure_overlay(
        &self,
        name: &str,
        udp_port: u16,
        mtu_bytes: u32,
        ifindex: Option<u32>,
    ) -> Result<Ensured, KernelError> {
        overlay::ensure(&self.handle, name, udp_port, mtu_bytes, ifindex).await
    }

    async fn route_to_overlay(
        &self,
        ifindex: u32,
        routes: &BTreeMap<IpNet, IpAddr>,
    ) -> Result<bool, KernelError> {
        overlay::route(&self.handle, ifindex, routes).await
    }

    async fn keep_neighbours(
        &self,
        uplinks: &BTreeSet<u32>,
        places: &BTreeSet<IpAddr>,
    ) -> Result<bool, KernelError> {
        neighbours::keep(&self.handle, uplinks, places).await
    }

    async fn keeps_departures(&self, ifindex: u32) -> Result<bool, KernelError> {
        read::keeps_departures(&self.handle, ifindex).await
    }

    async fn set_up(&self, ifindex: u32) -> Result<bool, KernelError> {
        if self.find_at(ifindex).await?.is_some_and(|link| link.up) {
            return Ok(false);
        }
        let up = self.handle.link().set(LinkUnspec::new_with_index(ifindex).up().build()).execute().await;
        up.map_err(|error| KernelError::new(format!("set interface {ifindex} up"), error))?;
        Ok(true)
    }

    async fn prepare_node(&self, uplinks: &[Link]) -> Result<bool, KernelError> {
        let mut changed = sysctl::set("net/ipv4/ip_forward", "1")?;
        if !sysctl::has_ipv6() {
            return Ok(changed);
        }
        for uplink in uplinks {
            let accept_ra = format!("net/ipv6/conf/{}/accept_ra", uplink.name);
            // A forwarding host stops listening to its routers unless it is told to go on (2).
            if sysctl::get(&accept_ra)?.as_deref() == Some("1") {
                changed |= sysctl::set(&accept_ra, "2")?;
            }
        }
        changed |= sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
        Ok(changed)
    }

    async fn make_endpoint(&self, new: &NewEndpoint) -> Result<MadeEndpoint, KernelError> {
        endpoint::make(&self.handle, new).await
    }

    async fn peer_mac(&self, name: &str) -> Result<Option<Mac>, KernelError> {
        endpoint::peer_mac(&self.handle, name).await
    }

    async fn connect_endpoint(
        &self,
        ifindex: u32,
        addresses: &[IpAddr],
        mac: Mac,
    ) -> Result<bool, KernelError> {
        let mut missed = self.set_up(ifindex).await?;
        for address in addresses {
            // First as something new, which tells whether it was there; then in the place of what is there.
            let what = format!("route {address} to interface {ifindex}");
            let route = || self.handle.route().add(host_route(*address, ifindex));
            missed |= match route().execute().await {
                Err(error) if is_there(&error) => replaced(route().replace().execute().await, &what)?,
                added => added.map(|()| true).map_err(|error| KernelError::new(what, error))?,
            };
            let what = format!("set the neighbour {address}");
            let neighbour = || self.handle.neighbours().add(ifindex, *address).link_layer_address(&mac);
            missed |= match neighbour().execute().await {
                Err(error) if is_there(&error) => replaced(neighbour().replace().execute().await, &what)?,
                added => added.map(|()| true).map_err(|error| KernelError::new(what, error))?,
            };
        }
        Ok(missed)
    }

    async fn set_endpoint_mtu(&self, ifindex: u32, netns: &str, mtu_bytes: u32) -> Result<(), KernelError> {
        endpoint::set_mtu(&self.handle, ifindex, netns, mtu_bytes).await
    }

    async fn disconnect_endpoint(&self, ifindex: u32, addresses: &[IpAddr]) -> Result<(), KernelError> {
        for address in addresses {
            let removed = self.handle.route().del(host_route(*address, ifindex)).execute().await;
            ignore_missing(removed, &format!("remove the route to {address}"))?;
            let neighbour = endpoint::neighbour(ifindex, *address);
            let removed = self.handle.neighbours().del(neighbour).execute().await;
            ignore_missing(removed, &format!("remove the neighbour {address}"))?;
        }
        let down = LinkUnspec::new_with_index(ifindex).down().build();
        let down = self.handle.link().set(down).execute().await;
        ignore_missing(down, &format!("set interface {ifindex} down"))
    }

    async fn remove(&self, name: &str) -> Result<(), KernelError> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        ignore_missing(
            self.handle.link().del(link.ifindex).execute().await,
            &format!("remove interface {name}"),
        )
    }

    async fn ours(&self) -> Result<Vec<Link>, KernelError> {
        let mut links = read::all(&self.handle).await?;
        links.retain(|link| interface::is_ours(&link.name));
        Ok(links)
    }
}

/// To one address on an interface.
fn host_route(address: IpAddr, ifindex: u32) -> RouteMessage {
    match address {
        IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(ifindex)
            .scope(RouteScope::Link)
            .protocol(ROUTE_PROTOCOL)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .output_interface(ifindex)
            .protocol(ROUTE_PROTOCOL)
            .build(),
    }
}

fn is_there(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.code.is_some_and(|code| code.get() == -libc::EEXIST)
}

/// Something was there before.
fn replaced(result: Result<(), rtnetlink::Error>, what: &str) -> Result<bool, KernelError> {
    result.map(|()| false).map_err(|error| KernelError::new(what, error))
}

/// What is gone already need not be removed.
fn ignore_missing(result: Result<(), rtnetlink::Error>, what: &str) -> Result<(), KernelError> {
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        other => other.map_err(|error| KernelError::new(what, error)),
    }
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    let missing = [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::ENXIO];
    message.code.is_some_and(|code| missing.contains(&-code.get()))
}
