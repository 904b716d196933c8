//! Frontends: places where clients find a service.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use weft_proto::v1;

use super::super::model::{Frontend, FrontendKind, Place, Protocol};
use crate::policy::parse::{Errors, FieldError};

/// Each is an entry of its own on every node.
pub const FRONTENDS_MAX: usize = 64;

pub(super) fn frontends(errors: &mut Errors, messages: &[v1::Frontend]) -> Vec<Frontend> {
    let (count, most) = (messages.len(), FRONTENDS_MAX);
    if count == 0 || count > most {
        errors.add("frontends", format!("{count} frontends, expected 1 to {most}"));
    }
    let mut seen: BTreeMap<Place, usize> = BTreeMap::new();
    let mut frontends = Vec::with_capacity(count);
    for (index, message) in messages.iter().enumerate() {
        let path = format!("frontends[{index}]");
        let Some(frontend) = frontend(errors, message, &path) else { continue };
        match seen.get(&frontend.at) {
            Some(first) => errors.add(path, format!("{} is frontends[{first}] already", frontend.at)),
            None => drop(seen.insert(frontend.at, index)),
        }
        frontends.push(frontend);
    }
    frontends
}

fn frontend(errors: &mut Errors, message: &v1::Frontend, path: &str) -> Option<Frontend> {
    let kind = match v1::FrontendType::try_from(message.r#type) {
        Ok(v1::FrontendType::Unspecified | v1::FrontendType::Cluster) => Some(FrontendKind::Cluster),
        Ok(v1::FrontendType::NodePort) => Some(FrontendKind::NodePort),
        Ok(v1::FrontendType::External) => Some(FrontendKind::External),
        Err(_) => {
            errors.add(format!("{path}.type"), "expected cluster, node-port or external");
            None
        }
    };
    let protocol = match v1::Protocol::try_from(message.protocol) {
        Ok(v1::Protocol::Tcp) => Some(Protocol::Tcp),
        Ok(v1::Protocol::Udp) => Some(Protocol::Udp),
        Ok(v1::Protocol::Sctp) => Some(Protocol::Sctp),
        Ok(v1::Protocol::Unspecified | v1::Protocol::Icmp | v1::Protocol::Icmpv6) | Err(_) => {
            errors.add(format!("{path}.protocol"), "expected TCP, UDP or SCTP");
            None
        }
    };
    let port = errors.take(port(message.port, &format!("{path}.port")));
    let field = format!("{path}.address");
    let address = match kind? {
        FrontendKind::NodePort if message.address.is_empty() => None,
        FrontendKind::NodePort => {
            errors.add(field, "a node port has no address: it is on every address of each node");
            return None;
        }
        FrontendKind::Cluster | FrontendKind::External => {
            Some(errors.take(address(&message.address, &field))?)
        }
    };
    Some(Frontend { at: Place { address, port: port?, protocol: protocol? }, kind: kind? })
}

pub(super) fn port(value: u32, path: &str) -> Result<NonZeroU16, FieldError> {
    let port = u16::try_from(value).ok().and_then(NonZeroU16::new);
    port.ok_or_else(|| FieldError::new(path, format!("{value} is out of range: expected 1 to 65535")))
}

/// One that a packet can be sent to from somewhere else.
pub(super) fn address(text: &str, path: &str) -> Result<IpAddr, FieldError> {
    let wrong = |why: String| Err(FieldError::new(path, why));
    let Ok(address) = text.parse::<IpAddr>() else {
        return wrong(format!("\"{text}\" is not an IP address"));
    };
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        _ if address.is_loopback() => "a loopback address, which is another one on each node",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            return wrong(format!("\"{text}\" is an IPv4 address dressed as IPv6: write it as IPv4"));
        }
        _ => return Ok(address),
    };
    wrong(format!("{address} is {kind}: expected an address of one place"))
}
