//! Digests of resources, by which a node that returns and its controller find what differs. Frozen: nodes and controllers
//! of different versions must agree, so the tests hold values that were computed by another implementation.
//!
//! The digest of one resource is `SipHash` 2-4 with 128 bits (Aumasson, Bernstein: "`SipHash`: a fast short-input PRF", with
//! the extension of its reference implementation) under the key [`KEY`], of: type, then name, then the number of required
//! features and each of them, then the bytes. Numbers are u32, little endian; texts and bytes have their length in front.
//! Digests of many resources are wrapping sums.
//!
//! A report of an endpoint is digested as a resource of type ENDPOINT with the endpoint's name; its bytes are the encoded
//! `Endpoint` without what the controller adds to it and without what changes often and is told locally: of the metadata
//! neither uid nor revision, of the status the state only.

use std::ops::{AddAssign, SubAssign};

use siphasher::sip128::{Hasher128 as _, SipHasher24};
use weft_proto::{Message as _, v1};

/// The key of the hash: no secret, it only sets this use apart.
pub const KEY: [u8; 16] = *b"weft resource v1";

/// Resources that share a bucket, on average, when buckets are compared.
const RESOURCES_PER_BUCKET: usize = 8;
/// Buckets of one type.
pub const BUCKETS_MAX: u32 = 65_536;

/// Of one resource, or of any number of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(u128);

impl Digest {
    /// `kind`: the number of the type in the protocol.
    pub fn of(kind: i32, name: &str, requires: &[String], bytes: &[u8]) -> Self {
        let mut hasher = SipHasher24::new_with_key(&KEY);
        write_number(&mut hasher, kind.cast_unsigned());
        write(&mut hasher, name.as_bytes());
        write_number(&mut hasher, length(requires.len()));
        for feature in requires {
            write(&mut hasher, feature.as_bytes());
        }
        write(&mut hasher, bytes);
        Self(hasher.finish128().as_u128())
    }

    /// Of what a node reports of one of its endpoints, also if it is as the controller has stored it.
    pub fn of_report(endpoint: &v1::Endpoint) -> Self {
        let mut reported = endpoint.clone();
        let metadata = reported.metadata.get_or_insert_default();
        metadata.uid.clear();
        metadata.revision = 0;
        let name = metadata.name.clone();
        let state = reported.status.take().unwrap_or_default().state;
        reported.status = Some(v1::EndpointStatus { state, ..v1::EndpointStatus::default() });
        Self::of(v1::ResourceType::Endpoint.into(), &name, &[], &reported.encode_to_vec())
    }

    /// What buckets and items are compared by.
    pub fn short(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// `None`: these are not 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u128::from_le_bytes(bytes.try_into().ok()?)))
    }
}

/// The sum of digests as they are sent; `None`: one of them is none.
pub fn total<'a>(digests: impl IntoIterator<Item = &'a [u8]>) -> Option<Digest> {
    let mut total = Digest::default();
    for digest in digests {
        total += Digest::from_bytes(digest)?;
    }
    Some(total)
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl SubAssign for Digest {
    fn sub_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_sub(other.0);
    }
}

/// Into how many buckets this many resources are sorted: a power of two.
pub fn buckets_for(resources: usize) -> u32 {
    let wanted = resources.div_ceil(RESOURCES_PER_BUCKET).min(BUCKETS_MAX as usize);
    u32::try_from(wanted).map_or(BUCKETS_MAX, u32::next_power_of_two)
}

/// Whether a number of buckets can have been asked for.
pub fn is_bucket_count(buckets: u32) -> bool {
    buckets.is_power_of_two() && buckets <= BUCKETS_MAX
}

/// The bucket of a name, of a power of two of them.
pub fn bucket(name: &str, buckets: u32) -> u32 {
    bucket_at(place(name), buckets)
}

/// The bucket of a [`place`].
pub fn bucket_at(place: u32, buckets: u32) -> u32 {
    place & buckets.saturating_sub(1)
}

/// What the bucket of a name is made of, however many buckets there are.
pub fn place(name: &str) -> u32 {
    let mut hasher = SipHasher24::new_with_key(&KEY);
    write(&mut hasher, name.as_bytes());
    let [a, b, c, d, ..] = hasher.finish128().as_u128().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn write(hasher: &mut SipHasher24, bytes: &[u8]) {
    write_number(hasher, length(bytes.len()));
    std::hash::Hasher::write(hasher, bytes);
}

fn write_number(hasher: &mut SipHasher24, number: u32) {
    std::hash::Hasher::write(hasher, &number.to_le_bytes());
}

/// No message is as long: the last number stands for all beyond it.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: Digest) -> String {
        format!("{:032x}", u128::from_be_bytes(digest.to_bytes()))
    }

    #[test]
    fn digests_are_those_of_every_other_version() {
        let features = ["a".to_owned(), "bc".to_owned()];
        assert_eq!(hex(Digest::of(0, "", &[], b"")), "3732481b4e10f7827089250ab764bf93");
        assert_eq!(hex(Digest::of(5, "10.200.1.5", &[], &[8, 0x80, 2])), "b0f649bc28e64360189148f172e31a70");
        assert_eq!(
            hex(Digest::of(4, "api-from-web", &features, &[0; 40])),
            "d1882c227d802e699465abb185e4c80f"
        );
    }

    #[test]
    fn a_report_has_the_digest_of_what_the_controller_makes_of_it() {
        let reported = v1::Endpoint {
            metadata: Some(v1::Metadata { name: "api-1".to_owned(), ..v1::Metadata::default() }),
            node: "node-1".to_owned(),
            addresses: vec!["10.200.1.5".to_owned()],
            ..v1::Endpoint::default()
        };
        let mut stored = reported.clone();
        let metadata = stored.metadata.get_or_insert_default();
        (metadata.uid, metadata.revision) = ("made up".to_owned(), 7);
        let status =
            v1::EndpointStatus { identity: 256, reason: "for people".to_owned(), ..Default::default() };
        stored.status = Some(status);
        let of_bytes = |bytes: &[u8]| Digest::of(7, "api-1", &[], bytes);
        let frozen = b"\x0a\x07\x0a\x05api-1\x12\x06node-1\x22\x0a10.200.1.5\x3a\x00";
        assert_eq!(Digest::of_report(&reported), of_bytes(frozen));
        assert_eq!(Digest::of_report(&stored), of_bytes(frozen));

        stored.status.get_or_insert_default().set_state(v1::EndpointState::Ready);
        assert_ne!(Digest::of_report(&stored), of_bytes(frozen));
    }

    #[test]
    fn buckets_are_those_of_every_other_version() {
        let names = ["", "10.200.1.5", "api-from-web", "fleet"];
        assert_eq!(names.map(|name| bucket(name, BUCKETS_MAX)), [58369, 57416, 18082, 13808]);
        assert_eq!(names.map(|name| bucket(name, 1)), [0; 4]);
    }

    #[test]
    fn what_was_added_can_be_taken_away() {
        let (first, second) = (Digest::of(1, "a", &[], b"x"), Digest::of(1, "b", &[], b"x"));
        let mut sum = Digest::default();
        sum += first;
        sum += second;
        sum -= first;
        assert_eq!(sum, second);
        sum -= second;
        assert_eq!(sum, Digest::default());
    }

    #[test]
    fn a_part_can_not_pass_from_one_field_to_the_next() {
        let feature = ["b".to_owned()];
        let digests = [
            Digest::of(1, "ab", &[], b""),
            Digest::of(1, "a", &feature, b""),
            Digest::of(1, "a", &[], b"b"),
            Digest::of(1, "", &[], b"ab"),
        ];
        for (place, digest) in digests.iter().enumerate() {
            assert!(!digests[..place].contains(digest), "{place}");
        }
    }

    #[test]
    fn there_are_as_many_buckets_as_the_resources_need() {
        assert_eq!([0, 1, 8, 9, 100, 10_000].map(buckets_for), [1, 1, 1, 2, 16, 2048]);
        assert_eq!(buckets_for(usize::MAX), BUCKETS_MAX);
        assert!(is_bucket_count(1) && is_bucket_count(BUCKETS_MAX));
        assert!(!is_bucket_count(0) && !is_bucket_count(3) && !is_bucket_count(BUCKETS_MAX * 2));
    }
}
