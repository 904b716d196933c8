//! Plan: what an Apply would change, without changing anything.
use std::collections::BTreeSet;

use tonic::Status;
use weft_proto::v1::{self, Change, object::Kind as Of};
use weft_shared::policy::{
    model::{Action, Direction, FleetConfig, Labels},
    parse,
};

use super::{
    Operator,
    apply::{Planned, check_size},
    errors,
    explain::{step_message, verdict_number},
};
use crate::{
    fleet::Fleet,
    fleet_config, identity, limits,
    plan::Plan,
    resource,
    verdicts::{self, Bearers, Bounds, Diff, Pair, State},
};

impl Operator {
    pub(super) async fn plan_objects(&self, request: v1::PlanRequest) -> Result<v1::PlanResponse, Status> {
        let request = v1::ApplyRequest { objects: request.objects, ..v1::ApplyRequest::default() };
        check_size(&request)?;
        let (wanted, warnings) = self.checked(request.objects).await?;
        let planned = self.plan_apply(&wanted, None, &mut Plan::default()).await?.1;
        let config =
            fleet_config::read(self.store.as_ref(), &mut Plan::default()).await.map_err(errors::store)?;
        self.caught_up().await?;
        let (revision, before, bearers) =
            self.hub.ask(|fleet| (fleet.revision(), state(fleet, config), bearers(fleet)));
        let after = changed(before.clone(), &planned)?;
        let judges_nodes = after.policies.iter().any(|policy| policy.subject.is_nodes());
        let failsafe = judges_nodes.then(|| parse::failsafe_to_proto(&after.config.failsafe));
        let turn = self.plans.acquire().await;
        let bounds =
            Bounds { compared: limits::PLAN_PAIRS_COMPARED_MAX, listed: limits::PLAN_PAIRS_LISTED_MAX };
        let compared = tokio::task::spawn_blocking(move || verdicts::diff(&before, &after, &bearers, bounds));
        let diff = compared.await.map_err(|error| Status::internal(error.to_string()))?;
        drop(turn);
        let objects = planned.into_iter().map(message).collect();
        Ok(v1::PlanResponse { revision, objects, warnings, verdicts: Some(diff_message(diff)), failsafe })
    }
}

fn state(fleet: &Fleet, config: FleetConfig) -> State {
    State {
        policies: fleet.policies().cloned().collect(),
        cidr_sets: fleet.cidr_sets().cloned().collect(),
        config,
    }
}

/// The label sets that somebody bears.
fn bearers(fleet: &Fleet) -> Bearers {
    let endpoints: BTreeSet<u32> = fleet.endpoints().map(|(_, facts)| facts.identity).collect();
    let nodes: BTreeSet<u32> = fleet.nodes().map(|(_, facts)| facts.identity).collect();
    let labels = |numbers: BTreeSet<u32>| -> Vec<Labels> {
        numbers.into_iter().filter_map(|number| fleet.labels(number).map(identity::without_mark)).collect()
    };
    Bearers { endpoints: labels(endpoints), nodes: labels(nodes) }
}

/// The state once the objects are applied.
fn changed(mut state: State, planned: &[Planned]) -> Result<State, Status> {
    let wrong = |errors: Vec<parse::FieldError>| errors::bad_request(&errors);
    for planned in planned.iter().filter(|planned| planned.applied.change() != Change::Unchanged) {
        match &planned.after.kind {
            Some(Of::Policy(message)) => {
                let policy = parse::policy(message).map_err(wrong)?;
                state.policies.retain(|other| other.name != policy.name);
                state.policies.push(policy);
            }
            Some(Of::CidrSet(message)) => {
                let set = parse::cidr_set(message).map_err(wrong)?;
                state.cidr_sets.retain(|other| other.name != set.name);
                state.cidr_sets.push(set);
            }
            Some(Of::FleetConfig(message)) => state.config = parse::fleet_config(message).map_err(wrong)?,
            _ => {}
        }
    }
    Ok(state)
}

fn message(planned: Planned) -> v1::PlannedObject {
    // What the store gives is no part of what the operator changes.
    let written = |mut object: v1::Object| {
        if let Some(metadata) = resource::metadata_mut(&mut object) {
            metadata.uid.clear();
            metadata.revision = 0;
        }
        object
    };
    v1::PlannedObject {
        kind: planned.applied.kind,
        name: planned.applied.name,
        change: planned.applied.change,
        before: planned.before.map(written),
        after: Some(written(planned.after)),
    }
}

fn diff_message(diff: Diff) -> v1::VerdictDiff {
    let mut cut_off = Vec::new();
    if diff.subjects_cut > 0 {
        cut_off.push(format!(
            "{} of {} changed subjects were not compared to the end: a plan judges at most {} pairs",
            diff.subjects_cut,
            diff.subjects,
            limits::PLAN_PAIRS_COMPARED_MAX
        ));
    }
    let differing = diff.newly_allowed + diff.newly_denied;
    if differing > diff.pairs.len() {
        cut_off.push(format!("{} of {differing} pairs that differ are listed", diff.pairs.len()));
    }
    v1::VerdictDiff {
        newly_allowed: count(diff.newly_allowed),
        newly_denied: count(diff.newly_denied),
        pairs: diff.pairs.into_iter().map(pair_message).collect(),
        subjects: count(diff.subjects),
        compared: count(diff.compared),
        cut_off,
    }
}

fn pair_message(pair: Pair) -> v1::VerdictPair {
    let direction = match pair.direction {
        Direction::Ingress => v1::Direction::Ingress,
        Direction::Egress => v1::Direction::Egress,
    };
    let number = |action: Action| verdict_number(action).into();
    v1::VerdictPair {
        subject: pair.subject,
        direction: direction.into(),
        peer: pair.peer,
        ports: pair.ports,
        before: number(pair.before.action),
        after: number(pair.after.action),
        decided_before: pair.before.step.map(step_message),
        decided_after: pair.after.step.map(step_message),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
