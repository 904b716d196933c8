//! What is there: links, addresses, routes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage},
        tc::{TcAttribute, TcMessage},
    },
};

use super::is_missing;
use crate::kernel::{KernelError, links::Link};

pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, KernelError> {
    Ok(message(handle, name).await?.as_ref().map(link))
}

pub(super) async fn message(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, KernelError> {
    let mut found = Box::pin(handle.link().get().match_name(name).execute());
    match found.try_next().await {
        Ok(message) => Ok(message),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(KernelError::new(format!("look for interface {name}"), error)),
    }
}

pub(super) async fn message_at(handle: &Handle, ifindex: u32) -> Result<Option<LinkMessage>, KernelError> {
    let mut found = Box::pin(handle.link().get().match_index(ifindex).execute());
    match found.try_next().await {
        Ok(message) => Ok(message),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(KernelError::new(format!("look for interface {ifindex}"), error)),
    }
}

pub(super) async fn all(handle: &Handle) -> Result<Vec<Link>, KernelError> {
    let found = handle.link().get().execute().map_ok(|message| link(&message)).try_collect().await;
    found.map_err(|error| KernelError::new("list interfaces", error))
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut found = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu_bytes: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        peer_elsewhere: kind(message) == Some(InfoKind::Veth) && is_elsewhere(message),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(octets) => found.mac = octets.as_slice().try_into().ok(),
            LinkAttribute::Mtu(bytes) => found.mtu_bytes = *bytes,
            _ => {}
        }
    }
    found
}

/// Its other end is in another namespace: the kernel then says in which.
pub(super) fn is_elsewhere(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)))
}

pub(super) fn kind(message: &LinkMessage) -> Option<InfoKind> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        }),
        _ => None,
    })
}

/// The interface index of the other end.
pub(super) fn other_end(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(ifindex) => Some(*ifindex),
        _ => None,
    })
}

/// Addresses that others reach the node by, of one interface: no link-local ones.
pub(super) async fn addresses(handle: &Handle, ifindex: u32) -> Result<Vec<IpAddr>, KernelError> {
    let messages = address_messages(handle).await?;
    let own = messages.iter().filter(|message| message.header.index == ifindex);
    let mut addresses: Vec<IpAddr> = own.flat_map(addresses_of).filter(|found| is_global(*found)).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    Ok(addresses)
}

/// All addresses that the host takes packets for, if they come in by another interface than the loopback. Links' broadcast
/// addresses are among them, and IPv4's link-local ones, which are reached through a router like any; IPv6's are not.
pub(super) async fn host_addresses(handle: &Handle) -> Result<Vec<IpAddr>, KernelError> {
    let messages = address_messages(handle).await?;
    let broadcasts =
        messages.iter().flat_map(|message| &message.attributes).filter_map(|attribute| match attribute {
            AddressAttribute::Broadcast(address) => Some(IpAddr::from(*address)),
            _ => None,
        });
    let all: BTreeSet<IpAddr> = messages.iter().flat_map(addresses_of).chain(broadcasts).collect();
    Ok(all.into_iter().filter(|address| is_global(*address) || is_link_local_v4(*address)).collect())
}

/// Whether the queues of an interface are all `fq`, the only one that waits for a packet's time of departure: its one queue, or
/// those below its `mq`, which has one for each of the hardware's.
pub(super) async fn keeps_departures(handle: &Handle, ifindex: u32) -> Result<bool, KernelError> {
    let found: Result<Vec<TcMessage>, _> = handle.clone().qdisc().get().execute().try_collect().await;
    let messages = found.map_err(|error| KernelError::new("list the queues of interfaces", error))?;
    let own = messages.iter().filter(|message| u32::try_from(message.header.index) == Ok(ifindex));
    let kinds = own.flat_map(|message| &message.attributes).filter_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    // Of what comes in, these wait for nothing.
    let kinds: BTreeSet<&str> = kinds.filter(|kind| !matches!(*kind, "clsact" | "ingress" | "mq")).collect();
    Ok(kinds == BTreeSet::from(["fq"]))
}

async fn address_messages(handle: &Handle) -> Result<Vec<AddressMessage>, KernelError> {
    let found = handle.address().get().execute().try_collect().await;
    found.map_err(|error| KernelError::new("list the addresses of interfaces", error))
}

fn addresses_of(message: &AddressMessage) -> impl Iterator<Item = IpAddr> + '_ {
    message.attributes.iter().filter_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

fn is_link_local_v4(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

pub(super) async fn routes(handle: &Handle, v4: bool) -> Result<Vec<RouteMessage>, KernelError> {
    let all = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    };
    let found = handle.route().get(all).execute().try_collect().await;
    found.map_err(|error| KernelError::new("list routes", error))
}

/// The device that a route leads to.
pub(super) fn device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

/// Where a route leads, and the source that it gives.
pub(super) fn prefix_and_source(route: &RouteMessage) -> Option<(IpNet, IpAddr)> {
    let (mut to, mut source) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    Some((IpNet::new(to?, route.header.destination_prefix_length).ok()?, source?))
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The devices that default routes of the main table leave by.
pub(super) async fn default_uplinks(handle: &Handle) -> Result<Vec<Link>, KernelError> {
    const MAIN_TABLE: u8 = 254;
    let mut ifindexes = BTreeSet::new();
    for v4 in [true, false] {
        for route in routes(handle, v4).await? {
            if route.header.destination_prefix_length != 0 || route.header.table != MAIN_TABLE {
                continue;
            }
            ifindexes.extend(device(&route));
        }
    }
    let mut links = all(handle).await?;
    links.retain(|link| ifindexes.contains(&link.ifindex));
    Ok(links)
}
