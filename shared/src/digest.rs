//! Digests of resources, by which a node that returns and its controller find what differs. Frozen: nodes and controllers
//! of different versions must agree, so the tests hold values that were computed by another implementation.
//!
//! The digest of one resource is `SipHash` 2-4 with 128 bits (Aumasson, Bernstein: "`SipHash`: a fast short-input PRF", with
//! the extension of its reference implementation) under the key [`KEY`], of: type, then name, then the number of required
//! features and each of them, then the bytes. Numbers are u32, little endian; texts and bytes have their length in front.
//! Digests of many resources are wrapping sums.

use std::ops::{AddAssign, SubAssign};

use siphasher::sip128::{Hasher128 as _, SipHasher24};

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
