//! What nodes report of their endpoints: stored, or refused with the reason.
use std::collections::BTreeSet;

use tonic::Status;
use weft_proto::v1;

use super::hub::Hub;
use crate::{
    endpoints::{self, EndpointError},
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

/// The stream ends; the node comes again with its inventory.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn failed(error: EndpointError) -> Status {
    Status::unavailable(error.to_string())
}
