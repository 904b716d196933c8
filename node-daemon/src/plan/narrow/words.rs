//! What subjects say now, where that may be another thing than before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_shared::{
    layout::Direction,
    names::Identity,
    policy::{
        compile::{Kind, PeerCompiler, Rulebook, Surroundings, Table, table},
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
        let mut concerned: BTreeSet<u32> = BTreeSet::new();
        for name in &touched.policies {
            let now = policies.get(name).map(Scope::of);
            for scope in self.scopes.get(name).into_iter().chain(&now) {
                if !scope.is_plain {
                    return None;
                }
                let members = sets.get(&scope.subjects).into_iter().flatten();
                concerned.extend(members.filter(|identity| self.subjects.contains_key(identity)));
            }
        }
        let mut regrouped = Regrouped::new();
        for identity in concerned {
            let group = self.groups.of_subject(identity).filter(|group| group.kind == Kind::Endpoint)?;
            let untouched = group.policies.iter().filter(|name| !touched.policies.contains(*name));
            let selects = |name: &&String| {
                let policy = policies.get(*name);
                let members = policy.and_then(|policy| sets.get(policy.subject.named()));
                members.is_some_and(|members| members.contains(&identity))
            };
            let names: BTreeSet<&String> = untouched.chain(touched.policies.iter().filter(selects)).collect();
            let selecting = names.into_iter().map(|name| policies.get(name)).collect::<Option<_>>()?;
            regrouped.insert((self.subjects.get(&identity)?.slot, identity), selecting);
        }
        Some(regrouped)
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
