//! A delta as the messages that carry it, none much larger than [`limits::DELTA_CHUNK_BYTES`]. They are made one by one,
//! as the stream takes them; the bytes of resources are shared.
use std::{sync::Arc, time::SystemTime, vec};

use weft_proto::v1::{self, controller_message::Message};

use crate::{
    fleet::{Delta, Key, Resource},
    limits,
};

/// What an item costs beside its name and bytes.
const ITEM_OVERHEAD_BYTES: usize = 16;
/// What a place costs at most.
const GONE_BYTES: usize = 5;

#[derive(Debug)]
pub struct Chunks {
    head: v1::Delta,
    upserts: vec::IntoIter<Arc<Resource>>,
    removes: vec::IntoIter<Key>,
    gone: vec::IntoIter<u32>,
    /// For the last message.
    expected: Vec<v1::TypeDigest>,
    done: bool,
}

impl Chunks {
    pub fn new(delta: Delta, committed_at: Option<SystemTime>) -> Self {
        let head = v1::Delta {
            nonce: delta.nonce,
            from_revision: delta.from_revision,
            revision: delta.revision,
            identities_through: delta.identities_through,
            committed_at: committed_at.map(Into::into),
            in_sync: delta.in_sync,
            full: delta.full,
            ..v1::Delta::default()
        };
        Self {
            head,
            upserts: delta.upserts.into_iter(),
            removes: delta.removes.into_iter(),
            gone: delta.gone.into_iter(),
            expected: delta.expected,
            done: false,
        }
    }
}

impl Iterator for Chunks {
    type Item = v1::ControllerMessage;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut message = self.head.clone();
        let mut bytes = 0;
        while bytes < limits::DELTA_CHUNK_BYTES {
            if let Some(resource) = self.upserts.next() {
                bytes += resource.key.name.len() + resource.bytes.len() + ITEM_OVERHEAD_BYTES;
                message.upserts.push(upsert(&resource));
            } else if let Some(key) = self.removes.next() {
                bytes += key.name.len() + ITEM_OVERHEAD_BYTES;
                message.removes.push(v1::Remove { r#type: key.kind.into(), name: key.name.to_string() });
            } else if let Some(place) = self.gone.next() {
                bytes += GONE_BYTES;
                message.gone.push(place);
            } else {
                break;
            }
        }
        message.more = self.upserts.len() + self.removes.len() + self.gone.len() > 0;
        if message.more {
            // Only the last message says what holds once all of them are applied.
            (message.in_sync, message.full) = (false, false);
        } else {
            message.expected = std::mem::take(&mut self.expected);
        }
        self.done = !message.more;
        Some(v1::ControllerMessage { message: Some(Message::Delta(message)) })
    }
}

fn upsert(resource: &Resource) -> v1::Upsert {
    v1::Upsert {
        r#type: resource.key.kind.into(),
        name: resource.key.name.to_string(),
        requires: resource.requires.to_vec(),
        bytes: resource.bytes.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(resources: usize, bytes_each: usize) -> Delta {
        let resource = |index: usize| {
            let key = Key::new(v1::ResourceType::Policy, format!("p{index}"));
            Arc::new(Resource::new(key, vec![0; bytes_each].into(), 7))
        };
        let upserts = (0..resources).map(resource).collect();
        let revision = 7;
        Delta {
            nonce: 1,
            revision,
            identities_through: 300,
            upserts,
            in_sync: true,
            full: true,
            ..Delta::default()
        }
    }

    fn messages(delta: Delta) -> Vec<v1::Delta> {
        let messages = Chunks::new(delta, None).map(|message| message.message);
        messages
            .map(
                |message| {
                    if let Some(Message::Delta(delta)) = message { delta } else { panic!("not a delta") }
                },
            )
            .collect()
    }

    #[test]
    fn a_large_delta_is_several_messages_and_the_last_one_says_so() {
        let parts = messages(delta(300, 10_000));
        assert!(parts.len() > 1);
        for part in &parts {
            let bytes: usize = part.upserts.iter().map(|upsert| upsert.bytes.len()).sum();
            assert!(bytes < 1024 * 1024, "{bytes} bytes in one message");
        }
        let (last, earlier) = parts.split_last().unwrap();
        assert!(earlier.iter().all(|part| part.more && !part.in_sync && !part.full));
        assert!(!last.more && last.in_sync && last.full);
        assert_eq!(parts.iter().map(|part| part.upserts.len()).sum::<usize>(), 300);
    }

    #[test]
    fn a_resource_is_sent_with_the_features_that_it_requires() {
        let policy = v1::NodePolicy { tier: v1::Tier::Admin.into(), ..v1::NodePolicy::default() };
        let bytes = prost::Message::encode_to_vec(&policy).into();
        let resource = Resource::new(Key::new(v1::ResourceType::Policy, "p"), bytes, 0);
        let parts = messages(Delta { upserts: vec![Arc::new(resource)], ..Delta::default() });
        assert_eq!(parts[0].upserts[0].requires, ["policy-tiers"]);
    }

    #[test]
    fn a_delta_of_nothing_is_one_message() {
        assert_eq!(messages(delta(0, 0)).len(), 1);
    }
}
