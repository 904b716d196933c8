//! A flow to a service's frontend: which backends may get it, and the verdict on each.
use std::{net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;
use weft_proto::v1;
use weft_shared::{
    policy::model::FlowPort,
    service::{
        model::{
            Family, Forwarding, Frontend, FrontendKind, Place, Protocol, Service, SourceRanges, TrafficPolicy,
        },
        shares::basis_points,
        takers::takers,
        wire::{self, Resolved},
    },
};

use super::{Found, Judge, What, by_address, together};

/// The service that the flow calls, and what comes of it; `None`: it calls none.
pub(super) fn called(
    judge: &Judge<'_>,
    from: &Found,
    to: &Found,
    port: FlowPort,
    family: Option<u32>,
) -> Option<(v1::ExplainedService, v1::Verdict)> {
    let place = place(to, port)?;
    let service = judge.fleet.service(judge.fleet.service_at(&place)?)?;
    let frontend = service.frontends.iter().find(|frontend| frontend.at == place)?;
    let family = match (from.address().or(to.address()), family) {
        (Some(address), _) => Family::from(address),
        (None, Some(6)) => Family::V6,
        (None, _) => Family::V4,
    };
    let call = Call { judge, service, frontend, from, to, port, family };
    let mut explained = v1::ExplainedService {
        name: service.name.clone(),
        frontend: Some(wire::frontend_as_written(frontend)),
        node: call.node().unwrap_or_default().to_owned(),
        ..v1::ExplainedService::default()
    };
    let refusal = call.refusal();
    if refusal == v1::ServiceRefusal::Unspecified {
        explained.backends = call.backends();
    }
    let nobody = refusal == v1::ServiceRefusal::Unspecified && explained.backends.is_empty();
    explained.refusal = if nobody { v1::ServiceRefusal::NoBackends } else { refusal }.into();
    let verdict = verdict(&explained.backends);
    Some((explained, verdict))
}

/// Where the flow goes, as services have it.
fn place(to: &Found, port: FlowPort) -> Option<Place> {
    let address = match to.what {
        What::Endpoint { .. } => return None,
        What::Node { .. } => None,
        What::Address(address) => Some(address),
    };
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == u32::from(port.protocol))?;
    Some(Place { address, port: NonZeroU16::new(port.port)?, protocol })
}

/// Nobody answers: it is denied.
fn verdict(backends: &[v1::ExplainedBackend]) -> v1::Verdict {
    let allowed = backends.iter().filter(|backend| backend.verdict() == v1::Verdict::Allow).count();
    match allowed {
        0 => v1::Verdict::Deny,
        all if all == backends.len() => v1::Verdict::Allow,
        _ => v1::Verdict::Varies,
    }
}

struct Call<'a> {
    judge: &'a Judge<'a>,
    service: &'a Service,
    frontend: &'a Frontend,
    from: &'a Found,
    to: &'a Found,
    port: FlowPort,
    family: Family,
}

impl Call<'_> {
    /// Whether the flow begins on the node that balances: a node finds its own processes and endpoints there.
    fn is_inside(&self) -> bool {
        let other_node =
            || self.frontend.kind == FrontendKind::NodePort && self.to.node() != self.from.node();
        self.from.is_judged() && !other_node()
    }

    /// The node that balances.
    fn node(&self) -> Option<&str> {
        if self.is_inside() { self.from.node() } else { self.to.node() }
    }

    fn refusal(&self) -> v1::ServiceRefusal {
        if !self.is_inside() && self.frontend.kind == FrontendKind::Cluster {
            return v1::ServiceRefusal::Outside;
        }
        if self.is_admitted() { v1::ServiceRefusal::Unspecified } else { v1::ServiceRefusal::Source }
    }

    /// Whether the service is for this client. Of a node's own calls to be balanced there, the source is not known: all its addresses
    /// must be let in.
    fn is_admitted(&self) -> bool {
        let Some(ranges) = &self.service.source_ranges else { return true };
        match &self.from.what {
            What::Node { name: Some(name), .. } if self.is_inside() => {
                let facts = self.judge.fleet.node(name);
                let parsed =
                    facts.into_iter().flat_map(|facts| &facts.addresses).flat_map(|text| text.parse());
                let own: Vec<IpAddr> =
                    parsed.filter(|address| Family::from(*address) == self.family).collect();
                !own.is_empty() && own.iter().all(|address| admits(ranges, *address))
            }
            _ => self.from.address().is_none_or(|source| admits(ranges, source)),
        }
    }

    fn backends(&self) -> Vec<v1::ExplainedBackend> {
        let answering = self.judge.fleet.answering(self.service);
        let node = self.node();
        let policy = if self.is_inside() { self.service.internal } else { self.service.external };
        let left = answering.backends.iter().filter(|((address, _), one)| {
            let is_local = node.is_none_or(|node| node == one.node);
            Family::from(*address) == self.family && (policy == TrafficPolicy::Fleet || is_local)
        });
        let preferred = self.preferred();
        let takers = takers(left, preferred, |(_, one)| (one.state, &one.topology));
        let all = takers.iter().map(|(_, one)| u32::from(one.weight)).sum();
        takers.into_iter().map(|(place, one)| self.backend(*place, one, all)).collect()
    }

    /// The value of the topology label that backends are preferred by.
    fn preferred(&self) -> Option<&str> {
        let label = self.service.topology_label.as_ref().filter(|_| self.is_inside())?;
        let facts = self.judge.fleet.node(self.node()?)?;
        self.judge.fleet.labels(facts.identity)?.get(label).map(String::as_str)
    }

    fn backend(
        &self,
        (address, port): (IpAddr, Option<NonZeroU16>),
        one: &Resolved,
        all: u32,
    ) -> v1::ExplainedBackend {
        let found = by_address(self.judge.fleet, address);
        let port = port.map_or(self.port.port, NonZeroU16::get);
        let (directions, verdict) = self.directions(one, &found, FlowPort { port, ..self.port });
        v1::ExplainedBackend {
            address: address.to_string(),
            port: port.into(),
            text: found.text,
            share_basis_points: basis_points(one.weight, all),
            verdict: verdict.into(),
            directions,
        }
    }
}

impl Call<'_> {
    /// A node that sends a call of a client outside on to a backend elsewhere stands in for the client there: it judges the client as if
    /// that called the node, and the backend's node judges the node.
    fn directions(
        &self,
        one: &Resolved,
        backend: &Found,
        port: FlowPort,
    ) -> (Vec<v1::DirectionVerdict>, v1::Verdict) {
        let node =
            self.to.node().filter(|_| !self.is_inside() && self.service.forwarding == Forwarding::Snat);
        if node.is_none_or(|node| node == one.node) {
            return self.judge.flow(self.from, backend, port);
        }
        let (mut directions, _) = self.judge.flow(self.from, self.to, self.port);
        for own in directions.iter_mut().filter(|own| own.direction() == v1::Direction::Ingress) {
            own.subject.clone_from(&self.to.text);
        }
        let (onward, _) = self.judge.flow(self.to, backend, port);
        directions.extend(onward.into_iter().filter(|own| own.direction() == v1::Direction::Ingress));
        let verdict = together(&directions);
        (directions, verdict)
    }
}

/// Whether the ranges let this source in.
fn admits(ranges: &SourceRanges, source: IpAddr) -> bool {
    let listed = |cidrs: &[IpNet]| cidrs.iter().any(|cidr| cidr.contains(&source));
    match ranges {
        SourceRanges::Allow(cidrs) => listed(cidrs),
        SourceRanges::Deny(cidrs) => !listed(cidrs),
    }
}
