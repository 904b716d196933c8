//! Neighbours that the kernel keeps resolved for us: XDP sends only where a MAC is known, and asks nobody for one.
//!
//! They are managed (`NTF_EXT_MANAGED`, kernel 5.16): the kernel resolves one at once, and asks again before it is stale, for as long
//! as it is there. They are also said to be learnt elsewhere (`NTF_EXT_LEARNED`), which keeps the kernel from collecting them
//! where it has too many. Ours are recognised by who made them. To manage one that somebody has set for good (permanent) would
//! undo that: such are left alone.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Error, Handle, RouteMessageBuilder,
    packet_route::{
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
            NeighbourState,
        },
        route::{RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia},
    },
};
use tracing::debug;

use super::{ROUTE_PROTOCOL, endpoint::neighbour, ignore_missing, read};
use crate::kernel::KernelError;

/// On an interface.
type Neighbour = (u32, IpAddr);

/// See [`Links::keep_neighbours`](crate::kernel::links::Links::keep_neighbours).
pub(super) async fn keep(
    handle: &Handle,
    uplinks: &BTreeSet<u32>,
    places: &BTreeSet<IpAddr>,
) -> Result<bool, KernelError> {
    let wanted = next_hops(handle, uplinks, places).await?;
    let (mut missing, mut changed) = (wanted.clone(), false);
    let messages: Result<Vec<NeighbourMessage>, _> = handle.neighbours().get().execute().try_collect().await;
    for message in messages.map_err(|error| KernelError::new("list neighbours", error))? {
        let Some(found) = identity(&message) else { continue };
        if is_fixed(&message) || (is_ours(&message) && wanted.contains(&found)) {
            missing.remove(&found);
        } else if is_ours(&message) {
            changed = true;
            let removed = handle.neighbours().del(neighbour(found.0, found.1)).execute().await;
            ignore_missing(removed, &format!("remove the neighbour {}", found.1))?;
        }
    }
    for (ifindex, address) in missing {
        changed = true;
        let mut request = handle.neighbours().add(ifindex, address).replace();
        request = request.state(NeighbourState::None).flags(NeighbourFlags::ExtLearned);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        attributes.push(NeighbourAttribute::Protocol(ROUTE_PROTOCOL));
        let what = || format!("keep the neighbour {address} of interface {ifindex} resolved");
        request.execute().await.map_err(|error| KernelError::new(what(), error))?;
    }
    Ok(changed)
}

fn identity(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })?;
    Some((message.header.ifindex, address))
}

/// Somebody else has said what it is, or nobody need ask.
fn is_fixed(message: &NeighbourMessage) -> bool {
    matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp)
}

fn is_ours(message: &NeighbourMessage) -> bool {
    let is_managed = message.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed))
    });
    is_managed && message.attributes.contains(&NeighbourAttribute::Protocol(ROUTE_PROTOCOL))
}

/// By which of the uplinks' neighbours the places are reached; of routes with several ways, all.
async fn next_hops(
    handle: &Handle,
    uplinks: &BTreeSet<u32>,
    places: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<Neighbour>, KernelError> {
    let mut found = BTreeSet::new();
    for place in places {
        if let Some(route) = route_to(handle, *place).await? {
            found.extend(ways(&route, *place).into_iter().filter(|(ifindex, _)| uplinks.contains(ifindex)));
        }
    }
    Ok(found)
}

/// The whole route, and not the way that one packet would take.
async fn route_to(handle: &Handle, place: IpAddr) -> Result<Option<RouteMessage>, KernelError> {
    let mut asked = match place {
        IpAddr::V4(place) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(place, 32).build(),
        IpAddr::V6(place) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(place, 128).build(),
    };
    asked.header.flags |= RouteFlags::FibMatch;
    let mut found = Box::pin(handle.route().get(asked).execute());
    match found.try_next().await {
        Ok(route) => Ok(route),
        Err(Error::NetlinkError(error)) => {
            // XDP, too, finds none then.
            debug!(%place, %error, "no route");
            Ok(None)
        }
        Err(error) => Err(KernelError::new(format!("look for the route to {place}"), error)),
    }
}

fn ways(route: &RouteMessage, place: IpAddr) -> Vec<Neighbour> {
    if route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let several = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(ways) => Some(ways),
        _ => None,
    });
    match several {
        Some(ways) => {
            ways.iter().map(|way| (way.interface_index, gateway(&way.attributes).unwrap_or(place))).collect()
        }
        None => read::device(route)
            .map(|ifindex| (ifindex, gateway(&route.attributes).unwrap_or(place)))
            .into_iter()
            .collect(),
    }
}

/// `None`: whom a packet is for is a neighbour itself.
fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => read::ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}
