//! Rates of endpoints and connections.

use bytemuck::{Pod, Zeroable};

/// Key of `BUCKETS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BucketKey {
    /// Of the endpoint's host side.
    pub ifindex: u32,
    /// [`Direction`](super::Direction), as the workload sees it.
    pub direction: u32,
}

/// How far an endpoint may be ahead of its rate: so long,
pub const AHEAD_NANOSECONDS: u64 = 100_000_000;
/// and, at low rates, at least by so many bytes.
pub const AHEAD_BYTES_MIN: u64 = 32 * 1024;
const SECOND: u64 = 1_000_000_000;

/// How long so many bytes take at a rate (bytes a second, not 0).
#[inline(always)]
pub const fn nanoseconds(bytes: u64, rate: u64) -> u64 {
    bytes * SECOND / rate
}

/// How far ahead of its rate (bytes a second, not 0) an endpoint may be.
#[inline(always)]
pub const fn ahead_max(rate: u64) -> u64 {
    if rate >= AHEAD_BYTES_MIN * (SECOND / AHEAD_NANOSECONDS) {
        AHEAD_NANOSECONDS
    } else {
        nanoseconds(AHEAD_BYTES_MIN, rate)
    }
}

/// Cgroups around a socket that are looked for, from the hierarchy's root on.
pub const CGROUP_LEVELS: usize = 12;

/// What is kept with a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PacedSocket {
    /// Numbers of the cgroups that the process was in which made the socket, the hierarchy's root first; 0: no more. All are 0
    /// of sockets of other network namespaces.
    pub cgroups: [u64; CGROUP_LEVELS],
    /// Bytes a second that the socket was told; 0: none.
    pub rate: u32,
    pub zero: u32,
}

/// Key of `ROUND_TRIPS`: identities of both ends of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Pair {
    /// Whose process is on this node.
    pub local: u32,
    pub remote: u32,
}

/// Smoothed round-trip times (RFC 6298), one for about each round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RoundTrips {
    pub samples: u64,
    pub sum_microseconds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_ahead_is_a_tenth_of_a_second_or_a_few_packets() {
        assert_eq!(ahead_max(12_500_000), 100_000_000);
        assert_eq!(ahead_max(AHEAD_BYTES_MIN), SECOND);
        assert!(ahead_max(AHEAD_BYTES_MIN * 10 - 1) >= AHEAD_NANOSECONDS);
    }

    #[test]
    fn no_packet_at_no_rate_overflows() {
        // The largest packet, at the lowest rate that can be written.
        assert_eq!(nanoseconds(u64::from(u32::MAX), 1), u64::from(u32::MAX) * SECOND);
    }
}
