//! The way to a backend: which node has it, and the MACs by which a packet gets there. Found by the tables and the kernel's routes,
//! and remembered for each CPU, because to ask costs more than all the rest of an established packet.
//!
//! What is remembered holds for [`FRESH`] and as long as the node's epoch is the same, which every change of addresses and nodes
//! makes another one: routes and neighbours that change are followed after a quarter of a second.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_fib_lookup, xdp_md},
    helpers::generated,
    programs::XdpContext,
};
use weft_shared::layout::{Address, Class, Peer, Reason};

use crate::{
    frame::{ETHERNET, Frame},
    maps::{self, HOPS, NODES, OWN_ADDRESSES},
    verdict::in_pools,
};

/// Places for ways; two backends of one place push each other out.
pub const HOPS_MAX: usize = 1 << HOPS_BITS;
const HOPS_BITS: u32 = 10;
/// For how long a way holds, in nanoseconds.
const FRESH: u64 = 250_000_000;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Any length asks for the way's MTU.
const ANY_LENGTH: u16 = 1;

/// A way to a backend. Addresses are in two words: of four, the compiler makes calls of `memmove`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Hop {
    backend: [u64; 2],
    /// Whom packets are sent to: the backend's node, or the backend itself where it is outside of the fleet.
    pub outer: [u64; 2],
    /// As `RUNTIME` had it when the way was found.
    epoch: u64,
    /// 0: there is none.
    found_at: u64,
    /// To, from, as a frame begins.
    pub macs: [u32; 3],
    ifindex: u32,
    /// Bytes of a packet.
    pub mtu: u16,
    /// Whether `outer` is of IPv4.
    pub v4: bool,
}

/// The way to a backend for a packet that came in by this device, and shall leave by it.
#[inline(always)]
pub fn to(ctx: &XdpContext, backend: &[u64; 2], now: u64) -> Result<&'static Hop, Reason> {
    let hop = HOPS.get_ptr_mut(place_of(backend)).ok_or(Reason::KernelError)?;
    // SAFETY: this CPU's element of an array, which never moves; nothing interrupts a program that has it in hand.
    let hop = unsafe { &mut *hop };
    let epoch = maps::runtime().epoch;
    let known = (hop.backend[0] ^ backend[0]) | (hop.backend[1] ^ backend[1]) | (hop.epoch ^ epoch) == 0;
    if !known || now.saturating_sub(hop.found_at) >= FRESH {
        hop.found_at = 0;
        (hop.backend, hop.epoch) = (*backend, epoch);
        let found = find(ctx.as_ptr().cast(), hop);
        if found != FOUND {
            return Err(if found == LOCAL { Reason::PassedLocalBackend } else { Reason::PassedNoNeighbour });
        }
        hop.found_at = now;
    }
    // SAFETY: the kernel's context, valid as long as the program runs.
    if hop.ifindex != unsafe { (*ctx.ctx).ingress_ifindex } {
        return Err(Reason::PassedNoNeighbour);
    }
    Ok(hop)
}

/// Whether the frame was sent to the device by which the way goes: one for others was flooded to all, and they send it on.
#[inline(always)]
pub fn is_ours(ctx: &XdpContext, hop: &Hop) -> bool {
    let Some(head) = Frame::between(ctx.data(), ctx.data_end()).head::<ETHERNET>() else { return false };
    let (high, low) = (head.read::<u16, 0>(), head.read::<u32, 2>());
    (u32::from(high) ^ (hop.macs[1] >> 16)) | (low ^ hop.macs[2]) == 0
}

/// Fibonacci hashing (Knuth, TAOCP 3, §6.4).
#[inline(always)]
fn place_of(backend: &[u64; 2]) -> u32 {
    let folded = backend[0] ^ backend[1];
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - HOPS_BITS)) as u32
}

/// What [`find`] answers.
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;
/// The backend is on this node.
const LOCAL: u32 = 2;

/// Finds the way to `hop.backend`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find(ctx: *mut xdp_md, hop: *mut Hop) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let Some(hop) = (unsafe { hop.as_mut() }) else { return NOT_FOUND };
    // A copy: a map's key is on the stack (until kernel 6.2 it may not be what a function was given).
    let backend: Address = bytemuck::cast(hop.backend);
    let peer = maps::peer_of(&backend);
    if peer.ifindex != 0 || peer.class == Class::Host as u32 {
        return LOCAL;
    }
    let Some(outer) = receiver(&backend, &peer) else { return NOT_FOUND };
    (hop.outer, hop.v4) = (bytemuck::cast(outer), outer.is_v4());
    let Some(own) = own_address(outer.is_v4()) else { return NOT_FOUND };
    if hop.outer == NOBODY || own == NOBODY {
        return NOT_FOUND;
    }
    look_up(ctx, &outer, &bytemuck::cast(own), hop)
}

/// Whom packets to a backend elsewhere are sent to.
#[inline(always)]
pub fn receiver(backend: &Address, peer: &Peer) -> Option<Address> {
    if !in_pools(peer) {
        return Some(*backend);
    }
    NODES.get(peer.node).filter(|_| peer.node != 0).map(|node| node.address)
}

/// Asks the kernel's routes and neighbours.
#[inline(always)]
fn look_up(ctx: *mut xdp_md, outer: &Address, own: &Address, hop: &mut Hop) -> u32 {
    // SAFETY: plain numbers, of which each may be zero.
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    // SAFETY: the kernel's context.
    route.ifindex = unsafe { (*ctx).ingress_ifindex };
    route.__bindgen_anon_1.tot_len = ANY_LENGTH;
    if outer.is_v4() {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = own.words[3];
        route.__bindgen_anon_4.ipv4_dst = outer.words[3];
    } else {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = own.words;
        route.__bindgen_anon_4.ipv6_dst = outer.words;
    }
    // SAFETY: the helper reads and writes the structure.
    let found = unsafe {
        generated::bpf_fib_lookup(ctx.cast(), &raw mut route, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    if found != 0 {
        return NOT_FOUND;
    }
    hop.ifindex = route.ifindex;
    // SAFETY: the helper wrote it (kernel 5.12).
    hop.mtu = unsafe { route.__bindgen_anon_1.mtu_result };
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (route.dmac, route.smac);
    hop.macs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    FOUND
}

pub const NOBODY: [u64; 2] = [0; 2];

/// With which this node sends to backends.
#[inline(always)]
pub fn own_address(v4: bool) -> Option<[u64; 2]> {
    OWN_ADDRESSES.get(u32::from(!v4)).copied()
}
