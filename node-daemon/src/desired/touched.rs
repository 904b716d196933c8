//! What a batch may change, where it is of the kind that comes all the time.

use std::{collections::BTreeSet, net::IpAddr};

use weft_proto::v1::ResourceType;
use weft_shared::policy::compile::IdentitySets;

use super::{Batch, known_type, resource};

/// Names of what a batch of nothing but members, addresses and policies speaks of. What became of them, the desired state says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Set and identity.
    pub members: BTreeSet<(String, u32)>,
    pub addresses: BTreeSet<IpAddr>,
    pub policies: BTreeSet<String>,
}

impl Touched {
    /// `None`: the batch is of another kind.
    pub fn by(batch: &Batch) -> Option<Self> {
        if batch.in_sync || batch.listed.is_some() {
            return None;
        }
        let upserts = batch.upserts.iter().map(|upsert| (upsert.r#type, upsert.name.as_str()));
        let removes = batch.removes.iter().map(|remove| (remove.r#type, remove.name.as_str()));
        let mut touched = Self::default();
        for (kind, name) in upserts.chain(removes) {
            match known_type(kind)? {
                ResourceType::IdentitySetMember => {
                    let (set, identity) = resource::member(name).ok()?;
                    touched.members.insert((set.to_owned(), identity));
                }
                ResourceType::Address => drop(touched.addresses.insert(name.parse().ok()?)),
                ResourceType::Policy => drop(touched.policies.insert(name.to_owned())),
                _ => return None,
            }
        }
        Some(touched)
    }

    /// Makes the touched members in `to` what they are in `from`.
    pub fn copy_members(&self, from: &IdentitySets, to: &mut IdentitySets) {
        for (set, identity) in &self.members {
            if from.get(set).is_some_and(|members| members.contains(identity)) {
                to.entry(set.clone()).or_default().insert(*identity);
            } else if let Some(members) = to.get_mut(set) {
                members.remove(identity);
                if members.is_empty() {
                    to.remove(set);
                }
            }
        }
    }
}
