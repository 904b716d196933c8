//! The overlay's device: one VXLAN device whose packets say by themselves where they go and whose they are ("external"
//! mode), so that it needs no entry for any node. The kernel gives such a device sockets of both families.

use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan,
    packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{endpoint::without_link_local, read};
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
    // Sources behind other nodes have no route back through this device: loose (2) wins over a strict `all`.
    changed |= sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "2")?;
    Ok(changed)
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
