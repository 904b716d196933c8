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
    output::{count, frontends, note, place, table},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Service {
    /// List all services, and whether anybody answers for them
    ///
    /// JSON: {revision, items: [SERVICE…]}, SERVICE: {name, frontends: [{address, port, protocol, type}], condition:
    /// serving|rejecting, reason, backendsTotal, backendsActive, backends: [], algorithm, forwardingMode, nodesRejecting,
    /// rejections: [{node, reason}], leftOut}. backendsActive: those that get new connections; nodesRejecting: nodes that
    /// do not have what the service needs.
    List,
    /// Show one service, with its backends and their shares
    ///
    /// A share is of new connections to frontends of the backend's family, before traffic policies and topology prefer some.
    ///
    /// JSON: {revision, service: SERVICE}, as of `weft service list`, with backends: [{address, port, weight, state, node,
    /// endpoint, shareBasisPoints, absent}]; port 0: the frontend's; shareBasisPoints: hundredths of a percent; absent: a
    /// listed address inside the pools that no ready endpoint has.
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
            algorithm(service),
            forwarding(service),
            condition(service),
            if service.nodes_rejecting == 0 { String::new() } else { service.nodes_rejecting.to_string() },
        ]
    });
    let header =
        ["NAME", "FRONTENDS", "BACKENDS ACTIVE", "ALGORITHM", "FORWARDING", "STATE", "NODES REJECTING"];
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
    line("algorithm", &algorithm(service));
    line("forwarding", &forwarding(service));
    line("backends", &format!("{} of {} active", service.backends_active, service.backends_total));
    line("state", &condition(service));
    if service.left_out > 0 {
        let endpoints = count(service.left_out, "endpoint", "endpoints");
        line("left out", &format!("{endpoints} with the highest addresses: a service has no room for more"));
    }
    if !service.backends.is_empty() {
        text.push('\n');
        text.push_str(&backends(&service.backends));
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
    let rows = backends.iter().map(|backend| {
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
    });
    table(["BACKEND", "ENDPOINT", "NODE", "STATE", "WEIGHT", "SHARE"], rows)
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

fn algorithm(service: &v1::ServiceState) -> String {
    match service.algorithm() {
        v1::Algorithm::Unspecified | v1::Algorithm::Maglev => "maglev",
        v1::Algorithm::Random => "random",
    }
    .to_owned()
}

fn forwarding(service: &v1::ServiceState) -> String {
    match service.forwarding_mode() {
        v1::ForwardingMode::Unspecified | v1::ForwardingMode::Snat => "snat",
        v1::ForwardingMode::Dsr => "dsr",
    }
    .to_owned()
}
