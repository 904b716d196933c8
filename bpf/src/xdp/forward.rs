//! Which backend a packet to a service gets, and on its way.
//!
//! What a connection was given is remembered in `CONNECTIONS`, and used while the service's table is the one in which the backend
//! was found, or still has it: connections to a backend that terminates stay. Whether there still is the frontend is looked at
//! again once a second.

use core::ptr::NonNull;

use aya_ebpf::programs::XdpContext;
use weft_shared::layout::{
    Address, Class, Connection, Leg, Reason, connection_flags,
    service::{
        AffinityKey, ClientKind, Frontend, FrontendKey, Party, ServiceBackend, backend_flags, frontend_flags,
        packet_hash,
    },
};

use super::{
    hop, rate,
    read::{Packet, maybe},
    rewrite, tunnel,
};
use crate::{
    balance::{self, Table},
    connections,
    conntrack::now,
    frame::ETHERNET,
    maps::{self, IPCACHE},
    parse::protocol,
    snat,
    verdict::in_pools,
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
    let reason = match way(packet, now)? {
        Some(reason) => reason,
        None => return Ok(None),
    };
    if packet.flags & connection_flags::LOCAL != 0 {
        return Err(Reason::PassedLocalBackend);
    }
    let dsr = packet.flags & connection_flags::DSR != 0;
    // What the node's own policy judges is judged at tc.
    let judged = maps::runtime().host != 0 || packet.flags & connection_flags::FLEET != 0;
    if !dsr && (judged || packet.flags & connection_flags::SNAT == 0) {
        return Err(Reason::PassedToTc);
    }
    let hop = hop::to(ctx, &packet.destination, now)?;
    if !hop::is_ours(ctx, hop) {
        return Ok(None);
    }
    let more = if dsr {
        tunnel::wrap(ctx, packet, hop)?
    } else {
        rewrite::ends(ctx, packet, hop)?;
        0
    };
    Ok(Some(Sent { reason, bytes: ETHERNET as u32 + packet.length + more }))
}

/// As what the packet goes on, and its way is in it; `None`: it is nobody's here.
#[inline(always)]
fn way(packet: &mut Packet, now: u64) -> Result<Option<Reason>, Reason> {
    if packet.maybe & maybe::ANSWER != 0 {
        packet.key.leg = Leg::Answer as u8;
        if let Some(row) = connections::find_near(&packet.key) {
            answers(packet, row, now);
            return Ok(Some(Reason::ServiceForwarded));
        }
        packet.key.leg = Leg::Question as u8;
    }
    if packet.maybe & maybe::QUESTION == 0 {
        return Ok(None);
    }
    let known = if packet.opens { None } else { connections::find_near(&packet.key) };
    if known.is_some_and(|row| remembered(packet, row, now)) {
        return Ok(Some(Reason::ServiceForwarded));
    }
    connections::expect(&packet.key);
    let mut number = choose_way(now);
    if number == NOBODYS {
        return Ok(None);
    }
    if number == UNREMEMBERED {
        if packet.row.flags & connection_flags::SNAT != 0 {
            done(own_port(now))?;
        }
        number = remember_way(now);
    }
    let sent = done(number)?;
    let row = packet.row;
    take(packet, &row);
    Ok(Some(sent))
}

/// What a backend answers goes to the client, as the frontend's.
#[inline(always)]
fn answers(packet: &mut Packet, mut row: NonNull<Connection>, now: u64) {
    // SAFETY: the kernel's element; see `connections::find`.
    let row = unsafe { row.as_mut() };
    if now.saturating_sub(row.seen_at) >= FRESH {
        row.seen_at = now;
    }
    if packet.maybe & maybe::LAST != 0 {
        row.flags |= connection_flags::ENDED;
    }
    take(packet, row);
}

/// The packet becomes what the row says.
#[inline(always)]
fn take(packet: &mut Packet, row: &Connection) {
    packet.flags = row.flags;
    packet.destination = halves(&row.destination.address);
    // Nothing in a packet that goes on inside another one changes.
    if row.flags & connection_flags::DSR != 0 {
        return;
    }
    packet.source = halves(&row.source.address);
    packet.source_port = row.source.port;
    packet.destination_port = row.destination.port;
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
    take(packet, row);
    // The answers' row says when the port is free.
    row.flags & connection_flags::SNAT == 0 || packet.maybe & maybe::LAST == 0
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

/// What [`choose_way`] answers of a packet that goes to no service of those outside.
const NOBODYS: u32 = u32::MAX;
/// What it answers of one that has a row, which is not written yet.
const UNREMEMBERED: u32 = u32::MAX - 1;

/// What functions answer that are the verifier's own: numbers of reasons, of which those are errors by which no packet is sent.
#[inline(always)]
fn done(number: u32) -> Result<Reason, Reason> {
    match Reason::from_number(number).unwrap_or(Reason::KernelError) {
        sent @ (Reason::ServiceForwarded | Reason::ServiceUnremembered) => Ok(sent),
        reason => Err(reason),
    }
}

#[inline(always)]
fn number(outcome: Result<Reason, Reason>) -> u32 {
    match outcome {
        Ok(reason) | Err(reason) => reason as u32,
    }
}

/// Finds the way of the kept packet, of which nothing is remembered that holds and whose row is asked for, and makes the row.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_way(now: u64) -> u32 {
    let Some(packet) = Packet::kept() else { return Reason::KernelError as u32 };
    let Some(frontend) = frontend(packet).filter(|it| it.flags & frontend_flags::CLUSTER == 0) else {
        return NOBODYS;
    };
    let made = make_row(packet, frontend.outside, now);
    made.map_or_else(|reason| reason as u32, |sent| sent.map_or(UNREMEMBERED, |reason| reason as u32))
}

/// As what the packet goes on, where its row is written already.
#[inline(always)]
fn make_row(packet: &mut Packet, service: u32, now: u64) -> Result<Option<Reason>, Reason> {
    let table = Table::of(service).ok_or(Reason::PassedNoBackend)?;
    if !table.admits(&packet.key.source) {
        return Err(Reason::SourceRefused);
    }
    packet.row.flags = if table.is_dsr() { connection_flags::DSR } else { connection_flags::SNAT };
    (packet.row.table, packet.row.digest, packet.row.seen_at) = (service, table.digest(), now);
    (packet.known, packet.counted) = (false, false);
    let place = table.place(packet_hash(&packet.client(), &packet.frontend(), packet.key.protocol));
    if let Some(backend) = place {
        let client = packet.client();
        set_ends(packet, &client, backend);
    }
    connections::choose_next(now);
    // A first packet may come again, or begin a new connection of the same ports.
    let known = connections::find_expected();
    let simple = known.is_none() && table.is_dsr() && table.affinity_nanoseconds() == 0;
    if simple && place.is_some_and(|backend| backend.flags & backend_flags::LOCAL == 0) {
        return Ok(remember_next(packet, now));
    }
    let had = known.and_then(|row| had(packet, &table, row));
    let backend = match had {
        Some(backend) => backend,
        None if known.is_some() && packet.key.protocol == protocol::TCP && !packet.opens => {
            return Err(Reason::PassedNoBackend);
        }
        None => choose(&table, service, packet, place).ok_or(Reason::PassedNoBackend)?,
    };
    if backend.flags & backend_flags::LOCAL != 0 {
        return Err(Reason::PassedLocalBackend);
    }
    packet.known = had.is_some();
    // What the connection was sent as, or as what the client sends it.
    let source = match known.filter(|_| had.is_some()) {
        // SAFETY: as above.
        Some(row) => unsafe { row.as_ref() }.source,
        None => packet.client(),
    };
    set_ends(packet, &source, backend);
    Ok(None)
}

/// Writes the row that was made, which there was not yet, where that is simple.
#[inline(always)]
fn remember_next(packet: &mut Packet, now: u64) -> Option<Reason> {
    if !rate::allows(now) {
        return Some(Reason::ServiceUnremembered);
    }
    packet.counted = true;
    connections::put_next(&packet.row).then_some(Reason::ServiceForwarded)
}

/// As whose the packet goes to the backend. In its table, the port may be left open.
#[inline(always)]
fn set_ends(packet: &mut Packet, source: &Party, backend: &ServiceBackend) {
    let port = if backend.port == 0 { packet.key.destination_port } else { backend.port };
    let destination = Party { address: backend.address, port, zero: 0 };
    // SAFETY: parties of the row.
    unsafe {
        balance::write_party(&raw mut packet.row.source, source);
        balance::write_party(&raw mut packet.row.destination, &destination);
    }
}

/// Gives the kept packet, whose backend answers through this node, a port to be sent from.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn own_port(now: u64) -> u32 {
    let Some(packet) = Packet::kept() else { return Reason::KernelError as u32 };
    number(find_port(packet, now).map(|()| Reason::ServiceForwarded))
}

#[inline(always)]
fn find_port(packet: &mut Packet, now: u64) -> Result<(), Reason> {
    // What is sent into the overlay, and the checksum of SCTP, are tc's.
    let ported = matches!(packet.key.protocol, protocol::TCP | protocol::UDP);
    if !ported || maps::runtime().host != 0 || in_pools(&maps::peer_of(&packet.row.destination.address)) {
        return Err(Reason::PassedToTc);
    }
    let ended = if packet.maybe & maybe::LAST != 0 { connection_flags::ENDED } else { 0 };
    let begins = if packet.opens { snat::BEGINS } else { 0 };
    let flags = connection_flags::SNAT | ended | begins;
    let Packet { key, row: Connection { source, destination, .. }, known, .. } = packet;
    if *known
        && snat::snat_keep(&raw const *key, &raw const *destination, &raw const *source, flags, now) != 0
    {
        return Ok(());
    }
    let own = hop::own_address(!packet.v6).ok_or(Reason::PassedNoNeighbour)?;
    source.address = bytemuck::cast(own);
    if own == hop::NOBODY {
        return Err(Reason::PassedNoNeighbour);
    }
    if !rate::allows(now) {
        return Err(Reason::NoPortLeft);
    }
    source.port =
        snat::snat_port(&raw const *key, &raw const *destination, &raw const source.address, flags, now)
            as u16;
    if source.port == 0 { Err(Reason::NoPortLeft) } else { Ok(()) }
}

/// Writes the kept packet's row, in place where there is one of the same backend.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_way(now: u64) -> u32 {
    let Some(packet) = Packet::kept() else { return Reason::KernelError as u32 };
    let Packet { key, row, known, counted, .. } = packet;
    let snat = row.flags & connection_flags::SNAT != 0;
    // Of SNAT, the answers' row was looked for meanwhile.
    let there = if snat { connections::find(key) } else { connections::found() };
    if *known && let Some(there) = there {
        // SAFETY: as above. Whoever reads half of it finds a digest that is not the table's.
        let there = unsafe { &mut *there.as_ptr() };
        (there.source, there.flags) = (row.source, row.flags);
        (there.table, there.digest, there.seen_at) = (row.table, row.digest, row.seen_at);
        return Reason::ServiceForwarded as u32;
    }
    // A port that was given counted already.
    if (snat || *counted || rate::allows(now)) && connections::put_sought(row) {
        return Reason::ServiceForwarded as u32;
    }
    // Its next packet would be sent from another port.
    if snat { Reason::NoPortLeft as u32 } else { Reason::ServiceUnremembered as u32 }
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

/// The backend of a new connection: the client's last one where the service keeps it, or that of the flow's `place`.
#[inline(always)]
fn choose(
    table: &Table,
    service: u32,
    packet: &Packet,
    place: Option<&'static ServiceBackend>,
) -> Option<&'static ServiceBackend> {
    if table.affinity_nanoseconds() == 0 {
        return place;
    }
    let client = AffinityKey { service, kind: ClientKind::Address as u32, client: packet.key.source };
    let kept = balance::kept(&client, table).and_then(|kept| table.find(&kept));
    let backend = match kept.filter(|backend| balance::takes_new_flows(backend)) {
        Some(backend) => backend,
        None => place?,
    };
    balance::keep(&client, Party { address: backend.address, port: backend.port, zero: 0 });
    Some(backend)
}
