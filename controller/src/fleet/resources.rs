//! Everything that can be sent to nodes: each resource encoded once, known by a small number, so that what a node wants
//! and holds are bitmaps. A number is used again only when no node holds what it stood for.
use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use weft_proto::v1::{self, ResourceType};
use weft_shared::{
    digest::{self, Digest},
    features,
};

pub(super) type Id = u32;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: ResourceType,
    pub name: Arc<str>,
    /// Tells versions apart that are effective at once for different nodes. A node holds at most one of them.
    pub(super) variant: u32,
}

/// A resource as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub key: Key,
    pub bytes: Bytes,
    /// Features that a node needs for it ([`features`]).
    pub requires: Box<[String]>,
    pub(super) digest: Digest,
    /// Of its name ([`digest::place`]).
    pub(super) place: u32,
    /// When it got this content; 0: earlier than is known.
    pub(super) changed: u64,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    /// `None`: deleted, but some node still holds it.
    resource: Option<Arc<Resource>>,
    holders: u32,
}

#[derive(Debug, Default)]
pub(super) struct Resources {
    ids: HashMap<Key, Id>,
    slots: Vec<Option<Slot>>,
    free: Vec<Id>,
}

impl Key {
    pub fn new(kind: ResourceType, name: impl Into<Arc<str>>) -> Self {
        Self { kind, name: name.into(), variant: 0 }
    }

    pub(super) fn variant(self, variant: u32) -> Self {
        Self { variant, ..self }
    }
}

impl Resource {
    pub fn new(key: Key, bytes: Bytes, changed: u64) -> Self {
        let requires = requires(key.kind, &bytes);
        let digest = Digest::of(key.kind.into(), &key.name, &requires, &bytes);
        let place = digest::place(&key.name);
        Self { key, bytes, requires, digest, place, changed }
    }
}

/// Of what this controller has encoded itself, so that it decodes.
fn requires(kind: ResourceType, bytes: &Bytes) -> Box<[String]> {
    let names = match kind {
        ResourceType::Policy => {
            v1::NodePolicy::decode(bytes.clone()).map(|policy| features::of_policy(&policy))
        }
        ResourceType::CidrSet => Ok(vec![features::CIDR_SETS]),
        ResourceType::Service => {
            v1::NodeService::decode(bytes.clone()).map(|service| features::of_service(&service))
        }
        ResourceType::Prefilter => Ok(vec![features::PREFILTER]),
        ResourceType::Shaping => Ok(vec![features::SHAPING]),
        ResourceType::Fleet => v1::NodeFleet::decode(bytes.clone()).map(|fleet| features::of_fleet(&fleet)),
        _ => return Box::default(),
    };
    names.unwrap_or_default().into_iter().map(str::to_owned).collect()
}

impl Resources {
    /// Sets the content. Returns the id, and whether who holds it must be told.
    pub(super) fn put(&mut self, key: Key, bytes: Bytes, changed: u64) -> (Id, bool) {
        let id = match self.ids.get(&key) {
            Some(id) => *id,
            None => self.insert(key.clone()),
        };
        let Some(slot) = self.slots[id as usize].as_mut() else { return (id, false) };
        if slot.resource.as_ref().is_some_and(|resource| resource.bytes == bytes) {
            return (id, false);
        }
        slot.resource = Some(Arc::new(Resource::new(key, bytes, changed)));
        (id, slot.holders > 0)
    }

    fn insert(&mut self, key: Key) -> Id {
        let slot = Some(Slot { key: key.clone(), resource: None, holders: 0 });
        let id = if let Some(id) = self.free.pop() {
            self.slots[id as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            next_id(self.slots.len() - 1)
        };
        self.ids.insert(key, id);
        id
    }

    pub(super) fn find(&self, key: &Key) -> Option<Id> {
        let id = *self.ids.get(key)?;
        self.get(id).map(|_| id)
    }

    pub(super) fn get(&self, id: Id) -> Option<&Arc<Resource>> {
        self.slots.get(id as usize)?.as_ref()?.resource.as_ref()
    }

    pub(super) fn key(&self, id: Id) -> Option<&Key> {
        Some(&self.slots.get(id as usize)?.as_ref()?.key)
    }

    /// Ids of the same kind and name: versions of one thing.
    pub(super) fn versions(&self, key: &Key) -> impl Iterator<Item = Id> + use<'_> {
        let key = key.clone();
        (0..super::VARIANTS).filter_map(move |variant| self.find(&key.clone().variant(variant)))
    }

    /// When it last changed, in any version; 0: not known.
    pub(super) fn changed(&self, kind: ResourceType, name: &str) -> u64 {
        let versions = self.versions(&Key::new(kind, name));
        versions.filter_map(|id| self.get(id)).map(|resource| resource.changed).max().unwrap_or_default()
    }

    /// No node is to want it any more.
    pub(super) fn delete(&mut self, id: Id) {
        if let Some(Some(slot)) = self.slots.get_mut(id as usize) {
            slot.resource = None;
        }
        self.free_if_unused(id);
    }

    pub(super) fn hold(&mut self, id: Id) {
        if let Some(Some(slot)) = self.slots.get_mut(id as usize) {
            slot.holders += 1;
        }
    }

    pub(super) fn release(&mut self, id: Id) {
        if let Some(Some(slot)) = self.slots.get_mut(id as usize) {
            slot.holders = slot.holders.saturating_sub(1);
        }
        self.free_if_unused(id);
    }

    fn free_if_unused(&mut self, id: Id) {
        let Some(place) = self.slots.get_mut(id as usize) else { return };
        if place.as_ref().is_some_and(|slot| slot.resource.is_none() && slot.holders == 0) {
            if let Some(slot) = place.take() {
                self.ids.remove(&slot.key);
            }
            self.free.push(id);
        }
    }

    /// Slots in use; what memory is bounded by.
    #[cfg(test)]
    pub(super) fn keys(&self) -> std::collections::BTreeSet<Key> {
        self.ids.keys().cloned().collect()
    }
}

#[expect(clippy::expect_used, reason = "a slot takes more than one byte, so memory ends long before")]
fn next_id(place: usize) -> Id {
    Id::try_from(place).expect("4 billion resources do not fit in memory")
}
