//! The rate of each TCP connection of processes on this node, and how long round trips of their connections take.
//!
//! A socket is told its rate (`SO_MAX_PACING_RATE`) when its connection is established, and again, if it is another by then, in
//! about each round trip: TCP itself keeps to it, by timers of its own where no queue does. Whose rate it is the socket's own
//! address says if an endpoint has it; otherwise the cgroup of the process that made the socket, which is noted then: what runs
//! when a packet comes is not who owns the socket.
//!
//! It is no guard: a socket for which nothing can be noted is not paced.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_setsockopt,
        generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    },
    programs::{SockContext, SockOpsContext},
};
use weft_shared::layout::{
    Address, Peer,
    shaping::{CGROUP_LEVELS, PacedSocket, Pair, RoundTrips},
};

use crate::{
    atomic,
    maps::{self, IPCACHE, PACED_CGROUPS, PACED_SOCKETS, ROUND_TRIPS, config},
};

/// What programs of these hooks answer where they have no objection.
const GO_ON: i32 = 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_MAX_PACING_RATE: i32 = 47;
const UNLIMITED: u32 = u32::MAX;

/// aya's has no place for the flag by which a socket that is accepted has what its listener had.
#[repr(C)]
pub struct Storage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const PacedSocket,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: describes a map to the loader, and is never read.
unsafe impl Sync for Storage {}

impl Storage {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// # Safety
    ///
    /// The socket is of the program's context.
    #[inline(always)]
    unsafe fn of<S>(&self, socket: *mut S, flags: u32) -> Option<&'static mut PacedSocket> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the caller's; the memory is the socket's as long as the program runs.
        unsafe {
            let kept = bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags.into());
            kept.cast::<PacedSocket>().as_mut()
        }
    }
}

/// When a process makes a socket: its cgroups are noted.
#[inline(always)]
pub fn made(ctx: &SockContext) -> i32 {
    // SAFETY: the context is the program's; fields are read as wide as they are.
    let of_node = unsafe {
        let socket = ctx.sock;
        let (family, kind) =
            ((&raw const (*socket).family).read_volatile(), (&raw const (*socket).type_).read_volatile());
        (family == AF_INET || family == AF_INET6)
            && kind == SOCK_STREAM
            && bpf_get_netns_cookie(ctx.as_ptr()) == config().namespace_cookie
    };
    if !of_node {
        return GO_ON;
    }
    // SAFETY: the context is the socket.
    let Some(kept) = (unsafe { PACED_SOCKETS.of(ctx.sock, BPF_SK_STORAGE_GET_F_CREATE) }) else {
        return GO_ON;
    };
    for level in 0..CGROUP_LEVELS {
        // SAFETY: a plain number. There are no cgroups below the last one: 0.
        kept.cgroups[level] = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    }
    GO_ON
}

/// When a connection is established, and in each of its round trips.
#[inline(always)]
pub fn called_back(ctx: &SockOpsContext) -> u32 {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        // Without, the connection keeps the rate that it gets now.
        ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_RTT_CB_FLAG) as i32).unwrap_or_default();
    } else if op != BPF_SOCK_OPS_RTT_CB {
        return GO_ON as u32;
    }
    let Some((local, remote)) = ends(ctx) else { return GO_ON as u32 };
    // SAFETY: rows are replaced, never written in place; the memory stays a row while the program runs (RCU).
    let own = unsafe { IPCACHE.get(&local) };
    pace(ctx, own);
    if let Some(own) = own
        && op == BPF_SOCK_OPS_RTT_CB
    {
        let pair = Pair { local: own.identity, remote: maps::peer_of(&remote).identity };
        note(&pair, microseconds(ctx));
    }
    GO_ON as u32
}

/// The socket has the rate that is its own now.
#[inline(always)]
fn pace(ctx: &SockOpsContext, own: Option<&'static Peer>) {
    // SAFETY: a field of the context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    // SAFETY: the socket is the context's.
    let kept = unsafe { PACED_SOCKETS.of(socket, 0) };
    let endpoint = own.filter(|own| own.ifindex != 0).and_then(|own| maps::endpoint(own.ifindex));
    let rate = match (endpoint, &kept) {
        (Some(endpoint), _) => endpoint.connection_rate,
        (None, Some(kept)) => least(kept),
        (None, None) => 0,
    };
    let kept = match kept {
        Some(kept) => kept,
        None if rate == 0 => return,
        // SAFETY: as above.
        None => match unsafe { PACED_SOCKETS.of(socket, BPF_SK_STORAGE_GET_F_CREATE) } {
            Some(kept) => kept,
            None => return,
        },
    };
    if kept.rate == rate {
        return;
    }
    let mut told = if rate == 0 { UNLIMITED } else { rate };
    // SAFETY: the helper reads four bytes, and locks nothing: the socket is locked.
    let failed =
        unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MAX_PACING_RATE, (&raw mut told).cast(), 4) };
    if failed == 0 {
        kept.rate = rate;
    }
}

/// The least of the rates of the cgroups around a socket; 0: none has any.
#[inline(always)]
fn least(kept: &PacedSocket) -> u32 {
    let mut least = UNLIMITED;
    for level in 0..CGROUP_LEVELS {
        let cgroup = kept.cgroups[level];
        if cgroup == 0 {
            break;
        }
        // SAFETY: as above.
        if let Some(rate) = unsafe { PACED_CGROUPS.get(&cgroup) } {
            least = least.min(*rate);
        }
    }
    if least == UNLIMITED { 0 } else { least }
}

/// Addresses of both ends.
#[inline(always)]
fn ends(ctx: &SockOpsContext) -> Option<(Address, Address)> {
    /// A field, read as wide as it is and where it is: the verifier takes no other pointer into the context.
    macro_rules! word {
        ($($field:tt)+) => {
            // SAFETY: the context is the program's.
            unsafe { (&raw const (*ctx.ops).$($field)+).read_volatile() }
        };
    }
    let family = ctx.family();
    if family == AF_INET6 {
        let local = [word!(local_ip6[0]), word!(local_ip6[1]), word!(local_ip6[2]), word!(local_ip6[3])];
        let remote = [word!(remote_ip6[0]), word!(remote_ip6[1]), word!(remote_ip6[2]), word!(remote_ip6[3])];
        return Some((Address { words: local }, Address { words: remote }));
    }
    let (local, remote) = (word!(local_ip4), word!(remote_ip4));
    (family == AF_INET).then(|| (Address::from_v4(local), Address::from_v4(remote)))
}

/// The connection's smoothed round-trip time: the kernel has eight times that.
#[inline(always)]
fn microseconds(ctx: &SockOpsContext) -> u64 {
    // SAFETY: a field of the context, read as wide as it is.
    unsafe { u64::from((&raw const (*ctx.ops).srtt_us).read_volatile() >> 3) }
}

#[inline(always)]
fn note(pair: &Pair, microseconds: u64) {
    let Some(kept) = ROUND_TRIPS.get_ptr_mut(pair) else {
        let first = RoundTrips { samples: 1, sum_microseconds: microseconds };
        ROUND_TRIPS.insert(pair, &first, 0).unwrap_or_default();
        return;
    };
    // SAFETY: the kernel's element, aligned for its type.
    unsafe {
        atomic::add(&raw mut (*kept).samples, 1);
        atomic::add(&raw mut (*kept).sum_microseconds, microseconds);
    }
}
