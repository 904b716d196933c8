//! From the schema's messages to the model, once, at the edge. Every error names the field by its path inside the object
//! (`frontends[0].port`, spelled as in manifests) and says what was expected. What contradicts itself, or what the datapath
//! can't do, is refused by name.

mod backend;
mod combination;
mod frontend;
mod health;
mod prefilter;
mod shaping;

use weft_proto::v1;

use super::model::{Algorithm, Backends, Forwarding, Service, SourceRanges, TrafficPolicy};
use crate::policy::parse::{
    Errors, FieldError, FieldWarning, metadata,
    selector::selector_of,
    text::{label_key, prefix},
};

pub use self::{prefilter::prefilter, shaping::shaping};

/// Seconds of affinity: a day.
const AFFINITY_MAX_SECONDS: u32 = 86_400;
/// Walked one by one where no table is faster.
const SOURCE_RANGES_MAX: usize = 1024;

/// A service.
pub fn service(message: &v1::Service) -> Result<Service, Vec<FieldError>> {
    with_warnings(message).map(|(service, _)| service)
}

/// A service, and what of it can hardly be meant.
pub fn with_warnings(message: &v1::Service) -> Result<(Service, Vec<FieldWarning>), Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata(&mut errors, message.metadata.as_ref());
    let frontends = frontend::frontends(&mut errors, &message.frontends);
    let backends = backends(&mut errors, message);
    let algorithm = match v1::Algorithm::try_from(message.algorithm) {
        Ok(v1::Algorithm::Unspecified | v1::Algorithm::Maglev) => Some(Algorithm::Maglev),
        Ok(v1::Algorithm::Random) => Some(Algorithm::Random),
        Err(_) => refused(&mut errors, "algorithm", "expected maglev or random"),
    };
    let affinity_seconds = affinity(&mut errors, message.affinity.as_ref());
    let internal = traffic(&mut errors, message.internal_traffic_policy, "internalTrafficPolicy");
    let external = traffic(&mut errors, message.external_traffic_policy, "externalTrafficPolicy");
    let source_ranges = source_ranges(&mut errors, message.source_ranges.as_ref());
    let forwarding = match v1::ForwardingMode::try_from(message.forwarding_mode) {
        Ok(v1::ForwardingMode::Unspecified | v1::ForwardingMode::Snat) => Some(Forwarding::Snat),
        Ok(v1::ForwardingMode::Dsr) => Some(Forwarding::Dsr),
        Err(_) => refused(&mut errors, "forwardingMode", "expected snat or dsr"),
    };
    let health_check =
        message.health_check.as_ref().and_then(|check| health::health_check(&mut errors, check));
    if let Some(label) = &message.topology_label {
        errors.take(label_key(label, "topologyLabel"));
    }
    let service = (|| {
        Some(Service {
            name: name?,
            frontends,
            backends: backends?,
            algorithm: algorithm?,
            affinity_seconds,
            internal: internal?,
            external: external?,
            source_ranges,
            forwarding: forwarding?,
            health_check,
            topology_label: message.topology_label.clone(),
            end_connections: message.end_connections,
        })
    })();
    if let Some(service) = &service {
        combination::check(&mut errors, service, message);
    }
    errors.finish_with_warnings(service)
}

fn refused<T>(errors: &mut Errors, path: &str, message: &str) -> Option<T> {
    errors.add(path, message);
    None
}

fn backends(errors: &mut Errors, message: &v1::Service) -> Option<Backends> {
    let port = message.target_port.map(|port| errors.take(frontend::port(port, "targetPort")));
    match (&message.selector, &message.backends) {
        (Some(selector), None) => {
            let selector = selector_of(errors, selector, "selector")?;
            Some(Backends::Selected { selector, port: port.flatten() })
        }
        (None, Some(list)) => {
            if port.is_some() {
                errors.add("targetPort", "goes with selector: each of `backends` has a port of its own");
            }
            Some(Backends::Listed(backend::backends(errors, &list.items)))
        }
        (None, None) => refused(errors, "selector", "expected either selector or backends"),
        (Some(_), Some(_)) => refused(errors, "backends", "expected either selector or backends, not both"),
    }
}

fn affinity(errors: &mut Errors, message: Option<&v1::Affinity>) -> Option<u32> {
    let seconds = message?.timeout_seconds;
    if !(1..=AFFINITY_MAX_SECONDS).contains(&seconds) {
        let text = format!("{seconds} is out of range: expected 1 to {AFFINITY_MAX_SECONDS}");
        errors.add("affinity.timeoutSeconds", text);
    }
    Some(seconds)
}

fn traffic(errors: &mut Errors, number: i32, path: &str) -> Option<TrafficPolicy> {
    match v1::TrafficPolicy::try_from(number) {
        Ok(v1::TrafficPolicy::Unspecified | v1::TrafficPolicy::Fleet) => Some(TrafficPolicy::Fleet),
        Ok(v1::TrafficPolicy::Local) => Some(TrafficPolicy::Local),
        Err(_) => refused(errors, path, "expected fleet or local"),
    }
}

fn source_ranges(errors: &mut Errors, message: Option<&v1::SourceRanges>) -> Option<SourceRanges> {
    let message = message?;
    let (count, most) = (message.cidrs.len(), SOURCE_RANGES_MAX);
    if count == 0 {
        errors.add("sourceRanges.cidrs", "expected at least one prefix");
    }
    if count > most {
        errors.add("sourceRanges.cidrs", format!("{count} prefixes, at most {most} are allowed"));
    }
    let texts = message.cidrs.iter().enumerate();
    let cidrs =
        texts.filter_map(|(index, text)| errors.take(prefix(text, &format!("sourceRanges.cidrs[{index}]"))));
    let mut cidrs: Vec<_> = cidrs.collect();
    cidrs.sort_unstable();
    cidrs.dedup();
    match v1::source_ranges::Action::try_from(message.action) {
        Ok(v1::source_ranges::Action::Unspecified | v1::source_ranges::Action::Allow) => {
            Some(SourceRanges::Allow(cidrs))
        }
        Ok(v1::source_ranges::Action::Deny) => Some(SourceRanges::Deny(cidrs)),
        Err(_) => refused(errors, "sourceRanges.action", "expected allow or deny"),
    }
}

#[cfg(test)]
mod tests;
