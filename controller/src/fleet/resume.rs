//! Finds out what a node that returns holds of what it is to hold, in few bytes: digests of types, then of buckets of the
//! types that differ, then of the resources in the buckets that differ (`weft_shared::digest`). Nothing of it is trusted:
//! the delta that ends a resume says to which digests it leads, and a node for which that is not so is sent everything.
use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;
use weft_proto::v1::{self, ResourceType};
use weft_shared::digest::{self, Digest};

use super::resources::{Id, Resource, Resources};
use crate::limits;

/// What a node says that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    pub revision: u64,
    types: BTreeMap<i32, Sum>,
}

/// Of a type's resources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    digest: Digest,
    resources: usize,
}

impl Have {
    /// `None`: it wants everything, or cannot be understood.
    pub fn parse(have: &v1::Have) -> Option<Self> {
        let mut types = BTreeMap::new();
        for digest in &have.digests {
            let sum =
                Sum { digest: Digest::from_bytes(&digest.digest)?, resources: digest.resources as usize };
            if types.insert(digest.r#type, sum).is_some() {
                return None;
            }
        }
        (!types.is_empty()).then_some(Self { revision: have.revision, types })
    }
}

/// What the node was asked, in this order.
#[derive(Debug, Default)]
pub(super) struct Resume {
    types: Vec<Asked>,
    items_asked: bool,
}

#[derive(Debug)]
struct Asked {
    kind: ResourceType,
    buckets: u32,
    /// Those that differ, once that is known.
    differing: Vec<u32>,
}

pub(super) struct Begun {
    /// What the node holds as it should be.
    pub(super) same: RoaringBitmap,
    /// `None`: there is nothing to ask.
    pub(super) asked: Option<Resume>,
}

pub(super) struct Found {
    /// What the node holds as it should be.
    pub(super) same: RoaringBitmap,
    /// Places in its listing of what is to go, or to be replaced.
    pub(super) gone: Vec<u32>,
}

impl Resume {
    /// `None`: to find out what differs is not worth it.
    pub(super) fn begin(resources: &Resources, wanted: &RoaringBitmap, have: &Have) -> Option<Begun> {
        let mut own = ids_by_type(resources, wanted);
        for kind in have.types.keys() {
            // Of a type that this release does not know it cannot ask.
            own.entry(ResourceType::try_from(*kind).ok()?).or_default();
        }
        let (mut same, mut types, mut items) = (RoaringBitmap::new(), Vec::new(), 0);
        for (kind, ids) in own {
            let theirs = have.types.get(&kind.into()).copied().unwrap_or_default();
            if sum(resources, &ids) == theirs {
                same |= ids;
            } else if theirs.resources > 0 {
                items += theirs.resources;
                let most = theirs.resources.max(length(&ids));
                types.push(Asked { kind, buckets: digest::buckets_for(most), differing: Vec::new() });
            }
        }
        if items > limits::RESUME_ITEMS_MAX {
            return None;
        }
        let asked = (!types.is_empty()).then_some(Self { types, items_asked: false });
        Some(Begun { same, asked })
    }

    pub(super) fn buckets_wanted(&self) -> Vec<v1::WantBuckets> {
        let wanted = self.types.iter();
        wanted.map(|asked| v1::WantBuckets { r#type: asked.kind.into(), buckets: asked.buckets }).collect()
    }

    /// Returns what the node holds as it should be, and what to ask it. `None`: the answer does not fit the question, or so
    /// much differs that everything may as well be sent.
    pub(super) fn take_buckets(
        &mut self,
        resources: &Resources,
        wanted: &RoaringBitmap,
        report: &v1::DigestBuckets,
    ) -> Option<(RoaringBitmap, v1::WantItems)> {
        if self.items_asked || report.types.len() != self.types.len() {
            return None;
        }
        self.items_asked = true;
        let own = ids_by_type(resources, wanted);
        let (mut same, mut differ) = (RoaringBitmap::new(), 0);
        for (asked, theirs) in self.types.iter_mut().zip(&report.types) {
            let theirs_digests = shorts(&theirs.digests)?;
            if theirs.r#type() != asked.kind || theirs_digests.len() != asked.buckets as usize {
                return None;
            }
            let ids = own.get(&asked.kind).cloned().unwrap_or_default();
            let mut sums = vec![0_u32; asked.buckets as usize];
            for resource in ids.iter().filter_map(|id| resources.get(id)) {
                let sum = &mut sums[asked.bucket(resource) as usize];
                *sum = sum.wrapping_add(resource.digest.short());
            }
            let differs = |number: u32| sums[number as usize] != theirs_digests[number as usize];
            asked.differing = (0..asked.buckets).filter(|number| differs(*number)).collect();
            let is_same =
                |id: &Id| resources.get(*id).is_some_and(|resource| !differs(asked.bucket(resource)));
            let same_here: RoaringBitmap = ids.iter().filter(is_same).collect();
            differ += length(&ids) - length(&same_here);
            same |= same_here;
        }
        // A listing costs up to an eighth of what it may spare.
        if differ * 4 > length(wanted) * 3 {
            return None;
        }
        Some((same, self.items_wanted()))
    }

    fn items_wanted(&self) -> v1::WantItems {
        let types = self.types.iter().map(|asked| v1::WantTypeItems {
            r#type: asked.kind.into(),
            buckets: asked.buckets,
            numbers: asked.differing.clone(),
        });
        v1::WantItems { types: types.collect() }
    }

    /// `None`: the answer does not fit the question.
    pub(super) fn take_items(
        &self,
        resources: &Resources,
        wanted: &RoaringBitmap,
        report: &v1::DigestItems,
    ) -> Option<Found> {
        if !self.items_asked || report.types.len() != self.types.len() {
            return None;
        }
        let own = ids_by_type(resources, wanted);
        let mut found = Found { same: RoaringBitmap::new(), gone: Vec::new() };
        let mut place = 0;
        for (asked, theirs) in self.types.iter().zip(&report.types) {
            let digests = shorts(&theirs.digests)?;
            let listed: u64 = theirs.counts.iter().map(|count| u64::from(*count)).sum();
            let fits = theirs.counts.len() == asked.differing.len() && listed == digests.len() as u64;
            if theirs.r#type() != asked.kind || !fits {
                return None;
            }
            let ids = own.get(&asked.kind).cloned().unwrap_or_default();
            let mut unmatched = asked.index(resources, &ids);
            let mut digests = digests.into_iter();
            for (number, count) in asked.differing.iter().zip(&theirs.counts) {
                for short in digests.by_ref().take(*count as usize) {
                    match unmatched.remove(&(*number, short)) {
                        Some(id) => drop(found.same.insert(id)),
                        None => found.gone.push(place),
                    }
                    place += 1;
                }
            }
        }
        Some(found)
    }
}

impl Asked {
    fn bucket(&self, resource: &Resource) -> u32 {
        digest::bucket_at(resource.place, self.buckets)
    }

    /// By bucket and short digest. Two that share both are rare: the later one is sent, though the node may have it.
    fn index(&self, resources: &Resources, ids: &RoaringBitmap) -> HashMap<(u32, u32), Id> {
        let found = ids.iter().filter_map(|id| resources.get(id).map(|resource| (id, resource)));
        found.map(|(id, resource)| ((self.bucket(resource), resource.digest.short()), id)).collect()
    }
}

/// The digests of what a node is to hold.
pub(super) fn expected(resources: &Resources, wanted: &RoaringBitmap) -> Vec<v1::TypeDigest> {
    let types = ids_by_type(resources, wanted).into_iter().map(|(kind, ids)| {
        let Sum { digest, resources } = sum(resources, &ids);
        v1::TypeDigest {
            r#type: kind.into(),
            digest: digest.to_bytes().to_vec(),
            resources: u32::try_from(resources).unwrap_or(u32::MAX),
        }
    });
    types.collect()
}

fn ids_by_type(resources: &Resources, wanted: &RoaringBitmap) -> BTreeMap<ResourceType, RoaringBitmap> {
    let mut types: BTreeMap<ResourceType, RoaringBitmap> = BTreeMap::new();
    for (id, resource) in wanted.iter().filter_map(|id| resources.get(id).map(|resource| (id, resource))) {
        types.entry(resource.key.kind).or_default().insert(id);
    }
    types
}

fn sum(resources: &Resources, ids: &RoaringBitmap) -> Sum {
    let mut sum = Sum::default();
    for resource in ids.iter().filter_map(|id| resources.get(id)) {
        sum.digest += resource.digest;
        sum.resources += 1;
    }
    sum
}

fn length(ids: &RoaringBitmap) -> usize {
    usize::try_from(ids.len()).unwrap_or(usize::MAX)
}

/// `None`: these are not whole short digests.
fn shorts(bytes: &[u8]) -> Option<Vec<u32>> {
    let (shorts, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| shorts.iter().map(|short| u32::from_le_bytes(*short)).collect())
}
