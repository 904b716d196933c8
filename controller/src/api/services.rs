//! What services are made of now.
use std::collections::BTreeMap;

use tonic::Status;
use weft_proto::v1::{self, Kind};
use weft_shared::{
    policy::parse,
    service::{
        model::{BackendState, Backends, Family, Service},
        shares, wire,
    },
};

use super::{Operator, errors, read};
use crate::{
    fleet::{Answering, Fleet, Probe, health::in_words},
    limits,
};

/// Nodes that reject a service, and why.
type Rejections = BTreeMap<String, Vec<v1::ServiceRejection>>;

impl Operator {
    pub(super) async fn services(
        &self,
        request: v1::ServiceStatusRequest,
    ) -> Result<v1::ServiceStatusResponse, Status> {
        let size = read::page_size(request.page_size)?;
        let behind = request.page_token;
        if !behind.is_empty() && (parse::name(&behind, "page_token").is_err() || !request.name.is_empty()) {
            return Err(errors::bad_field("page_token", "not a token of ServiceStatus"));
        }
        self.caught_up().await?;
        let (mut services, more, revision) = self.hub.ask(|fleet| {
            let revision = fleet.revision();
            if !request.name.is_empty() {
                let one = fleet.service(&request.name).map(|service| state(fleet, service, true));
                return (Vec::from_iter(one), false, revision);
            }
            let mut behind = fleet.services_behind(&behind);
            let page: Vec<_> =
                behind.by_ref().take(size).map(|service| state(fleet, service, false)).collect();
            (page, behind.next().is_some(), revision)
        });
        if services.is_empty() && !request.name.is_empty() {
            return Err(read::not_found(Kind::Service, &request.name));
        }
        let rejections = self.rejections_of_services();
        for service in &mut services {
            let by = rejections.get(&service.name).map_or(&[][..], Vec::as_slice);
            service.nodes_rejecting = count(by.len());
            service.rejections = by.iter().take(limits::SERVICE_REJECTIONS_SHOWN).cloned().collect();
        }
        let last = services.last().filter(|_| more).map(|service| service.name.clone());
        Ok(v1::ServiceStatusResponse { services, next_page_token: last.unwrap_or_default(), revision })
    }

    fn rejections_of_services(&self) -> Rejections {
        let nodes: Vec<String> =
            self.hub.ask(|fleet| fleet.nodes().map(|(name, _)| name.to_owned()).collect());
        let mut found = Rejections::new();
        for node in nodes {
            for rejected in self.hub.standing(&node).unwrap_or_default().rejections {
                if rejected.kind == v1::ResourceType::Service {
                    let rejection = v1::ServiceRejection { node: node.clone(), reason: rejected.reason };
                    found.entry(rejected.name).or_default().push(rejection);
                }
            }
        }
        found
    }
}

fn state(fleet: &Fleet, service: &Service, with_backends: bool) -> v1::ServiceState {
    let answering = fleet.answering(service);
    let taking = Family::BOTH.map(|family| taking(&answering, family));
    let active = taking.iter().map(|taking| taking.backends).sum();
    let is_unhealthy = |place, one| fleet.is_healthy(service, place, one) == Some(false);
    let unhealthy = answering.backends.iter().filter(|(place, one)| is_unhealthy(**place, one)).count();
    let (condition, reason) = condition(service, &answering, taking);
    v1::ServiceState {
        name: service.name.clone(),
        frontends: service.frontends.iter().map(wire::frontend_as_written).collect(),
        condition: condition.into(),
        reason,
        backends_total: count(answering.backends.len() + answering.absent.len()),
        backends_active: count(active),
        backends_unhealthy: count(unhealthy),
        health_check: service.health_check.as_ref().map(wire::health_check),
        backends: if with_backends { backends(fleet, service, &answering, taking) } else { Vec::new() },
        algorithm: wire::algorithm(service.algorithm).into(),
        forwarding_mode: wire::forwarding(service.forwarding).into(),
        left_out: count(answering.left_out),
        ..v1::ServiceState::default()
    }
}

/// Who gets new connections to frontends of one family.
#[derive(Clone, Copy)]
struct Taking {
    state: BackendState,
    backends: usize,
    /// All of them together.
    weights: u32,
}

/// The active backends. Where there is none, the quarantined ones, as nodes have it: probes that fail everywhere say more about
/// the probes.
fn taking(answering: &Answering, family: Family) -> Taking {
    let in_state = |state| {
        let of_family =
            answering.backends.iter().filter(|((address, _), _)| Family::from(*address) == family);
        let (mut backends, mut weights) = (0, 0);
        for (_, one) in of_family.filter(|(_, one)| one.state == state) {
            backends += 1;
            weights += u32::from(one.weight);
        }
        Taking { state, backends, weights }
    };
    let active = in_state(BackendState::Active);
    if active.backends > 0 { active } else { in_state(BackendState::Quarantined) }
}

fn condition(
    service: &Service,
    answering: &Answering,
    taking: [Taking; 2],
) -> (v1::ServiceCondition, String) {
    let total = answering.backends.len();
    if taking.iter().all(|taking| taking.backends == 0) {
        let why = match &service.backends {
            _ if total > 0 => format!("no backends: none of {total} is active"),
            Backends::Selected { .. } => "no backends: no ready endpoint is selected".to_owned(),
            Backends::Listed(listed) if listed.is_empty() => "no backends".to_owned(),
            Backends::Listed(_) => "no backends: no ready endpoint has a listed address".to_owned(),
        };
        return (v1::ServiceCondition::Rejecting, why);
    }
    // A node port is there in both families, in whichever the backends are.
    let named = |family: Family| {
        let mut addresses = service.frontends.iter().filter_map(|frontend| frontend.at.address);
        addresses.any(|address| Family::from(address) == family)
    };
    let notes = Family::BOTH.into_iter().zip(taking).filter_map(|(family, taking)| match taking {
        Taking { backends: 0, .. } => named(family).then(|| format!("rejecting {family}: no backends")),
        Taking { state: BackendState::Quarantined, .. } => {
            Some(format!("{family}: all backends are quarantined, so all of these answer"))
        }
        Taking { .. } => None,
    });
    (v1::ServiceCondition::Serving, notes.collect::<Vec<_>>().join("; "))
}

fn backends(
    fleet: &Fleet,
    service: &Service,
    answering: &Answering,
    taking: [Taking; 2],
) -> Vec<v1::ServiceBackend> {
    let there = answering.backends.iter().map(|(place @ (address, port), one)| {
        let taking = taking[usize::from(address.is_ipv6())];
        let endpoint = fleet.endpoint_by_address(*address).filter(|_| !one.node.is_empty());
        v1::ServiceBackend {
            address: address.to_string(),
            port: port.map(|port| port.get().into()).unwrap_or_default(),
            weight: one.weight.into(),
            state: wire::state(one.state).into(),
            node: one.node.clone(),
            endpoint: endpoint.map(|(name, _)| name.to_owned()).unwrap_or_default(),
            share_basis_points: if one.state == taking.state {
                shares::basis_points(one.weight, taking.weights)
            } else {
                0
            },
            absent: false,
            health: in_words(fleet.is_healthy(service, *place, one)).into(),
            probes: fleet.probes(service, *place, one).into_iter().map(probe).collect(),
        }
    });
    let absent = answering.absent.iter().map(|((address, port), weight)| v1::ServiceBackend {
        address: address.to_string(),
        port: port.map(|port| port.get().into()).unwrap_or_default(),
        weight: (*weight).into(),
        absent: true,
        ..v1::ServiceBackend::default()
    });
    there.chain(absent).collect()
}

fn probe(Probe { node, word }: Probe) -> v1::BackendProbe {
    let healthy = word.as_ref().map(|word| word.healthy);
    let (since, error) = word.map(|word| (word.since, word.error)).unwrap_or_default();
    v1::BackendProbe { node, health: in_words(healthy).into(), since: since.map(Into::into), error }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
