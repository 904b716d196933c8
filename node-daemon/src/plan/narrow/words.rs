//! What subjects say now, where that may be another thing than before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_shared::{
    layout::Direction,
    names::Identity,
    policy::{
        compile::{IdentitySets, Kind, PeerCompiler, Rulebook, Surroundings, Table, table},
        model::NodePolicy,
    },
};

use super::{
    Standing,
    groups::{Place, Scope},
};
use crate::{
    desired::Touched,
    plan::compile::{self, Input},
};

#[derive(Clone, Debug)]
pub(super) enum Word {
    /// Of some peers; `None`: what is said of their class.
    Peers(BTreeMap<(Direction, u32), Option<Arc<Rulebook>>>),
    /// All of it.
    Whole(Arc<Table>),
}

/// In the order in which a whole compilation finds them.
pub(super) type Words = BTreeMap<Place, Word>;

/// Policies of subjects some of whose policies are touched.
pub(super) type Regrouped<'a> = BTreeMap<Place, Vec<&'a NodePolicy>>;

impl Standing {
    /// `None`: something is no matter of the touched alone.
    pub(super) fn words(
        &self,
        input: Input<'_>,
        touched: &Touched,
        regrouped: &Regrouped<'_>,
    ) -> Option<Words> {
        let fleet = input.desired.fleet()?;
        let surroundings = compile::surroundings(input, fleet, input.desired.sets(), &self.constant.prefixes);
        let mut words = self.peers(input, touched, surroundings)?;
        let mut known: HashMap<Vec<&str>, Arc<Table>> = HashMap::new();
        for (place, policies) in regrouped {
            let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
            let said = if let Some(said) = known.get(&names) {
                Arc::clone(said)
            } else {
                let said = Arc::new(table(Identity(place.1), Kind::Endpoint, policies, surroundings).ok()?);
                known.insert(names, Arc::clone(&said));
                said
            };
            words.insert(*place, Word::Whole(said));
        }
        Some(words)
    }

    /// The policies of the subjects whom touched policies select or have selected. `None`: one of these is not plain.
    pub(super) fn regrouped<'a>(&self, input: Input<'a>, touched: &Touched) -> Option<Regrouped<'a>> {
        let (policies, sets) = (input.desired.policies(), input.desired.sets());
        // Subject → the touched policies that select it now.
        let mut concerned: BTreeMap<u32, Vec<&String>> = BTreeMap::new();
        for name in &touched.policies {
            let (before, now) = (self.scopes.get(name), policies.get(name).map(Scope::of));
            if before.into_iter().chain(&now).any(|scope| !scope.is_plain) {
                return None;
            }
            for identity in before.into_iter().flat_map(|scope| self.subjects_in(&scope.subjects, sets)) {
                concerned.entry(identity).or_default();
            }
            for identity in now.iter().flat_map(|scope| self.subjects_in(&scope.subjects, sets)) {
                concerned.entry(identity).or_default().push(name);
            }
        }
        let mut regrouped = Regrouped::new();
        for (identity, selecting) in concerned {
            let group = self.groups.of_subject(identity).filter(|group| group.kind == Kind::Endpoint)?;
            let untouched = group.policies.iter().filter(|name| !touched.policies.contains(*name));
            let names: BTreeSet<&String> = untouched.chain(selecting).collect();
            let selecting = names.into_iter().map(|name| policies.get(name)).collect::<Option<_>>()?;
            regrouped.insert((self.subjects.get(&identity)?.slot, identity), selecting);
        }
        Some(regrouped)
    }

    /// This node's subjects that are in a set.
    fn subjects_in<'a>(&'a self, set: &str, sets: &'a IdentitySets) -> impl Iterator<Item = u32> + 'a {
        let members = sets.get(set).into_iter().flatten().copied();
        members.filter(|identity| self.subjects.contains_key(identity))
    }

    /// What the policies of all subjects that name a touched set say of its touched members.
    fn peers(&self, input: Input<'_>, touched: &Touched, surroundings: Surroundings<'_>) -> Option<Words> {
        let mut concerned: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for (set, identity) in &touched.members {
            for group in self.groups.naming(set) {
                concerned.entry(group).or_default().insert(*identity);
            }
        }
        let mut words = Words::new();
        for (group, identities) in concerned {
            let Some(group) = self.groups.get(group).filter(|group| !group.subjects.is_empty()) else {
                continue;
            };
            let mut policies: Vec<&NodePolicy> = Vec::new();
            for name in &group.policies {
                match input.desired.policies().get(name) {
                    Some(policy) => policies.push(policy),
                    // Its subjects are looked at whole.
                    None if touched.policies.contains(name) => {}
                    None => return None,
                }
            }
            let mut compiler = PeerCompiler::new(group.kind, &policies, surroundings);
            let mut said = BTreeMap::new();
            for direction in Direction::ALL {
                for identity in &identities {
                    said.insert((direction, *identity), compiler.rulebook(direction, *identity));
                }
            }
            words.extend(group.subjects.iter().map(|subject| (*subject, Word::Peers(said.clone()))));
        }
        Some(words)
    }
}
