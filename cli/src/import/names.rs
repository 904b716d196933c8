//! Names of the imported policies: kind, namespace and name of the document, in one namespace for all.
use std::collections::BTreeMap;

use weft_proto::v1;

use super::document::{Draft, Origin};
use crate::manifest::{Place, Problem};

/// Of every resource of Weft, in bytes.
const NAME_BYTES_MAX: usize = 253;
/// `-` and eight hexadecimal digits.
const SUFFIX_BYTES: usize = 9;

#[derive(Default)]
pub(super) struct Names {
    /// Names that are taken.
    given: BTreeMap<String, Identity>,
    documents: BTreeMap<Identity, Place>,
}

/// Kind, namespace, name.
type Identity = (&'static str, Option<String>, String);

impl Names {
    /// The policy with its name. The same document twice is a problem: which of them is meant?
    pub(super) fn name(&mut self, draft: Draft) -> Result<v1::Policy, Problem> {
        let Draft { origin, part, mut policy } = draft;
        let Origin { kind, namespace, name, labels, place } = origin;
        let identity = (kind, namespace, name);
        if part.is_none_or(|part| part == 1)
            && let Some(first) = self.documents.insert(identity.clone(), place.clone())
        {
            let message = format!("{kind} `{}` is defined twice", identity.2);
            return Err(Problem::new(place, message)
                .label("again here")
                .help(format!("first defined at {first}")));
        }
        let name = self.unique(&identity, part);
        policy.metadata = Some(v1::Metadata { name, labels, ..v1::Metadata::default() });
        Ok(policy)
    }

    fn unique(&mut self, identity: &Identity, part: Option<usize>) -> String {
        let (kind, namespace, name) = identity;
        let kind = kind.to_ascii_lowercase();
        let parts = [Some(kind), namespace.clone(), Some(name.clone()), part.map(|part| part.to_string())];
        let mut full = parts.into_iter().flatten().collect::<Vec<_>>().join("-");
        // Taken: `a-b` in `c`, and `b` in `c-a`.
        if full.len() > NAME_BYTES_MAX || self.given.get(&full).is_some_and(|taken| taken != identity) {
            full.truncate(full.floor_char_boundary(NAME_BYTES_MAX - SUFFIX_BYTES));
            let kept = full.trim_end_matches(['-', '.']);
            full = format!("{kept}-{:08x}", fingerprint(&format!("{identity:?}{part:?}")));
        }
        self.given.insert(full.clone(), identity.clone());
        full
    }
}

/// FNV-1a, folded to 32 bits: the same for the same document in every version, so that importing again names it alike.
fn fingerprint(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 32) ^ (hash & 0xffff_ffff)
}
