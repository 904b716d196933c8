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
use weft_shared::layout::{Address, Class, Reason};

use crate::{
    deliver::halves,
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

/// A way to a backend.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Hop {
    backend: Address,
    /// Whom packets are sent to: the backend's node, or the backend itself where it is outside of the fleet.
    pub outer: Address,
    /// Of this node, of the same family.
    pub own: Address,
    /// As `RUNTIME` had it when the way was found.
    epoch: u64,
    /// 0: there is none.
    found_at: u64,
    /// To, from, as a frame begins.
    pub macs: [u16; 6],
    ifindex: u32,
    /// 0: not known.
    pub mtu: u32,
    /// A [`Place`].
    place: u32,
    zero: u32,
}

/// Where a backend is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Place {
    Outside = 0,
    /// Behind another node.
    Fleet = 1,
}

impl Hop {
    /// Whether it leads to an endpoint of another node.
    #[inline(always)]
    pub fn is_in_fleet(&self) -> bool {
        self.place == Place::Fleet as u32
    }
}

/// The way to a backend for a packet that came in by this device, and shall leave by it.
#[inline(always)]
pub fn to(ctx: &XdpContext, backend: &Address, now: u64) -> Result<&'static Hop, Reason> {
    let hop = HOPS.get_ptr_mut(place_of(backend)).ok_or(Reason::KernelError)?;
    // SAFETY: this CPU's element of an array, which never moves; nothing interrupts a program that has it in hand.
    let hop = unsafe { &mut *hop };
    let epoch = maps::runtime().epoch;
    let known = is(&hop.backend, backend) && hop.epoch == epoch && now.saturating_sub(hop.found_at) < FRESH;
    if !known {
        hop.found_at = 0;
        hop.backend = *backend;
        hop.epoch = epoch;
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
    let to = head.read::<[u16; 3], 0>();
    let own = &hop.macs;
    (to[0] ^ own[3]) | (to[1] ^ own[4]) | (to[2] ^ own[5]) == 0
}

/// Fibonacci hashing (Knuth, TAOCP 3, §6.4).
#[inline(always)]
fn place_of(backend: &Address) -> u32 {
    let [a, b, c, d] = backend.words;
    let folded = u64::from(a ^ c) << 32 | u64::from(b ^ d);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - HOPS_BITS)) as u32
}

#[inline(always)]
fn is(one: &Address, other: &Address) -> bool {
    let (one, other) = (&one.words, &other.words);
    (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) == 0
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
    let backend = hop.backend;
    let peer = maps::peer_of(&backend);
    if peer.ifindex != 0 || peer.class == Class::Host as u32 {
        return LOCAL;
    }
    (hop.outer, hop.place) = if in_pools(&peer) {
        let Some(node) = NODES.get(peer.node).filter(|_| peer.node != 0) else { return NOT_FOUND };
        if is(&node.address, &Address::UNSPECIFIED) {
            return NOT_FOUND;
        }
        (node.address, Place::Fleet as u32)
    } else {
        (backend, Place::Outside as u32)
    };
    let v4 = hop.outer.is_v4();
    let Some(own) = OWN_ADDRESSES.get(u32::from(!v4)) else { return NOT_FOUND };
    if is(own, &Address::UNSPECIFIED) {
        return NOT_FOUND;
    }
    hop.own = *own;
    // SAFETY: the kernel's context.
    let ingress = unsafe { (*ctx).ingress_ifindex };
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    route.family = if v4 { AF_INET } else { AF_INET6 };
    route.ifindex = ingress;
    route.__bindgen_anon_1.tot_len = ANY_LENGTH;
    if v4 {
        route.__bindgen_anon_3.ipv4_src = hop.own.words[3];
        route.__bindgen_anon_4.ipv4_dst = hop.outer.words[3];
    } else {
        route.__bindgen_anon_3.ipv6_src = hop.own.words;
        route.__bindgen_anon_4.ipv6_dst = hop.outer.words;
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
    hop.mtu = unsafe { route.__bindgen_anon_1.mtu_result }.into();
    let ([a, b, c], [d, e, f]) = (halves(route.dmac), halves(route.smac));
    hop.macs = [a, b, c, d, e, f];
    FOUND
}
