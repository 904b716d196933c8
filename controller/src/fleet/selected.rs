//! Identities and policies, and the sets between them.
use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use weft_proto::v1::ResourceType;
use weft_shared::policy::{
    model::{Labels, Policy, Selector},
    wire,
};

use super::{
    Aftermath, Fleet,
    index::{PolicyEntry, member_key, needs_all_addresses, peer_selectors},
    resources::Key,
};
use crate::identity;

impl Fleet {
    pub(super) fn put_identity(&mut self, number: u32, labels: Labels, aftermath: &mut Aftermath) {
        self.index.note_identity(number);
        if self.index.identities.get(&number) == Some(&labels) {
            return;
        }
        self.remove_identity(number, aftermath);
        if !identity::is_of_node(&labels) {
            for set in self.index.sets.matching(&labels) {
                self.add_member(&set, number, aftermath);
            }
        }
        self.index.identities.insert(number, labels);
    }

    fn add_member(&mut self, set_name: &Arc<str>, identity: u32, aftermath: &mut Aftermath) {
        let id = self.put(member_key(set_name, identity), Bytes::new());
        let used = self.index.used.entry(identity).or_default();
        used.sets.insert(Arc::clone(set_name));
        // Endpoints of this identity were there before it: their nodes have a policy more, perhaps.
        aftermath.stale.extend(used.nodes.keys().cloned());
        if let Some(set) = self.index.sets.get_mut(set_name) {
            set.members.insert(identity, id);
            set.member_ids.insert(id);
            set.addresses |= &used.addresses;
        }
        for view in self.views.values_mut().filter(|view| view.peer_sets.contains(set_name)) {
            view.want(id, self.revision);
            for address in &used.addresses {
                view.want(address, self.revision);
            }
        }
    }

    pub(super) fn remove_identity(&mut self, number: u32, aftermath: &mut Aftermath) {
        if self.index.identities.remove(&number).is_none() {
            return;
        }
        let Some(used) = self.index.used.get_mut(&number) else { return };
        let sets = std::mem::take(&mut used.sets);
        if !used.addresses.is_empty() {
            // Rare: an identity goes before its endpoints. Who wants their addresses is not kept count of.
            aftermath.stale.extend(self.views.keys().cloned());
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
        let bytes = wire::to_node(&policy, |_| Vec::new()).encode_to_vec();
        let id = self.put(Key::new(ResourceType::Policy, name), bytes);
        let peers = peer_selectors(&policy);
        let subject_set: Arc<str> = Arc::from(policy.subject.named().set_name());
        for (set, selector) in &peers {
            self.use_set(set, selector, name, aftermath);
        }
        self.use_set(&subject_set, policy.subject.named(), name, aftermath);
        if let Some(set) = self.index.sets.get_mut(&subject_set) {
            set.subjects.insert(name.to_owned());
        }
        aftermath.stale.extend(self.index.nodes_of_set(&subject_set));
        let entry = PolicyEntry {
            id,
            subject_set,
            peer_sets: peers.into_keys().collect(),
            needs_all_addresses: needs_all_addresses(&policy),
            policy,
        };
        let sets = entry.sets();
        self.index.policies.insert(name.to_owned(), entry);
        sets
    }

    fn use_set(&mut self, set_name: &Arc<str>, selector: &Selector, policy: &str, aftermath: &mut Aftermath) {
        if !self.index.sets.add_user(set_name, selector, policy) {
            return;
        }
        let Some(set) = self.index.sets.get(set_name) else { return };
        let endpoints_only = self
            .index
            .identities
            .iter()
            .filter(|(_, labels)| !identity::is_of_node(labels) && set.selects(labels));
        let members: Vec<u32> = endpoints_only.map(|(number, _)| *number).collect();
        for identity in members {
            self.add_member(set_name, identity, aftermath);
        }
    }
}
