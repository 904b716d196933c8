//! From a change of the facts to what nodes want. The common changes (an endpoint of a known identity, a new identity)
//! touch single bits; what moves a node's own work computes that node's scope anew.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use weft_proto::v1::{self, ResourceType};
use weft_shared::policy::{model::Failsafe, parse, wire};

use super::{
    Aftermath, Fleet,
    event::{Change, NodeFacts},
    index::{PolicyEntry, fleet_key},
    resources::{Id, Key},
};

impl Fleet {
    pub(super) fn apply_one(&mut self, change: Change, now: Duration, aftermath: &mut Aftermath) {
        match change {
            Change::Node { name, facts } => {
                let probed = self.may_probe(&name);
                match facts {
                    Some(facts) => self.put_node(name.clone(), facts, aftermath),
                    None => self.remove_node(&name),
                }
                self.note_node(&name, aftermath);
                self.choose_after(&name, probed, aftermath);
            }
            Change::Endpoint { name, facts } => {
                let same = self.is_same_backend(&name, facts.as_ref());
                if !same {
                    self.note_endpoint(&name, aftermath);
                }
                self.change_endpoint(&name, facts, now, aftermath);
                if !same {
                    self.note_endpoint(&name, aftermath);
                }
            }
            Change::Identity { number, labels } => {
                self.note_identity(number, aftermath);
                self.note_nodes_of(number, aftermath);
                match labels {
                    Some(labels) => self.put_identity(number, labels, aftermath),
                    None => self.remove_identity(number, aftermath),
                }
                self.note_identity(number, aftermath);
                self.note_nodes_of(number, aftermath);
            }
            Change::Policy { name, policy } => self.change_policy(&name, policy, aftermath),
            Change::CidrSet { name, set } => self.change_cidr_set(&name, set, aftermath),
            Change::Service { name, service } => self.change_service(&name, service, aftermath),
            Change::Health { node, service, words } => {
                self.change_words(&node, &service, words, aftermath);
            }
            Change::Away { node, away } => self.change_away(&node, away, aftermath),
            Change::Prefilter { name, prefilter } => self.change_prefilter(&name, prefilter),
            Change::Shaping { name, shaping } => self.change_shaping(&name, shaping),
            Change::Config(config) => {
                self.change_config(config.as_ref(), aftermath);
                self.change_pools(config.as_ref(), aftermath);
            }
        }
    }

    /// Computes from scratch what a node wants.
    pub(super) fn rescope(&mut self, node: &str) {
        let Some(number) = self.views.number(node) else { return };
        let Some(view) = self.views.by_number_mut(number) else { return };
        let index = &self.index;
        let mut wanted = index.node_ids.clone();
        wanted |= &index.services.ids;
        wanted.extend(index.prefilters_of(node));
        wanted.extend(index.shapings_of(node));
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

        let former_sets = std::mem::take(&mut view.peer_sets);
        view.all_addresses = false;
        for policy in &policies {
            wanted.insert(policy.id);
            view.all_addresses |= policy.needs_all_addresses;
            view.peer_sets.extend(policy.peer_sets.iter().cloned());
            let cidr_sets = policy.cidr_sets.iter().filter_map(|name| index.cidr_sets.get(name));
            wanted.extend(cidr_sets.map(|entry| entry.id));
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
        self.watchers.replace(number, &former_sets, &view.peer_sets, view.all_addresses);
    }

    /// The node has its first endpoint of an identity: it wants what the policies that select it name, beside what it
    /// wants.
    pub(super) fn widen(&mut self, node: &str, identity: u32, aftermath: &mut Aftermath) {
        let Some(number) = self.views.number(node) else { return };
        let Some(view) = self.views.by_number_mut(number) else { return };
        let (index, revision) = (&self.index, self.revision);
        let sets = index.used.get(&identity).into_iter().flat_map(|used| &used.sets);
        for set in sets.filter_map(|name| index.sets.get(name)).filter(|set| !set.subjects.is_empty()) {
            if let Some(member) = set.members.get(&identity) {
                view.want(*member, revision);
            }
            let policies = set.subjects.iter().filter_map(|name| index.policies.get(name));
            for policy in policies {
                if policy.needs_all_addresses && !view.all_addresses {
                    aftermath.stale.insert(node.to_owned());
                    return;
                }
                view.want(policy.id, revision);
                let cidr_sets = policy.cidr_sets.iter().filter_map(|name| index.cidr_sets.get(name));
                cidr_sets.for_each(|entry| view.want(entry.id, revision));
                for name in &policy.peer_sets {
                    if !view.peer_sets.insert(Arc::clone(name)) {
                        continue;
                    }
                    self.watchers.add(number, name);
                    if let Some(set) = index.sets.get(name) {
                        view.want_all(&set.member_ids, revision);
                        view.want_all(&set.addresses, revision);
                    }
                }
            }
        }
    }

    // ---- Resources ----

    pub(super) fn put(&mut self, key: Key, bytes: impl Into<Bytes>) -> Id {
        let (id, changed) = self.index.resources.put(key, bytes.into(), self.contents_revision);
        if changed {
            for (_, view) in self.views.iter_mut() {
                view.content_changed(id, self.revision);
            }
        }
        id
    }

    pub(super) fn delete(&mut self, id: Id) {
        for (_, view) in self.views.iter_mut() {
            view.unwant(id, self.revision);
        }
        self.index.resources.delete(id);
    }

    // ---- Nodes and configuration ----

    fn put_node(&mut self, name: String, facts: NodeFacts, aftermath: &mut Aftermath) {
        let route = v1::NodeRoute {
            addresses: facts.addresses.clone(),
            endpoint_cidrs: facts.endpoint_cidrs.clone(),
            identity: facts.identity,
        };
        let id = self.put(Key::new(ResourceType::Node, name.as_str()), route.encode_to_vec());
        self.index.node_ids.insert(id);
        for (_, view) in self.views.iter_mut() {
            view.want(id, self.revision);
        }
        let (identity, old) = (facts.identity, self.index.nodes.insert(name.clone(), facts));
        let former = old.map_or(0, |old| old.identity);
        if former == identity {
            return;
        }
        if former != 0 {
            self.index.remove_bearer(&name, former);
        }
        // 0: it has none yet.
        if identity != 0 {
            self.index.add_bearer(&name, identity);
        }
        aftermath.stale.insert(name);
    }

    fn remove_node(&mut self, name: &str) {
        if let Some(old) = self.index.nodes.remove(name).filter(|old| old.identity != 0) {
            self.index.remove_bearer(name, old.identity);
        }
        if let Some(id) = self.index.resources.find(&Key::new(ResourceType::Node, name)) {
            self.index.node_ids.remove(id);
            self.delete(id);
        }
        if let Some((number, view)) = self.views.remove(name) {
            self.watchers.forget(number, &view.peer_sets);
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
        // What is stored was checked before.
        let parsed = config.and_then(|config| parse::fleet_config(config).ok());
        self.index.identity_labels = parsed.map(|config| config.identity_labels).unwrap_or_default();
        aftermath.stale.extend(self.views.names().map(ToString::to_string));
    }
}

fn node_fleet(config: &v1::FleetConfig, all_addresses: bool) -> v1::NodeFleet {
    let unknown = if all_addresses { v1::Entity::Unmanaged } else { v1::Entity::Fleet };
    v1::NodeFleet {
        pools: config.pools.iter().map(|pool| pool.cidr.clone()).collect(),
        routing_mode: config.routing_mode,
        encryption_mode: config.encryption_mode,
        default_action: config.default_action,
        host_to_endpoint: config.host_to_endpoint,
        // What is stored was checked before.
        failsafe: wire::failsafe_to_node(
            &parse::failsafe(config.failsafe.as_ref()).unwrap_or_else(|_| Failsafe::defaults()),
        ),
        unknown_pool_address: unknown.into(),
    }
}
