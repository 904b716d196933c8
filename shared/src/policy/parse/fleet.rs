//! The fleet's configuration.

use std::{ops::RangeInclusive, time::Duration};

use ipnet::IpNet;
use weft_proto::v1;

use super::{
    super::model::{Action, Direction, Failsafe, FleetConfig, IdentityLabels, LabelPattern, Pool},
    super::wire,
    Errors, FieldError, metadata,
    port::port,
    text::prefix,
};

/// The one name a configuration has.
const NAME: &str = "fleet";
/// A pool gives out at most this many bits of node prefixes: 2^16 nodes.
const NODE_PREFIX_BITS_MAX: u8 = 16;
/// Entries are walked one by one for each new flow of a node.
const FAILSAFE_MAX: usize = 64;
/// Below are the node's own services.
const NODE_PORT_MIN: u16 = 1024;
/// A restart of a node takes less.
const NODE_EXPIRY_MIN_SECONDS: u32 = 300;

/// The fleet's configuration.
pub fn fleet_config(message: &v1::FleetConfig) -> Result<FleetConfig, Vec<FieldError>> {
    let mut errors = Errors::default();
    if metadata(&mut errors, message.metadata.as_ref()).is_some_and(|name| name != NAME) {
        errors.add("name", "a fleet has one configuration, called \"fleet\"");
    }
    refuse_unsupported(&mut errors, message);
    let pools = pools(&mut errors, &message.pools);
    let default_action = match v1::DefaultAction::try_from(message.default_action) {
        Ok(v1::DefaultAction::Unspecified | v1::DefaultAction::Allow) => Action::Allow,
        Ok(v1::DefaultAction::Deny) => Action::Deny,
        Err(_) => {
            errors.add("defaultAction", "expected allow or deny");
            Action::Deny
        }
    };
    let identity_labels = identity_labels(message.identity_labels.as_ref());
    let node_expiry = node_expiry(&mut errors, message.node_expiry_seconds);
    let host_to_endpoint = errors.take(wire::host_to_endpoint(message.host_to_endpoint));
    let failsafe = errors.take_all(failsafe(message.failsafe.as_ref())).unwrap_or_default();
    let node_ports = node_ports(&mut errors, message.node_ports.as_ref());
    let protected = message.protected_prefixes.iter().enumerate();
    let protected = protected
        .filter_map(|(index, text)| errors.take(prefix(text, &format!("protectedPrefixes[{index}]"))));
    let protected_prefixes = protected.collect();
    let config = host_to_endpoint.map(|host_to_endpoint| FleetConfig {
        pools,
        default_action,
        identity_labels,
        host_to_endpoint,
        failsafe,
        node_expiry,
        node_ports,
        protected_prefixes,
    });
    errors.finish(config)
}

fn refuse_unsupported(errors: &mut Errors, message: &v1::FleetConfig) {
    if !matches!(message.routing_mode(), v1::RoutingMode::Unspecified | v1::RoutingMode::Overlay) {
        errors.add("routingMode", "this version supports overlay only");
    }
    if !matches!(message.encryption_mode(), v1::EncryptionMode::Unspecified | v1::EncryptionMode::None) {
        errors.add("encryptionMode", "this version does not support encryption yet");
    }
    if message.limits.is_some() {
        errors.add("limits", "this version does not support limits yet");
    }
}

/// Absent: the defaults. Present and empty: nothing is held open.
pub fn failsafe(list: Option<&v1::FailsafeList>) -> Result<Vec<Failsafe>, Vec<FieldError>> {
    let Some(list) = list else { return Ok(Failsafe::defaults()) };
    let mut errors = Errors::default();
    if list.items.len() > FAILSAFE_MAX {
        let text = format!("{} entries, at most {FAILSAFE_MAX} are allowed", list.items.len());
        errors.add("failsafe", text);
    }
    let entries = list.items.iter().enumerate();
    let entries = entries
        .filter_map(|(index, message)| entry(&mut errors, message, &format!("failsafe[{index}]")))
        .collect();
    errors.finish(Some(entries))
}

/// As manifests have them, the defaults written out.
pub fn failsafe_to_proto(entries: &[Failsafe]) -> v1::FailsafeList {
    let entry = |entry: &Failsafe| {
        let protocol = match entry.protocol {
            1 => v1::Protocol::Icmp,
            6 => v1::Protocol::Tcp,
            17 => v1::Protocol::Udp,
            58 => v1::Protocol::Icmpv6,
            132 => v1::Protocol::Sctp,
            _ => v1::Protocol::Unspecified,
        };
        let unnamed = protocol == v1::Protocol::Unspecified;
        let all = (entry.first, entry.last) == (0, u16::MAX);
        let direction = match entry.direction {
            Direction::Ingress => v1::Direction::Ingress,
            Direction::Egress => v1::Direction::Egress,
        };
        v1::Failsafe {
            protocol: protocol.into(),
            protocol_number: unnamed.then_some(entry.protocol.into()),
            port: (!all).then_some(entry.first.into()),
            end_port: (!all && entry.last != entry.first).then_some(entry.last.into()),
            direction: direction.into(),
            cidrs: entry.prefixes.iter().map(IpNet::to_string).collect(),
        }
    };
    v1::FailsafeList { items: entries.iter().map(entry).collect() }
}

fn entry(errors: &mut Errors, message: &v1::Failsafe, path: &str) -> Option<Failsafe> {
    let as_port = v1::Port {
        protocol: message.protocol,
        protocol_number: message.protocol_number,
        port: message.port,
        end_port: message.end_port,
        ..v1::Port::default()
    };
    let range = port(errors, &as_port, path);
    let direction = match v1::Direction::try_from(message.direction) {
        Ok(v1::Direction::Ingress) => Some(Direction::Ingress),
        Ok(v1::Direction::Egress) => Some(Direction::Egress),
        Ok(v1::Direction::Unspecified) | Err(_) => {
            errors.add(format!("{path}.direction"), "expected ingress or egress, as the node sees it");
            None
        }
    };
    let cidrs = message.cidrs.iter().enumerate();
    let prefixes =
        cidrs.filter_map(|(index, text)| errors.take(prefix(text, &format!("{path}.cidrs[{index}]"))));
    let prefixes = prefixes.collect();
    let range = range?;
    Some(Failsafe {
        protocol: range.protocol,
        first: range.first,
        last: range.last,
        direction: direction?,
        prefixes,
    })
}

fn node_expiry(errors: &mut Errors, seconds: Option<u32>) -> Option<Duration> {
    let least = NODE_EXPIRY_MIN_SECONDS;
    if let Some(seconds) = seconds.filter(|seconds| *seconds < least) {
        let text = format!(
            "{seconds} is too short: expected at least {least}, or nodes are removed that only restart"
        );
        errors.add("nodeExpirySeconds", text);
    }
    seconds.map(|seconds| Duration::from_secs(seconds.into()))
}

fn node_ports(errors: &mut Errors, message: Option<&v1::NodePorts>) -> RangeInclusive<u16> {
    let Some(message) = message else { return FleetConfig::NODE_PORTS_DEFAULT };
    let mut number = |value: u32, field: &str| {
        let port = u16::try_from(value).ok().filter(|port| *port >= NODE_PORT_MIN);
        if port.is_none() {
            let text = format!("{value} is out of range: expected {NODE_PORT_MIN} to 65535");
            errors.add(format!("nodePorts.{field}"), text);
        }
        port
    };
    let (first, last) = (number(message.first, "first"), number(message.last, "last"));
    let Some((first, last)) = first.zip(last) else { return FleetConfig::NODE_PORTS_DEFAULT };
    if last < first {
        errors.add("nodePorts.last", format!("{last} is below the first, {first}"));
    }
    first..=last
}

fn pools(errors: &mut Errors, messages: &[v1::Pool]) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    if messages.is_empty() {
        errors.add("pools", "expected at least one pool");
    }
    for (index, message) in messages.iter().enumerate() {
        let path = format!("pools[{index}]");
        let Some(pool) = errors.take(pool(message, &path)) else { continue };
        let overlaps = |other: &Pool| pool.cidr.contains(&other.cidr) || other.cidr.contains(&pool.cidr);
        if let Some(other) = pools.iter().find(|other| overlaps(other)) {
            errors.add(format!("{path}.cidr"), format!("{} overlaps the pool {}", pool.cidr, other.cidr));
        }
        pools.push(pool);
    }
    pools
}

fn pool(message: &v1::Pool, path: &str) -> Result<Pool, FieldError> {
    let cidr = prefix(&message.cidr, &format!("{path}.cidr"))?;
    // A node needs addresses of its own to give away.
    let longest = match cidr {
        IpNet::V4(_) => 30,
        IpNet::V6(_) => 120,
    };
    let least = cidr.prefix_len();
    if least > longest {
        let text =
            format!("{cidr} has no room for a node's endpoints: expected a prefix of at most {longest} bits");
        return Err(FieldError::new(format!("{path}.cidr"), text));
    }
    let most = longest.min(least.saturating_add(NODE_PREFIX_BITS_MAX));
    let length =
        u8::try_from(message.node_prefix_length).ok().filter(|length| (least..=most).contains(length));
    let wrong = || {
        let text =
            format!("{} is out of range: expected {least} to {most} for {cidr}", message.node_prefix_length);
        FieldError::new(format!("{path}.nodePrefixLength"), text)
    };
    Ok(Pool { cidr, node_prefix_length: length.ok_or_else(wrong)? })
}

fn identity_labels(message: Option<&v1::IdentityLabels>) -> IdentityLabels {
    let pattern = |text: &String| match text.strip_suffix('*') {
        Some(prefix) => LabelPattern::Prefix(prefix.to_owned()),
        None => LabelPattern::Key(text.clone()),
    };
    let patterns = |texts: &[String]| texts.iter().map(pattern).collect();
    message.map_or_else(IdentityLabels::default, |message| IdentityLabels {
        include: patterns(&message.include),
        exclude: patterns(&message.exclude),
    })
}
