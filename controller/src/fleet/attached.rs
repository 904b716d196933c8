//! Endpoints: their addresses for who must know them, and their own resource for their node.
use std::{net::IpAddr, time::Duration};

use prost::Message as _;
use weft_proto::v1::{self, ResourceType};

use super::{Aftermath, Fleet, event::EndpointFacts, index::address_key, resources::Key};

impl Fleet {
    pub(super) fn change_endpoint(
        &mut self,
        name: &str,
        facts: Option<EndpointFacts>,
        now: Duration,
        aftermath: &mut Aftermath,
    ) {
        if let (Some(old), Some(new)) = (self.index.endpoints.get_mut(name), &facts) {
            // Whether it is ready concerns no node, nor does what else was reported.
            (old.ready, old.report) = (new.ready, new.report);
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
            for node in self.watchers.of_addresses(&used.sets) {
                if let Some(view) = self.views.by_number_mut(node) {
                    view.want(id, self.revision);
                }
            }
        }
        if self.index.add_bearer(&facts.node, identity) {
            self.widen(&facts.node, identity, aftermath);
            self.shape(&facts.node, identity);
        }
        self.index.by_node.entry(facts.node.clone()).or_default().insert(name.to_owned());
        self.index.endpoints.insert(name.to_owned(), facts);
        self.encode_endpoint(name);
    }

    /// The endpoint's own resource, for its node.
    pub(super) fn encode_endpoint(&mut self, name: &str) {
        let Some(facts) = self.index.endpoints.get(name) else { return };
        let open = self.gates.is_open(name);
        let message = v1::NodeEndpoint {
            identity: facts.identity,
            open,
            uid: facts.uid.clone(),
            instance: facts.instance.clone(),
        };
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
        if self.index.remove_bearer(&facts.node, facts.identity) {
            aftermath.stale.insert(facts.node);
        }
    }

    fn remove_address(&mut self, address: IpAddr, identity: u32) {
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
}
