//! Who has realised what, whichever controller a node is connected to: what the other controllers say in the store
//! ([`records`]), what this one says ([`own`], written by [`keep`]), and who waits for it ([`waiters`]).
pub mod keep;
pub mod own;
pub mod records;
pub mod waiters;

use std::time::SystemTime;

use crate::fleet::Rejected;

/// How far a node is. Of a node that is not connected anywhere, too.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    pub connected: bool,
    /// Of the controller that it is connected to, or was last.
    pub controller: String,
    /// Everything up to this revision is realised.
    pub realised: u64,
    /// Everything up to this revision is realised or rejected.
    pub answered: u64,
    pub rejections: Vec<Rejected>,
    /// Connected: when it was last heard, no finer than [`PROGRESS_HEARTBEAT`](crate::limits::PROGRESS_HEARTBEAT) if it
    /// is connected elsewhere. Not connected: when it last was. `None`: never, as far as anybody remembers.
    pub last_seen: Option<SystemTime>,
}

/// Where a node is about one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    Realised,
    NotYet,
    /// Which resource, and why.
    Rejected(String),
}

impl Standing {
    pub fn reached(&self, node: &str, target: u64) -> Reached {
        // What is not answered yet may take the place of what was rejected.
        let answered = self.answered >= target;
        let rejected = self.rejections.iter().find(|rejected| answered && rejected.revision <= target);
        match rejected {
            Some(rejected) => {
                let kind = rejected.kind.as_str_name().trim_start_matches("RESOURCE_TYPE_").to_lowercase();
                let text = format!("node {node} rejected {kind} {}: {}", rejected.name, rejected.reason);
                Reached::Rejected(text)
            }
            None if self.realised >= target => Reached::Realised,
            None => Reached::NotYet,
        }
    }
}
