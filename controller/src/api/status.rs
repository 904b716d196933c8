//! How the fleet is.
use tonic::Status;
use weft_proto::v1;

use super::Operator;
use crate::fleet::{Fleet, Rejected};

impl Operator {
    pub(super) async fn status(&self) -> Result<v1::FleetStatusResponse, Status> {
        let revision = self.caught_up().await?;
        let mut response = self.hub.ask(|fleet| v1::FleetStatusResponse {
            nodes: fleet.nodes().map(|(name, _)| summary(fleet, name)).collect(),
            endpoints: count(fleet.endpoints().count()),
            identities: count(fleet.identity_numbers().count()),
            policies: count(fleet.policies().count()),
            ..v1::FleetStatusResponse::default()
        });
        for node in &mut response.nodes {
            let standing = self.hub.standing(&node.name).unwrap_or_default();
            node.connected = standing.connected;
            node.realised_revision = standing.realised;
            node.last_seen = standing.last_seen.map(Into::into);
            let expires_in = self.hub.absence(|absence, now| absence.expires_in(&node.name, now));
            node.expires_in = expires_in.and_then(|left| left.try_into().ok());
            node.last_apply = self.hub.seen(&node.name).and_then(|seen| seen.last_apply?.try_into().ok());
            node.rejections = standing.rejections.into_iter().map(rejection).collect();
        }
        response.waiting_for_adoption = self.hub.waiting_for_adoption();
        response.store_id.clone_from(&self.store_id);
        response.revision = revision;
        env!("CARGO_PKG_VERSION").clone_into(&mut response.version);
        self.store.kind().clone_into(&mut response.store);
        Ok(response)
    }
}

fn summary(fleet: &Fleet, name: &str) -> v1::NodeSummary {
    let ready =
        fleet.endpoints_of(name).filter(|endpoint| fleet.endpoint(endpoint).is_some_and(|facts| facts.ready));
    v1::NodeSummary {
        name: name.to_owned(),
        endpoints: count(fleet.endpoints_of(name).count()),
        endpoints_ready: count(ready.count()),
        ..v1::NodeSummary::default()
    }
}

fn rejection(rejected: Rejected) -> v1::Rejection {
    let kind = rejected.kind.as_str_name().trim_start_matches("RESOURCE_TYPE_");
    v1::Rejection { r#type: kind.to_lowercase(), name: rejected.name, reason: rejected.reason }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
