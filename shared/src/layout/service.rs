//! Load balancing: frontends, each service's table, and what sockets and clients are remembered for.
//!
//! A table is an array of its own in the array of arrays `SERVICES`, so that it changes as a whole: whoever looks into it
//! holds one revision of it until the end, and numbers of backends mean something in that one alone. It is never written
//! again once it is there. Its elements: a [`ServiceHeader`]; the [`ServiceBackend`]s, ordered by address and port
//! ([`ServiceBackend::order`]); the slots of the Maglev table, each the number of a backend, [`SLOTS_PER_ELEMENT`] to an element.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

use super::Address;

/// One element of a service's table. As large as a backend: a look-up for the header, one for the slot and one for the backend
/// are all that a new flow needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Element {
    pub words: [u64; 4],
}

/// Slots in one element.
pub const SLOTS_PER_ELEMENT: u32 = 16;

/// An element with slots.
pub type SlotsElement = [u16; SLOTS_PER_ELEMENT as usize];

/// The first element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceHeader {
    /// Of all that the table says. Programs don't look at it.
    pub digest: [u64; 2],
    /// 0: nobody takes new flows, they are to be rejected.
    pub slots: u16,
    pub backends: u16,
    /// `service_flags`.
    pub flags: u32,
    /// For how long after its last flow a client keeps its backend; 0: not at all.
    pub affinity_seconds: u32,
    /// Number of the set in `SOURCES` that sources are looked for in; 0: the set that nobody is in.
    pub sources: u32,
}

/// Bits of [`ServiceHeader::flags`].
pub mod service_flags {
    /// Slots are picked by chance, and not by a hash of the flow.
    pub const RANDOM: u32 = 1;
    /// Backends answer the client themselves.
    pub const DSR: u32 = 2;
    /// Sources are judged.
    pub const SOURCES: u32 = 4;
    /// Sources in the set are those that are refused, and not those that are let in.
    pub const SOURCES_DENIED: u32 = 8;
    /// Connections to backends that have gone are to be ended: sockets remember by which frontend they came to theirs.
    pub const END_CONNECTIONS: u32 = 16;
    /// The node's own processes are let in, whose sockets have no source yet where they are judged.
    pub const SOURCES_NODE: u32 = 32;
}

/// Key of `SOURCES`: a set, and in it a prefix. The kernel wants the length first, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SourceKey {
    /// Of the set's number and the address, of which those of IPv4 are mapped.
    pub bits: u32,
    pub set: u32,
    pub address: Address,
}

impl SourceKey {
    /// Bits of the set's number.
    pub const SET_BITS: u32 = 32;
}

/// What the daemon notes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TableNote {
    /// 0: there is no table.
    pub digest: [u64; 2],
    pub elements: u64,
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceBackend {
    pub address: Address,
    /// Network order; 0: the frontend's.
    pub port: u16,
    /// `backend_flags`.
    pub flags: u16,
    pub weight: u16,
    pub reserved: [u16; 5],
}

/// Bits of [`ServiceBackend::flags`].
pub mod backend_flags {
    /// Has slots: takes new flows. One without keeps the flows that it has.
    pub const NEW_FLOWS: u16 = 1;
    /// An endpoint of this node.
    pub const LOCAL: u16 = 2;
}

impl ServiceBackend {
    /// What backends are ordered by: the address as it reads, then the port.
    #[inline(always)]
    pub const fn order(address: &Address, port: u16) -> [u64; 3] {
        let Address { words: [a, b, c, d] } = *address;
        [pair(a, b), pair(c, d), u16::from_be(port) as u64]
    }

    /// 1 if the backend is before this place in the order, else 0. Without a branch: each would double what the verifier looks at
    /// in a search (until kernel 6.3 it takes no two states of a program with functions for the same).
    #[inline(always)]
    pub fn is_before(&self, place: [u64; 3]) -> u32 {
        let [high, low, port] = Self::order(&self.address, self.port);
        let [place_high, place_low, place_port] = place;
        let before = less(high, place_high)
            | !differs(high, place_high)
                & (less(low, place_low) | !differs(low, place_low) & less(port, place_port));
        (before & 1) as u32
    }
}

/// 1 or 0.
#[inline(always)]
fn less(left: u64, right: u64) -> u64 {
    let (left, right) = (black_box(left), black_box(right));
    ((!left & right) | ((!left | right) & left.wrapping_sub(right))) >> 63
}

/// 1 or 0.
#[inline(always)]
fn differs(left: u64, right: u64) -> u64 {
    let difference = black_box(left ^ right);
    (difference | black_box(difference.wrapping_neg())) >> 63
}

#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64
}

/// The element in which a slot is.
#[inline(always)]
pub const fn slot_element(backends: u16, slot: u32) -> u32 {
    1 + backends as u32 + slot / SLOTS_PER_ELEMENT
}

/// The slot of a flow's hash; 0 where there are none.
#[inline(always)]
pub const fn slot_of(hash: u32, slots: u16) -> u32 {
    ((hash as u64 * slots as u64) >> 32) as u32
}

/// A hash of a socket's choice: each bit depends on each (finalizer of `MurmurHash3`'s 64-bit variant).
#[inline(always)]
pub const fn socket_hash(cookie: u64, address: &Address, port: u16) -> u32 {
    let [high, low, port] = ServiceBackend::order(address, port);
    let mut hash = mix(cookie ^ (port << 48));
    hash = mix(hash ^ high);
    hash = mix(hash ^ low);
    (hash >> 32) as u32
}

/// A hash of a flow, the same on every node: what picks the backend of whom a packet tells of.
#[inline(always)]
pub const fn packet_hash(client: &Party, frontend: &Party, protocol: u8) -> u32 {
    let [high, low, port] = ServiceBackend::order(&client.address, client.port);
    let [to_high, to_low, to_port] = ServiceBackend::order(&frontend.address, frontend.port);
    let mut hash = mix(high ^ (port << 16 | to_port) ^ ((protocol as u64) << 32));
    hash = mix(hash ^ low);
    hash = mix(hash ^ to_high);
    hash = mix(hash ^ to_low);
    (hash >> 32) as u32
}

#[inline(always)]
const fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// Key of `FRONTENDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FrontendKey {
    /// Of a port of the node: [`Self::ANY_V4`] or [`Address::UNSPECIFIED`] (IPv6).
    pub address: Address,
    /// Network order.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`FrontendKind`].
    pub kind: u8,
}

impl FrontendKey {
    /// Any address of the node's, IPv4.
    pub const ANY_V4: Address = Address::from_v4(0);

    /// An address's port.
    #[inline(always)]
    pub const fn address(address: Address, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, kind: FrontendKind::Address as u8 }
    }

    /// A port of the node, in one family.
    #[inline(always)]
    pub const fn node_port(v4: bool, port: u16, protocol: u8) -> Self {
        let address = if v4 { Self::ANY_V4 } else { Address::UNSPECIFIED };
        Self { address, port, protocol, kind: FrontendKind::NodePort as u8 }
    }
}

/// What a frontend's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrontendKind {
    Address = 0,
    NodePort = 1,
}

/// Row of `FRONTENDS`: which tables say where its flows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Frontend {
    /// Slot in `SERVICES` for flows that begin on this node. Never 0.
    pub inside: u32,
    /// … and for those that come from elsewhere.
    pub outside: u32,
    /// `frontend_flags`.
    pub flags: u32,
}

/// Protocols that frontends have, in the order of their bits in `SERVED_PORTS`: TCP, UDP, SCTP (IANA numbers).
const SERVED: [u8; 3] = [6, UDP, 132];
const WORDS_OF_PORTS: u32 = 0x1_0000 / 64;
/// The word of `SERVED_PORTS` that is not 0 where there are frontends at all.
pub const ANY_SERVED: u32 = 3 * WORDS_OF_PORTS;
/// Words of `SERVED_PORTS`.
pub const SERVED_WORDS: u32 = ANY_SERVED + 1;

/// Where the ports (host order) of frontends have their bits in `SERVED_PORTS`: the word's number, and the bit in it. `None`: no
/// frontend has the protocol. Where the bit is not set, no frontend has the port; it may be set where none has it any more.
#[inline(always)]
pub const fn served_bit(protocol: u8, port: u16) -> Option<(u32, u64)> {
    let place = if protocol == SERVED[0] {
        0
    } else if protocol == SERVED[1] {
        1
    } else if protocol == SERVED[2] {
        2
    } else {
        return None;
    };
    Some((place * WORDS_OF_PORTS + port as u32 / 64, 1 << (port % 64)))
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// An address of the fleet's, which nobody outside is to reach.
    pub const CLUSTER: u32 = 1;
}

/// Mark (`SO_MARK`) of a daemon's sockets that probe backends: what they connect to is never taken for a service. It is the
/// number of our routes' protocol, too.
pub const PROBE_MARK: u32 = 119;

/// IANA protocol numbers.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Party {
    pub address: Address,
    /// Network order.
    pub port: u16,
    pub zero: u16,
}

impl Party {
    /// Whether both are the same. In words: a comparison of memory is a call in the kernel programs.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let (own, others) = (&self.address.words, &other.address.words);
        let words = (own[0] ^ others[0]) | (own[1] ^ others[1]) | (own[2] ^ others[2]) | (own[3] ^ others[3]);
        words | (self.port ^ other.port) as u32 == 0
    }
}

/// What a connected socket is told of its peer, and who that is. Kept with the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketPeer {
    pub frontend: Party,
    pub backend: Party,
}

/// Key of `SOCKET_FLOWS`, for sockets that name their peer with each datagram: where what goes to a frontend went last, and from which frontend
/// what comes from a backend is. Connected ones have the latter where they are ended when the backend goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SocketFlowKey {
    pub cookie: u64,
    pub party: Party,
    /// A [`Way`].
    pub way: u32,
}

/// Which half of a socket's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// Frontend → its backend, with the port as in the table.
    ToFrontend = 0,
    /// Backend → the frontend.
    FromBackend = 1,
}

/// Key of `AFFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// Slot in `SERVICES`.
    pub service: u32,
    /// A [`ClientKind`].
    pub kind: u32,
    pub client: Address,
}

/// How a client is told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClientKind {
    /// By its address.
    Address = 0,
    /// By the cookie of its network namespace, in the address's first two words: a socket has no address yet.
    Namespace = 1,
}

/// Row of `AFFINITY`. Used only as long as the backend is in the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Affinity {
    /// With the port as in the table.
    pub backend: Party,
    pub reserved: u32,
    /// Of the last flow; nanoseconds of the kernel's monotonic clock.
    pub seen_at: u64,
}

const _: () = {
    assert!(size_of::<Element>() == size_of::<ServiceHeader>());
    assert!(size_of::<Element>() == size_of::<ServiceBackend>());
    assert!(size_of::<Element>() == size_of::<SlotsElement>());
};

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn backends_are_ordered_as_their_addresses_read() {
        let order = |text: &str, port: u16| {
            ServiceBackend::order(&text.parse::<IpAddr>().unwrap().into(), port.to_be())
        };
        assert!(order("10.0.0.2", 80) < order("10.0.1.1", 80));
        assert!(order("10.0.0.2", 80) < order("10.0.0.2", 256));
        assert!(order("10.0.0.2", 256) < order("10.0.0.10", 1));
        assert!(order("fd00::1", 1) < order("fd00:0:0:1::", 1));
    }

    #[test]
    fn a_backend_is_before_a_place_as_the_order_says() {
        let addresses = ["10.0.0.1", "10.0.0.2", "10.0.1.0", "fd00::1", "fd00:0:0:1::", "ff00::", "::1"];
        let places = addresses.iter().flat_map(|text| [0, 1, 80, 255, 256, 65_535].map(|port| (*text, port)));
        let places: Vec<(Address, u16)> = places
            .map(|(text, port): (&str, u16)| (text.parse::<IpAddr>().unwrap().into(), port.to_be()))
            .collect();
        for (address, port) in &places {
            let backend = ServiceBackend { address: *address, port: *port, ..Zeroable::zeroed() };
            for (other, other_port) in &places {
                let other = ServiceBackend::order(other, *other_port);
                let before = ServiceBackend::order(address, *port) < other;
                assert_eq!(backend.is_before(other), u32::from(before), "{backend:?} {other:?}");
            }
        }
    }

    #[test]
    fn hashes_reach_every_slot_and_no_other() {
        assert_eq!(slot_of(0, 16_381), 0);
        assert_eq!(slot_of(u32::MAX, 16_381), 16_380);
        assert_eq!(slot_of(u32::MAX, 1), 0);
        assert_eq!(slot_element(100, 16_380), 1 + 100 + 1023);
    }

    #[test]
    fn cookies_that_follow_one_another_are_spread_over_the_slots() {
        let address = IpAddr::from([10, 96, 0, 1]).into();
        let mut counts = [0_u32; 8];
        for cookie in 0..8000 {
            counts[slot_of(socket_hash(cookie, &address, 80), 8) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
