//! Fields that are right by themselves and not together.

use std::num::NonZeroU16;

use weft_proto::v1;

use super::super::{
    model::{
        Backend, Backends, Family, Forwarding, FrontendKind, Protocol, Service, SourceRanges, TrafficPolicy,
    },
    shares::{self, BACKENDS_MAX, RATIO_LARGE},
};
use crate::policy::parse::Errors;

pub(super) fn check(errors: &mut Errors, service: &Service, message: &v1::Service) {
    if service.forwarding == Forwarding::Dsr {
        dsr(errors, service, message);
    }
    if let Backends::Listed(backends) = &service.backends {
        listed(errors, service, message);
        for family in Family::BOTH {
            weights(errors, backends, family);
        }
    }
    let speaks_tcp = service.frontends.iter().any(|frontend| frontend.at.protocol == Protocol::Tcp);
    if service.health_check.is_some() && !speaks_tcp {
        errors.add("healthCheck", "probes by TCP, and no frontend is TCP");
    }
    if service.topology_label.is_some()
        && (service.internal, service.external) == (TrafficPolicy::Local, TrafficPolicy::Local)
    {
        errors.add("topologyLabel", "never counts: both traffic policies are local");
    }
    source_ranges(errors, service);
}

/// The packet reaches the backend's node as the client sent it, and the answer leaves there: nothing of it is translated but
/// the address, and the answer must be allowed to bear the frontend's.
fn dsr(errors: &mut Errors, service: &Service, message: &v1::Service) {
    for (index, frontend) in service.frontends.iter().enumerate() {
        if frontend.kind == FrontendKind::NodePort {
            errors.add(
                format!("frontends[{index}].type"),
                "a node port can't be forwarded by dsr: the answer would leave one node with another's address",
            );
        }
    }
    let translated = |port: Option<NonZeroU16>| {
        let port = port?;
        service.frontends.iter().map(|frontend| frontend.at.port).find(|other| *other != port)
    };
    let text = |frontend: NonZeroU16| {
        format!("dsr does not translate ports: expected the frontend's, {frontend}, or forwardingMode: snat")
    };
    match &service.backends {
        Backends::Selected { port, .. } => {
            if let Some(frontend) = translated(*port) {
                errors.add("targetPort", text(frontend));
            }
        }
        Backends::Listed(_) => {
            for (index, backend) in written(message).enumerate() {
                let port = u16::try_from(backend.port).ok().and_then(NonZeroU16::new);
                if let Some(frontend) = translated(port) {
                    errors.add(format!("backends[{index}].port"), text(frontend));
                }
            }
        }
    }
}

/// As written: the model has them in another order.
fn written(message: &v1::Service) -> impl Iterator<Item = &v1::Backend> {
    message.backends.iter().flat_map(|list| &list.items)
}

fn listed(errors: &mut Errors, service: &Service, message: &v1::Service) {
    for (index, backend) in written(message).enumerate() {
        let Ok(address) = backend.address.parse() else { continue };
        let family = Family::from(address);
        let path = format!("backends[{index}].address");
        if !service.serves(family) {
            errors.add(path, format!("{address} answers nobody: no frontend is {family}"));
            continue;
        }
        // Without a port, it is at each frontend's.
        let same = |port: u32| backend.port == 0 || backend.port == port;
        let itself = service
            .frontends
            .iter()
            .find(|frontend| frontend.at.address == Some(address) && same(u32::from(frontend.at.port.get())));
        if let Some(frontend) = itself {
            errors.add(path, format!("{} is a frontend of this service", frontend.at));
        }
    }
}

fn weights(errors: &mut Errors, backends: &[Backend], family: Family) {
    let of_family = || backends.iter().filter(|backend| Family::from(backend.address) == family);
    let count = of_family().count();
    if count > BACKENDS_MAX {
        errors.add("backends", format!("{count} {family} backends, at most {BACKENDS_MAX} are allowed"));
        return;
    }
    let ratio = shares::ratio(of_family().map(|backend| backend.weight));
    if ratio > RATIO_LARGE {
        let text = format!(
            "the weights of the {family} backends are {ratio} times the least of them together: expected at most \
             {RATIO_LARGE} times, or no table honours them within 2 %"
        );
        errors.add("backends", text);
    }
}

fn source_ranges(errors: &mut Errors, service: &Service) {
    let Some(SourceRanges::Allow(cidrs) | SourceRanges::Deny(cidrs)) = &service.source_ranges else { return };
    for family in Family::BOTH {
        let named = cidrs.iter().any(|cidr| Family::from(*cidr) == family);
        if named && !service.serves(family) {
            errors.warn("sourceRanges.cidrs", format!("has {family} prefixes, and no frontend is {family}"));
        }
    }
}
