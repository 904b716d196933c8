//! Every map: what maps to what, how large, and under which name it is pinned. Object names are the symbols in the
//! kernel programs' object; a new layout takes a new pin name.

use super::{Point, Reason};

/// A map of the object and the file name of its pin below `maps/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapName {
    pub object: &'static str,
    pub pin: &'static str,
}

const fn map(object: &'static str, pin: &'static str) -> MapName {
    MapName { object, pin }
}

/// Hash: interface index (u32) → `Endpoint`.
pub const ENDPOINTS: MapName = map("ENDPOINTS", "endpoints_v2");
/// Hash: `Address` → `Peer`.
pub const IPCACHE: MapName = map("IPCACHE", "ipcache_v1");
/// Longest prefix match: `PrefixKey` → `Peer`.
pub const PREFIXES: MapName = map("PREFIXES", "prefixes_v1");
/// Array: slot → `Node`.
pub const NODES: MapName = map("NODES", "nodes_v1");
/// Hash: underlay `Address` → slot in `NODES` (u32).
pub const NODE_ADDRESSES: MapName = map("NODE_ADDRESSES", "node_addresses_v1");
/// Array: slot → `Subject`.
pub const SUBJECTS: MapName = map("SUBJECTS", "subjects_v2");
/// Hash: `PeerKey` → number of a rulebook (u32).
pub const PEER_RULES: MapName = map("PEER_RULES", "peer_rules_v1");
/// Longest prefix match: `RuleKey` → `PolicyRow`.
pub const RULES: MapName = map("RULES", "rules_v1");
/// Array: [`Book::place`](super::Book::place) of a rulebook → `Book`. Only rulebooks that are in `RULES` are here.
pub const BOOKS: MapName = map("BOOKS", "books_v1");
/// Longest prefix match: `FailsafeKey` → number of a rulebook (u32).
pub const FAILSAFE: MapName = map("FAILSAFE", "failsafe_v1");
/// Array of one: `RuntimeState`.
pub const RUNTIME: MapName = map("RUNTIME", "runtime_v1");
/// Array: the rows of a [`table`](super::table), `FlowKey` → `Flow`.
pub const FLOWS: MapName = map("FLOWS", "flows_v3");
/// Array of `Line`s: the index of `FLOWS`.
pub const FLOW_INDEX: MapName = map("FLOW_INDEX", "flow_index_v1");
/// Least-recently-used hash: `FragmentKey` → `Fragment`.
pub const FRAGMENTS: MapName = map("FRAGMENTS", "fragments_v1");
/// Array for each CPU: `counter_index` → `Counter`.
pub const COUNTERS: MapName = map("COUNTERS", "counters_v1");
/// Ring buffer of `Event`.
pub const EVENTS: MapName = map("EVENTS", "events_v3");
/// Array for each CPU, one u64: events that found the ring buffer full. The second version holds the same as the first: a
/// daemon that knows no later one does not know `BOOKS` either, would not keep it in step with `RULES`, and refuses to run.
pub const EVENTS_LOST: MapName = map("EVENTS_LOST", "events_lost_v2");
/// Hash: `FrontendKey` → `Frontend`.
pub const FRONTENDS: MapName = map("FRONTENDS", "frontends_v1");
/// Array of arrays of `Element`: slot → a service's table. Slot 0 is never used.
pub const SERVICES: MapName = map("SERVICES", "services_v1");
/// Array: slot in `SERVICES` → `TableNote`. For the daemon alone: until kernel 6.8 a look into an array of maps is a grace
/// period.
pub const TABLE_NOTES: MapName = map("TABLE_NOTES", "table_notes_v1");
/// Kept with each connected socket: `SocketPeer`.
pub const SOCKET_PEERS: MapName = map("SOCKET_PEERS", "socket_peers_v1");
/// Least-recently-used hash: `SocketFlowKey` → `Party`.
pub const SOCKET_FLOWS: MapName = map("SOCKET_FLOWS", "socket_flows_v1");
/// Least-recently-used hash: `AffinityKey` → `Affinity`.
pub const AFFINITY: MapName = map("AFFINITY", "affinity_v1");
/// Array: the rows of a [`table`](super::table), `ConnectionKey` → `Connection`.
pub const CONNECTIONS: MapName = map("CONNECTIONS", "connections_v2");
/// Array of `Line`s: the index of `CONNECTIONS`.
pub const CONNECTION_INDEX: MapName = map("CONNECTION_INDEX", "connection_index_v1");
/// Array: bits of protocols and ports that frontends have (`service::served_bit`), and whether there are any.
pub const SERVED_PORTS: MapName = map("SERVED_PORTS", "served_ports_v1");
/// Longest prefix match: `SourceKey` → nothing of interest (u32). A set is written before the first table that names it, and never
/// changes.
pub const SOURCES: MapName = map("SOURCES", "sources_v1");
/// Array of two: the address with which this node sends to backends, of IPv4, of IPv6; `Address::UNSPECIFIED`: none.
pub const OWN_ADDRESSES: MapName = map("OWN_ADDRESSES", "own_addresses_v1");

/// Longest prefix match: IPv4 source, 4 bytes in network order → slot of a prefilter (u32). Apart from IPv6: a look-up costs by
/// the key's bytes.
pub const PREFILTER4: MapName = map("PREFILTER4", "prefilter4_v1");
/// Longest prefix match: IPv6 source, 16 bytes → slot of a prefilter (u32).
pub const PREFILTER6: MapName = map("PREFILTER6", "prefilter6_v1");
/// Hash: IPv4 sender of ARP requests, network order (u32) → slot of a prefilter (u32).
pub const PREFILTER_SENDERS: MapName = map("PREFILTER_SENDERS", "prefilter_senders_v1");
/// Array: bits of what failsafe entries hold open for everybody (`prefilter::open_bit`).
pub const PREFILTER_OPEN: MapName = map("PREFILTER_OPEN", "prefilter_open_v1");
/// Array: bits of blocks that prefixes of prefilters meet (`prefilter::block4` and others).
pub const PREFILTER_BLOCKS: MapName = map("PREFILTER_BLOCKS", "prefilter_blocks_v1");
/// Array: slot → `PrefilterNote`. For the daemon alone.
pub const PREFILTER_LISTS: MapName = map("PREFILTER_LISTS", "prefilter_lists_v1");
/// Array for each CPU: slot → `Counter` of what the prefilter dropped.
pub const PREFILTER_COUNTERS: MapName = map("PREFILTER_COUNTERS", "prefilter_counters_v1");

/// Hash: `BucketKey` → when what was let through would be over at the endpoint's rate (u64, nanoseconds of `CLOCK_MONOTONIC`).
pub const BUCKETS: MapName = map("BUCKETS", "buckets_v1");
/// Hash: cgroup's number (u64) → bytes a second of each TCP connection of its processes, and of those of cgroups below (u32).
pub const PACED_CGROUPS: MapName = map("PACED_CGROUPS", "paced_cgroups_v1");
/// Kept with TCP sockets: `PacedSocket`.
pub const PACED_SOCKETS: MapName = map("PACED_SOCKETS", "paced_sockets_v1");
/// Least-recently-used hash: `Pair` → `RoundTrips`.
pub const ROUND_TRIPS: MapName = map("ROUND_TRIPS", "round_trips_v1");

/// Array of one map: no program looks into it. To change it is to wait until all programs that run have come to their end. Not
/// pinned.
pub const GRACE: MapName = map("GRACE", "grace");

/// Array of one u32: `monitor_flags`. Not pinned: what an earlier daemon's monitors wanted goes with its programs.
pub const MONITOR: &str = "MONITOR";

/// Names of pins, without their versions, that earlier layouts had and this one has not.
pub const FORMER: [&str; 1] = ["policies"];

/// All that are pinned.
pub const ALL: [MapName; 39] = [
    ENDPOINTS,
    IPCACHE,
    PREFIXES,
    NODES,
    NODE_ADDRESSES,
    SUBJECTS,
    PEER_RULES,
    RULES,
    BOOKS,
    FAILSAFE,
    RUNTIME,
    FLOWS,
    FLOW_INDEX,
    FRAGMENTS,
    COUNTERS,
    EVENTS,
    FRONTENDS,
    SERVICES,
    TABLE_NOTES,
    SOCKET_PEERS,
    SOCKET_FLOWS,
    AFFINITY,
    CONNECTIONS,
    CONNECTION_INDEX,
    SERVED_PORTS,
    SOURCES,
    OWN_ADDRESSES,
    PREFILTER4,
    PREFILTER6,
    PREFILTER_SENDERS,
    PREFILTER_OPEN,
    PREFILTER_BLOCKS,
    PREFILTER_LISTS,
    PREFILTER_COUNTERS,
    BUCKETS,
    PACED_CGROUPS,
    PACED_SOCKETS,
    ROUND_TRIPS,
    EVENTS_LOST,
];

/// Those that packets leave something in.
pub const WRITTEN_BY_PACKETS: [MapName; 15] = [
    FLOWS,
    FLOW_INDEX,
    FRAGMENTS,
    COUNTERS,
    EVENTS,
    SOCKET_PEERS,
    SOCKET_FLOWS,
    AFFINITY,
    CONNECTIONS,
    CONNECTION_INDEX,
    PREFILTER_COUNTERS,
    BUCKETS,
    PACED_SOCKETS,
    ROUND_TRIPS,
    EVENTS_LOST,
];

pub const ENDPOINTS_MAX: usize = 4096;
pub const IPCACHE_MAX: usize = 512 * 1024;
pub const PREFIXES_MAX: usize = 128 * 1024;
pub const NODES_MAX: usize = 16 * 1024;
pub const NODE_ADDRESSES_MAX: usize = 2 * NODES_MAX;
pub const SUBJECTS_MAX: usize = 4096;
/// Rows of one subject's policy, of peers and of the rulebooks that it has; one more is an overflow, which closes the subject
/// and is reported.
pub const POLICY_ROWS_MAX: usize = 64 * 1024;
/// Rows of all subjects together.
pub const PEER_RULES_MAX: usize = 1024 * 1024;
pub const RULES_MAX: usize = 512 * 1024;
/// Places for rulebooks that are short. One whose place is taken is found in `RULES`, as long ones are.
pub const BOOKS_MAX: usize = 1 << BOOKS_BITS;
pub const BOOKS_BITS: u32 = 14;
/// Prefixes of failsafe entries, in both directions.
pub const FAILSAFE_MAX: usize = 128 * 1024;
pub const FLOWS_MAX: usize = 512 * 1024;
/// Datagrams under way in fragments: at 10 Gbit/s of nothing else, those of 20 ms.
pub const FRAGMENTS_MAX: usize = 16 * 1024;
pub const COUNTERS_MAX: usize = (Reason::ROWS as usize) * POINTS_MAX;
/// Drops that look alike, of which the next is not told at once: beyond them, the least recently seen are forgotten.
pub const TOLD_MAX: usize = 4096;
pub const EVENTS_BYTES: usize = 1024 * 1024;
/// Tables of services; a service has one for each family, and two where flows from elsewhere are treated differently.
pub const SERVICES_MAX: usize = 64 * 1024;
pub const FRONTENDS_MAX: usize = 128 * 1024;
/// Backends of one table: the programs look for one in eleven steps.
pub const BACKENDS_MAX: usize = 2047;
pub const SOCKET_FLOWS_MAX: usize = 64 * 1024;
pub const AFFINITY_MAX: usize = 64 * 1024;
/// Prefixes of all sets of sources of a node: more are an overflow, for which a service is rejected. The map has twice as much room,
/// so that sets that come are there before those that go are taken out.
pub const SOURCE_PREFIXES_MAX: usize = 128 * 1024;
/// A connection has two rows; one that answers bypass has one.
pub const CONNECTIONS_MAX: usize = 128 * 1024;
/// Prefixes of all prefilters of a node, of each family: more are an overflow, for which a prefilter is rejected. The maps have
/// twice as much room, so that what comes is there before what goes is taken out.
pub const PREFILTER_PREFIXES_MAX: usize = 512 * 1024;
/// Senders of ARP of all prefilters of a node.
pub const PREFILTER_SENDERS_MAX: usize = 64 * 1024;
/// Prefilters of a node.
pub const PREFILTERS_MAX: usize = 512;
/// Slots of prefilters, with 0, which is never used: twice as many as there may be, so that those that come have theirs before
/// those that go leave theirs.
pub const PREFILTER_SLOTS: u32 = 1024;
const _: () = assert!(PREFILTER_SLOTS as usize == 2 * PREFILTERS_MAX);
/// One for each endpoint and direction.
pub const BUCKETS_MAX: usize = 2 * ENDPOINTS_MAX;
pub const PACED_CGROUPS_MAX: usize = 1024;
/// Pairs of identities with connections.
pub const ROUND_TRIPS_MAX: usize = 4096;
const POINTS_MAX: usize = 8;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Row of `COUNTERS`.
#[inline(always)]
pub const fn counter_index(point: Point, reason: Reason) -> u32 {
    (point as u32) * Reason::ROWS + reason as u32
}
