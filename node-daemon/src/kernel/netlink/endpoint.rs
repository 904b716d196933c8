//! Interfaces of endpoints. The workload has a host address and a default route to a gateway that exists on no interface:
//! the kernel programs answer for it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
};

use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
            LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::RouteMessage,
    },
};

use super::read;
use crate::{
    desired::attachments::Mac,
    kernel::{
        KernelError,
        links::{MadeEndpoint, NewEndpoint},
        netns, sysctl,
    },
};

/// What workloads have as their gateways; link-local, so they collide with nobody's.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

pub(super) async fn make(handle: &Handle, new: &NewEndpoint) -> Result<MadeEndpoint, KernelError> {
    let host = add_pair(handle, new).await?;
    let inner = new.clone();
    let workload_mac =
        netns::inside(new.netns.clone(), |handle| async move { configure(&handle, &inner).await }).await?;
    let gateway_mac =
        host.mac.ok_or_else(|| KernelError::new(format!("make {}", new.host_name), "it has no MAC"))?;
    Ok(MadeEndpoint { ifindex: host.ifindex, workload_mac, gateway_mac })
}

/// The peer begins its life in the namespace, under its final name.
async fn add_pair(handle: &Handle, new: &NewEndpoint) -> Result<crate::kernel::links::Link, KernelError> {
    let namespace = File::open(&new.netns)
        .map_err(|error| KernelError::new(format!("open the namespace {}", new.netns), error))?;
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(&new.workload_name)
        .mtu(new.mtu_bytes)
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(&new.host_name)
        .mtu(new.mtu_bytes)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let what = format!("make {} with its peer {}", new.host_name, new.workload_name);
    let failed = |error| KernelError::new(what.clone(), error);
    handle.link().add(pair).execute().await.map_err(failed)?;
    let host = read::find(handle, &new.host_name).await?;
    let host = host.ok_or_else(|| KernelError::new(what.clone(), "it vanished at once"))?;
    if new.addresses.iter().any(IpAddr::is_ipv6) {
        // The node may have IPv6 off for new interfaces; then nothing is routed to them.
        sysctl::set(&format!("net/ipv6/conf/{}/disable_ipv6", new.host_name), "0")?;
        handle.link().set(without_link_local(host.ifindex)).execute().await.map_err(failed)?;
    }
    Ok(host)
}

/// Inside the namespace.
async fn configure(handle: &Handle, new: &NewEndpoint) -> Result<Mac, KernelError> {
    let name = &new.workload_name;
    let failed = |what: &str, error| KernelError::new(format!("{what} in {}", new.netns), error);
    let link = read::find(handle, name).await?;
    let link =
        link.ok_or_else(|| KernelError::new(format!("configure {name}"), "it is not in the namespace"))?;
    let mac = link.mac.ok_or_else(|| KernelError::new(format!("configure {name}"), "it has no MAC"))?;
    if let Some(lo) = read::find(handle, "lo").await? {
        let up = LinkUnspec::new_with_index(lo.ifindex).up().build();
        handle.link().set(up).execute().await.map_err(|error| failed("set lo up", error))?;
    }
    if new.addresses.iter().any(IpAddr::is_ipv6) {
        // Containers are often born with IPv6 off.
        sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        let quiet = handle.link().set(without_link_local(link.ifindex)).execute().await;
        quiet.map_err(|error| failed("configure IPv6", error))?;
    }
    let up = LinkUnspec::new_with_index(link.ifindex).up().build();
    handle.link().set(up).execute().await.map_err(|error| failed("set the interface up", error))?;
    for address in &new.addresses {
        let mut request =
            handle.address().add(link.ifindex, *address, if address.is_ipv4() { 32 } else { 128 });
        *request.message_mut() = host_address(link.ifindex, *address);
        request.execute().await.map_err(|error| failed(&format!("add {address}"), error))?;
        let route = handle.route().add(default_route(*address, link.ifindex)).execute().await;
        route.map_err(|error| failed("add the default route", error))?;
    }
    Ok(mac)
}

/// Both sides; the workload's where its namespace is still there.
pub(super) async fn set_mtu(
    handle: &Handle,
    ifindex: u32,
    netns: &str,
    mtu_bytes: u32,
) -> Result<(), KernelError> {
    async fn set(handle: &Handle, ifindex: u32, mtu_bytes: u32) -> Result<(), KernelError> {
        let mtu = LinkUnspec::new_with_index(ifindex).mtu(mtu_bytes).build();
        let set = handle.link().set(mtu).execute().await;
        set.map_err(|error| KernelError::new(format!("set the MTU of interface {ifindex}"), error))
    }
    let message = read::message_at(handle, ifindex).await?;
    if let Some(peer) = message.as_ref().and_then(read::other_end)
        && Path::new(netns).exists()
    {
        netns::inside(netns.to_owned(), move |inside| async move { set(&inside, peer, mtu_bytes).await })
            .await?;
    }
    set(handle, ifindex, mtu_bytes).await
}

/// A host address, usable at once: nobody else can have it, so nothing need be detected.
fn host_address(ifindex: u32, address: IpAddr) -> AddressMessage {
    match address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(address, 32).build()
        }
        IpAddr::V6(address) => {
            let builder = AddressMessageBuilder::<Ipv6Addr>::new().index(ifindex).address(address, 128);
            let mut message = builder.build();
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message
        }
    }
}

fn default_route(of: IpAddr, ifindex: u32) -> RouteMessage {
    match of {
        IpAddr::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(ifindex)
            .gateway(GATEWAY_V4)
            .onlink()
            .build(),
        IpAddr::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(ifindex)
            .gateway(GATEWAY_V6)
            .onlink()
            .build(),
    }
}

/// Takes away the link-local address that the kernel would give an interface, and with it everything the kernel would
/// say on it unasked.
pub(super) fn without_link_local(ifindex: u32) -> LinkMessage {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
    LinkUnspec::new_with_index(ifindex).append_extra_attribute(spec).build()
}

pub(super) fn neighbour(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

/// The other end of a veth, here or in a namespace that has a name.
pub(super) async fn peer_mac(handle: &Handle, name: &str) -> Result<Option<Mac>, KernelError> {
    let Some(message) = read::message(handle, name).await? else { return Ok(None) };
    let (Some(InfoKind::Veth), Some(peer)) = (read::kind(&message), read::other_end(&message)) else {
        return Ok(None);
    };
    let ifindex = message.header.index;
    if !read::is_elsewhere(&message) {
        return mac_of_peer(handle, peer, ifindex).await;
    }
    let Ok(names) = fs::read_dir("/run/netns") else { return Ok(None) };
    let mut candidates = BTreeSet::new();
    for namespace in names.flatten() {
        let path = namespace.path().display().to_string();
        // A name may be left over from a namespace that is gone.
        let found =
            netns::inside(path, move |handle| async move { mac_of_peer(&handle, peer, ifindex).await }).await;
        candidates.extend(found.ok().flatten());
    }
    // Indices are a namespace's own: a pair elsewhere may have the same two. Which one it is, then only the caller knows.
    Ok(candidates.pop_first().filter(|_| candidates.is_empty()))
}

/// Of the interface with this index, if its other end is the one we know.
async fn mac_of_peer(handle: &Handle, peer: u32, ifindex: u32) -> Result<Option<Mac>, KernelError> {
    let found = read::message_at(handle, peer).await?;
    let is_peer = |message: &LinkMessage| {
        read::kind(message) == Some(InfoKind::Veth) && read::other_end(message) == Some(ifindex)
    };
    Ok(found.filter(is_peer).and_then(|message| read::link(&message).mac))
}
