//! `weft service`: who answers for a service, for people who look after it.
use std::fmt::Write;

use serde_json::json;
use weft_proto::v1;

use super::Global;
use crate::{
    client::{self, Operator, request},
    failure::Failure,
    limits::PAGE_OBJECTS,
    manifest,
    output::{count, frontends, note, place, table, time},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Service {
    /// List all services, and whether anybody answers for them
    ///
    /// JSON: {revision, items: [SERVICE…]}, SERVICE: {name, frontends: [{address, port, protocol, type}], condition:
    /// serving|rejecting, reason, backendsTotal, backendsActive, backends: [], algorithm, forwardingMode, nodesRejecting,
    /// rejections: [{node, reason}], leftOut, healthCheck, backendsUnhealthy}. backendsActive: those that get new
    /// connections; nodesRejecting: nodes that do not have what the service needs; healthCheck: as in a manifest, absent
    /// where backends are not probed; backendsUnhealthy: those that probes have found to be broken.
    List,
    /// Show one service, with its backends and their shares
    ///
    /// A share is of new connections to frontends of the backend's family, before traffic policies and topology prefer some.
    ///
    /// JSON: {revision, service: SERVICE}, as of `weft service list`, with backends: [{address, port, weight, state, node,
    /// endpoint, shareBasisPoints, absent, health, probes}]; port 0: the frontend's; shareBasisPoints: hundredths of a
    /// percent; absent: a listed address inside the pools that no ready endpoint has; health: healthy|unhealthy, absent
    /// where nobody knows; probes: [{node, health, since, error}], each node that probes the backend and what it found.
    Show { name: String },
}

impl Service {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::List => list(global).await,
            Self::Show { name } => show(global, name).await,
        }
    }
}

async fn list(global: &Global) -> Result<(), Failure> {
    let mut operator = client::operator(&global.server).await?;
    let mut services = Vec::new();
    let mut page_token = String::new();
    let revision = loop {
        let asked = v1::ServiceStatusRequest {
            page_size: PAGE_OBJECTS,
            page_token,
            ..v1::ServiceStatusRequest::default()
        };
        let page = ask(&mut operator, asked).await?;
        services.extend(page.services);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break page.revision;
        }
    };
    if services.is_empty() {
        note("no services found");
    }
    let value = || json!({"revision": revision, "items": services.iter().map(value).collect::<Vec<_>>()});
    global.output.write(|| overview(&services), value)
}

async fn show(global: &Global, name: String) -> Result<(), Failure> {
    let mut operator = client::operator(&global.server).await?;
    let asked = v1::ServiceStatusRequest { name, ..v1::ServiceStatusRequest::default() };
    let answer = ask(&mut operator, asked).await?;
    let Some(service) = answer.services.first() else {
        return Err(Failure::Failed("the server answered without the service".to_owned()));
    };
    global.output.write(|| text(service), || json!({"revision": answer.revision, "service": value(service)}))
}

async fn ask(
    operator: &mut Operator,
    message: v1::ServiceStatusRequest,
) -> Result<v1::ServiceStatusResponse, Failure> {
    let answer = operator.client.service_status(request(message)).await;
    Ok(answer.map_err(|status| operator.remote.failure(&status))?.into_inner())
}

fn value(service: &v1::ServiceState) -> serde_json::Value {
    manifest::answer("ServiceState", service)
}

fn overview(services: &[v1::ServiceState]) -> String {
    let rows = services.iter().map(|service| {
        [
            service.name.clone(),
            frontends(&service.frontends),
            format!("{}/{}", service.backends_active, service.backends_total),
            if service.health_check.is_none() {
                String::new()
            } else {
                service.backends_unhealthy.to_string()
            },
            algorithm(service.algorithm()).to_owned(),
            forwarding(service.forwarding_mode()).to_owned(),
            condition(service),
            if service.nodes_rejecting == 0 { String::new() } else { service.nodes_rejecting.to_string() },
        ]
    });
    let header = [
        "NAME",
        "FRONTENDS",
        "BACKENDS ACTIVE",
        "UNHEALTHY",
        "ALGORITHM",
        "FORWARDING",
        "STATE",
        "NODES REJECTING",
    ];
    table(header, rows)
}

fn text(service: &v1::ServiceState) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String never fails.
        let _ = writeln!(text, "{name:<16}{value}");
    };
    line("name", &service.name);
    line("frontends", &frontends(&service.frontends));
    line("algorithm", algorithm(service.algorithm()));
    line("forwarding", forwarding(service.forwarding_mode()));
    line("backends", &format!("{} of {} active", service.backends_active, service.backends_total));
    line("state", &condition(service));
    if let Some(check) = &service.health_check {
        line("health check", &health_check(check));
    }
    if service.left_out > 0 {
        let endpoints = count(service.left_out, "endpoint", "endpoints");
        line("left out", &format!("{endpoints} with the highest addresses: a service has no room for more"));
    }
    if !service.backends.is_empty() {
        text.push('\n');
        text.push_str(&match service.health_check {
            Some(_) => probed(&service.backends) + &broken(&service.backends),
            None => backends(&service.backends),
        });
    }
    for v1::ServiceRejection { node, reason } in &service.rejections {
        let _ = writeln!(text, "\n{node} rejected it: {reason}");
    }
    let unnamed =
        service.nodes_rejecting as usize - service.rejections.len().min(service.nodes_rejecting as usize);
    if unnamed > 0 {
        let _ = writeln!(text, "\n{} more rejected it", count(unnamed, "node", "nodes"));
    }
    text
}

fn backends(backends: &[v1::ServiceBackend]) -> String {
    table(["BACKEND", "ENDPOINT", "NODE", "STATE", "WEIGHT", "SHARE"], backends.iter().map(row))
}

/// The same of a service whose backends are probed.
fn probed(backends: &[v1::ServiceBackend]) -> String {
    let rows = backends.iter().map(|backend| {
        let [place, endpoint, node, state, weight, share] = row(backend);
        let word = if backend.absent { String::new() } else { health(backend.health()).to_owned() };
        [place, endpoint, node, state, word, weight, share]
    });
    table(["BACKEND", "ENDPOINT", "NODE", "STATE", "HEALTH", "WEIGHT", "SHARE"], rows)
}

fn row(backend: &v1::ServiceBackend) -> [String; 6] {
    let share = f64::from(backend.share_basis_points) / 100.0;
    [
        place(&backend.address, backend.port),
        backend.endpoint.clone(),
        match (backend.absent, backend.node.as_str()) {
            (true, _) => String::new(),
            (false, "") => "(outside)".to_owned(),
            (false, node) => node.to_owned(),
        },
        state(backend).to_owned(),
        backend.weight.to_string(),
        format!("{share:.2}%"),
    ]
}

/// Probes that did not find their backend healthy; nothing, where there are none.
fn broken(backends: &[v1::ServiceBackend]) -> String {
    let probes = backends.iter().flat_map(|backend| backend.probes.iter().map(move |probe| (backend, probe)));
    let rows = probes.filter(|(_, probe)| probe.health() != v1::Health::Healthy).map(|(backend, probe)| {
        [
            place(&backend.address, backend.port),
            probe.node.clone(),
            health(probe.health()).to_owned(),
            probe.since.map(time).unwrap_or_default(),
            probe.error.clone(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    "\n".to_owned() + &table(["PROBED", "BY", "FOUND", "SINCE", "WHY"], rows)
}

const fn health(health: v1::Health) -> &'static str {
    match health {
        v1::Health::Unspecified => "unknown",
        v1::Health::Healthy => "healthy",
        v1::Health::Unhealthy => "unhealthy",
    }
}

fn health_check(check: &v1::HealthCheck) -> String {
    let how = match &check.http {
        None => "TCP".to_owned(),
        Some(http) => format!("HTTP {}, status {}", http.path, http.expected_status),
    };
    format!(
        "{how}, every {} ms, within {} ms; unhealthy after {}, healthy after {}",
        check.interval_milliseconds, check.timeout_milliseconds, check.unhealthy_after, check.healthy_after
    )
}

fn state(backend: &v1::ServiceBackend) -> &'static str {
    if backend.absent {
        return "absent: no ready endpoint has the address";
    }
    match backend.state() {
        v1::BackendState::Unspecified | v1::BackendState::Active => "active",
        v1::BackendState::Terminating => "terminating",
        v1::BackendState::Quarantined => "quarantined",
        v1::BackendState::Maintenance => "maintenance",
    }
}

fn condition(service: &v1::ServiceState) -> String {
    let word = match service.condition() {
        v1::ServiceCondition::Rejecting => "rejecting",
        v1::ServiceCondition::Serving | v1::ServiceCondition::Unspecified => "serving",
    };
    if service.reason.is_empty() { word.to_owned() } else { format!("{word}: {}", service.reason) }
}

pub(super) const fn algorithm(algorithm: v1::Algorithm) -> &'static str {
    match algorithm {
        v1::Algorithm::Unspecified | v1::Algorithm::Maglev => "maglev",
        v1::Algorithm::Random => "random",
    }
}

pub(super) const fn forwarding(mode: v1::ForwardingMode) -> &'static str {
    match mode {
        v1::ForwardingMode::Unspecified | v1::ForwardingMode::Snat => "snat",
        v1::ForwardingMode::Dsr => "dsr",
    }
}
