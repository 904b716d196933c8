//! What nodes report of their endpoints: stored, or refused with the reason.
use std::collections::BTreeSet;

use tonic::Status;
use weft_proto::v1;

use super::{
    hub::{Hub, Session},
    session::Context,
};
use crate::{
    endpoints::{self, EndpointError},
    health::{self, Bearer, HealthError},
    limits,
    plan::Registry,
    store::Store,
};

pub(super) async fn endpoint(
    registry: &Registry,
    node: &str,
    report: v1::EndpointReport,
) -> Result<v1::EndpointAnswer, Status> {
    let endpoint = report.endpoint.unwrap_or_default();
    let name = endpoint.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let instance =
        endpoint.attachment.as_ref().map(|attachment| attachment.instance.clone()).unwrap_or_default();
    match endpoints::report(registry, node, endpoint).await {
        Ok(revision) => {
            let accepted = v1::EndpointAnswer { accepted: true, revision, ..v1::EndpointAnswer::default() };
            Ok(v1::EndpointAnswer { name, instance, ..accepted })
        }
        // Nobody knows whether it may: a workload is not torn down because the store does not answer.
        Err(error) if error.is_of_store() => Err(failed(error)),
        Err(error) => {
            tracing::warn!(node, endpoint = name, %error, "endpoint refused");
            let reason = error.to_string();
            Ok(v1::EndpointAnswer { name, reason, instance, ..v1::EndpointAnswer::default() })
        }
    }
}

pub(super) async fn gone(store: &dyn Store, node: &str, gone: &v1::EndpointGone) -> Result<(), Status> {
    let instance = Some(&*gone.instance).filter(|instance| !instance.is_empty());
    endpoints::gone(store, node, &gone.name, instance).await.map_err(failed)
}

pub(super) async fn inventory(
    store: &dyn Store,
    hub: &Hub,
    node: &str,
    inventory: v1::EndpointInventory,
) -> Result<(), Status> {
    let (count, most) = (inventory.names.len(), limits::INVENTORY_MAX_NAMES);
    if count > most {
        return Err(Status::invalid_argument(format!(
            "an inventory of {count} endpoints, the limit is {most}"
        )));
    }
    let kept: BTreeSet<String> = inventory.names.into_iter().collect();
    let others = hub.ask(|fleet| {
        let others = fleet.endpoints_of(node).filter(|name| !kept.contains(*name));
        others.map(str::to_owned).collect::<Vec<_>>()
    });
    for name in others {
        tracing::info!(node, endpoint = name, "endpoint removed: its node does not have it any more");
        endpoints::gone(store, node, &name, None).await.map_err(failed)?;
    }
    Ok(())
}

/// What probes say. Most of it is known at the beginning of a stream, and not written.
pub(super) async fn health(
    context: &Context,
    session: &Session,
    report: &v1::HealthReport,
) -> Result<(), Status> {
    for service in &report.services {
        health::check(service).map_err(refused)?;
        store_health(context, session, service).await?;
    }
    Ok(())
}

async fn store_health(
    context: &Context,
    session: &Session,
    service: &v1::ServiceHealth,
) -> Result<(), Status> {
    let is_known = context.hub.ask(|fleet| {
        let known = fleet.words(&session.node, &service.service);
        let words = health::merge(known, service);
        known.map_or(words.is_empty(), |known| *known == words)
    });
    if is_known {
        return Ok(());
    }
    let bearer = Bearer {
        node: &session.node,
        controller: &context.controller,
        is_current: || !session.replaced.is_cancelled(),
    };
    health::report(context.registry.store.as_ref(), &bearer, service).await.map_err(refused)
}

/// What the node has said of services of which it probes no backend any more is taken back.
pub(super) async fn health_inventory(
    context: &Context,
    session: &Session,
    inventory: v1::HealthInventory,
) -> Result<(), Status> {
    let (count, most) = (inventory.services.len(), limits::SERVICES_MAX);
    if count > most {
        return Err(Status::invalid_argument(format!(
            "an inventory of {count} services, the limit is {most}"
        )));
    }
    let kept: BTreeSet<String> = inventory.services.into_iter().collect();
    let others: Vec<String> = context.hub.ask(|fleet| {
        let others = fleet.services_probed_by(&session.node).filter(|name| !kept.contains(*name));
        others.map(str::to_owned).collect()
    });
    for service in others {
        let nothing = v1::ServiceHealth { service, backends: Vec::new() };
        store_health(context, session, &nothing).await?;
    }
    Ok(())
}

fn refused(error: HealthError) -> Status {
    match error {
        HealthError::Invalid(text) => Status::invalid_argument(text),
        // The stream ends; the node comes again with all it knows.
        error => Status::unavailable(error.to_string()),
    }
}

/// The stream ends; the node comes again with its inventory.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn failed(error: EndpointError) -> Status {
    Status::unavailable(error.to_string())
}
