//! The overlay's device: one VXLAN device whose packets say by themselves where they go and whose they are ("external"
//! mode), so that it needs no entry for any node. The kernel gives such a device sockets of both families.

use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan,
    packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{endpoint::without_link_local, read};
use crate::kernel::{KernelError, sysctl};

pub(super) async fn ensure(
    handle: &Handle,
    name: &str,
    udp_port: u16,
    mtu_bytes: u32,
) -> Result<u32, KernelError> {
    if let Some(message) = read::message(handle, name).await? {
        if is_right(&message, udp_port) {
            return configure(handle, name, message.header.index, mtu_bytes).await;
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
        .build();
    let made = handle.link().add(device).execute().await;
    made.map_err(|error| {
        KernelError::new(format!("make the overlay device {name} on UDP port {udp_port}"), error)
    })?;
    let message = read::message(handle, name).await?;
    let ifindex = message.map(|message| message.header.index);
    let ifindex = ifindex.ok_or_else(|| KernelError::new(format!("make {name}"), "it vanished at once"))?;
    configure(handle, name, ifindex, mtu_bytes).await
}

async fn configure(handle: &Handle, name: &str, ifindex: u32, mtu_bytes: u32) -> Result<u32, KernelError> {
    let failed = |error| KernelError::new(format!("configure {name}"), error);
    if sysctl::has_ipv6() {
        handle.link().set(without_link_local(ifindex)).execute().await.map_err(failed)?;
    }
    let up = LinkUnspec::new_with_index(ifindex).mtu(mtu_bytes).up().build();
    handle.link().set(up).execute().await.map_err(failed)?;
    // Sources behind other nodes have no route back through this device: loose (2) wins over a strict `all`.
    sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "2")?;
    Ok(ifindex)
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
