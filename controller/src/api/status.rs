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
            let seen = self.hub.seen(&node.name);
            node.last_seen = seen.map(|seen| seen.at.into());
            let expires_in = self.hub.presence(|presence, now| presence.expires_in(&node.name, now));
            node.expires_in = expires_in.and_then(|left| left.try_into().ok());
            node.last_apply = seen.and_then(|seen| seen.last_apply?.try_into().ok());
        }
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
        connected: fleet.is_connected(name),
        realised_revision: fleet.realised(name),
        endpoints: count(fleet.endpoints_of(name).count()),
        endpoints_ready: count(ready.count()),
        rejections: fleet.rejections(name).into_iter().map(rejection).collect(),
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
