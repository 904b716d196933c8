//! REF-TC: the least that a stateful packet filter with identities does to a packet of an established flow. Ethernet,
//! IPv4 and TCP are parsed, a hit in a table of connections, who the peer is among 10,000 addresses by longest prefix, the
//! policy's row in a hash.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
    programs::TcContext,
};

/// Source, destination, both ports, protocol: as they stand in the packet.
type Connection = [u32; 4];

#[aya_ebpf::macros::btf_map]
static REF_FLOWS: LruHashMap<Connection, [u32; 4], { 512 * 1024 }> = LruHashMap::new();
#[aya_ebpf::macros::btf_map]
static REF_IDENTITIES: LpmTrie<u32, u32, 16384> = LpmTrie::new();
/// Identity and protocol with port → 1: allowed.
#[aya_ebpf::macros::btf_map]
static REF_POLICY: HashMap<[u32; 2], u32, 16384> = HashMap::new();
/// Packets that missed in one of the tables: the bench is wrong then.
#[aya_ebpf::macros::btf_map]
static REF_MISSES: Array<u64, 1> = Array::new();

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: u8 = 6;

#[inline(always)]
pub fn run(ctx: &TcContext) -> Option<()> {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + ETHERNET + IPV4 + 20 > end {
        return None;
    }
    // SAFETY: checked above.
    let (ethertype, version, protocol, addresses, ports) = unsafe {
        (
            *((data + 12) as *const u16),
            *((data + ETHERNET) as *const u8),
            *((data + ETHERNET + 9) as *const u8),
            *((data + ETHERNET + 12) as *const [u32; 2]),
            *((data + ETHERNET + IPV4) as *const u32),
        )
    };
    if u16::from_be(ethertype) != 0x0800 || version != 0x45 || protocol != TCP {
        return None;
    }
    let key = [addresses[0], addresses[1], ports, u32::from(TCP)];
    // SAFETY: nobody else writes while the bench runs.
    let flow = unsafe { REF_FLOWS.get(&key) }?;
    let identity = REF_IDENTITIES.get(&Key::new(32, addresses[1]))?;
    let port = u32::from(TCP) << 16 | ports >> 16;
    // SAFETY: as above.
    let allowed = unsafe { REF_POLICY.get(&[*identity, port]) }?;
    (flow[0] & *allowed == 1).then_some(())
}

/// Out of the way of the packets that hit.
#[inline(never)]
pub fn missed() -> i32 {
    if let Some(misses) = REF_MISSES.get_ptr_mut(0) {
        // SAFETY: test runs of one thread.
        unsafe { *misses += 1 };
    }
    0
}
