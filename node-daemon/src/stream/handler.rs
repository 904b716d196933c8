//! What a controller's messages mean: a state machine for one stream, without sockets, clocks or the kernel.

use std::{collections::BTreeSet, mem};

use weft_proto::v1::{self, ControllerMessage, ResourceType, controller_message::Message};
use weft_shared::digest;

use crate::{
    desired::{Batch, Key, digests::Listing},
    limits::STAGED_RESOURCES_MAX,
};

/// What is to be done about a message.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The controller serves the store that this node knows (or its first).
    Welcomed {
        store_id: String,
        controller: String,
        version: String,
        /// An operator lets it replace what this node holds of another store.
        adopts: bool,
        /// It has the endpoints that Hello has told of.
        endpoints_known: bool,
        /// Types that differ: their buckets are to be reported.
        want_buckets: Vec<v1::WantBuckets>,
    },
    /// What is in these buckets is to be reported; [`Session::listed_items`] wants to know, too.
    WantItems(v1::WantItems),
    /// A whole delta.
    Batch(Batch),
    Answer(v1::EndpointAnswer),
}

/// Why nothing more of this stream may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error(
        "the controller's store is {offered}, this node holds the state of store {held}: nothing is changed until an \
         operator adopts the node: weft fleet adopt"
    )]
    OtherStore { held: String, offered: String },
    #[error(
        "the controller's store is at revision {offered}, below {held} which this node holds: nothing is changed until \
         an operator adopts the node"
    )]
    OlderStore { held: u64, offered: u64 },
    #[error("the controller sent {0} before Welcome")]
    NotWelcomed(&'static str),
    #[error("the controller sent a second Welcome")]
    WelcomedTwice,
    #[error("a message without content, from a later version?")]
    Empty,
    #[error("a delta goes back from revision {held} to {offered}")]
    Backwards { held: u64, offered: u64 },
    #[error("a delta of more than {STAGED_RESOURCES_MAX} resources")]
    TooLarge,
    #[error("place {place} is gone, of {listed} that were listed")]
    NotListed { place: u32, listed: usize },
}

impl SessionError {
    /// Whether it is about who the controller is: operators are told for as long as it lasts.
    pub fn is_guard(&self) -> bool {
        matches!(self, Self::OtherStore { .. } | Self::OlderStore { .. })
    }
}

/// One stream, from Hello on.
#[derive(Debug)]
pub struct Session {
    /// Empty: none yet.
    store_id: String,
    revision: u64,
    /// Sum of the digests of what is held.
    digest: Vec<u8>,
    welcomed: bool,
    staged: Batch,
    /// Names sent so far; `None` once this stream was in sync.
    listed: Option<BTreeSet<Key>>,
    /// What the controller was told is in differing buckets.
    listing: Listing,
    /// Places in it that are gone.
    gone: Vec<u32>,
}

impl Session {
    /// For a node that has said that it holds this.
    pub fn new(have: &v1::Have) -> Self {
        let digests = have.digests.iter().map(|digest| &*digest.digest);
        Self {
            store_id: have.store_id.clone(),
            revision: have.revision,
            digest: digest::total(digests).unwrap_or_default().to_bytes().to_vec(),
            welcomed: false,
            staged: Batch::default(),
            listed: Some(BTreeSet::new()),
            listing: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// What was reported to be in the buckets that the controller asked for.
    pub fn listed_items(&mut self, listing: Listing) {
        self.listing = listing;
    }

    /// `None`: nothing to do yet.
    pub fn handle(&mut self, message: ControllerMessage) -> Result<Option<Event>, SessionError> {
        match message.message.ok_or(SessionError::Empty)? {
            Message::Welcome(welcome) => self.welcome(welcome).map(Some),
            Message::Delta(_) if !self.welcomed => Err(SessionError::NotWelcomed("a delta")),
            Message::Delta(delta) => self.delta(delta),
            Message::WantItems(_) if !self.welcomed => Err(SessionError::NotWelcomed("a question")),
            Message::WantItems(wanted) => Ok(Some(Event::WantItems(wanted))),
            Message::EndpointAnswer(_) if !self.welcomed => Err(SessionError::NotWelcomed("an answer")),
            Message::EndpointAnswer(answer) => Ok(Some(Event::Answer(answer))),
        }
    }

    fn welcome(&mut self, welcome: v1::Welcome) -> Result<Event, SessionError> {
        if self.welcomed {
            return Err(SessionError::WelcomedTwice);
        }
        let adopts = match self.refusal(&welcome) {
            None => false,
            Some(_) if self.is_adopted_by(&welcome) => true,
            Some(refusal) => return Err(refusal),
        };
        if adopts {
            // The revisions of the store that adopts are others.
            self.revision = 0;
        }
        self.welcomed = true;
        Ok(Event::Welcomed {
            store_id: welcome.store_id,
            controller: welcome.controller,
            version: welcome.version,
            adopts,
            // Another store than the one that Hello was about never has.
            endpoints_known: welcome.endpoints_known && !adopts,
            want_buckets: welcome.want_buckets,
        })
    }

    /// Why this store's word is not taken.
    fn refusal(&self, welcome: &v1::Welcome) -> Option<SessionError> {
        if !self.store_id.is_empty() && self.store_id != welcome.store_id {
            let (held, offered) = (self.store_id.clone(), welcome.store_id.clone());
            return Some(SessionError::OtherStore { held, offered });
        }
        (welcome.revision < self.revision)
            .then_some(SessionError::OlderStore { held: self.revision, offered: welcome.revision })
    }

    /// Whether an operator has adopted a node that holds just what this one does: nothing that was said of another state,
    /// or before a backup was restored, is taken for it.
    fn is_adopted_by(&self, welcome: &v1::Welcome) -> bool {
        welcome.adoption.as_ref().is_some_and(|adoption| {
            adoption.former_store_id == self.store_id
                && adoption.former_revision == self.revision
                && adoption.former_digest == self.digest
        })
    }

    fn delta(&mut self, delta: v1::Delta) -> Result<Option<Event>, SessionError> {
        if let Some(listed) = &mut self.listed {
            listed.extend(delta.upserts.iter().map(|upsert| key(upsert.r#type, &upsert.name)));
            for remove in &delta.removes {
                listed.remove(&key(remove.r#type, &remove.name));
            }
        }
        self.staged.upserts.extend(delta.upserts);
        self.staged.removes.extend(delta.removes);
        self.gone.extend(delta.gone);
        let staged = self.staged.upserts.len() + self.staged.removes.len() + self.gone.len();
        if staged > STAGED_RESOURCES_MAX {
            return Err(SessionError::TooLarge);
        }
        if delta.more {
            return Ok(None);
        }
        if delta.revision < self.revision {
            return Err(SessionError::Backwards { held: self.revision, offered: delta.revision });
        }
        self.revision = delta.revision;
        self.remove_gone()?;
        let listed = if delta.in_sync { self.listed.take() } else { None };
        Ok(Some(Event::Batch(Batch {
            nonce: delta.nonce,
            revision: delta.revision,
            identities_through: delta.identities_through,
            in_sync: delta.in_sync,
            listed: listed.filter(|_| delta.full),
            expected: delta.expected,
            ..mem::take(&mut self.staged)
        })))
    }
}

impl Session {
    /// Gives what is gone by its place its name. A name that comes in another form is not gone.
    fn remove_gone(&mut self) -> Result<(), SessionError> {
        let (gone, listing) = (mem::take(&mut self.gone), &self.listing);
        if gone.is_empty() {
            return Ok(());
        }
        let comes: BTreeSet<Key> =
            self.staged.upserts.iter().map(|upsert| key(upsert.r#type, &upsert.name)).collect();
        for place in gone {
            let listed = listing.get(place as usize);
            let key = listed.ok_or(SessionError::NotListed { place, listed: listing.len() })?;
            if !comes.contains(key) {
                self.staged.removes.push(v1::Remove { r#type: key.kind.into(), name: key.name.clone() });
            }
        }
        self.listing = Vec::new();
        Ok(())
    }
}

fn key(kind: i32, name: &str) -> Key {
    Key { kind: ResourceType::try_from(kind).unwrap_or_default(), name: name.to_owned() }
}

#[cfg(test)]
mod tests;
