//! What this node holds, told to a controller in few bytes, so that only what differs is sent (`weft_shared::digest`).
//! A rejected resource is in none of it: it is sent again, and rejected again where it is no better.

use std::collections::BTreeMap;

use weft_proto::v1::{self, ResourceType};
use weft_shared::digest::{self, Digest};

use super::{Batch, Desired, Held, Key};

/// A controller's question that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error("the controller asked for {0} buckets, which is no power of two up to {max}", max = digest::BUCKETS_MAX)]
    Buckets(u32),
    #[error("the controller asked for bucket {number} of {buckets}, not in ascending order")]
    Number { number: u32, buckets: u32 },
    #[error("the controller asked for one type twice")]
    Twice,
}

/// Resources that were named to the controller, in the order in which it knows them.
pub type Listing = Vec<Key>;

impl Desired {
    /// Of each type of which something is held.
    pub fn digests(&self) -> Vec<v1::TypeDigest> {
        let mut digests = BTreeMap::new();
        for (key, held) in self.in_digests(None) {
            add(&mut digests, key.kind.into(), held.digest(key));
        }
        to_wire(digests)
    }

    pub fn digest_buckets(&self, wanted: &[v1::WantBuckets]) -> Result<v1::DigestBuckets, QuestionError> {
        refuse_twice(wanted.iter().map(v1::WantBuckets::r#type))?;
        let types = wanted.iter().map(|want| self.type_buckets(want.r#type(), want.buckets));
        Ok(v1::DigestBuckets { types: types.collect::<Result<_, _>>()? })
    }

    fn type_buckets(&self, kind: ResourceType, buckets: u32) -> Result<v1::TypeBuckets, QuestionError> {
        check_count(buckets)?;
        let mut sums = vec![0_u32; buckets as usize];
        for (key, held) in self.in_digests(Some(kind)) {
            let sum = &mut sums[digest::bucket(&key.name, buckets) as usize];
            *sum = sum.wrapping_add(held.digest(key).short());
        }
        let digests = sums.into_iter().flat_map(u32::to_le_bytes).collect();
        Ok(v1::TypeBuckets { r#type: kind.into(), digests })
    }

    /// The resources in some buckets, and which they are.
    pub fn digest_items(&self, wanted: &v1::WantItems) -> Result<(v1::DigestItems, Listing), QuestionError> {
        refuse_twice(wanted.types.iter().map(v1::WantTypeItems::r#type))?;
        let mut listing = Vec::new();
        let types = wanted.types.iter().map(|want| self.type_items(want, &mut listing));
        let types = types.collect::<Result<_, _>>()?;
        Ok((v1::DigestItems { types }, listing))
    }

    fn type_items(
        &self,
        want: &v1::WantTypeItems,
        listing: &mut Listing,
    ) -> Result<v1::TypeItems, QuestionError> {
        check_count(want.buckets)?;
        let mut found: BTreeMap<u32, Vec<(&Key, Digest)>> = BTreeMap::new();
        let mut least = 0;
        for &number in &want.numbers {
            if number < least || number >= want.buckets {
                return Err(QuestionError::Number { number, buckets: want.buckets });
            }
            least = number + 1;
            found.insert(number, Vec::new());
        }
        for (key, held) in self.in_digests(Some(want.r#type())) {
            if let Some(items) = found.get_mut(&digest::bucket(&key.name, want.buckets)) {
                items.push((key, held.digest(key)));
            }
        }
        let mut items = v1::TypeItems { r#type: want.r#type, ..v1::TypeItems::default() };
        for bucket in found.into_values() {
            items.counts.push(count(bucket.len()));
            for (key, digest) in bucket {
                items.digests.extend(digest.short().to_le_bytes());
                listing.push(key.clone());
            }
        }
        Ok(items)
    }

    /// Whether the batch would bring this state to where its controller thinks that it brings it.
    pub fn agrees(&self, batch: &Batch) -> bool {
        if batch.expected.is_empty() {
            return true;
        }
        let held = self.in_digests(None).map(|(key, held)| {
            let kind: i32 = key.kind.into();
            ((kind, key.name.as_str()), held.digest(key))
        });
        let mut digests: BTreeMap<(i32, &str), Digest> = held.collect();
        // In the order of `apply`. What will be rejected counts as it came: that it came is what is asked here.
        for upsert in &batch.upserts {
            let digest = Digest::of(upsert.r#type, &upsert.name, &upsert.requires, &upsert.bytes);
            digests.insert((upsert.r#type, &upsert.name), digest);
        }
        for remove in &batch.removes {
            digests.remove(&(remove.r#type, &*remove.name));
        }
        let mut sums = BTreeMap::new();
        for ((kind, _), digest) in digests {
            add(&mut sums, kind, digest);
        }
        let mut expected = batch.expected.clone();
        expected.sort_unstable_by_key(|digest| digest.r#type);
        to_wire(sums) == expected
    }

    fn in_digests(&self, kind: Option<ResourceType>) -> impl Iterator<Item = (&Key, &Held)> {
        let held = self.held.iter().filter(move |(key, _)| kind.is_none_or(|kind| kind == key.kind));
        held.filter(|(key, _)| !self.rejected.contains_key(*key))
    }
}

impl Held {
    fn digest(&self, key: &Key) -> Digest {
        Digest::of(key.kind.into(), &key.name, &self.requires, &self.bytes)
    }
}

fn add(sums: &mut BTreeMap<i32, (Digest, u32)>, kind: i32, digest: Digest) {
    let (sum, resources) = sums.entry(kind).or_default();
    *sum += digest;
    *resources += 1;
}

fn to_wire(sums: BTreeMap<i32, (Digest, u32)>) -> Vec<v1::TypeDigest> {
    let digests = sums.into_iter().map(|(kind, (digest, resources))| v1::TypeDigest {
        r#type: kind,
        digest: digest.to_bytes().to_vec(),
        resources,
    });
    digests.collect()
}

fn check_count(buckets: u32) -> Result<(), QuestionError> {
    if digest::is_bucket_count(buckets) { Ok(()) } else { Err(QuestionError::Buckets(buckets)) }
}

fn refuse_twice(kinds: impl Iterator<Item = ResourceType>) -> Result<(), QuestionError> {
    let mut seen = std::collections::BTreeSet::new();
    for kind in kinds {
        if !seen.insert(kind) {
            return Err(QuestionError::Twice);
        }
    }
    Ok(())
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
