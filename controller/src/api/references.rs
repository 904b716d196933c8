//! What objects name must be there, and stays as long as they name it: checked against the fleet as of a revision, and
//! the transaction holds only if operators have changed nothing since.
use std::collections::BTreeSet;

use tonic::Status;
use weft_proto::v1::{self, Kind, object::Kind as Of};
use weft_shared::policy::parse::FieldError;

use super::{Operator, apply::Wanted};
use crate::{keys, plan::Plan, store::Compare};

/// How many of those that name something are named in turn.
const NAMED_IN_MESSAGE: usize = 3;

impl Operator {
    /// Every CIDR set that a policy of the request names is in the request or in the store.
    pub(super) async fn check_references(
        &self,
        wanted: &[Wanted],
        plan: &mut Plan,
    ) -> Result<Vec<FieldError>, Status> {
        let given = wanted.iter().filter(|wanted| wanted.kind == Kind::CidrSet);
        let given: BTreeSet<&str> = given.map(|wanted| wanted.name.as_str()).collect();
        let mut open: Vec<(String, &str)> = wanted.iter().flat_map(named_sets).collect();
        open.retain(|(_, name)| !given.contains(name));
        if open.is_empty() {
            return Ok(Vec::new());
        }
        self.caught_up().await?;
        let (seen_at, missing) = self.hub.ask(|fleet| {
            let known: BTreeSet<&str> = fleet.cidr_sets().map(|set| set.name.as_str()).collect();
            open.retain(|(_, name)| !known.contains(name));
            (fleet.revision(), open)
        });
        plan.compare(Compare::not_changed_after(keys::OPERATOR_CHANGE, seen_at));
        let wrong = |(path, name): (String, &str)| {
            FieldError::new(
                path,
                format!("there is no CIDR set \"{name}\", neither stored nor in this request"),
            )
        };
        Ok(missing.into_iter().map(wrong).collect())
    }

    /// Refuses what would leave policies without a CIDR set that they name.
    pub(super) async fn check_unused(&self, kind: Kind, name: &str, plan: &mut Plan) -> Result<(), Status> {
        if kind != Kind::CidrSet {
            return Ok(());
        }
        self.caught_up().await?;
        let (seen_at, users) = self.hub.ask(|fleet| {
            let users: Vec<String> = fleet.policies_naming(name).map(str::to_owned).collect();
            (fleet.revision(), users)
        });
        plan.compare(Compare::not_changed_after(keys::OPERATOR_CHANGE, seen_at));
        if users.is_empty() {
            return Ok(());
        }
        let shown = users.iter().take(NAMED_IN_MESSAGE).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = users.len().saturating_sub(NAMED_IN_MESSAGE);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!("CIDR set {name} is in use: policies name it ({shown}{more}), change them first");
        Err(Status::failed_precondition(text))
    }
}

/// The CIDR sets that a policy names, each with its field's path in the request.
fn named_sets(wanted: &Wanted) -> Vec<(String, &str)> {
    let Some(Of::Policy(policy)) = &wanted.object.kind else { return Vec::new() };
    let directions = [("ingress", &policy.ingress), ("egress", &policy.egress)];
    let rules = directions.into_iter().flat_map(|(direction, list)| {
        let items = list.iter().flat_map(|list| &list.items).enumerate();
        items.map(move |(index, rule)| (format!("{direction}[{index}]"), rule))
    });
    let peers = rules.flat_map(|(path, rule)| {
        let items = rule.peers.iter().flat_map(|list| &list.items).enumerate();
        items.map(move |(index, peer)| (format!("{path}.peers[{index}].cidrSet"), peer))
    });
    peers.filter_map(|(path, peer)| Some((format!("{}.{path}", wanted.path), set_name(peer)?))).collect()
}

fn set_name(peer: &v1::Peer) -> Option<&str> {
    peer.cidr_set.as_ref()?.name.as_deref()
}
