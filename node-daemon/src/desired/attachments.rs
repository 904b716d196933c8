//! The endpoints of this node: what was attached, kept on disk so that they survive a restart of the daemon. They end
//! with their interface, or with the node's boot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::limits::ENDPOINTS_MAX;

use super::{
    EndpointWord,
    disk::{Content, Disk, DiskError},
};

/// Former bearers of names that are remembered.
const GONE_MAX: usize = ENDPOINTS_MAX;

/// A MAC address.
pub type Mac = [u8; 6];

/// One endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub name: String,
    /// Made up for each attachment, so that what is said of a former bearer of the name is never taken for this one.
    #[serde(default)]
    pub instance: String,
    pub labels: BTreeMap<String, String>,
    /// The host's side.
    pub interface: String,
    /// Of `interface`; another index under the same name is another interface.
    pub ifindex: u32,
    /// Path of the workload's namespace; empty where an existing interface was given.
    pub netns: String,
    /// We made the interface and remove it at detach.
    pub ours: bool,
    /// A veth whose peer is in another namespace.
    pub peer: bool,
    pub container_id: String,
    pub address4: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub mac: Mac,
    pub gateway_mac: Mac,
    pub ingress_bits_per_second: Option<u64>,
    pub egress_bits_per_second: Option<u64>,
    /// Revision at which a controller took it in; `None`: not answered yet.
    pub accepted: Option<u64>,
    /// Identity of another endpoint of this node with the same labels, lent while no controller could be reached.
    #[serde(default)]
    pub lent_identity: Option<u32>,
}

impl Attachment {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.address4.map(IpAddr::V4).into_iter().chain(self.address6.map(IpAddr::V6))
    }

    /// Whether something that was said of this instance of the name is about this attachment.
    pub fn is_meant_by(&self, instance: &str) -> bool {
        instance.is_empty() || instance == self.instance
    }

    /// Whether the word cannot be about a former bearer of the name. A word that names this instance never is: it may
    /// well be older than the answer, which says what the store is at where the report was stored before.
    fn is_surely_meant(&self, word: &EndpointWord, accepted: u64) -> bool {
        if word.instance.is_empty() { word.revision >= accepted } else { word.instance == self.instance }
    }
}

/// An endpoint that was open here and is gone, and whose policy this node may still hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    pub labels: BTreeMap<String, String>,
    pub identity: u32,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachments {
    /// The kernel's boot that they belong to.
    pub boot_id: String,
    pub endpoints: BTreeMap<String, Attachment>,
    /// Names that were detached, for as long as a controller's word about the former bearer may still come.
    pub gone: BTreeSet<String>,
    /// By their names.
    #[serde(default)]
    pub former: BTreeMap<String, Former>,
}

impl Attachments {
    pub fn load(disk: &Disk) -> Result<Self, DiskError> {
        let Some(payload) = disk.load(Content::Attachments)? else { return Ok(Self::default()) };
        serde_json::from_slice(&payload).map_err(|error| DiskError::Broken {
            path: disk.path(Content::Attachments),
            offset: 0,
            what: error.to_string(),
        })
    }

    pub fn store(&self, disk: &Disk) -> Result<(), DiskError> {
        let payload = serde_json::to_vec(self)
            .map_err(|error| DiskError::Io { path: disk.path(Content::Attachments), source: error.into() })?;
        disk.store(Content::Attachments, &payload)
    }

    /// Identity, and whether it may be open: by the controllers' word, or on credit until they have spoken.
    pub fn standing(
        &self,
        attachment: &Attachment,
        words: &BTreeMap<String, EndpointWord>,
    ) -> Option<(u32, bool)> {
        let word = self.word(attachment, words).map(|word| (word.identity, word.open));
        let lent = attachment.lent_identity.filter(|identity| is_held(*identity, words));
        let lent = lent.map(|identity| (identity, true));
        // Lent is lent until the word opens: a running workload is not closed only to be classified.
        word.filter(|(_, open)| *open).or(lent).or(word)
    }

    /// The identity of an open endpoint of this node that has exactly these labels, or of one that is gone and whose
    /// policy is still held.
    pub fn known_identity(
        &self,
        labels: &BTreeMap<String, String>,
        words: &BTreeMap<String, EndpointWord>,
    ) -> Option<u32> {
        let alike = self.endpoints.values().filter(|other| other.labels == *labels);
        let spoken = alike.filter_map(|other| self.word(other, words));
        let open = spoken.filter(|word| word.open).map(|word| word.identity);
        let alike = self.former.values().filter(|former| former.labels == *labels);
        let former = alike.map(|former| former.identity).filter(|identity| is_held(*identity, words));
        open.chain(former).next()
    }

    /// Takes an endpoint out of the list. `None`: there is none of this name.
    pub fn end(&mut self, name: &str, words: &BTreeMap<String, EndpointWord>) -> Option<Attachment> {
        let own = self.endpoints.remove(name)?;
        self.gone.insert(name.to_owned());
        if let Some((identity, true)) = self.standing(&own, words) {
            self.former.insert(name.to_owned(), Former { labels: own.labels.clone(), identity });
        }
        Some(own)
    }

    /// For a node that goes to another store: numbers of identities mean something else there.
    pub fn forget_identities(&mut self) {
        self.former.clear();
        for own in self.endpoints.values_mut() {
            own.lent_identity = None;
        }
    }

    /// The controllers' word, if it is about this bearer of the name and not about one that was detached before.
    pub fn word<'a>(
        &self,
        attachment: &Attachment,
        words: &'a BTreeMap<String, EndpointWord>,
    ) -> Option<&'a EndpointWord> {
        let accepted = attachment.accepted?;
        let word = words.get(&attachment.name).filter(|word| attachment.is_meant_by(&word.instance))?;
        (!self.gone.contains(&attachment.name) || attachment.is_surely_meant(word, accepted)).then_some(word)
    }

    /// The controllers' word is another store's from here on, whose revisions begin elsewhere. Of a name that had another
    /// bearer, it may mean that one: it waits for an answer.
    pub fn begin_anew(&mut self) {
        for own in self.endpoints.values_mut().filter(|own| own.accepted.is_some()) {
            own.accepted = (!self.gone.contains(&own.name)).then_some(0);
        }
    }

    /// An endpoint that the controllers' word has opened needs no credit any more.
    pub fn return_lent(&mut self, words: &BTreeMap<String, EndpointWord>) {
        let opened = |own: &Attachment| self.word(own, words).is_some_and(|word| word.open);
        let opened: Vec<String> =
            self.endpoints.values().filter(|own| opened(own)).map(|own| own.name.clone()).collect();
        for name in opened {
            if let Some(own) = self.endpoints.get_mut(&name) {
                own.lent_identity = None;
            }
        }
    }

    /// Forgets former bearers about whom nothing can come any more: the new bearer was spoken of, or a controller has
    /// just said all (`all_was_sent`) without a word about the name. Beyond a bound, those never spoken of, too.
    pub fn forget_gone(&mut self, words: &BTreeMap<String, EndpointWord>, all_was_sent: bool) {
        self.former.retain(|_, former| is_held(former.identity, words));
        let endpoints = &self.endpoints;
        let silent_too = all_was_sent || self.gone.len() > GONE_MAX;
        self.gone.retain(|name| match (endpoints.get(name), words.get(name)) {
            (None, word) => word.is_some() || !silent_too,
            (Some(own), Some(word)) => {
                own.accepted.is_none_or(|accepted| !own.is_surely_meant(word, accepted))
            }
            (Some(_), None) => true,
        });
    }
}

/// Whether the controllers' word about some endpoint of this node has this identity: as long as it does, they send its
/// policies. On credit nobody is open without them.
fn is_held(identity: u32, words: &BTreeMap<String, EndpointWord>) -> bool {
    words.values().any(|word| word.identity == identity)
}
