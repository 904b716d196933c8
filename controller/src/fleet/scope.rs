//! From a change of the facts to what nodes want. The common changes (an endpoint of a known identity, a new identity)
//! touch single bits; what moves a node's own work computes that node's scope anew.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use weft_proto::v1::{self, ResourceType};
use weft_shared::policy::{
    model::{Labels, Policy, Selector},
    wire,
};

use super::{
    Aftermath, Fleet,
    event::{Change, EndpointFacts, NodeFacts},
    index::{PolicyEntry, address_key, fleet_key, member_key, needs_all_addresses, peer_selectors},
    resources::{Id, Key},
};
use crate::identity;

impl Fleet {
    pub(super) fn apply_one(&mut self, change: Change, now: Duration, aftermath: &mut Aftermath) {
        match change {
            Change::Node { name, facts: Some(facts) } => self.put_node(name, facts),
            Change::Node { name, facts: None } => self.remove_node(&name),
            Change::Endpoint { name, facts } => self.change_endpoint(&name, facts, now, aftermath),
            Change::Identity { number, labels: Some(labels) } => self.put_identity(number, labels, aftermath),
            Change::Identity { number, labels: None } => self.remove_identity(number, aftermath),
            Change::Policy { name, policy } => self.change_policy(&name, policy, aftermath),
            Change::Config(config) => self.change_config(config.as_ref(), aftermath),
        }
    }

    /// Computes from scratch what a node wants.
    pub(super) fn rescope(&mut self, node: &str) {
        let Some(view) = self.views.get_mut(node) else { return };
        let index = &self.index;
        let mut wanted = index.node_ids.clone();
        let local = index.local.get(node);
        let local_identities = || local.into_iter().flat_map(|identities| identities.keys());
        let own = index.by_node.get(node).into_iter().flatten();
        wanted.extend(own.filter_map(|name| index.endpoint_id(name)));
        let subject_sets: BTreeSet<&Arc<str>> = local_identities()
            .filter_map(|identity| index.used.get(identity))
            .flat_map(|used| &used.sets)
            .collect();
        let subjects =
            subject_sets.iter().filter_map(|name| index.sets.get(name)).flat_map(|set| &set.subjects);
        let policies: Vec<&PolicyEntry> = subjects.filter_map(|name| index.policies.get(name)).collect();

        view.peer_sets.clear();
        view.all_addresses = false;
        for policy in &policies {
            wanted.insert(policy.id);
            view.all_addresses |= policy.needs_all_addresses;
            view.peer_sets.extend(policy.peer_sets.iter().cloned());
            // Of a subject the node needs only to know which of its own identities belong to it.
            let subject = index.sets.get(&policy.subject_set);
            wanted.extend(subject.into_iter().flat_map(|set| {
                local_identities().filter_map(|identity| set.members.get(identity).copied())
            }));
        }
        for set in view.peer_sets.iter().filter_map(|name| index.sets.get(name)) {
            wanted |= &set.member_ids;
            wanted |= &set.addresses;
        }
        if view.all_addresses {
            wanted |= &index.address_ids;
        }
        wanted.extend(index.fleet_id(view.all_addresses));
        view.replace_wanted(wanted, self.revision);
    }

    // ---- Resources ----

    fn put(&mut self, key: Key, bytes: impl Into<Bytes>) -> Id {
        let (id, changed) = self.index.resources.put(key, bytes.into());
        if changed {
            for view in self.views.values_mut() {
                view.content_changed(id, self.revision);
            }
        }
        id
    }

    fn delete(&mut self, id: Id) {
        for view in self.views.values_mut() {
            view.unwant(id, self.revision);
        }
        self.index.resources.delete(id);
    }

    // ---- Nodes and configuration ----

    fn put_node(&mut self, name: String, facts: NodeFacts) {
        let route = v1::NodeRoute {
            addresses: facts.addresses.clone(),
            endpoint_cidrs: facts.endpoint_cidrs.clone(),
            identity: facts.identity,
        };
        let id = self.put(Key::new(ResourceType::Node, name.as_str()), route.encode_to_vec());
        self.index.node_ids.insert(id);
        for view in self.views.values_mut() {
            view.want(id, self.revision);
        }
        self.index.nodes.insert(name, facts);
    }

    fn remove_node(&mut self, name: &str) {
        self.index.nodes.remove(name);
        if let Some(id) = self.index.resources.find(&Key::new(ResourceType::Node, name)) {
            self.index.node_ids.remove(id);
            self.delete(id);
        }
        if let Some(view) = self.views.remove(name) {
            view.release(&mut self.index.resources);
        }
    }

    fn change_config(&mut self, config: Option<&v1::FleetConfig>, aftermath: &mut Aftermath) {
        for all_addresses in [false, true] {
            let key = fleet_key(all_addresses);
            match (config, self.index.resources.find(&key)) {
                (Some(config), _) => drop(self.put(key, node_fleet(config, all_addresses).encode_to_vec())),
                (None, Some(id)) => self.delete(id),
                (None, None) => {}
            }
        }
        aftermath.stale.extend(self.views.keys().cloned());
    }

    // ---- Endpoints ----

    fn change_endpoint(
        &mut self,
        name: &str,
        facts: Option<EndpointFacts>,
        now: Duration,
        aftermath: &mut Aftermath,
    ) {
        if let (Some(old), Some(new)) = (self.index.endpoints.get_mut(name), &facts) {
            // Whether it is ready concerns no node.
            old.ready = new.ready;
            if old == new {
                return;
            }
        }
        self.remove_endpoint(name, aftermath);
        if let Some(facts) = facts {
            self.gates.close(name, self.revision, now);
            aftermath.closed.insert(name.to_owned());
            self.add_endpoint(name, facts, aftermath);
        }
    }

    fn add_endpoint(&mut self, name: &str, facts: EndpointFacts, aftermath: &mut Aftermath) {
        let identity = facts.identity;
        for &address in &facts.addresses {
            let message = v1::NodeAddress { identity, node: facts.node.clone() };
            let id = self.put(address_key(address), message.encode_to_vec());
            self.index.owners.insert(address, name.to_owned());
            self.index.address_ids.insert(id);
            let used = self.index.used.entry(identity).or_default();
            used.addresses.insert(id);
            for set in &used.sets {
                if let Some(set) = self.index.sets.get_mut(set) {
                    set.addresses.insert(id);
                }
            }
            for view in self.views.values_mut() {
                if view.all_addresses || used.sets.iter().any(|set| view.peer_sets.contains(set)) {
                    view.want(id, self.revision);
                }
            }
        }
        *self.index.used.entry(identity).or_default().nodes.entry(facts.node.clone()).or_default() += 1;
        let local = self.index.local.entry(facts.node.clone()).or_default().entry(identity).or_default();
        *local += 1;
        if *local == 1 {
            aftermath.stale.insert(facts.node.clone());
        }
        self.index.by_node.entry(facts.node.clone()).or_default().insert(name.to_owned());
        self.index.endpoints.insert(name.to_owned(), facts);
        self.encode_endpoint(name);
    }

    /// The endpoint's own resource, for its node.
    pub(super) fn encode_endpoint(&mut self, name: &str) {
        let Some(facts) = self.index.endpoints.get(name) else { return };
        let open = self.gates.is_open(name);
        let message = v1::NodeEndpoint { identity: facts.identity, open, uid: facts.uid.clone() };
        let node = facts.node.clone();
        let id = self.put(Key::new(ResourceType::Endpoint, name), message.encode_to_vec());
        if let Some(view) = self.views.get_mut(&node) {
            view.want(id, self.revision);
        }
    }

    fn remove_endpoint(&mut self, name: &str, aftermath: &mut Aftermath) {
        let Some(facts) = self.index.endpoints.remove(name) else { return };
        self.gates.forget(name);
        if let Some(of_node) = self.index.by_node.get_mut(&facts.node) {
            of_node.remove(name);
            if of_node.is_empty() {
                self.index.by_node.remove(&facts.node);
            }
        }
        if let Some(id) = self.index.endpoint_id(name) {
            self.delete(id);
        }
        for address in &facts.addresses {
            if self.index.owners.get(address).is_some_and(|owner| owner == name) {
                self.index.owners.remove(address);
                self.remove_address(*address, facts.identity);
            }
        }
        if let Some(used) = self.index.used.get_mut(&facts.identity) {
            decrement(&mut used.nodes, &facts.node);
        }
        self.index.forget_if_unused(facts.identity);
        if let Some(local) = self.index.local.get_mut(&facts.node) {
            if decrement(local, &facts.identity) {
                aftermath.stale.insert(facts.node.clone());
            }
            if local.is_empty() {
                self.index.local.remove(&facts.node);
            }
        }
    }

    fn remove_address(&mut self, address: std::net::IpAddr, identity: u32) {
        let Some(id) = self.index.address_id(address) else { return };
        self.index.address_ids.remove(id);
        if let Some(used) = self.index.used.get_mut(&identity) {
            used.addresses.remove(id);
            for set in &used.sets {
                if let Some(set) = self.index.sets.get_mut(set) {
                    set.addresses.remove(id);
                }
            }
        }
        self.delete(id);
    }

    // ---- Identities ----

    fn put_identity(&mut self, number: u32, labels: Labels, aftermath: &mut Aftermath) {
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

    fn remove_identity(&mut self, number: u32, aftermath: &mut Aftermath) {
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

    // ---- Policies ----

    fn change_policy(&mut self, name: &str, policy: Option<Policy>, aftermath: &mut Aftermath) {
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
        let bytes = wire::to_node(&policy).encode_to_vec();
        let id = self.put(Key::new(ResourceType::Policy, name), bytes);
        let peers = peer_selectors(&policy);
        let subject_set: Arc<str> = Arc::from(policy.subject.set_name());
        for (set, selector) in &peers {
            self.use_set(set, selector, name, aftermath);
        }
        self.use_set(&subject_set, &policy.subject, name, aftermath);
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

/// `true`: that was the last.
fn decrement<K: Ord>(counts: &mut std::collections::BTreeMap<K, usize>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    if *count > 0 {
        return false;
    }
    counts.remove(key);
    true
}

fn node_fleet(config: &v1::FleetConfig, all_addresses: bool) -> v1::NodeFleet {
    let unknown = if all_addresses { v1::Entity::Unmanaged } else { v1::Entity::Fleet };
    v1::NodeFleet {
        pools: config.pools.iter().map(|pool| pool.cidr.clone()).collect(),
        routing_mode: config.routing_mode,
        encryption_mode: config.encryption_mode,
        default_action: config.default_action,
        host_to_endpoint: config.host_to_endpoint,
        failsafe: config.failsafe.as_ref().map(|list| list.items.clone()).unwrap_or_default(),
        unknown_pool_address: unknown.into(),
    }
}
