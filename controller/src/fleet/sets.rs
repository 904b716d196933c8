//! Selectors and the identities they select: a set for each selector that some policy names, by the selector's name. Sets
//! of endpoints and sets of nodes have no name and no identity in common.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use roaring::RoaringBitmap;
use weft_shared::policy::model::{Labels, Selector};

use super::{anchored::Anchored, resources::Id};
use crate::identity;

/// What a set is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    pub(super) selector: Selector,
    /// Nodes, and not endpoints.
    pub(super) of_nodes: bool,
}

#[derive(Debug)]
pub(super) struct Set {
    selected: Selected,
    /// Identity → its resource `SET/IDENTITY`.
    pub(super) members: BTreeMap<u32, Id>,
    /// The resources of `members`.
    pub(super) member_ids: RoaringBitmap,
    /// Resources of the members' addresses.
    pub(super) addresses: RoaringBitmap,
    /// Policies that name it, as subject or peer.
    users: BTreeSet<String>,
    /// Policies whose subject it is.
    pub(super) subjects: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Sets {
    by_name: BTreeMap<Arc<str>, Set>,
    anchored: Anchored<Arc<str>>,
}

impl Sets {
    pub(super) fn get(&self, name: &str) -> Option<&Set> {
        self.by_name.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Set> {
        self.by_name.get_mut(name)
    }

    /// Names of the sets whose selector matches.
    pub(super) fn matching(&self, labels: &Labels) -> Vec<Arc<str>> {
        let matching = self
            .anchored
            .candidates(labels)
            .filter(|name| self.by_name.get(*name).is_some_and(|set| set.selects(labels)));
        matching.cloned().collect()
    }

    /// `true`: the set is new and has no members yet.
    pub(super) fn add_user(&mut self, name: &Arc<str>, selected: &Selected, policy: &str) -> bool {
        let new = !self.by_name.contains_key(name);
        if new {
            self.anchored.insert(name, &selected.selector);
        }
        let set = self.by_name.entry(Arc::clone(name)).or_insert_with(|| Set {
            selected: selected.clone(),
            members: BTreeMap::new(),
            member_ids: RoaringBitmap::new(),
            addresses: RoaringBitmap::new(),
            users: BTreeSet::new(),
            subjects: BTreeSet::new(),
        });
        set.users.insert(policy.to_owned());
        new
    }

    /// The set, if that was its last user.
    pub(super) fn remove_user(&mut self, name: &str, policy: &str) -> Option<Set> {
        let set = self.by_name.get_mut(name)?;
        set.users.remove(policy);
        if !set.users.is_empty() {
            return None;
        }
        let set = self.by_name.remove(name)?;
        self.anchored.remove(name, &set.selected.selector);
        Some(set)
    }
}

impl Set {
    /// Whether an identity of these labels is a member.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        self.selected.selects(labels)
    }
}

impl Selected {
    fn selects(&self, labels: &Labels) -> bool {
        if !self.of_nodes {
            return !identity::is_of_node(labels) && self.selector.matches(labels);
        }
        identity::is_of_node(labels) && self.selector.matches(&identity::without_mark(labels))
    }
}
