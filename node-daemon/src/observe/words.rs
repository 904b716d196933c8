//! Events in words: names for their numbers.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use weft_proto::v1;
use weft_shared::layout::{Action, Address, Class, Direction, Event, FIRST_LOCAL_IDENTITY, Point, Reason};

use super::names::Names;

/// When the kernel's clock of events began.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(SystemTime);

impl Epoch {
    /// As of now: the wall's clock may be set at any time.
    pub fn now() -> Self {
        // The clock is always there (clock_gettime(2)); without it, times would be of 1970 and events still told.
        let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        Self(SystemTime::now().checked_sub(since_boot).unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

/// An event with names for its numbers.
pub fn in_words(event: &Event, names: &Names, epoch: Epoch) -> v1::FlowEvent {
    let word =
        |known: Option<&'static str>, number: u32| known.map_or_else(|| number.to_string(), str::to_owned);
    let allowed = event.allowed != 0;
    let (verdict, reason) = if allowed {
        (v1::FlowVerdict::Allowed, String::new())
    } else {
        let reason = word(Reason::from_number(event.reason).map(Reason::name), event.reason);
        (v1::FlowVerdict::Dropped, reason)
    };
    v1::FlowEvent {
        at: Some((epoch.0 + Duration::from_nanos(event.at_nanoseconds)).into()),
        verdict: verdict.into(),
        reason,
        point: word(Point::from_number(event.point).map(Point::name), event.point),
        endpoint: names.endpoint(event.ifindex).to_owned(),
        source: Some(party(event.source, event.source_identity, names)),
        destination: Some(party(event.destination, event.destination_identity, names)),
        protocol_number: event.protocol.into(),
        source_port: event.source_port.into(),
        destination_port: event.destination_port.into(),
        rules: rules(event, names),
        length_bytes: event.length_bytes,
        packets: event.packets,
        audit: audit(event, names),
    }
}

fn audit(event: &Event, names: &Names) -> Option<v1::FlowAudit> {
    let verdict = match event.audit_action {
        allow if u32::from(allow) == Action::Allow as u32 => v1::FlowVerdict::Allowed,
        deny if u32::from(deny) == Action::Deny as u32 => v1::FlowVerdict::Dropped,
        _ => return None,
    };
    let direction = match event.audit_direction {
        egress if egress == Direction::Egress as u8 => v1::Direction::Egress,
        _ => v1::Direction::Ingress,
    };
    let rule = Some(flow_rule(direction, event.audit_rule, names));
    Some(v1::FlowAudit { verdict: verdict.into(), rule })
}

fn flow_rule(direction: v1::Direction, number: u32, names: &Names) -> v1::FlowRule {
    let (policy, rule) = names.rule(number);
    v1::FlowRule { direction: direction.into(), policy: policy.to_owned(), rule: rule.to_owned() }
}

fn rules(event: &Event, names: &Names) -> Vec<v1::FlowRule> {
    let rule = |direction: v1::Direction, number: u32| flow_rule(direction, number, names);
    let ends = [
        (Direction::Egress as u8, v1::Direction::Egress, event.rule),
        (Direction::Ingress as u8, v1::Direction::Ingress, event.ingress_rule),
    ];
    if event.allowed != 0 {
        let asked = ends.into_iter().filter(|(direction, _, _)| event.judged & (1 << direction) != 0);
        return asked.map(|(_, direction, number)| rule(direction, number)).collect();
    }
    let asked = ends.into_iter().filter(|(direction, _, _)| event.direction == *direction);
    asked.map(|(_, direction, _)| rule(direction, event.rule)).collect()
}

fn party(address: Address, identity: u32, names: &Names) -> v1::FlowParty {
    if address == Address::UNSPECIFIED {
        return v1::FlowParty { identity, entity: entity(identity).to_owned(), ..v1::FlowParty::default() };
    }
    let address = IpAddr::from(address);
    let (endpoint, labels) = names
        .party(address)
        .map(|party| (party.name.clone(), party.labels.clone().into_iter().collect()))
        .unwrap_or_default();
    v1::FlowParty {
        address: address.to_string(),
        identity,
        endpoint,
        labels,
        entity: entity(identity).to_owned(),
    }
}

/// The class that an identity tells by itself. Global ones may be endpoints' or nodes'.
fn entity(identity: u32) -> &'static str {
    match identity {
        host if host == Class::Host as u32 => "host",
        node if node == Class::RemoteNode as u32 => "remote-node",
        fleet if fleet == Class::Fleet as u32 => "fleet",
        unmanaged if unmanaged == Class::Unmanaged as u32 => "unmanaged",
        world if world == Class::World as u32 => "world",
        prefix if prefix >= FIRST_LOCAL_IDENTITY => "world",
        _ => "",
    }
}
