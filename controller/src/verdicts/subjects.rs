//! What of a state matters to one subject.
use std::collections::BTreeMap;

use weft_shared::policy::model::{CidrSet, Class, Party, Peer, Policy, Pool};

use super::State;

impl PartialEq for State {
    /// Whether a subject that sees them can have different verdicts. How long a node may stay away, and which labels make
    /// identities, is no part of that.
    fn eq(&self, other: &Self) -> bool {
        let pools =
            |state: &Self| -> Vec<_> { state.config.pools.iter().map(|pool: &Pool| pool.cidr).collect() };
        self.policies == other.policies
            && self.cidr_sets == other.cidr_sets
            && self.config.default_action == other.config.default_action
            && self.config.host_to_endpoint == other.config.host_to_endpoint
            && self.config.failsafe == other.config.failsafe
            && pools(self) == pools(other)
    }
}

/// What of two states differs, to leave out at once whom it can't concern.
pub(super) struct Changed<'a> {
    everybody: bool,
    policies: Vec<&'a Policy>,
}

impl<'a> Changed<'a> {
    pub(super) fn between(before: &'a State, after: &'a State) -> Self {
        let by_name = |state: &'a State| -> BTreeMap<&'a str, &'a Policy> {
            state.policies.iter().map(|policy| (policy.name.as_str(), policy)).collect()
        };
        let (old, new) = (by_name(before), by_name(after));
        let others = |these: &BTreeMap<&'a str, &'a Policy>, those: &BTreeMap<&'a str, &'a Policy>| {
            let differing = these.iter().filter(|(name, policy)| those.get(*name) != Some(*policy));
            differing.map(|(_, policy)| *policy).collect::<Vec<_>>()
        };
        let without_policies = |state: &State| State { policies: Vec::new(), ..state.clone() };
        Self {
            everybody: without_policies(before) != without_policies(after),
            policies: [others(&old, &new), others(&new, &old)].concat(),
        }
    }

    pub(super) fn may_concern(&self, subject: &Party) -> bool {
        self.everybody || self.policies.iter().any(|policy| policy.selects(subject))
    }
}

/// The policies that select the subject, the CIDR sets that these mean, and the configuration: verdicts on it are the same
/// with this alone.
pub(super) fn seen_by(state: &State, subject: &Party) -> State {
    let selecting = state.policies.iter().filter(|policy| policy.selects(subject));
    let mut policies: Vec<_> = selecting.cloned().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let is_meant = |set: &&CidrSet| {
        let peers = policies.iter().flat_map(Policy::peers);
        peers.into_iter().any(|peer| matches!(peer, Peer::CidrSet(meant) if meant.selects(set)))
    };
    let mut cidr_sets: Vec<CidrSet> = state.cidr_sets.iter().filter(is_meant).cloned().collect();
    cidr_sets.sort_by(|a, b| a.name.cmp(&b.name));
    let mut config = state.config.clone();
    if subject.class != Class::Host {
        // They hold for nodes alone.
        config.failsafe.clear();
    }
    State { policies, cidr_sets, config }
}
