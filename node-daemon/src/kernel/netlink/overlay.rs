//! The overlay's device: one VXLAN device whose packets say by themselves where they go and whose they are ("external"
//! mode), so that it needs no entry for any node. The kernel gives such a device sockets of both families.
//!
//! Routes lead the node's own processes to it. Nobody is asked for neighbours there: a program says where a packet goes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteMessage, RouteScope},
    },
};

use super::{ROUTE_PROTOCOL, endpoint::without_link_local, ignore_missing, read};
use crate::kernel::{KernelError, links::Ensured, sysctl};

pub(super) async fn ensure(
    handle: &Handle,
    name: &str,
    udp_port: u16,
    mtu_bytes: u32,
    ifindex: Option<u32>,
) -> Result<Ensured, KernelError> {
    if let Some(message) = read::message(handle, name).await? {
        let wrong_index = ifindex.is_some_and(|ifindex| ifindex != message.header.index);
        if is_right(&message, udp_port) && !wrong_index {
            let changed = configure(handle, name, &message, mtu_bytes).await?;
            return Ok(Ensured { ifindex: message.header.index, changed });
        }
        let removed = handle.link().del(message.header.index).execute().await;
        removed.map_err(|error| {
            KernelError::new(format!("replace {name}, which is no overlay device"), error)
        })?;
    }
    let device = LinkVxlan::new(name, 0)
        .collect_metadata(true)
        .learning(false)
        .port(udp_port)
        .append_info_data(InfoVxlan::UDPZeroCsumRX(true))
        .index(ifindex.unwrap_or(0))
        .build();
    let made = handle.link().add(device).execute().await;
    made.map_err(|error| {
        KernelError::new(format!("make the overlay device {name} on UDP port {udp_port}"), error)
    })?;
    let message = read::message(handle, name).await?;
    let message = message.ok_or_else(|| KernelError::new(format!("make {name}"), "it vanished at once"))?;
    configure(handle, name, &message, mtu_bytes).await?;
    Ok(Ensured { ifindex: message.header.index, changed: true })
}

/// Whether anything was not as it should be. What is right is not written: a write is news for everyone who listens, us
/// among them.
async fn configure(
    handle: &Handle,
    name: &str,
    message: &LinkMessage,
    mtu_bytes: u32,
) -> Result<bool, KernelError> {
    let failed = |error| KernelError::new(format!("configure {name}"), error);
    let link = read::link(message);
    let mut changed = link.mtu_bytes != mtu_bytes;
    if !link.up && sysctl::has_ipv6() {
        handle.link().set(without_link_local(link.ifindex)).execute().await.map_err(failed)?;
    }
    if changed {
        let mtu = LinkUnspec::new_with_index(link.ifindex).mtu(mtu_bytes).build();
        handle.link().set(mtu).execute().await.map_err(failed)?;
    }
    if !message.header.flags.contains(LinkFlags::Noarp) {
        let quiet = LinkUnspec::new_with_index(link.ifindex).arp(false).build();
        handle.link().set(quiet).execute().await.map_err(failed)?;
        changed = true;
    }
    // Sources behind other nodes need have no route back through this device: loose (2) wins over a strict `all`.
    changed |= sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "2")?;
    if sysctl::has_ipv6() {
        // The node may have IPv6 off for new interfaces; then its processes would hear nothing by it.
        changed |= sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    Ok(changed)
}

/// See [`Links::route_to_overlay`](crate::kernel::links::Links::route_to_overlay).
pub(super) async fn route(
    handle: &Handle,
    ifindex: u32,
    routes: &BTreeMap<IpNet, IpAddr>,
) -> Result<bool, KernelError> {
    let mut missing = routes.clone();
    let mut changed = false;
    for v4 in [true, false] {
        for message in read::routes(handle, v4).await? {
            if message.header.protocol != ROUTE_PROTOCOL || read::device(&message) != Some(ifindex) {
                continue;
            }
            let found = read::prefix_and_source(&message);
            if found.is_some_and(|(prefix, source)| missing.get(&prefix) == Some(&source)) {
                missing.retain(|prefix, _| found.is_some_and(|(found, _)| found != *prefix));
            } else {
                changed = true;
                let removed = handle.route().del(message).execute().await;
                ignore_missing(removed, "remove a route to the overlay")?;
            }
        }
    }
    for (prefix, source) in missing {
        changed = true;
        // In the place of whoever else routes the pool: its packets must not leave by another way.
        let what = || format!("route {prefix} to the overlay with the source {source}");
        let route = pool_route(prefix, source, ifindex)
            .ok_or_else(|| KernelError::new(what(), "the families differ"))?;
        let added = handle.route().add(route).replace().execute().await;
        added.map_err(|error| KernelError::new(what(), error))?;
    }
    Ok(changed)
}

/// `None`: the families differ.
fn pool_route(prefix: IpNet, source: IpAddr, ifindex: u32) -> Option<RouteMessage> {
    match (prefix, source) {
        (IpNet::V4(prefix), IpAddr::V4(source)) => Some(
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(prefix.network(), prefix.prefix_len())
                .pref_source(source)
                .output_interface(ifindex)
                .scope(RouteScope::Link)
                .protocol(ROUTE_PROTOCOL)
                .build(),
        ),
        (IpNet::V6(prefix), IpAddr::V6(source)) => Some(
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(prefix.network(), prefix.prefix_len())
                .pref_source(source)
                .output_interface(ifindex)
                .protocol(ROUTE_PROTOCOL)
                .build(),
        ),
        _ => None,
    }
}

fn is_right(message: &LinkMessage, udp_port: u16) -> bool {
    let data = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        }),
        _ => None,
    });
    read::kind(message) == Some(InfoKind::Vxlan)
        && data.is_some_and(|data| {
            data.contains(&InfoVxlan::CollectMetadata(true)) && data.contains(&InfoVxlan::Port(udp_port))
        })
}
