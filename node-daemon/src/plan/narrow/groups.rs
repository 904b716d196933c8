//! Subjects by the policies that select them: what is said of a peer is found once for all of a group.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_shared::policy::{
    compile::Kind,
    model::{NodePolicy, Peer},
};

/// Slot and identity of a subject.
pub(super) type Place = (u32, u32);

/// Subjects that the same policies select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) kind: Kind,
    /// Names, ascending.
    pub(super) policies: Vec<String>,
    pub(super) subjects: BTreeSet<Place>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    all: Vec<Group>,
    by_policies: HashMap<(Kind, Vec<String>), usize>,
    /// Identity → its group.
    of_subjects: BTreeMap<u32, usize>,
    /// Set → the groups whose rules name it, and some whose rules did.
    naming: HashMap<String, BTreeSet<usize>>,
}

impl Groups {
    /// A subject is selected by these policies alone, in the order of their names.
    pub(super) fn put(&mut self, subject: Place, kind: Kind, policies: &[&NodePolicy]) {
        if let Some(former) = self.of_subjects.get(&subject.1) {
            self.all[*former].subjects.remove(&subject);
        }
        let names = policies.iter().map(|policy| policy.name.clone()).collect();
        let all = &mut self.all;
        let place = *self.by_policies.entry((kind, names)).or_insert_with_key(|(kind, names)| {
            all.push(Group { kind: *kind, policies: names.clone(), subjects: BTreeSet::new() });
            all.len() - 1
        });
        all[place].subjects.insert(subject);
        self.of_subjects.insert(subject.1, place);
        for set in policies.iter().flat_map(|policy| sets(policy)) {
            if let Some(naming) = self.naming.get_mut(set) {
                naming.insert(place);
            } else {
                self.naming.insert(set.clone(), BTreeSet::from([place]));
            }
        }
    }

    pub(super) fn of_subject(&self, identity: u32) -> Option<&Group> {
        self.all.get(*self.of_subjects.get(&identity)?)
    }

    /// Numbers of groups whose rules may name a set.
    pub(super) fn naming(&self, set: &str) -> impl Iterator<Item = usize> {
        self.naming.get(set).into_iter().flatten().copied()
    }

    pub(super) fn get(&self, number: usize) -> Option<&Group> {
        self.all.get(number)
    }

    /// Most of them are of nobody any more.
    pub(super) fn are_sparse(&self) -> bool {
        self.all.len() > 64 + 2 * self.of_subjects.len()
    }

    /// Whether these are groups of the same subjects, and no set is missing.
    #[cfg(test)]
    pub(super) fn agree_with(&self, fresh: &Self) -> bool {
        let named = |of: &Self, place: usize| {
            let sets = of.naming.iter().filter(|(_, places)| places.contains(&place));
            sets.map(|(set, _)| set.clone()).collect::<BTreeSet<String>>()
        };
        self.of_subjects.keys().eq(fresh.of_subjects.keys())
            && fresh.of_subjects.iter().all(|(identity, place)| {
                let own = self.of_subjects[identity];
                self.all[own] == fresh.all[*place] && named(self, own).is_superset(&named(fresh, *place))
            })
    }
}

/// The sets that a policy's peers are.
fn sets(policy: &NodePolicy) -> impl Iterator<Item = &String> {
    policy.peers().filter_map(|peer| match peer {
        Peer::Endpoints(set) | Peer::Nodes(set) => Some(set),
        Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => None,
    })
}

/// Whom a policy concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// The set of its subjects.
    pub(super) subjects: String,
    /// They are endpoints, and it names no prefixes: those have numbers of their own, which a policy gives and takes.
    pub(super) is_plain: bool,
}

impl Scope {
    pub(super) fn of(policy: &NodePolicy) -> Self {
        let of_prefixes = |peer| matches!(peer, &Peer::Cidr { .. } | &Peer::CidrSet(_));
        Self {
            subjects: policy.subject.named().clone(),
            is_plain: !policy.subject.is_nodes() && !policy.peers().any(of_prefixes),
        }
    }
}
