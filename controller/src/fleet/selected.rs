//! Identities, CIDR sets and policies, and the sets between them.
use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use weft_proto::v1::{self, ResourceType};
use weft_shared::policy::{
    model::{CidrSet, Labels, Policy},
    wire,
};

use super::{
    Aftermath, Fleet,
    index::{
        CidrSetEntry, PolicyEntry, cidr_set_key, cidr_set_selectors, member_key, needs_all_addresses,
        peer_sets, subject_set,
    },
    resources::{Id, Key},
    sets::Selected,
};

impl Fleet {
    pub(super) fn put_identity(&mut self, number: u32, labels: Labels, aftermath: &mut Aftermath) {
        self.index.note_identity(number);
        if self.index.identities.get(number) == Some(&labels) {
            return;
        }
        self.remove_identity(number, aftermath);
        for set in self.index.sets.matching(&labels) {
            self.add_member(&set, number, aftermath);
        }
        self.index.identities.insert(number, labels);
    }

    fn add_member(&mut self, set_name: &Arc<str>, identity: u32, aftermath: &mut Aftermath) {
        let id = self.put(member_key(set_name, identity), Bytes::new());
        let used = self.index.used.entry(identity).or_default();
        used.sets.insert(Arc::clone(set_name));
        // Who bears this identity was there before it: the nodes have a policy more, perhaps.
        aftermath.stale.extend(used.nodes.keys().cloned());
        if let Some(set) = self.index.sets.get_mut(set_name) {
            set.members.insert(identity, id);
            set.member_ids.insert(id);
            set.addresses |= &used.addresses;
        }
        for node in self.watchers.of_set(set_name) {
            let Some(view) = self.views.by_number_mut(node) else { continue };
            view.want(id, self.revision);
            for address in &used.addresses {
                view.want(address, self.revision);
            }
        }
    }

    pub(super) fn remove_identity(&mut self, number: u32, aftermath: &mut Aftermath) {
        if !self.index.identities.remove(number) {
            return;
        }
        let Some(used) = self.index.used.get_mut(&number) else { return };
        let sets = std::mem::take(&mut used.sets);
        aftermath.stale.extend(used.nodes.keys().cloned());
        if !used.addresses.is_empty() {
            // Rare: an identity goes before its endpoints. Who wants their addresses is not kept count of.
            aftermath.stale.extend(self.views.names().map(ToString::to_string));
        }
        let addresses = used.addresses.clone();
        for name in sets {
            let Some(set) = self.index.sets.get_mut(&name) else { continue };
            set.addresses -= &addresses;
            if let Some(id) = set.members.remove(&number) {
                set.member_ids.remove(id);
                self.delete(id);
            }
        }
        self.index.forget_if_unused(number);
    }

    pub(super) fn change_policy(&mut self, name: &str, policy: Option<Policy>, aftermath: &mut Aftermath) {
        let old = self.index.policies.remove(name);
        if let Some(old) = &old {
            aftermath.stale.extend(self.index.nodes_of_set(&old.subject_set));
            if let Some(set) = self.index.sets.get_mut(&old.subject_set) {
                set.subjects.remove(name);
            }
        }
        let kept = match policy {
            Some(policy) => self.add_policy(name, policy, aftermath),
            None => BTreeSet::new(),
        };
        let Some(old) = old else { return };
        if kept.is_empty() {
            self.delete(old.id);
        }
        for set in old.sets().difference(&kept) {
            let Some(dropped) = self.index.sets.remove_user(set, name) else { continue };
            for (identity, id) in dropped.members {
                if let Some(used) = self.index.used.get_mut(&identity) {
                    used.sets.remove(set);
                }
                self.index.forget_if_unused(identity);
                self.delete(id);
            }
        }
    }

    /// Returns the sets that the policy uses.
    fn add_policy(&mut self, name: &str, policy: Policy, aftermath: &mut Aftermath) -> BTreeSet<Arc<str>> {
        let id = self.encode_policy(name, &policy);
        let peers = peer_sets(&policy);
        let (subject_set, subject) = subject_set(&policy);
        for (set, selected) in &peers {
            self.use_set(set, selected, name, aftermath);
        }
        self.use_set(&subject_set, &subject, name, aftermath);
        if let Some(set) = self.index.sets.get_mut(&subject_set) {
            set.subjects.insert(name.to_owned());
        }
        aftermath.stale.extend(self.index.nodes_of_set(&subject_set));
        let entry = PolicyEntry {
            id,
            subject_set,
            peer_sets: peers.into_keys().collect(),
            cidr_sets: self.index.cidr_sets_of(&policy),
            needs_all_addresses: needs_all_addresses(&policy),
            policy,
        };
        let sets = entry.sets();
        self.index.policies.insert(name.to_owned(), entry);
        sets
    }

    fn encode_policy(&mut self, name: &str, policy: &Policy) -> Id {
        let message = wire::to_node(policy, |meant| self.index.cidr_sets_meant(meant));
        self.put(Key::new(ResourceType::Policy, name), message.encode_to_vec())
    }

    fn use_set(&mut self, set_name: &Arc<str>, selected: &Selected, policy: &str, aftermath: &mut Aftermath) {
        if !self.index.sets.add_user(set_name, selected, policy) {
            return;
        }
        let Some(set) = self.index.sets.get(set_name) else { return };
        let candidates = self.index.identities.candidates(&selected.selector).into_iter();
        let members = candidates.filter(|(_, labels)| set.selects(labels));
        let members: Vec<u32> = members.map(|(number, _)| number).collect();
        for identity in members {
            self.add_member(set_name, identity, aftermath);
        }
    }

    pub(super) fn change_cidr_set(&mut self, name: &str, set: Option<CidrSet>, aftermath: &mut Aftermath) {
        let old = self.index.cidr_sets.remove(name);
        let labels = |set: Option<&CidrSet>| set.map(|set| set.labels.clone());
        let same_labels = labels(old.as_ref().map(|old| &old.set)) == labels(set.as_ref());
        match (set, old) {
            (Some(set), _) => {
                let cidrs = set.cidrs.iter().map(ToString::to_string).collect();
                let id = self.put(cidr_set_key(name), v1::NodeCidrSet { cidrs }.encode_to_vec());
                self.index.cidr_sets.insert(name.to_owned(), CidrSetEntry { set, id });
            }
            (None, Some(old)) => self.delete(old.id),
            (None, None) => {}
        }
        if !same_labels {
            self.resolve_cidr_sets(name, aftermath);
        }
    }

    /// A set is new, gone, or has other labels: policies that mean it, or meant it, mean others now.
    fn resolve_cidr_sets(&mut self, name: &str, aftermath: &mut Aftermath) {
        let index = &self.index;
        let naming =
            index.policies.iter().filter(|(_, entry)| cidr_set_selectors(&entry.policy).next().is_some());
        let meaning = naming.map(|(policy, entry)| (policy.clone(), index.cidr_sets_of(&entry.policy)));
        let changed: Vec<(String, BTreeSet<String>)> = meaning
            .filter(|(policy, meant)| {
                let before = index.policies.get(policy).map(|entry| &entry.cidr_sets);
                before != Some(meant) || meant.contains(name)
            })
            .collect();
        for (policy, meant) in changed {
            let Some(mut entry) = self.index.policies.remove(&policy) else { continue };
            entry.cidr_sets = meant;
            entry.id = self.encode_policy(&policy, &entry.policy);
            aftermath.stale.extend(self.index.nodes_of_set(&entry.subject_set));
            self.index.policies.insert(policy, entry);
        }
    }
}
