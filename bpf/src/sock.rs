//! Load balancing at the socket: who connects to a service, or sends to it, has its backend's address put in the place of the
//! service's, and is shown the service's where it asks for its peer. Packets then go between the two as if the client had
//! known, and policies judge them as what they are.
//!
//! What can't be found out is never a reason to connect anywhere: the call fails.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_socket_cookie,
        generated::{bpf_get_netns_cookie, bpf_set_retval},
    },
    programs::SockAddrContext,
};
use weft_shared::layout::{
    Address, Class,
    service::{
        AffinityKey, ClientKind, Frontend, FrontendKey, PROBE_MARK, Party, SocketFlowKey, UDP, Way,
        socket_hash,
    },
};

use crate::{
    balance::{self, Table},
    maps::{IPCACHE, SOCKET_FLOWS, SOCKET_PEERS, config},
};

/// What a program answers: the call goes on, or fails with the error that was set.
const GO_ON: i32 = 1;
const FAIL: i32 = 0;

const EPERM: i32 = 1;
const EADDRINUSE: i32 = 98;
const ENOBUFS: i32 = 105;
const ECONNREFUSED: i32 = 111;

/// Whose addresses the hook is about. A socket of IPv6 has IPv4 peers as mapped addresses, which is how our maps have them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Which peer a call is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// Of the socket's connection.
    Once,
    /// Of one datagram.
    EachTime,
}

/// Before a socket is connected.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    if is_probe(ctx) {
        return GO_ON;
    }
    let named = party(ctx, family);
    let choice = match choose(ctx, family, &named, Naming::Once) {
        Ok(Some(choice)) => choice,
        Ok(None) => {
            forget_peer(ctx, &named);
            return GO_ON;
        }
        Err(error) => return fail(error),
    };
    if remember_peer(ctx, &named, &choice.to).is_err() {
        return fail(ENOBUFS);
    }
    if protocol(ctx) == UDP || choice.ends {
        // For the daemon, which ends the socket when the backend goes. One that is not remembered is not ended.
        remember(&from_backend(ctx, choice.to), &named).unwrap_or_default();
    }
    set(ctx, family, &choice.to);
    GO_ON
}

/// A probe of a backend means the address itself, also where another service has it as a frontend: whom clients are sent
/// there as a backend does not become a client of that service either. A workload can mark sockets of its own namespace only.
#[inline(always)]
fn is_probe(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context's socket is always there (in it from kernel 5.3 on), and read as wide as it is.
    let mark = unsafe {
        let socket = ptr::read_volatile(&raw const (*address(ctx)).__bindgen_anon_1.sk);
        ptr::read_volatile(&raw const (*socket).mark)
    };
    mark == PROBE_MARK && in_nodes_namespace(ctx)
}

/// Before a datagram is sent by a socket that names its peer.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, family: Family) -> i32 {
    let named = party(ctx, family);
    let choice = match choose(ctx, family, &named, Naming::EachTime) {
        Ok(Some(choice)) => choice,
        Ok(None) => return GO_ON,
        Err(error) => return fail(error),
    };
    let cookie = cookie(ctx);
    let there = SocketFlowKey { cookie, party: named, way: Way::ToFrontend as u32 };
    let back = from_backend(ctx, choice.to);
    if remember(&there, &choice.in_table).is_err() || remember(&back, &named).is_err() {
        return fail(ENOBUFS);
    }
    set(ctx, family, &choice.to);
    GO_ON
}

/// After a datagram was received, before its sender is told.
#[inline(always)]
pub fn receive(ctx: &SockAddrContext, family: Family) -> i32 {
    let sender = party(ctx, family);
    if let Some(frontend) = connected_to(ctx, &sender) {
        set(ctx, family, &frontend);
        return GO_ON;
    }
    let key = from_backend(ctx, sender);
    // SAFETY: a copy; what a writer tears is of this socket's own flows.
    if let Some(frontend) = unsafe { SOCKET_FLOWS.get(&key) } {
        let frontend = *frontend;
        set(ctx, family, &frontend);
    }
    GO_ON
}

/// When somebody asks for a socket's peer.
#[inline(always)]
pub fn name_peer(ctx: &SockAddrContext, family: Family) -> i32 {
    if let Some(frontend) = connected_to(ctx, &party(ctx, family)) {
        set(ctx, family, &frontend);
    }
    GO_ON
}

/// Before a socket is bound: a port of the node that is a service's would never hear of its clients.
#[inline(always)]
pub fn bind(ctx: &SockAddrContext, family: Family) -> i32 {
    let Party { port, .. } = party(ctx, family);
    if port == 0 || !in_nodes_namespace(ctx) {
        return GO_ON;
    }
    let protocol = protocol(ctx);
    let v4 = balance::frontend(&FrontendKey::node_port(true, port, protocol));
    // A socket of IPv6 may take the port of IPv4 along.
    let taken = v4.is_some()
        || family == Family::V6
            && balance::frontend(&FrontendKey::node_port(false, port, protocol)).is_some();
    if taken { fail(EADDRINUSE) } else { GO_ON }
}

/// Where a call goes instead.
struct Choice {
    /// The backend.
    to: Party,
    /// The same as the table has it, whose port may be left open.
    in_table: Party,
    /// Connections are to be ended when the backend goes.
    ends: bool,
}

/// The backend for what a socket calls; `Ok(None)`: it is no service, or not for sockets to balance.
#[inline(always)]
fn choose(
    ctx: &SockAddrContext,
    family: Family,
    named: &Party,
    naming: Naming,
) -> Result<Option<Choice>, i32> {
    let Some(frontend) = frontend(ctx, family, named) else { return Ok(None) };
    let table = Table::of(frontend.inside).ok_or(ECONNREFUSED)?;
    if table.judges_sources() {
        // What comes out of another namespace shows its source: that is left to those who see packets.
        if !in_nodes_namespace(ctx) {
            return Ok(None);
        }
        if !admits(ctx, family, naming, &table) {
            return Err(EPERM);
        }
    }
    let cookie = cookie(ctx);
    let client = AffinityKey {
        service: frontend.inside,
        kind: ClientKind::Namespace as u32,
        client: namespace_as_client(ctx),
    };
    let keeps = table.affinity_nanoseconds() != 0;
    // A flow that goes on keeps its backend as long as that is one; a new flow only one that takes new flows.
    let (had, goes_on) = match naming {
        Naming::EachTime => (last(cookie, named), true),
        Naming::Once => (None, false),
    };
    let (had, goes_on) = match had {
        None if keeps => (balance::kept(&client, &table), false),
        had => (had, goes_on),
    };
    let had = had.and_then(|had| table.find(&had));
    let backend = match had.filter(|backend| goes_on || balance::takes_new_flows(backend)) {
        Some(backend) => backend,
        None => table.pick(socket_hash(cookie, &named.address, named.port)).ok_or(ECONNREFUSED)?,
    };
    let in_table = Party { address: backend.address, port: backend.port, zero: 0 };
    if keeps {
        balance::keep(&client, in_table);
    }
    let port = if backend.port == 0 { named.port } else { backend.port };
    Ok(Some(Choice { to: Party { port, ..in_table }, in_table, ends: table.ends_connections() }))
}

/// Whether a process of the node may call the service. The kernel chooses its source after this, by the way to the backend: so it must be
/// let in as the node, and the source that it has chosen itself must be let in, too.
#[inline(always)]
fn admits(ctx: &SockAddrContext, family: Family, naming: Naming, table: &Table) -> bool {
    let source = source(ctx, family, naming);
    let chosen = source != Address::UNSPECIFIED && source != Address::from_v4(0);
    table.admits_node() && (!chosen || table.admits(&source))
}

/// The frontend that a socket calls.
#[inline(always)]
fn frontend(ctx: &SockAddrContext, family: Family, named: &Party) -> Option<Frontend> {
    let protocol = protocol(ctx);
    let exact = balance::frontend(&FrontendKey::address(named.address, named.port, protocol));
    if exact.is_some() {
        return exact;
    }
    let v4 = family == Family::V4 || named.address.is_v4();
    let port = balance::frontend(&FrontendKey::node_port(v4, named.port, protocol))?;
    is_the_node(ctx, &named.address).then_some(port)
}

/// Whether a socket that calls the address means its node.
#[inline(always)]
fn is_the_node(ctx: &SockAddrContext, address: &Address) -> bool {
    if is_loopback(address) {
        return in_nodes_namespace(ctx);
    }
    // SAFETY: rows are replaced, never written in place.
    let peer = unsafe { IPCACHE.get(address) };
    peer.is_some_and(|peer| peer.class == Class::Host as u32)
}

/// Calling no address is calling oneself.
#[inline(always)]
fn is_loopback(address: &Address) -> bool {
    let [a, b, c, d] = address.words;
    if address.is_v4() {
        return d == 0 || u32::from_be(d) >> 24 == 127;
    }
    a == 0 && b == 0 && c == 0 && (d == 0 || u32::from_be(d) == 1)
}

#[inline(always)]
fn in_nodes_namespace(ctx: &SockAddrContext) -> bool {
    namespace(ctx) == config().namespace_cookie
}

#[inline(always)]
fn namespace(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the program's.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn namespace_as_client(ctx: &SockAddrContext) -> Address {
    let cookie = namespace(ctx);
    Address { words: [cookie as u32, (cookie >> 32) as u32, 0, 0] }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the program's.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The key of who called the backend.
#[inline(always)]
fn from_backend(ctx: &SockAddrContext, backend: Party) -> SocketFlowKey {
    SocketFlowKey { cookie: cookie(ctx), party: backend, way: Way::FromBackend as u32 }
}

/// Where what the socket sent to a frontend went last.
#[inline(always)]
fn last(cookie: u64, named: &Party) -> Option<Party> {
    let key = SocketFlowKey { cookie, party: *named, way: Way::ToFrontend as u32 };
    // SAFETY: a copy; what a writer tears is looked for in the table.
    unsafe { SOCKET_FLOWS.get(&key) }.copied()
}

#[inline(always)]
fn remember(key: &SocketFlowKey, party: &Party) -> Result<(), i32> {
    // SAFETY: as above. Looking also keeps the row from being the least recently used.
    if unsafe { SOCKET_FLOWS.get(key) }.is_some_and(|known| known.is(party)) {
        return Ok(());
    }
    SOCKET_FLOWS.insert(key, party, 0)
}

#[inline(always)]
fn remember_peer(ctx: &SockAddrContext, frontend: &Party, backend: &Party) -> Result<(), ()> {
    // SAFETY: the socket is the context's; the memory is the socket's as long as the program runs, and the call that connects
    // holds the socket's lock.
    unsafe {
        let kept = SOCKET_PEERS.get_or_insert_ptr_mut(ctx, None);
        if kept.is_null() {
            return Err(());
        }
        balance::write_party(&raw mut (*kept).frontend, frontend);
        balance::write_party(&raw mut (*kept).backend, backend);
    }
    Ok(())
}

/// A socket that is connected anew, to somebody who is no service.
#[inline(always)]
fn forget_peer(ctx: &SockAddrContext, named: &Party) {
    if protocol(ctx) == UDP {
        // Nothing is there to forget, mostly.
        SOCKET_FLOWS.remove(&from_backend(ctx, *named)).unwrap_or_default();
    }
    // SAFETY: as above.
    unsafe {
        let kept = SOCKET_PEERS.get_ptr_mut(ctx);
        if !kept.is_null() {
            balance::write_party(&raw mut (*kept).frontend, &NOBODY);
            balance::write_party(&raw mut (*kept).backend, &NOBODY);
        }
    }
}

const NOBODY: Party = Party { address: Address::UNSPECIFIED, port: 0, zero: 0 };

/// The frontend to which the socket is connected, if this is its backend.
#[inline(always)]
fn connected_to(ctx: &SockAddrContext, backend: &Party) -> Option<Party> {
    // SAFETY: the socket is the context's; the memory is the socket's as long as the program runs.
    let kept = unsafe { SOCKET_PEERS.get_ptr_mut(ctx).as_ref() }?;
    (kept.backend.is(backend) && kept.frontend.port != 0).then_some(kept.frontend)
}

#[inline(always)]
fn fail(error: i32) -> i32 {
    // SAFETY: a helper on the call in hand (kernel 5.18, commit b44123b4a3dc).
    unsafe { bpf_set_retval(-error) };
    FAIL
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: a field of the context, read as wide as it is.
    unsafe { ptr::read_volatile(&raw const (*address(ctx)).protocol) as u8 }
}

#[inline(always)]
fn address(ctx: &SockAddrContext) -> *mut bpf_sock_addr {
    ctx.sock_addr
}

/// The address and port that the call is about.
#[inline(always)]
fn party(ctx: &SockAddrContext, family: Family) -> Party {
    let address = address(ctx);
    // SAFETY: fields of the context, each read as wide as it is; those of the hook's family.
    unsafe {
        let port = ptr::read_volatile(&raw const (*address).user_port) as u16;
        let address = match family {
            Family::V4 => Address::from_v4(ptr::read_volatile(&raw const (*address).user_ip4)),
            Family::V6 => words(&raw const (*address).user_ip6),
        };
        Party { address, port, zero: 0 }
    }
}

/// The source that was chosen before the call: of the datagram, or of the socket.
#[inline(always)]
fn source(ctx: &SockAddrContext, family: Family, naming: Naming) -> Address {
    let address = address(ctx);
    // SAFETY: fields of the context and of its socket, each read as wide as it is; a datagram's are those of the hook's family.
    unsafe {
        let socket = (*address).__bindgen_anon_1.sk;
        match (family, naming) {
            (Family::V4, Naming::Once) => Address::from_v4(ptr::read_volatile(&raw const (*socket).src_ip4)),
            (Family::V4, Naming::EachTime) => {
                Address::from_v4(ptr::read_volatile(&raw const (*address).msg_src_ip4))
            }
            (Family::V6, Naming::Once) => words(&raw const (*socket).src_ip6),
            (Family::V6, Naming::EachTime) => words(&raw const (*address).msg_src_ip6),
        }
    }
}

/// Of an address of IPv6.
///
/// # Safety
///
/// There is one at the pointer.
#[inline(always)]
unsafe fn words(from: *const [u32; 4]) -> Address {
    let from = from.cast::<u32>();
    // SAFETY: the caller's.
    let words = unsafe {
        [
            ptr::read_volatile(from),
            ptr::read_volatile(from.add(1)),
            ptr::read_volatile(from.add(2)),
            ptr::read_volatile(from.add(3)),
        ]
    };
    Address { words }
}

#[inline(always)]
fn set(ctx: &SockAddrContext, family: Family, party: &Party) {
    let [a, b, c, d] = party.address.words;
    let address = address(ctx);
    // SAFETY: as above.
    unsafe {
        match family {
            Family::V4 => ptr::write_volatile(&raw mut (*address).user_ip4, d),
            Family::V6 => {
                ptr::write_volatile(&raw mut (*address).user_ip6[0], a);
                ptr::write_volatile(&raw mut (*address).user_ip6[1], b);
                ptr::write_volatile(&raw mut (*address).user_ip6[2], c);
                ptr::write_volatile(&raw mut (*address).user_ip6[3], d);
            }
        }
        ptr::write_volatile(&raw mut (*address).user_port, party.port.into());
    }
}
