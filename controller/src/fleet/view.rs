//! What one node is to have, what it was sent, and what it has acknowledged. There is one pending slot per resource: a
//! change of what is pending already takes no more room.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use roaring::RoaringBitmap;
use weft_proto::v1::{self, ResourceType};

use super::{
    resources::{Id, Key, Resource, Resources},
    resume::{self, Have, Resume},
};
use crate::limits;

#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) wanted: RoaringBitmap,
    /// Sent, acknowledged or not.
    held: RoaringBitmap,
    /// Held, but with another content by now. It stays here while the node does not want it: it may again.
    changed: RoaringBitmap,
    /// Sets whose every member the node wants.
    pub(super) peer_sets: BTreeSet<Arc<str>>,
    /// It wants all used addresses.
    pub(super) all_addresses: bool,

    link: Link,
    /// The first revision that is not sent, while something is pending.
    pending_since: Option<u64>,
    in_flight: VecDeque<Sent>,
    next_nonce: u64,
    sent_revision: u64,
    sent_through: u32,
    rejections: BTreeMap<(ResourceType, String), Rejected>,
    /// News since [`View::take_news`].
    news: bool,
}

#[derive(Debug, Default)]
enum Link {
    #[default]
    Down,
    /// Nothing was sent on this connection yet: the next delta holds everything.
    Fresh,
    /// It is being found out what the node holds.
    Resuming(Resume),
    /// What the node holds is known, nothing was sent yet: the next delta holds what differs.
    Resumed {
        /// See `Delta` of the protocol.
        gone: Vec<u32>,
    },
    Synced,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    nonce: u64,
    /// The first revision that is not realised until this is acknowledged.
    since: u64,
}

/// A resource that the node could not realise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub kind: ResourceType,
    pub name: String,
    pub reason: String,
    /// The first one that is not realised because of it.
    pub revision: u64,
}

/// The content of one delta. Resources are shared between the nodes they go to.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    pub nonce: u64,
    pub from_revision: u64,
    pub revision: u64,
    pub identities_through: u32,
    pub upserts: Vec<Arc<Resource>>,
    pub removes: Vec<Key>,
    /// The first of a connection: with it the node holds all there is.
    pub in_sync: bool,
    /// It holds everything.
    pub full: bool,
    /// Places of what is gone in the node's listing.
    pub gone: Vec<u32>,
    /// Digests of what the node is to hold with it, at the end of a resume.
    pub expected: Vec<v1::TypeDigest>,
}

impl View {
    pub(super) fn want(&mut self, id: Id, revision: u64) {
        if self.wanted.insert(id) {
            self.note(revision);
        }
    }

    pub(super) fn want_all(&mut self, ids: &RoaringBitmap, revision: u64) {
        let before = self.wanted.len();
        self.wanted |= ids;
        if self.wanted.len() > before {
            self.note(revision);
        }
    }

    pub(super) fn unwant(&mut self, id: Id, revision: u64) {
        if self.wanted.remove(id) {
            self.note(revision);
        }
    }

    pub(super) fn replace_wanted(&mut self, wanted: RoaringBitmap, revision: u64) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.note(revision);
        }
    }

    pub(super) fn content_changed(&mut self, id: Id, revision: u64) {
        if self.held.contains(id) {
            self.changed.insert(id);
            if self.wanted.contains(id) {
                self.note(revision);
            }
        }
    }

    fn note(&mut self, revision: u64) {
        self.pending_since.get_or_insert(revision);
        self.news = true;
    }

    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Everything is to be sent, whatever was sent before. `since`: the first revision that is not known to be realised.
    pub(super) fn connect(&mut self, resources: &mut Resources, since: u64) {
        self.hold_nothing(resources);
        self.changed.clear();
        self.in_flight.clear();
        self.rejections.clear();
        (self.link, self.news) = (Link::Fresh, true);
        (self.sent_revision, self.sent_through) = (0, 0);
        self.pending_since = Some(since);
    }

    /// It was last connected elsewhere, or before this controller began. `since`: the first revision that it may lack.
    pub(super) fn remember(&mut self, resources: &mut Resources, since: Option<u64>) {
        if since.is_none() {
            let wanted = self.wanted.clone();
            self.hold(resources, wanted);
        }
        self.pending_since = since;
    }

    fn hold_nothing(&mut self, resources: &mut Resources) {
        for id in std::mem::take(&mut self.held) {
            resources.release(id);
        }
    }

    // ---- Resume: right after `connect` ----

    /// Compares with what the node holds. Returns what to ask it.
    pub(super) fn resume(&mut self, resources: &mut Resources, have: &Have) -> Vec<v1::WantBuckets> {
        match Resume::begin(resources, &self.wanted, have) {
            None => Vec::new(),
            Some(resume::Begun { same, asked: None }) => {
                self.resumed(resources, same, Vec::new());
                Vec::new()
            }
            Some(resume::Begun { same, asked: Some(resume) }) => {
                self.hold(resources, same);
                let questions = resume.buckets_wanted();
                self.link = Link::Resuming(resume);
                questions
            }
        }
    }

    /// Takes digests of buckets. `None`: there is nothing to ask.
    pub(super) fn take_buckets(
        &mut self,
        resources: &mut Resources,
        report: &v1::DigestBuckets,
    ) -> Option<v1::WantItems> {
        let Link::Resuming(resume) = &mut self.link else { return None };
        if let Some((same, question)) = resume.take_buckets(resources, &self.wanted, report) {
            self.hold(resources, same);
            return Some(question);
        }
        self.give_up_resume(resources);
        None
    }

    pub(super) fn take_items(&mut self, resources: &mut Resources, report: &v1::DigestItems) {
        let Link::Resuming(resume) = &self.link else { return };
        match resume.take_items(resources, &self.wanted, report) {
            Some(found) => self.resumed(resources, found.same, found.gone),
            None => self.give_up_resume(resources),
        }
    }

    /// All is sent, if it is not known yet what the node holds.
    pub(super) fn give_up_resume(&mut self, resources: &mut Resources) {
        if matches!(self.link, Link::Resuming(_)) {
            self.hold_nothing(resources);
            self.changed.clear();
            (self.link, self.news) = (Link::Fresh, true);
        }
    }

    fn resumed(&mut self, resources: &mut Resources, same: RoaringBitmap, gone: Vec<u32>) {
        self.hold(resources, same);
        (self.link, self.news) = (Link::Resumed { gone }, true);
    }

    fn hold(&mut self, resources: &mut Resources, ids: RoaringBitmap) {
        for id in ids {
            if self.held.insert(id) {
                resources.hold(id);
            }
        }
    }

    // ---- Deltas ----

    /// What was not acknowledged counts as not sent.
    pub(super) fn disconnect(&mut self) {
        if let Some(first) = self.in_flight.front() {
            self.pending_since = Some(first.since);
        }
        self.in_flight.clear();
        self.link = Link::Down;
    }

    /// The node is forgotten.
    pub(super) fn release(self, resources: &mut Resources) {
        for id in self.held {
            resources.release(id);
        }
    }

    /// What is pending as one delta; `None`: nothing is, or too much is unacknowledged.
    pub(super) fn drain(&mut self, resources: &mut Resources, revision: u64, through: u32) -> Option<Delta> {
        let ready = matches!(self.link, Link::Fresh | Link::Resumed { .. } | Link::Synced);
        if !ready || self.in_flight.len() >= limits::UNACKNOWLEDGED_DELTAS_MAX {
            return None;
        }
        let since = self.pending_since.take()?;
        let new = &self.wanted - &self.held;
        let gone = &self.held - &self.wanted;
        let mut upserts: Vec<Arc<Resource>> = (new.clone() | (&self.changed & &self.wanted))
            .iter()
            .filter_map(|id| resources.get(id).cloned())
            .collect();
        upserts.sort_unstable_by(|left, right| left.key.cmp(&right.key));
        let mut removes: Vec<Key> = gone
            .iter()
            .filter_map(|id| resources.key(id))
            // Another version of the same thing takes its place.
            .filter(|key| !resources.versions(key).any(|other| self.wanted.contains(other)))
            .cloned()
            .collect();
        removes.sort_unstable();
        new.iter().for_each(|id| resources.hold(id));
        gone.iter().for_each(|id| resources.release(id));
        self.held.clone_from(&self.wanted);
        self.changed.clear();

        let content = match std::mem::replace(&mut self.link, Link::Synced) {
            Link::Resumed { gone } => {
                let expected = resume::expected(resources, &self.wanted);
                Delta { in_sync: true, full: expected.is_empty(), gone, expected, ..Delta::default() }
            }
            Link::Fresh => Delta { in_sync: true, full: true, ..Delta::default() },
            _ => Delta::default(),
        };
        if upserts.is_empty() && removes.is_empty() && !content.in_sync {
            // What was pending has cancelled itself out.
            return None;
        }
        for key in upserts.iter().map(|resource| &resource.key).chain(&removes) {
            self.rejections.remove(&(key.kind, key.name.to_string()));
        }
        Some(self.send(since, revision, through, Delta { upserts, removes, ..content }))
    }

    /// A delta that only says which identities are classified; `None`: the node knows.
    pub(super) fn drain_through(&mut self, revision: u64, through: u32) -> Option<Delta> {
        let idle =
            matches!(self.link, Link::Synced) && self.in_flight.len() < limits::UNACKNOWLEDGED_DELTAS_MAX;
        // What is pending might be the classification itself: then the number travels with it.
        if !idle || self.pending_since.is_some() || self.sent_through >= through {
            return None;
        }
        Some(self.send(revision + 1, revision, through, Delta::default()))
    }

    fn send(&mut self, since: u64, revision: u64, through: u32, content: Delta) -> Delta {
        self.next_nonce += 1;
        let nonce = self.next_nonce;
        let from_revision = std::mem::replace(&mut self.sent_revision, revision);
        self.sent_through = through;
        self.in_flight.push_back(Sent { nonce, since });
        Delta { nonce, from_revision, revision, identities_through: through, ..content }
    }

    /// Acknowledges this delta and those before it; `rejected` is all that the node rejects now. `false`: no such delta is
    /// in flight.
    pub(super) fn acknowledge(
        &mut self,
        resources: &Resources,
        nonce: u64,
        rejected: Vec<(ResourceType, String, String)>,
    ) -> bool {
        let Some(place) = self.in_flight.iter().position(|sent| sent.nonce == nonce) else { return false };
        let since = self.in_flight.drain(..=place).map(|sent| sent.since).min().unwrap_or_default();
        let former = std::mem::take(&mut self.rejections);
        let mut rejections: Vec<Rejected> = rejected
            .into_iter()
            .map(|(kind, name, reason)| {
                let known = former.get(&(kind, name.clone())).map(|former| former.revision);
                let revision = known.unwrap_or_else(|| resources.changed(kind, &name).max(since));
                Rejected { kind, name, reason, revision }
            })
            .collect();
        // Of too many, those are kept that say how far the node is.
        rejections.sort_by_key(|rejected| rejected.revision);
        rejections.truncate(limits::REJECTIONS_KEPT);
        let named = rejections.into_iter().map(|rejected| ((rejected.kind, rejected.name.clone()), rejected));
        self.rejections = named.collect();
        self.news = true;
        true
    }

    /// Everything up to this revision is realised: the last one, while nothing is pending.
    pub(super) fn realised(&self, revision: u64) -> u64 {
        let first_rejected = self.rejections.values().map(|rejected| rejected.revision).min();
        first_rejected.map_or(revision, |first| first.saturating_sub(1)).min(self.answered(revision))
    }

    /// Everything up to this revision was realised or rejected.
    pub(super) fn answered(&self, revision: u64) -> u64 {
        let first_in_flight = self.in_flight.iter().map(|sent| sent.since).min();
        let open = [self.pending_since, first_in_flight].into_iter().flatten().min();
        open.map_or(revision, |first| first.saturating_sub(1).min(revision))
    }

    pub(super) fn rejections(&self) -> impl Iterator<Item = &Rejected> {
        self.rejections.values()
    }

    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.link, Link::Down)
    }
}
