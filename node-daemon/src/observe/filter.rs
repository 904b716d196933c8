//! Which events a monitor wants: every filter that is given must let an event pass, by any of its values.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use weft_proto::v1::{self, monitor_party::Party as Asked};
use weft_shared::{
    layout::{Point, Reason},
    policy::{parse, selector::Selector},
};

/// What is wrong with a request, at which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FilterError {
    pub field: String,
    pub message: String,
}

/// The classes that an identity may tell.
const ENTITIES: [&str; 5] = ["host", "remote-node", "fleet", "unmanaged", "world"];
/// Of each filter; more is no question that a person asks.
const VALUES_MAX: usize = 1024;

#[derive(Clone, Debug)]
enum Party {
    Endpoint(String),
    Selector(Selector),
    Prefix(IpNet),
    Identity(u32),
    Entity(String),
}

/// A request that makes sense.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    drops: bool,
    verdicts: bool,
    audits: bool,
    endpoints: BTreeSet<String>,
    from: Vec<Party>,
    to: Vec<Party>,
    ports: Vec<(u32, Option<u32>)>,
    reasons: BTreeSet<String>,
    points: BTreeSet<String>,
    identities: BTreeSet<u32>,
    policies: BTreeSet<String>,
}

impl Filter {
    pub fn parse(request: v1::MonitorRequest) -> Result<Self, FilterError> {
        refuse_many(&request)?;
        // Nothing said: drops.
        let drops = request.drops || !(request.verdicts || request.audits);
        Ok(Self {
            drops,
            verdicts: request.verdicts,
            audits: request.audits,
            endpoints: request.endpoints.into_iter().collect(),
            from: parties("from", request.from)?,
            to: parties("to", request.to)?,
            ports: request.ports.into_iter().map(|port| (port.protocol_number, port.port)).collect(),
            reasons: known("reasons", request.reasons, drop_reasons())?,
            points: known("points", request.points, Point::ALL.iter().map(|point| point.name()))?,
            identities: request.identities.into_iter().collect(),
            policies: request.policies.into_iter().collect(),
        })
    }

    /// Whether the kernel has to tell of new flows for this.
    pub fn wants_allowed(&self) -> bool {
        self.verdicts
    }

    pub fn passes(&self, event: &v1::FlowEvent) -> bool {
        let nobody = v1::FlowParty::default();
        let source = event.source.as_ref().unwrap_or(&nobody);
        let destination = event.destination.as_ref().unwrap_or(&nobody);
        let either = |is: &dyn Fn(&v1::FlowParty) -> bool| is(source) || is(destination);
        self.wants(event)
            && (self.endpoints.is_empty()
                || self.endpoints.contains(&event.endpoint)
                || either(&|party| self.endpoints.contains(&party.endpoint)))
            && (self.from.is_empty() || self.from.iter().any(|from| from.is(source)))
            && (self.to.is_empty() || self.to.iter().any(|to| to.is(destination)))
            && (self.ports.is_empty() || self.ports.iter().any(|port| has_port(event, *port)))
            && (self.reasons.is_empty() || self.reasons.contains(&event.reason))
            && (self.points.is_empty() || self.points.contains(&event.point))
            && (self.identities.is_empty() || either(&|party| self.identities.contains(&party.identity)))
            && (self.policies.is_empty() || rules(event).any(|rule| self.policies.contains(&rule.policy)))
    }

    fn wants(&self, event: &v1::FlowEvent) -> bool {
        if self.audits && event.audit.is_some() {
            return true;
        }
        match event.verdict() {
            v1::FlowVerdict::Allowed => self.verdicts,
            _ => self.drops || (self.verdicts && is_policys(&event.reason)),
        }
    }
}

/// That decided, or would if audited policies were enforced.
fn rules(event: &v1::FlowEvent) -> impl Iterator<Item = &v1::FlowRule> {
    event.rules.iter().chain(event.audit.iter().filter_map(|audit| audit.rule.as_ref()))
}

/// Whether a drop is the policy's word.
fn is_policys(reason: &str) -> bool {
    reason == Reason::PolicyDenied.name() || reason == Reason::PolicyMissing.name()
}

fn drop_reasons() -> impl Iterator<Item = &'static str> {
    Reason::ALL.iter().filter(|reason| reason.is_drop()).map(|reason| reason.name())
}

fn has_port(event: &v1::FlowEvent, (protocol, port): (u32, Option<u32>)) -> bool {
    event.protocol_number == protocol
        && port.is_none_or(|port| port == event.source_port || port == event.destination_port)
}

impl Party {
    fn is(&self, party: &v1::FlowParty) -> bool {
        match self {
            Self::Endpoint(name) => *name == party.endpoint,
            Self::Selector(selector) => {
                // An endpoint without labels has them all absent; a party that is none of ours has no labels that we know.
                !party.endpoint.is_empty()
                    && selector.matches(
                        &party.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
                    )
            }
            Self::Prefix(net) => party.address.parse::<IpAddr>().is_ok_and(|address| net.contains(&address)),
            Self::Identity(number) => *number == party.identity,
            Self::Entity(entity) => *entity == party.entity,
        }
    }
}

fn parties(field: &str, asked: Vec<v1::MonitorParty>) -> Result<Vec<Party>, FilterError> {
    let one = |(index, asked): (usize, v1::MonitorParty)| {
        let wrong = |message: String| FilterError { field: format!("{field}[{index}]"), message };
        Ok(match asked.party.ok_or_else(|| wrong("names no party".to_owned()))? {
            Asked::Endpoint(name) => Party::Endpoint(name),
            Asked::Selector(selector) => {
                Party::Selector(parse::selector(&selector, "selector").map_err(|errors| {
                    wrong(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
                })?)
            }
            Asked::Prefix(text) => Party::Prefix(prefix(&text).ok_or_else(|| {
                wrong(format!("\"{text}\" is neither an address nor a prefix such as 198.51.100.0/24"))
            })?),
            Asked::Identity(number) => Party::Identity(number),
            Asked::Entity(entity) if ENTITIES.contains(&entity.as_str()) => Party::Entity(entity),
            Asked::Entity(entity) => {
                return Err(wrong(format!(
                    "there is no class \"{entity}\"; there are {}",
                    ENTITIES.join(", ")
                )));
            }
        })
    };
    asked.into_iter().enumerate().map(one).collect()
}

fn prefix(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()).ok()
}

fn known<'a>(
    field: &str,
    asked: Vec<String>,
    known: impl Iterator<Item = &'a str>,
) -> Result<BTreeSet<String>, FilterError> {
    let known: Vec<_> = known.collect();
    match asked.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(asked.into_iter().collect()),
        Some(name) => Err(FilterError {
            field: field.to_owned(),
            message: format!("there is no \"{name}\"; there are {}", known.join(", ")),
        }),
    }
}

fn refuse_many(request: &v1::MonitorRequest) -> Result<(), FilterError> {
    let counts = [
        ("endpoints", request.endpoints.len()),
        ("from", request.from.len()),
        ("to", request.to.len()),
        ("ports", request.ports.len()),
        ("reasons", request.reasons.len()),
        ("points", request.points.len()),
        ("identities", request.identities.len()),
        ("policies", request.policies.len()),
    ];
    match counts.into_iter().find(|(_, count)| *count > VALUES_MAX) {
        None => Ok(()),
        Some((field, count)) => Err(FilterError {
            field: field.to_owned(),
            message: format!("has {count} values; at most {VALUES_MAX} are looked at"),
        }),
    }
}

#[cfg(test)]
mod tests;
