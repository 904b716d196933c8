//! The maps and the load-time constants, as `weft_shared::layout` says what they hold.

use core::arch::asm;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG},
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage, lpm_trie::Key,
    },
    macros::btf_map,
};
use weft_shared::layout::{
    Action, Address, BOOK_ROWS_MAX, Book, Config, ConnectionRow, Direction, Endpoint, Event, FailsafeKey,
    FlowRow, Fragment, FragmentKey, Node, Peer, PeerKey, PolicyRow, PortKey, PrefixKey, RuleKey,
    RuntimeState, Subject, Told, ToldKey,
    maps::{
        AFFINITY_MAX, BOOKS_MAX, BUCKETS_MAX, CONNECTIONS_MAX, COUNTERS_MAX, Counter, ENDPOINTS_MAX,
        EVENTS_BYTES, FAILSAFE_MAX, FLOWS_MAX, FRAGMENTS_MAX, FRONTENDS_MAX, IPCACHE_MAX, NODE_ADDRESSES_MAX,
        NODES_MAX, PACED_CGROUPS_MAX, PEER_RULES_MAX, PREFILTER_PREFIXES_MAX, PREFILTER_SENDERS_MAX,
        PREFILTER_SLOTS, PREFIXES_MAX, ROUND_TRIPS_MAX, RULES_MAX, SERVICES_MAX, SOCKET_FLOWS_MAX,
        SOURCE_PREFIXES_MAX, SUBJECTS_MAX, TOLD_MAX,
    },
    prefilter::{BLOCK_ROWS, BlockRow, OPEN_WORDS, PrefilterNote},
    service::{
        Affinity, AffinityKey, Frontend, FrontendKey, Party, SERVED_WORDS, SocketFlowKey, SocketPeer,
        TableNote,
    },
    shaping::{BucketKey, Pair, RoundTrips},
    table::{Line, ROWS_OF_A_LINE},
};

use crate::{
    conntrack::forgotten,
    events::AllowedBy,
    fragment::Cut,
    pace::Storage,
    parse::Packet,
    quoted::Told as ToldError,
    related::Quoted,
    service::Call,
    snat::Answer,
    table::Asked,
    xdp::{
        hop::{HOPS_MAX, Hop},
        rate::{COUNTED, Done},
        read::Packet as Forwarded,
    },
};

/// Memory by the row: a node pays for what it was told, not for the largest fleet.
const GROWING: usize = BPF_F_NO_PREALLOC as usize;

/// The daemon sees their memory (kernel 5.5, commit fc9702273e2e), and their elements begin where cache lines do.
const SHARED: usize = BPF_F_MMAPABLE as usize;

/// The longest-prefix-match maps want keys in two parts; these are `PrefixKey`, `RuleKey`, `FailsafeKey` and `SourceKey`
/// without their lengths.
type PrefixBytes = [u32; 4];
type RuleBytes = [u8; 8];
type FailsafeBytes = [u32; 5];
type SourceBytes = [u32; 5];

#[unsafe(no_mangle)]
static CONFIG: Global<Config> = Global::new(Config::DEFAULT);

#[btf_map]
pub static ENDPOINTS: HashMap<u32, Endpoint, ENDPOINTS_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static IPCACHE: HashMap<Address, Peer, IPCACHE_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static PREFIXES: LpmTrie<PrefixBytes, Peer, PREFIXES_MAX> = LpmTrie::new();
#[btf_map]
pub static NODES: Array<Node, NODES_MAX> = Array::new();
#[btf_map]
pub static NODE_ADDRESSES: HashMap<Address, u32, NODE_ADDRESSES_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static SUBJECTS: Array<Subject, SUBJECTS_MAX> = Array::new();
#[btf_map]
pub static PEER_RULES: HashMap<PeerKey, u32, PEER_RULES_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static RULES: LpmTrie<RuleBytes, PolicyRow, RULES_MAX> = LpmTrie::new();
#[btf_map]
pub static BOOKS: Array<Book, BOOKS_MAX> = Array::new();
#[btf_map]
pub static FAILSAFE: LpmTrie<FailsafeBytes, u32, FAILSAFE_MAX> = LpmTrie::new();
/// For the daemon alone.
#[btf_map]
pub static GRACE: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();
#[btf_map]
pub static RUNTIME: Array<RuntimeState, 1> = Array::new();
#[btf_map]
pub static FLOWS: Array<FlowRow, FLOWS_MAX, SHARED> = Array::new();
#[btf_map]
pub static FLOW_INDEX: Array<Line, { FLOWS_MAX / ROWS_OF_A_LINE as usize }, SHARED> = Array::new();
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, FRAGMENTS_MAX> = LruHashMap::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<Counter, COUNTERS_MAX> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();
/// Bits of `monitor_flags`.
#[btf_map]
pub static MONITOR: Array<u32, 1> = Array::new();
/// Least-recently-used hash: drops that look alike → when they were told of.
#[btf_map]
pub static TOLD: LruHashMap<ToldKey, Told, TOLD_MAX> = LruHashMap::new();
/// The rules by which the packet in hand is allowed: by the source's row for egress, and the destination's for ingress.
#[btf_map]
pub static ALLOWED_BY: PerCpuArray<AllowedBy, 1> = PerCpuArray::new();
/// The event in hand.
#[btf_map]
pub static EVENT: PerCpuArray<Event, 1> = PerCpuArray::new();
#[btf_map]
pub static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// A service's table of `Element`s: of any length (kernel 5.10, commit 4a8f87e60f6d), and programs don't write it. Without the
/// element's type: until kernel 6.2 an array of structs that are described is another kind of map than one of bytes, and
/// the daemon makes these without a description.
pub type ServiceTable = Array<[u64; 4], 1, { BPF_F_INNER_MAP as usize | BPF_F_RDONLY_PROG as usize }>;

#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, FRONTENDS_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static SERVICES: ArrayOfMaps<ServiceTable, SERVICES_MAX> = ArrayOfMaps::new();
/// For the daemon alone.
#[btf_map]
pub static TABLE_NOTES: Array<TableNote, SERVICES_MAX> = Array::new();
#[btf_map]
pub static SOCKET_PEERS: SkStorage<SocketPeer> = SkStorage::new();
#[btf_map]
pub static SOCKET_FLOWS: LruHashMap<SocketFlowKey, Party, SOCKET_FLOWS_MAX> = LruHashMap::new();
#[btf_map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, AFFINITY_MAX> = LruHashMap::new();
#[btf_map]
pub static CONNECTIONS: Array<ConnectionRow, CONNECTIONS_MAX, SHARED> = Array::new();
#[btf_map]
pub static CONNECTION_INDEX: Array<Line, { CONNECTIONS_MAX / ROWS_OF_A_LINE as usize }, SHARED> =
    Array::new();
#[btf_map]
pub static SERVED_PORTS: Array<u64, { SERVED_WORDS as usize }> = Array::new();
#[btf_map]
pub static SOURCES: LpmTrie<SourceBytes, u32, { 2 * SOURCE_PREFIXES_MAX }> = LpmTrie::new();
#[btf_map]
pub static OWN_ADDRESSES: Array<[u64; 2], 2> = Array::new();
/// Ways to backends that this CPU found lately: see `xdp::hop`.
#[btf_map]
pub static HOPS: PerCpuArray<Hop, HOPS_MAX> = PerCpuArray::new();
/// What this CPU has done lately that has a limit: see `xdp::rate`.
#[btf_map]
pub static DONE_LATELY: PerCpuArray<Done, COUNTED> = PerCpuArray::new();
/// The answers' row in the making.
#[btf_map]
pub static ANSWER: PerCpuArray<Answer, 1> = PerCpuArray::new();
/// The packet in hand, where XDP may send it on.
#[btf_map]
pub static FORWARDED: PerCpuArray<Forwarded, 1> = PerCpuArray::new();

#[btf_map]
pub static PREFILTER4: LpmTrie<u32, u32, { 2 * PREFILTER_PREFIXES_MAX }> = LpmTrie::new();
#[btf_map]
pub static PREFILTER6: LpmTrie<PrefixBytes, u32, { 2 * PREFILTER_PREFIXES_MAX }> = LpmTrie::new();
#[btf_map]
pub static PREFILTER_SENDERS: HashMap<u32, u32, { 2 * PREFILTER_SENDERS_MAX }, GROWING> = HashMap::new();
#[btf_map]
pub static PREFILTER_OPEN: Array<u64, { OPEN_WORDS as usize }> = Array::new();
#[btf_map]
pub static PREFILTER_BLOCKS: Array<BlockRow, { BLOCK_ROWS as usize }> = Array::new();
/// For the daemon alone.
#[btf_map]
pub static PREFILTER_LISTS: Array<PrefilterNote, { PREFILTER_SLOTS as usize }> = Array::new();
#[btf_map]
pub static PREFILTER_COUNTERS: PerCpuArray<Counter, { PREFILTER_SLOTS as usize }> = PerCpuArray::new();

#[btf_map]
pub static BUCKETS: HashMap<BucketKey, u64, BUCKETS_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static PACED_CGROUPS: HashMap<u64, u32, PACED_CGROUPS_MAX, GROWING> = HashMap::new();
#[btf_map]
pub static PACED_SOCKETS: Storage = Storage::new();
#[btf_map]
pub static ROUND_TRIPS: LruHashMap<Pair, RoundTrips, ROUND_TRIPS_MAX> = LruHashMap::new();
/// What is found out about a packet to a service: the stack has no room for it.
#[btf_map]
pub static CALL: PerCpuArray<Call, 1> = PerCpuArray::new();

/// What becomes of an error about a connection to a service.
#[btf_map]
pub static ERROR: PerCpuArray<ToldError, 1> = PerCpuArray::new();

/// The packet in hand: see `Packet::keep`.
#[btf_map]
pub static PACKET: PerCpuArray<Packet, 1> = PerCpuArray::new();

/// What the packet in hand says of itself where it is a fragment.
#[btf_map]
pub static CUT: PerCpuArray<Cut, 1> = PerCpuArray::new();
/// What later fragments will be given, on its way to the table: the stack has no room for it.
#[btf_map]
pub static HANDED_ON: PerCpuArray<Fragment, 1> = PerCpuArray::new();
/// What a table is asked for: the stack has no room for it.
#[btf_map]
pub static ASKED: PerCpuArray<Asked, 1> = PerCpuArray::new();
/// Where this CPU goes on with the rows of each table.
#[btf_map]
pub static CURSORS: PerCpuArray<u64, 2> = PerCpuArray::new();
/// Where whoever takes rows next goes on, of each table.
#[btf_map]
pub static HEADS: Array<u64, 2> = Array::new();
/// What an ICMP error quotes.
#[btf_map]
pub static QUOTED: PerCpuArray<Quoted, 1> = PerCpuArray::new();

/// What the load fixed.
#[inline(always)]
pub fn config() -> &'static Config {
    let mut config = (&raw const CONFIG).cast::<Config>();
    // SAFETY: nobody writes it once programs are loaded. The compiler must not know what is there before, nor read more of it than
    // is asked for.
    unsafe {
        asm!("/* {config} */", config = inout(reg) config, options(nomem, nostack, preserves_flags, pure));
        &*config
    }
}

/// The node's state, each field read once. Whoever judges reads this before any other table (see `RuntimeState::epoch`).
#[inline(always)]
pub fn runtime() -> RuntimeState {
    match RUNTIME.get_ptr(0) {
        // SAFETY: the pointer is the kernel's, to an array's element, which never moves.
        Some(state) => unsafe { core::ptr::read_volatile(state) },
        // Can't be: an array of one. Nothing is older than this, so that nothing remembered would hold.
        None => RuntimeState { epoch: 0, identities_through: 0, host: 0 },
    }
}

/// The endpoint of an interface.
#[inline(always)]
pub fn endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: rows are replaced, never written in place; the memory stays a row while the program runs (RCU).
    unsafe { ENDPOINTS.get(&ifindex) }
}

/// Who an address is: exactly, by prefix, or the rest of the world.
#[inline(always)]
pub fn peer_of(address: &Address) -> Peer {
    // SAFETY: as above.
    if let Some(peer) = unsafe { IPCACHE.get(address) } {
        return *peer;
    }
    match PREFIXES.get(&Key::new(128, address.words)) {
        Some(peer) => *peer,
        None => WORLD,
    }
}

const WORLD: Peer = Peer {
    identity: weft_shared::layout::Class::World as u32,
    class: weft_shared::layout::Class::World as u32,
    node: 0,
    ifindex: 0,
};

/// The slot of a node by its underlay address.
#[inline(always)]
pub fn node_slot(address: &Address) -> Option<u32> {
    // SAFETY: as above.
    unsafe { NODE_ADDRESSES.get(address) }.copied()
}

/// The row of a rulebook that a flow meets.
#[inline(always)]
pub fn rule(rulebook: u32, protocol: u8, port: u16) -> Option<&'static PolicyRow> {
    let book = BOOKS.get_ptr(Book::place(rulebook))?;
    // SAFETY: an element of an array, which never moves. The daemon writes one only while nobody has its number in hand.
    let book = unsafe { &*book };
    // 0 is no rulebook's number, and empty places have it.
    if book.number == rulebook && rulebook != 0 {
        return rule_of(book, protocol, port);
    }
    let RuleKey { bits, rulebook: [a, b, c, d], protocol, port: [high, low], zero } =
        RuleKey::new(rulebook, PortKey::exact(protocol, port));
    RULES.get(&Key::new(bits, [a, b, c, d, protocol, high, low, zero]))
}

/// The row of a short rulebook that a flow meets.
#[inline(always)]
fn rule_of(book: &'static Book, protocol: u8, port: u16) -> Option<&'static PolicyRow> {
    let flow = u32::from(protocol) << 16 | u32::from(port);
    let mut found = BOOK_ROWS_MAX;
    for index in 0..BOOK_ROWS_MAX {
        if Book::is_about(book.ports[index], flow) {
            found = index;
            break;
        }
    }
    // The verifier would follow the rest of the program for each row.
    let found = forgotten(found as u64);
    if found >= BOOK_ROWS_MAX as u64 || found >= book.rows.into() {
        None
    } else {
        Some(&book.policies[found as usize])
    }
}

/// Whether a flow of the node itself with this address is held open, whatever the policies say.
#[inline(always)]
pub fn is_failsafe(direction: Direction, address: &Address, protocol: u8, port: u16) -> bool {
    let FailsafeKey { bits, direction, address: Address { words: [a, b, c, d] } } =
        FailsafeKey::new(direction, PrefixKey { bits: 128, address: *address });
    let Some(rulebook) = FAILSAFE.get(&Key::new(bits, [direction, a, b, c, d])) else { return false };
    rule(*rulebook, protocol, port).is_some_and(|row| row.action == Action::Allow as u32)
}
