//! What `cargo xtask bench lb` runs programs of XDP with: a wrapper that puts the packet back before each run, and REF-XDP, the
//! least that a program does which answers established flows: Ethernet, IPv4 and TCP are parsed, a hit in a table of
//! connections, the MACs are swapped, and the packet goes out again.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_ABORTED, XDP_TX},
    btf_maps::{Array, LruHashMap, ProgramArray},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::btf_map,
    programs::XdpContext,
};

/// The packet as it is to be, and how its runs differ: turn by turn, the next word of `XDP_TURNS` is its source address, part
/// of it, or its source port. User space writes this as 80 bytes.
#[repr(C)]
pub struct XdpTemplate {
    headers: [u64; 8],
    length: u32,
    /// 0: ports take turns; 1: addresses of IPv4; 2: bits 16 to 48 of addresses of IPv6.
    addresses: u32,
    turns: u32,
    /// Counted up here.
    turn: u32,
}

#[btf_map]
static XDP_TEMPLATE: Array<XdpTemplate, 1> = Array::new();
/// As they stand in the packet; a port is in the lower half.
#[btf_map]
static XDP_TURNS: Array<u32, 16384> = Array::new();
#[btf_map]
static XDP_TARGET: ProgramArray<1> = ProgramArray::new();
/// Source, destination, both ports, protocol: as they stand in the packet.
#[btf_map]
static REF_CONNECTIONS: LruHashMap<[u32; 4], [u32; 4], { 512 * 1024 }> = LruHashMap::new();

const HEADERS: usize = 64;
const ETHERNET: usize = 14;
const SOURCE: usize = ETHERNET + 12;
const SOURCE6_WORD: usize = ETHERNET + 8 + 2;
const SOURCE_PORT: usize = ETHERNET + 20;
const TCP: u8 = 6;

/// Only comes back when the program can't be called.
#[inline(always)]
pub fn wrapper(ctx: &XdpContext) -> u32 {
    let Some(template) = XDP_TEMPLATE.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: an array's element; one test run at a time.
    let template = unsafe { &mut *template };
    // SAFETY: plain numbers.
    let grown = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) } as i32 - template.length as i32;
    // SAFETY: plain numbers.
    if grown != 0 && unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), grown) } != 0 {
        return XDP_ABORTED;
    }
    let turn = template.turn;
    template.turn = if turn + 1 == template.turns { 0 } else { turn + 1 };
    let Some(word) = XDP_TURNS.get(turn) else { return XDP_ABORTED };
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + HEADERS > end {
        return XDP_ABORTED;
    }
    // SAFETY: checked above.
    unsafe {
        let headers = data as *mut u64;
        for index in 0..HEADERS / 8 {
            *headers.add(index) = template.headers[index];
        }
        match template.addresses {
            0 => *((data + SOURCE_PORT) as *mut u16) = *word as u16,
            1 => *((data + SOURCE) as *mut u32) = *word,
            _ => *((data + SOURCE6_WORD) as *mut u32) = *word,
        }
        XDP_TARGET.tail_call(ctx, 0);
    }
    XDP_ABORTED
}

/// A miss is `XDP_ABORTED`: the bench is wrong then.
#[inline(always)]
pub fn reference(ctx: &XdpContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + ETHERNET + 20 + 20 > end {
        return XDP_ABORTED;
    }
    // SAFETY: checked above.
    let (ethertype, version, protocol, addresses, ports) = unsafe {
        (
            *((data + 12) as *const u16),
            *((data + ETHERNET) as *const u8),
            *((data + ETHERNET + 9) as *const u8),
            *((data + SOURCE) as *const [u32; 2]),
            *((data + SOURCE_PORT) as *const u32),
        )
    };
    if u16::from_be(ethertype) != 0x0800 || version != 0x45 || protocol != TCP {
        return XDP_ABORTED;
    }
    let key = [addresses[0], addresses[1], ports, u32::from(TCP)];
    // SAFETY: nobody else writes while the bench runs.
    if unsafe { REF_CONNECTIONS.get(&key) }.is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: checked above.
    unsafe {
        let macs = data as *mut [u16; 6];
        let [a, b, c, d, e, f] = *macs;
        *macs = [d, e, f, a, b, c];
    }
    XDP_TX
}
