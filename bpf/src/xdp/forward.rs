//! Which backend a packet to a service gets, and on its way.
//!
//! What a connection was given is remembered in `CONNECTIONS`, and used while the service's table is the one in which the backend
//! was found, or still has it: connections to a backend that terminates stay. Whether there still is the frontend is looked at
//! again once a second.

use core::ptr::NonNull;

use aya_ebpf::programs::XdpContext;
use weft_shared::layout::{
    Address, Class, Connection, Reason, connection_flags,
    service::{
        AffinityKey, ClientKind, Frontend, FrontendKey, Party, ServiceBackend, backend_flags, frontend_flags,
        packet_hash,
    },
};

use super::{hop, rate, read::Packet, tunnel};
use crate::{
    balance::{self, Table},
    connections,
    conntrack::now,
    frame::ETHERNET,
    maps::IPCACHE,
    parse::protocol,
};

/// For how long a row is used before all that led to it is looked at again, in nanoseconds. So exact is [`Connection::seen_at`].
const FRESH: u64 = 1_000_000_000;

/// A packet on its way.
pub struct Sent {
    pub reason: Reason,
    /// Of the frame, without what is behind the packet.
    pub bytes: u32,
}

#[inline(always)]
pub fn run(ctx: &XdpContext, packet: &'static mut Packet) -> Result<Option<Sent>, Reason> {
    let now = now();
    let known = if packet.opens { None } else { connections::find(&packet.key) };
    let reason = if known.is_some_and(|row| remembered(packet, row, now)) {
        Reason::ServiceForwarded
    } else {
        match first(u32::from(known.is_some()), now) {
            NOBODYS => return Ok(None),
            number => sent(number)?,
        }
    };
    if packet.flags & connection_flags::LOCAL != 0 {
        return Err(Reason::PassedLocalBackend);
    }
    if packet.flags & connection_flags::DSR == 0 {
        return Err(Reason::PassedToTc);
    }
    let hop = hop::to(ctx, &packet.destination, now)?;
    if !hop::is_ours(ctx, hop) {
        return Ok(None);
    }
    let more = tunnel::wrap(ctx, packet, hop)?;
    Ok(Some(Sent { reason, bytes: ETHERNET as u32 + packet.length + more }))
}

#[inline(always)]
fn sent(number: u32) -> Result<Reason, Reason> {
    match Reason::from_number(number).unwrap_or(Reason::KernelError) {
        sent @ (Reason::ServiceForwarded | Reason::ServiceUnremembered) => Ok(sent),
        reason => Err(reason),
    }
}

/// What a row says, if it holds.
#[inline(always)]
fn remembered(packet: &mut Packet, row: NonNull<Connection>, now: u64) -> bool {
    // SAFETY: the kernel's element; see `connections::find`.
    let row = unsafe { row.as_ref() };
    if now.saturating_sub(row.seen_at) >= FRESH
        || Table::of(row.table).is_none_or(|table| table.digest() != row.digest)
    {
        return false;
    }
    packet.flags = row.flags;
    packet.destination = halves(&row.destination.address);
    packet.destination_port = row.destination.port;
    true
}

/// An address in two words.
#[inline(always)]
const fn halves(address: &Address) -> [u64; 2] {
    let [a, b, c, d] = address.words;
    [pair(a, b), pair(c, d)]
}

/// Two words as they stand in memory.
#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (second as u64) << 32 | first as u64
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// What [`first`] answers of a packet that goes to no service of those outside.
const NOBODYS: u32 = u32::MAX;

/// Finds the way of the kept packet, of which nothing is remembered that holds: the number of the reason by which it is sent, or is
/// not. `known`: whether there is a row. A function of its own for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn first(known: u32, now: u64) -> u32 {
    let Some(packet) = Packet::kept() else { return Reason::KernelError as u32 };
    match find_way(packet, known != 0, now) {
        Ok(None) => NOBODYS,
        Ok(Some(reason)) | Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn find_way(packet: &mut Packet, known: bool, now: u64) -> Result<Option<Reason>, Reason> {
    let Some(frontend) = frontend(packet) else { return Ok(None) };
    if frontend.flags & frontend_flags::CLUSTER != 0 {
        return Ok(None);
    }
    let table = Table::of(frontend.outside).ok_or(Reason::PassedNoBackend)?;
    if !table.admits(&packet.key.source) {
        return Err(Reason::SourceRefused);
    }
    // A first packet may come again, or begin a new connection of the same ports.
    let known = if known || packet.opens { connections::find(&packet.key) } else { None };
    let had = known.and_then(|row| had(packet, &table, row));
    let backend = match had {
        Some(backend) => backend,
        None if known.is_some() && packet.key.protocol == protocol::TCP && !packet.opens => {
            return Err(Reason::PassedNoBackend);
        }
        None => choose(&table, frontend.outside, packet).ok_or(Reason::PassedNoBackend)?,
    };
    if backend.flags & backend_flags::LOCAL != 0 {
        return Err(Reason::PassedLocalBackend);
    }
    let port = if backend.port == 0 { packet.key.destination_port } else { backend.port };
    packet.destination = halves(&backend.address);
    packet.destination_port = port;
    packet.flags = if table.is_dsr() { connection_flags::DSR } else { 0 };
    let row = Connection {
        source: packet.client(),
        flags: packet.flags,
        destination: Party { address: backend.address, port, zero: 0 },
        table: frontend.outside,
        digest: table.digest(),
        seen_at: now,
    };
    Ok(Some(remember(packet, had.and(known), &row, now)))
}

/// Writes the row, where there was one of the same backend in place.
#[inline(always)]
fn remember(packet: &Packet, there: Option<NonNull<Connection>>, row: &Connection, now: u64) -> Reason {
    if let Some(there) = there {
        // SAFETY: as above. Whoever reads half of it finds a digest that is not the table's.
        unsafe {
            let there = &mut *there.as_ptr();
            (there.flags, there.table, there.digest, there.seen_at) = (row.flags, row.table, row.digest, now);
        }
        return Reason::ServiceForwarded;
    }
    let added = rate::allows(now) && connections::put(&packet.key, row);
    if added { Reason::ServiceForwarded } else { Reason::ServiceUnremembered }
}

/// The backend of a row, if the table has it and it takes the packet.
#[inline(always)]
fn had(packet: &Packet, table: &Table, row: NonNull<Connection>) -> Option<&'static ServiceBackend> {
    // SAFETY: as above.
    let had = found(table, unsafe { &row.as_ref().destination }, packet)?;
    (!packet.opens || balance::takes_new_flows(had)).then_some(had)
}

/// The frontend to which the packet goes.
#[inline(always)]
fn frontend(packet: &Packet) -> Option<Frontend> {
    let Party { address, port, .. } = packet.frontend();
    let protocol = packet.key.protocol;
    if let Some(exact) = balance::frontend(&FrontendKey::address(address, port, protocol)) {
        return Some(exact);
    }
    // SAFETY: rows are replaced, never written in place; the memory stays a row while the program runs (RCU).
    let own = unsafe { IPCACHE.get(&address) }.is_some_and(|peer| peer.class == Class::Host as u32);
    if own { balance::frontend(&FrontendKey::node_port(!packet.v6, port, protocol)) } else { None }
}

/// A backend by what a row has. In the table, its port may be left open.
#[inline(always)]
fn found(table: &Table, had: &Party, packet: &Packet) -> Option<&'static ServiceBackend> {
    match table.find(had) {
        None if had.port == packet.key.destination_port => table.find(&Party { port: 0, ..*had }),
        found => found,
    }
}

/// The backend of a new connection: the client's last one where the service keeps it, or one by the hash of the flow.
#[inline(always)]
fn choose(table: &Table, service: u32, packet: &Packet) -> Option<&'static ServiceBackend> {
    let hash = packet_hash(&packet.client(), &packet.frontend(), packet.key.protocol);
    if table.affinity_nanoseconds() == 0 {
        return table.place(hash);
    }
    let client = AffinityKey { service, kind: ClientKind::Address as u32, client: packet.key.source };
    let kept = balance::kept(&client, table).and_then(|kept| table.find(&kept));
    let backend = match kept.filter(|backend| balance::takes_new_flows(backend)) {
        Some(backend) => backend,
        None => table.place(hash)?,
    };
    balance::keep(&client, Party { address: backend.address, port: backend.port, zero: 0 });
    Some(backend)
}
