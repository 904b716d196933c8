//! Services whose clients no socket program saw: their packets are translated one by one. A question gets the backend as its
//! destination before anything else is asked about it, so that policies judge who really talks to whom; an answer is shown as
//! the frontend's at the last hook before it reaches the client.
//!
//! A connection has two rows, but where backends answer clients themselves, in `CONNECTIONS`, one for each way. They are written after its first packet was let through.

pub mod direct;
mod too_long;

use aya_ebpf::programs::TcContext;
use weft_shared::layout::{
    Address, Class, Connection, ConnectionKey, Leg, Reason, connection_flags,
    maps::BACKENDS_MAX,
    service::{
        ANY_SERVED, AffinityKey, ClientKind, Frontend, FrontendKey, Party, ServiceBackend, backend_flags,
        frontend_flags, packet_hash, served_bit,
    },
};

use crate::{
    balance::{self, Table},
    connections,
    conntrack::{self, Ends, Entry, Found, forgotten},
    fragment::{self, Part},
    maps::{self, CALL, OWN_ADDRESSES, SERVED_PORTS},
    parse::{self, Packet, Service, protocol, tcp},
    quoted, snat, translate,
    verdict::{in_pools, same},
    xdp::rate,
};

/// What is found out about a packet to a service.
#[derive(Clone, Copy)]
pub struct Call {
    /// The packet as it came.
    named: Packet,
    key: ConnectionKey,
    /// What becomes of the packet.
    row: Connection,
    back: ConnectionKey,
    answer: Connection,
    backend: ServiceBackend,
    /// Between whom the node's own policy is to judge.
    ends: Ends,
    /// The backend that the connection or the client had last.
    former: Party,
    client: AffinityKey,
    /// The party of this node's that stands for the client, of a connection that has one.
    own: Party,
    /// Whether the connection had the backend before.
    had: bool,
    /// Whether backends answer the client themselves.
    dsr: bool,
    /// Whether the packet is in the midst of a connection.
    goes_on: bool,
    /// Whether the client keeps its backend.
    keeps: bool,
    /// Whether the rows are to be written.
    fresh: bool,
}

/// From where a client calls, which says which of a frontend's tables counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Side(u32);

impl Side {
    pub const INSIDE: Self = Self(0);
    pub const OUTSIDE: Self = Self(1);
    /// Outside, and another node has chosen the backend: above this bit, the lower half of its address.
    const FORWARDED: u32 = 2;

    /// The same, or if there is one with the lower half of the address of the backend that another node has chosen.
    #[inline(always)]
    pub fn or_forwarded(self, half: Option<u16>) -> Self {
        let number = match half {
            Some(half) => Self::FORWARDED | u32::from(half) << 16,
            None => self.0,
        };
        Self(forgotten(number.into()) as u32)
    }

    #[inline(always)]
    pub fn is_forwarded(self) -> bool {
        self.0 & Self::FORWARDED != 0
    }

    #[inline(always)]
    fn half(self) -> u32 {
        self.0 >> 16
    }
}

/// Whom a packet is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Called {
    /// No service.
    Other,
    /// A backend, which now is the packet's destination.
    Backend,
    /// A backend that is not on this node, where the client is outside: the packet stays as it is.
    Elsewhere,
    /// A service that nobody answers, or whose backend has gone in the midst of a connection.
    Nobody,
}

/// Whether the node has services.
#[inline(always)]
pub fn any() -> bool {
    SERVED_PORTS.get(ANY_SERVED).is_some_and(|any| *any != 0)
}

/// Whether some service has the packet's port.
#[inline(always)]
pub fn may_be_called(packet: &Packet) -> bool {
    let Some((word, bit)) = served_bit(packet.protocol, u16::from_be(packet.destination_port)) else {
        return false;
    };
    SERVED_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Finds out whether the packet in hand calls somebody, or answers a call; then its flow is another one than that which was known.
/// `None`: it calls nobody who answers, and is to be refused.
#[inline(always)]
pub fn called(
    ctx: &TcContext,
    packet: &Packet,
    flow: Option<Found>,
    side: Side,
    now: u64,
) -> Result<Option<Option<Found>>, Reason> {
    if packet.is_icmp() {
        if any() {
            quoted::call(ctx, packet, side)?;
        }
        return Ok(Some(flow));
    }
    let entry = Entry::of(packet, flow);
    // A connection goes on as it began, datagrams go where they go now.
    let known = entry.is_some_and(|entry| entry.is_of_service() || packet.protocol == protocol::TCP);
    if known || !may_be_called(packet) {
        refuse_strange(packet, entry)?;
        return mark_answer(packet, entry).map(|()| Some(flow));
    }
    match call(ctx, side, now)? {
        Called::Other => mark_answer(packet, entry).map(|()| Some(flow)),
        Called::Nobody => Ok(None),
        Called::Elsewhere => {
            parse::kept()?.service = Service::Elsewhere;
            Ok(Some(None))
        }
        Called::Backend => {
            let packet = &*parse::kept()?;
            let flow = conntrack::find_any(packet, now);
            refuse_taken(Entry::of(packet, flow))?;
            Ok(Some(flow))
        }
    }
}

/// Refuses what goes to a backend by its own name, on ports with which the client has called a service.
#[inline(always)]
pub fn refuse_strange(packet: &Packet, entry: Option<Entry>) -> Result<(), Reason> {
    match entry {
        Some(entry) if entry.is_strange_to_service(packet) && !entry.is_closed() => {
            Err(Reason::ServicePortTaken)
        }
        _ => Ok(()),
    }
}

/// Marks the packet in hand if it answers for a service: its flow says so, or where that is not known, its connection.
#[inline(always)]
pub fn mark_answer(packet: &Packet, entry: Option<Entry>) -> Result<(), Reason> {
    let answers = match entry {
        Some(entry) => entry.answers_for_service() && entry.found.is_still(),
        None => any() && is_answer(packet),
    };
    if answers {
        parse::kept()?.service = Service::Answer;
    }
    Ok(())
}

/// Who is called by the packet in hand, which is changed if that is a backend. One step after the other, and not one in the other,
/// for the stack's sake.
#[inline(always)]
fn call(ctx: &TcContext, side: Side, now: u64) -> Result<Called, Reason> {
    let known = go_on(side.0, now);
    if known & LOOK_AFTER != 0 {
        look_after_answers();
    }
    if known == 0 {
        match seek(side.0) {
            OTHER => return Ok(Called::Other),
            NOBODY => return Ok(Called::Nobody),
            FRONTEND => {}
            number => return Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
        }
        let forwarded = side.is_forwarded();
        let found = if forwarded {
            find_marked(side.half()) != 0
        } else {
            find_former(FORMER) != 0 || find_former(FORMER_PORTLESS) != 0
        };
        if forwarded && !found {
            return Err(Reason::NoEndpoint);
        }
        if take(found.into(), forwarded.into()) == 0 {
            return Ok(Called::Nobody);
        }
    }
    let call = in_hand().ok_or(Reason::KernelError)?;
    let known_here = side != Side::OUTSIDE || call.row.flags & connection_flags::LOCAL != 0;
    if !known_here && maps::peer_of(&call.row.destination.address).ifindex == 0 {
        if call.fresh && call.dsr {
            call.row.flags = connection_flags::DSR;
        }
        return Ok(Called::Elsewhere);
    }
    translate::parties(ctx, &call.row.source, &call.row.destination)?;
    parse::kept()?.service = Service::Question;
    Ok(Called::Backend)
}

/// Beside what [`go_on`] answers: the row for the way back is to be looked after.
const LOOK_AFTER: u32 = 2;

/// Whether the packet in hand is of a connection that is known and holds, whose row then is in hand. Most packets that open one
/// are not. Once in a while its use is noted, and the row for the way back, which may have been taken for another connection, is
/// looked after.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn go_on(side: u32, now: u64) -> u32 {
    let (Ok(packet), Some(call)) = (parse::kept(), in_hand()) else { return 0 };
    if packet.part == Part::First {
        call.named = *packet;
    }
    write_key(&mut call.key, packet, Leg::Question);
    call.fresh = false;
    if packet.tcp_opens() {
        return 0;
    }
    let Some(mut known) = connections::find_near(&call.key) else { return 0 };
    // SAFETY: as in `known`.
    let known = unsafe { known.as_mut() };
    let side = Side(side);
    let meant = !side.is_forwarded() || lower_half(&known.destination.address) == side.half();
    if !meant || has_come_into_pools(known) || !holds(known) {
        return 0;
    }
    copy_party(&mut call.row.source, &known.source);
    copy_party(&mut call.row.destination, &known.destination);
    call.row.flags = known.flags;
    if now.saturating_sub(known.seen_at) <= SEEN_NANOSECONDS {
        return 1;
    }
    known.seen_at = now;
    1 | LOOK_AFTER
}

/// Room for the ends of the call in hand: the stack has none.
#[inline(always)]
pub fn ends() -> Result<&'static mut Ends, Reason> {
    in_hand().map(|call| &mut call.ends).ok_or(Reason::KernelError)
}

#[inline(always)]
fn in_hand() -> Option<&'static mut Call> {
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    CALL.get_ptr_mut(0).map(|call| unsafe { &mut *call })
}

/// In place: the stack has no room for one.
#[inline(always)]
fn write_key(key: &mut ConnectionKey, packet: &Packet, leg: Leg) {
    copy_address(&mut key.source, &packet.source);
    copy_address(&mut key.destination, &packet.destination);
    key.source_port = packet.source_port;
    key.destination_port = packet.destination_port;
    key.protocol = packet.protocol;
    key.leg = leg as u8;
    key.zero = [0; 2];
}

/// Word by word: of a copy of memory the compiler makes a call, which goes byte by byte.
#[inline(always)]
fn copy_address(to: &mut Address, from: &Address) {
    for word in 0..4 {
        // SAFETY: a field of its own.
        unsafe { (&raw mut to.words[word]).write_volatile(from.words[word]) };
    }
}

#[inline(always)]
fn copy_party(to: &mut Party, from: &Party) {
    copy_address(&mut to.address, &from.address);
    to.port = from.port;
    to.zero = 0;
}

#[inline(always)]
fn copy_backend(to: &mut ServiceBackend, from: &ServiceBackend) {
    copy_address(&mut to.address, &from.address);
    to.port = from.port;
    to.flags = from.flags;
    to.weight = from.weight;
}

#[inline(always)]
fn known(key: &ConnectionKey) -> Option<&'static mut Connection> {
    // SAFETY: the kernel's element, which other CPUs change, too: see `connections::find`.
    connections::find(key).map(|mut row| unsafe { row.as_mut() })
}

/// Whether the backend was outside of the fleet when the row was made, and is not any more: it is made anew, for XDP goes by it.
#[inline(always)]
fn has_come_into_pools(row: &Connection) -> bool {
    row.flags & (connection_flags::SNAT | connection_flags::FLEET) == connection_flags::SNAT
        && in_pools(&maps::peer_of(&row.destination.address))
}

/// How exactly rows say when they were used.
const SEEN_NANOSECONDS: u64 = 1_000_000_000;

/// Whether the backend is known to be the service's still.
#[inline(always)]
fn holds(known: &Connection) -> bool {
    Table::of(known.table).is_some_and(|table| table.digest() == known.digest)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_after_answers() -> u32 {
    let Some(call) = in_hand() else { return 0 };
    let Some(row) = known(&call.key) else { return 0 };
    call.row = *row;
    make_answer(call);
    if let Some(answer) = known(&call.back) {
        answer.seen_at = call.answer.seen_at;
        return 0;
    }
    connections::add(&call.back, &call.answer).into()
}

/// The row of the way back, from that of the way forth.
#[inline(always)]
fn make_answer(call: &mut Call) {
    let Connection { source, destination, flags, seen_at, .. } = call.row;
    call.back = ConnectionKey {
        source: destination.address,
        destination: source.address,
        source_port: destination.port,
        destination_port: source.port,
        protocol: call.key.protocol,
        leg: Leg::Answer as u8,
        zero: [0; 2],
    };
    call.answer = Connection {
        source: party(call.key.destination, call.key.destination_port),
        destination: party(call.key.source, call.key.source_port),
        flags,
        table: 0,
        digest: 0,
        seen_at,
    };
}

#[inline(always)]
const fn party(address: Address, port: u16) -> Party {
    Party { address, port, zero: 0 }
}

const OTHER: u32 = 1000;
const NOBODY: u32 = 1001;
const FRONTEND: u32 = 1002;

/// Looks for the frontend of a connection that is not known, or whose backend may be one no more.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn seek(side: u32) -> u32 {
    let (Ok(packet), Some(call)) = (parse::kept(), in_hand()) else { return Reason::KernelError as u32 };
    let known = known(&call.key);
    let Some(frontend) = frontend(packet) else {
        return if known.is_some() { NOBODY } else { OTHER };
    };
    let outside = Side(side) != Side::INSIDE;
    // Nobody outside knows the address: it is not looked at.
    if outside && frontend.flags & frontend_flags::CLUSTER != 0 {
        return OTHER;
    }
    let slot = if outside { frontend.outside } else { frontend.inside };
    let Some(table) = Table::of(slot) else { return NOBODY };
    if !table.admits(&packet.source) {
        return Reason::SourceRefused as u32;
    }
    call.row.table = slot;
    call.row.digest = table.digest();
    call.goes_on = known.is_some() && !packet.tcp_opens();
    call.dsr = table.is_dsr();
    call.own = match &known {
        Some(known) if known.flags & connection_flags::SNAT != 0 => known.source,
        _ => NO_PARTY,
    };
    call.keeps = table.affinity_nanoseconds() != 0;
    call.client = AffinityKey { service: slot, kind: ClientKind::Address as u32, client: packet.source };
    call.former = match known {
        Some(known) => known.destination,
        None if call.keeps => balance::kept(&call.client, &table).unwrap_or(NO_PARTY),
        None => NO_PARTY,
    };
    FRONTEND
}

const NO_PARTY: Party = party(Address::UNSPECIFIED, 0);

/// The connection's or the client's former backend, as it is written in the connection, and as the table may have it: with no port
/// of its own.
const FORMER: u32 = 0;
const FORMER_PORTLESS: u32 = 1;

/// Whether the former backend is one: then it is in hand.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_former(portless: u32) -> u32 {
    let Some(call) = in_hand() else { return 0 };
    if same(&call.former.address, &Address::UNSPECIFIED) {
        return 0;
    }
    if portless != 0 {
        if call.former.port != call.key.destination_port {
            return 0;
        }
        call.former.port = 0;
    }
    let Some(backend) = Table::of(call.row.table).and_then(|table| table.find(&call.former)) else {
        return 0;
    };
    copy_backend(&mut call.backend, backend);
    1
}

/// The last 16 bits of an address, by which nodes tell each other of endpoints.
#[inline(always)]
fn lower_half(address: &Address) -> u32 {
    u32::from_be(address.words[3]) & 0xffff
}

/// Whether an endpoint of this node whose address has this lower half is a backend: then it is in hand. One after the other: they are
/// ordered by the rest of their addresses.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_marked(half: u32) -> u32 {
    for part in 0..(BACKENDS_MAX as u32).div_ceil(PART) {
        match find_in_part(part * PART, half) {
            GO_ON => {}
            found => return found,
        }
    }
    0
}

/// Backends that are looked at together: the verifier follows each.
const PART: u32 = 64;
/// What [`find_in_part`] answers where none of them was it, and there are more.
const GO_ON: u32 = 2;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_in_part(first: u32, half: u32) -> u32 {
    let Some(call) = in_hand() else { return 0 };
    let Some(table) = Table::of(call.row.table) else { return 0 };
    for number in 0..PART {
        let Some(backend) = table.backend(first.wrapping_add(number)) else { return 0 };
        if lower_half(&backend.address) == half && backend.flags & backend_flags::LOCAL != 0 {
            copy_backend(&mut call.backend, backend);
            return 1;
        }
    }
    GO_ON
}

/// Takes the backend that was found, or one for a new connection; 0: nobody.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take(found: u32, forwarded: u32) -> u32 {
    let (Ok(packet), Some(call)) = (parse::kept(), in_hand()) else { return 0 };
    call.had = found != 0;
    // Another node has chosen: whether one takes new connections was its question.
    if forwarded == 0 && (found == 0 || !(call.goes_on || balance::takes_new_flows(&call.backend))) {
        // Nobody else can go on in the midst of a connection.
        if call.goes_on && packet.protocol == protocol::TCP {
            return 0;
        }
        let from = party(packet.source, packet.source_port);
        let to = party(packet.destination, packet.destination_port);
        let table = Table::of(call.row.table);
        match table.and_then(|table| table.place(packet_hash(&from, &to, packet.protocol))) {
            Some(backend) => copy_backend(&mut call.backend, backend),
            None => return 0,
        }
    }
    if call.keeps && !call.goes_on && forwarded == 0 {
        balance::keep(&call.client, party(call.backend.address, call.backend.port));
    }
    fill(call, packet);
    1
}

/// The frontend that the packet goes to. Few packets go to a port that is a port of the node.
#[inline(always)]
fn frontend(packet: &Packet) -> Option<Frontend> {
    let Packet { destination, destination_port, protocol, .. } = *packet;
    let exact = balance::frontend(&FrontendKey::address(destination, destination_port, protocol));
    if exact.is_some() {
        return exact;
    }
    let port = balance::frontend(&FrontendKey::node_port(!packet.v6, destination_port, protocol))?;
    (maps::peer_of(&destination).class == Class::Host as u32).then_some(port)
}

/// The row of the way forth to the backend in hand. Who calls itself would hear its own address answer: it is called by the
/// frontend's.
#[inline(always)]
fn fill(call: &mut Call, packet: &Packet) {
    let backend = call.backend;
    let port = if backend.port == 0 { packet.destination_port } else { backend.port };
    let itself = same(&backend.address, &packet.source);
    let source = if itself { packet.destination } else { packet.source };
    let local = backend.flags & backend_flags::LOCAL != 0;
    call.row.source = party(source, packet.source_port);
    call.row.destination = party(backend.address, port);
    call.row.flags = if local { connection_flags::LOCAL } else { 0 };
    call.row.seen_at = conntrack::now();
    call.fresh = true;
}

/// Sends the question in hand to its backend elsewhere as this node's own, with a port for the answers.
#[inline(always)]
pub fn leave(ctx: &TcContext, now: u64) -> Result<(), Reason> {
    match own_party(now) {
        OWN_PORT => {}
        number => return Err(Reason::from_number(number).unwrap_or(Reason::KernelError)),
    }
    let call = in_hand().ok_or(Reason::KernelError)?;
    translate::parties(ctx, &call.row.source, &call.row.destination)?;
    let packet = parse::kept()?;
    packet.service = Service::Question;
    fragment::remember(packet)?;
    remember(packet)
}

/// In place of a reason.
const OWN_PORT: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn own_party(now: u64) -> u32 {
    let (Ok(packet), Some(call)) = (parse::kept(), in_hand()) else { return Reason::KernelError as u32 };
    match take_port(packet, call, now) {
        Ok(()) => OWN_PORT,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn take_port(packet: &Packet, call: &mut Call, now: u64) -> Result<(), Reason> {
    let last = packet.protocol == protocol::TCP && packet.tcp_flags & (tcp::FIN | tcp::RST) != 0;
    let ended = if last { connection_flags::ENDED } else { 0 };
    let Call { key, row, own, .. } = call;
    if !call.fresh {
        // Of one that was an endpoint of this node.
        if row.flags & connection_flags::SNAT == 0 {
            return Err(Reason::ServiceElsewhere);
        }
        if last {
            // Where it is another's by now, the next packet finds out.
            snat::snat_keep(
                &raw const *key,
                &raw const row.destination,
                &raw const row.source,
                row.flags | ended,
                now,
            );
        }
        return Ok(());
    }
    row.flags = connection_flags::SNAT;
    if in_pools(&maps::peer_of(&row.destination.address)) {
        row.flags |= connection_flags::FLEET;
    }
    let flags = row.flags | ended | if packet.tcp_opens() { snat::BEGINS } else { 0 };
    let kept = call.had && own.port != 0;
    if kept && snat::snat_keep(&raw const *key, &raw const row.destination, &raw const *own, flags, now) != 0
    {
        row.source = *own;
        return Ok(());
    }
    let own = OWN_ADDRESSES.get(packet.v6.into()).ok_or(Reason::ServiceElsewhere)?;
    if *own == [0; 2] {
        return Err(Reason::ServiceElsewhere);
    }
    if !rate::allows(now) {
        return Err(Reason::NoPortLeft);
    }
    row.source.address = bytemuck::cast(*own);
    let port = snat::snat_port(
        &raw const *key,
        &raw const row.destination,
        &raw const row.source.address,
        flags,
        now,
    );
    row.source.port = port as u16;
    if port == 0 { Err(Reason::NoPortLeft) } else { Ok(()) }
}

/// Whether the rows of the question in hand are to be written.
#[inline(always)]
fn is_fresh() -> bool {
    in_hand().is_none_or(|call| call.fresh)
}

/// Refuses a question whose answers could not be told from those that the backend sends the client on another connection.
#[inline(always)]
pub fn refuse_taken(entry: Option<Entry>) -> Result<(), Reason> {
    match entry {
        Some(entry)
            if !entry.is_closed() && (!entry.is_of_service() || is_fresh() && answers_another() != 0) =>
        {
            Err(Reason::ServicePortTaken)
        }
        _ => Ok(()),
    }
}

/// Whether what the backend answers is shown as another frontend's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answers_another() -> u32 {
    let Some(call) = in_hand() else { return 1 };
    make_answer(call);
    known(&call.back).is_some_and(|row| !row.source.is(&call.answer.source)).into()
}

/// Remembers the connection of a question that was let through, and what its first fragment said.
#[inline(always)]
pub fn remember(packet: &Packet) -> Result<(), Reason> {
    // Of an error there is nothing to remember.
    let asks = packet.service == Service::Question && !packet.is_icmp();
    let asks = asks && (packet.part == Part::First || is_fresh());
    if asks && remember_call() == 0 { Err(Reason::KernelError) } else { Ok(()) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_call() -> u32 {
    let Some(call) = in_hand() else { return 0 };
    if parse::kept().is_ok_and(|packet| packet.part == Part::First)
        && fragment::remember(&call.named).is_err()
    {
        return 0;
    }
    if !call.fresh {
        return 1;
    }
    make_answer(call);
    (connections::put(&call.back, &call.answer) && connections::put(&call.key, &call.row)).into()
}

/// Whether the packet in hand answers a connection that is known.
#[inline(always)]
pub fn is_answer(packet: &Packet) -> bool {
    !packet.is_icmp() && !packet.tcp_opens() && find_answer() != 0
}

/// Whether the packet in hand, to somebody outside, answers for a service or tells of a question to one.
#[inline(always)]
pub fn answers_outside(ctx: &TcContext, packet: &Packet) -> bool {
    is_answer(packet) || quoted::is_about_question(ctx, packet)
}

/// Whether the answer in hand can be shown as its frontend's at a later hook.
#[inline(always)]
pub fn refuse_forgotten(ctx: &TcContext) -> Result<(), Reason> {
    if answers_outside(ctx, parse::kept()?) { Ok(()) } else { Err(Reason::ServiceForgotten) }
}

/// Shows the answer in hand, or an error about the question, as its frontend's.
#[inline(always)]
pub fn show_answer(ctx: &TcContext) -> Result<(), Reason> {
    let packet = &*parse::kept()?;
    if packet.is_icmp() {
        return if quoted::is_about_question(ctx, packet) {
            quoted::put(ctx)
        } else {
            Err(Reason::ServiceForgotten)
        };
    }
    if find_answer() == 0 {
        return Err(Reason::ServiceForgotten);
    }
    let call = in_hand().ok_or(Reason::KernelError)?;
    translate::parties(ctx, &call.answer.source, &call.answer.destination)
}

/// Whether the connection of the answer in hand is known: then its row is in hand.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_answer() -> u32 {
    let (Ok(packet), Some(call)) = (parse::kept(), in_hand()) else { return 0 };
    write_key(&mut call.back, packet, Leg::Answer);
    let Some(row) = known(&call.back) else { return 0 };
    let now = conntrack::now();
    if now.saturating_sub(row.seen_at) > SEEN_NANOSECONDS {
        row.seen_at = now;
    }
    copy_party(&mut call.answer.source, &row.source);
    copy_party(&mut call.answer.destination, &row.destination);
    1
}
