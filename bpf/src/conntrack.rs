//! The flow table: which flow a packet belongs to, in which direction, and whether what is remembered of it still holds.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use weft_shared::layout::{
    Address, Class, Endpoint, Flow, FlowKey, FlowRow, Peer, Reason, flow_flags, host,
    table::{Line, spot, words},
    timeout_nanoseconds,
};

use crate::{
    maps::{self, FLOW_INDEX, FLOWS, NODES, SUBJECTS},
    parse::{Echo, Packet, Service, protocol, tcp},
    table::{self, Held, Table},
    verdict::Moment,
};

/// The flags are changed together with the rest of their eight bytes, in which they are the third quarter (little endian).
const WORD_OF_FLAGS: usize = core::mem::offset_of!(Flow, original_node);
const FLAGS_SHIFT: u32 = 32;
const _: () = assert!(WORD_OF_FLAGS % 8 == 0 && core::mem::offset_of!(Flow, flags) == WORD_OF_FLAGS + 4);

/// A row of a flow that was found for a packet. It is carried by itself from where it was found to where the packet is judged: the
/// less is known there, the fewer ways there are for the verifier.
pub type Found = Held<FlowKey, Flow>;

/// A live entry and this packet's place in it.
#[derive(Clone, Copy)]
pub struct Entry {
    pub found: Found,
    high: bool,
}

impl Entry {
    /// What was found for a packet.
    #[inline(always)]
    pub fn of(packet: &Packet, found: Option<Found>) -> Option<Self> {
        Some(Self { found: found?, high: source_is_high(packet) })
    }
}

/// What is known of a flow that is judged again.
#[derive(Clone, Copy)]
pub struct State {
    /// The packet goes the way of the first.
    pub original: bool,
    pub flags: u16,
}

impl State {
    /// Not 0.
    #[inline(always)]
    pub fn number(self) -> u32 {
        u32::from(self.flags) | FOUND | if self.original { ORIGINAL } else { 0 }
    }

    #[inline(always)]
    pub fn from_number(number: u32) -> Option<Self> {
        (number & FOUND != 0).then_some(Self { original: number & ORIGINAL != 0, flags: number as u16 })
    }
}

/// Who is at the two ends of a packet, as the flow's verdict was given for them.
#[derive(Clone, Copy)]
pub struct Ends {
    pub source: Peer,
    pub destination: Peer,
}

/// Whether the packet's source is the key's `high`.
#[inline(always)]
fn source_is_high(packet: &Packet) -> bool {
    forgotten(is_above(packet).into()) != 0
}

/// The same number, of which the verifier knows nothing any more: it does not follow what bytes are swapped. What is known
/// of a number that was decided by branches keeps their ways apart to the end of the program.
#[inline(always)]
pub fn forgotten(mut number: u64) -> u64 {
    // SAFETY: changes the one register, and back.
    unsafe {
        asm!("{number} = be64 {number}", "{number} = be64 {number}", number = inout(reg) number, options(nomem, nostack, preserves_flags, pure));
    }
    number
}

#[inline(always)]
fn is_above(packet: &Packet) -> bool {
    let order = |address: &Address, word: usize| {
        u64::from(u32::from_be(address.words[word])) << 32 | u64::from(u32::from_be(address.words[word + 1]))
    };
    let (source, destination) = (&packet.source, &packet.destination);
    let (upper, upper_other) = (order(source, 0), order(destination, 0));
    if upper != upper_other {
        return upper > upper_other;
    }
    let (lower, lower_other) = (order(source, 2), order(destination, 2));
    if lower != lower_other {
        return lower > lower_other;
    }
    u16::from_be(packet.source_port) > u16::from_be(packet.destination_port)
}

/// Gives the words of the key of the packet's flow, one after the other, and then whether its source is `high` there. Swapped by
/// masks and not by branches: the verifier would follow the rest of the program for each of them.
#[inline(always)]
fn key(packet: &Packet, mut word: impl FnMut(usize, u64)) -> bool {
    let high = source_is_high(packet);
    let mask = 0_u64.wrapping_sub(high.into());
    let (source, destination) = (words(packet.source.words), words(packet.destination.words));
    for index in 0..2 {
        let swap = (source[index] ^ destination[index]) & mask;
        word(index, source[index] ^ swap);
        word(index + 2, destination[index] ^ swap);
    }
    let swap = (packet.source_port ^ packet.destination_port) & mask as u16;
    let asker = match (packet.echo, high) {
        (Echo::No, _) => 0,
        (Echo::Request, false) | (Echo::Reply, true) => FlowKey::ASKER_LOW,
        (Echo::Request, true) | (Echo::Reply, false) => FlowKey::ASKER_HIGH,
    };
    let (low_port, high_port) = (packet.source_port ^ swap, packet.destination_port ^ swap);
    word(4, FlowKey::last_word(low_port, high_port, packet.protocol, asker));
    high
}

/// What was found for a packet in registers.
#[derive(Clone, Copy)]
pub enum Looked {
    Found(Entry),
    /// There is none.
    Nowhere,
    /// Not where it most likely would be.
    NotFirst,
}

impl Looked {
    #[inline(always)]
    pub fn entry(self) -> Option<Entry> {
        match self {
            Self::Found(entry) => Some(entry),
            Self::Nowhere | Self::NotFirst => None,
        }
    }

    /// Before anything was looked for.
    #[inline(always)]
    pub fn unless_opens(packet: &Packet) -> Self {
        if packet.tcp_opens() { Self::Nowhere } else { Self::NotFirst }
    }

    /// The same for the packet, which is kept now.
    #[inline(always)]
    pub fn or_anywhere(self, packet: &Packet, now: u64) -> Option<Found> {
        match self {
            Self::Found(entry) => Some(entry.found),
            Self::Nowhere => None,
            Self::NotFirst => find_any(packet, now),
        }
    }
}

/// Looks for the live entry of the flow of a packet in registers, where it most likely is. Not for one that opens a connection, which
/// is most likely not known: it is judged as its flow's first, and [`remember`] finds out.
#[inline(always)]
pub fn find(packet: &Packet, now: u64) -> Looked {
    if packet.tcp_opens() {
        return Looked::Nowhere;
    }
    let mut words = [0; 5];
    let high = key(packet, |index, word| words[index] = word);
    let spot = spot(words, maps::config().seed);
    let number = table::first::<Flows>(spot.line & (Flows::mask() >> 3), spot.tag);
    if number == 0 {
        return Looked::Nowhere;
    }
    match table::hold::<Flows>(number & Flows::mask(), &words) {
        None => Looked::NotFirst,
        Some(found) if is_live(packet, found, high, now) => Looked::Found(Entry { found, high }),
        Some(_) => Looked::Nowhere,
    }
}

/// Looks for the live entry of the flow of a packet that is kept.
#[inline(always)]
pub fn find_kept(packet: &Packet, now: u64) -> Option<Found> {
    if packet.tcp_opens() {
        return None;
    }
    find_any(packet, now)
}

/// The same, also for a packet that opens a connection. A function of its own: the stack has no room for the key on every way.
#[inline(never)]
pub fn find_any(packet: &Packet, now: u64) -> Option<Found> {
    find_here(packet, now)
}

/// The same, where the stack has room for it.
#[inline(always)]
pub fn find_here(packet: &Packet, now: u64) -> Option<Found> {
    let high = make_key(packet) != 0;
    let number = search_flows();
    let found = table::hold::<Flows>(number, &table::asked()?.words)?;
    is_live(packet, found, high, now).then_some(found)
}

/// Makes the key that is asked for. Whether the packet's source is the key's `high`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_key(packet: *const Packet) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(asked)) = (unsafe { packet.as_ref() }, table::asked()) else { return 0 };
    let high = key(packet, |index, word| asked.put(index, word));
    asked.find_spot();
    high.into()
}

/// The flow table.
enum Flows {}

impl Table for Flows {
    type Key = FlowKey;
    type Value = Flow;
    const NUMBER: u32 = 0;

    #[inline(always)]
    fn line(number: u32) -> Option<NonNull<Line>> {
        NonNull::new(FLOW_INDEX.get_ptr_mut(number)?)
    }

    #[inline(always)]
    fn row(number: u32) -> Option<NonNull<FlowRow>> {
        NonNull::new(FLOWS.get_ptr_mut(number)?)
    }

    #[inline(always)]
    fn mask() -> u32 {
        maps::config().flow_rows_mask
    }

    #[inline(always)]
    fn nanoseconds(key: &FlowKey, flow: &Flow) -> (u64, u64) {
        (flow.seen_at, timeout_nanoseconds(&maps::config(), key.protocol, flow.flags))
    }

    #[inline(always)]
    fn left(number: u32, now: u64) -> u64 {
        flow_left(number, now)
    }

    #[inline(always)]
    fn fetch(first: u32) -> u32 {
        fetch_flows(first)
    }

    #[inline(always)]
    fn end(flow: &mut Flow) {
        flow.seen_at = 0;
    }
}

table::functions!(Flows: search_flows, flow_left, fetch_flows, reserve_flow, room_for_flow, enter_flow);

/// Whether an entry is the flow's still. One that is over is not: timed out, or closed and opened again.
#[inline(always)]
fn is_live(packet: &Packet, found: Found, high: bool, now: u64) -> bool {
    let entry = Entry { found, high };
    let flags = entry.flow().flags;
    if now.saturating_sub(entry.flow().seen_at) > timeout_nanoseconds(&maps::config(), packet.protocol, flags)
    {
        return false;
    }
    // A new connection on the same ports: over a closed one, or from the party that only ever answered.
    !packet.tcp_opens() || (entry.original() && !is_closed(flags))
}

#[inline(always)]
fn is_closed(flags: u16) -> bool {
    const BOTH: u16 = flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY;
    flags & flow_flags::RST != 0 || flags & BOTH == BOTH
}

impl Entry {
    #[inline(always)]
    fn flow(&self) -> &Flow {
        // SAFETY: an element of an array, which never moves; what other CPUs write are whole numbers. Of which flow they are,
        // `Held::is_still` tells.
        unsafe { &(*self.found.row.as_ptr()).value }
    }

    /// What is left of an entry whose verdict does not hold; `None`: it is another flow's by now.
    #[inline(always)]
    pub fn state(&self) -> Option<State> {
        let state = State { original: self.original(), flags: self.flags() };
        self.found.is_still().then_some(state)
    }

    /// Whether the packet goes the way of the first.
    #[inline(always)]
    pub fn original(&self) -> bool {
        (self.flow().flags & flow_flags::FROM_HIGH != 0) == self.high
    }

    /// Whether the party that began named a service.
    #[inline(always)]
    pub fn is_of_service(&self) -> bool {
        self.flow().flags & flow_flags::SERVICE != 0
    }

    /// Whether the packet answers a party that named a service.
    #[inline(always)]
    pub fn answers_for_service(&self) -> bool {
        self.is_of_service() && !self.original()
    }

    /// Whether the packet goes to a backend by its own name, on ports with which the client reached it as a service's.
    #[inline(always)]
    pub fn is_strange_to_service(&self, packet: &Packet) -> bool {
        self.is_of_service() && self.original() && packet.service == Service::No
    }

    /// Whether both parties of a connection are done.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        is_closed(self.flow().flags)
    }

    #[inline(always)]
    fn flags(&self) -> u16 {
        self.flow().flags & !flow_flags::FROM_HIGH
    }

    /// The parties as remembered, by this packet's direction.
    #[inline(always)]
    pub fn ends(&self) -> Ends {
        let flow = self.flow();
        let from = Peer {
            identity: flow.source_identity,
            class: flow.source_class.into(),
            node: flow.reply_node.into(),
            ifindex: flow.reply_ifindex,
        };
        let to = Peer {
            identity: flow.destination_identity,
            class: flow.destination_class.into(),
            node: flow.original_node.into(),
            ifindex: flow.original_ifindex,
        };
        if self.original() {
            Ends { source: from, destination: to }
        } else {
            Ends { source: to, destination: from }
        }
    }

    /// Whether no node behind which a party is has changed since the verdict.
    #[inline(always)]
    pub fn holds_for_nodes(&self) -> bool {
        let flow = self.flow();
        let unchanged = |slot: u16| match NODES.get(slot.into()) {
            Some(node) => node.epoch <= flow.judged_at,
            None => false,
        };
        unchanged(flow.original_node) && unchanged(flow.reply_node)
    }

    /// Whether the verdict was given for this endpoint's identity, and its table has not changed since.
    #[inline(always)]
    pub fn holds_for(&self, endpoint: &Endpoint, remembered: &Peer) -> bool {
        endpoint.identity == remembered.identity
            && match SUBJECTS.get(endpoint.subject) {
                Some(subject) => {
                    subject.identity == endpoint.identity && subject.epoch <= self.flow().judged_at
                }
                None => false,
            }
    }

    /// Whether nothing has changed since the verdict in what is said of the node itself, if it is one of the parties.
    #[inline(always)]
    pub fn holds_for_host(&self, ends: &Ends) -> bool {
        const HOST: u32 = Class::Host as u32;
        (ends.source.class != HOST && ends.destination.class != HOST)
            || host_holds(self.flow().judged_at) != 0
    }

    /// Notes the packet: when, and what it changes of the flow's state. Whether what was read since the entry was found is this
    /// flow's; if not, nothing holds.
    #[inline(always)]
    #[must_use]
    pub fn touch(&self, packet: &Packet, now: u64) -> bool {
        if !self.found.is_still() {
            return false;
        }
        // SAFETY: as in `flow`; other CPUs may do the same, and any of the times is right.
        let flow = unsafe { &raw mut (*self.found.row.as_ptr()).value };
        unsafe { (*flow).seen_at = now };
        let flags = self.flow().flags;
        let news = flags_of(packet, self.original()) & !flags;
        if news != 0 {
            // SAFETY: an aligned word inside of the kernel's element; other CPUs only set bits, too. The target's `core` has
            // no such operation, the kernel (5.12) has.
            unsafe {
                asm!(
                    "lock *(u64 *)({flow} + {offset}) |= {news}",
                    flow = in(reg) flow,
                    offset = const WORD_OF_FLAGS,
                    news = in(reg) u64::from(news) << FLAGS_SHIFT,
                );
            }
        }
        true
    }
}

/// A function of its own for the verifier: what is known of the node's subject would keep more ways apart. Whoever becomes
/// the node's subject gets a new epoch, so that its identity need not be compared.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn host_holds(judged_at: u64) -> u32 {
    let slot = maps::runtime().host & host::SUBJECT;
    // Not judged.
    if slot == 0 {
        return 1;
    }
    SUBJECTS.get(slot).is_some_and(|subject| subject.epoch <= judged_at).into()
}

/// What a packet says about its flow's state.
#[inline(always)]
fn flags_of(packet: &Packet, original: bool) -> u16 {
    let mut flags = if original { 0 } else { flow_flags::REPLIED };
    if packet.service != Service::No {
        flags |= flow_flags::SERVICE;
    }
    if packet.protocol == protocol::TCP {
        if packet.tcp_flags & tcp::SYN != 0 && original {
            flags |= flow_flags::SYN;
        }
        if packet.tcp_flags & tcp::FIN != 0 {
            flags |= if original { flow_flags::FIN_ORIGINAL } else { flow_flags::FIN_REPLY };
        }
        if packet.tcp_flags & tcp::RST != 0 {
            flags |= flow_flags::RST;
        }
    }
    flags
}

/// Remembers a verdict. `previous` are the flags of the entry that was judged again, where one was found.
#[inline(always)]
pub fn remember(
    packet: &Packet,
    original: bool,
    ends: &Ends,
    previous: Option<u16>,
    moment: &Moment,
) -> Result<(), Reason> {
    let high = make_key(packet) != 0;
    let found = if previous.is_some() { FOUND } else { 0 };
    let state = State { original, flags: previous.unwrap_or(0) }.number() & !FOUND | found;
    let state = if high { state | HIGH } else { state };
    // One after the other, and not one in the other, for the stack's sake.
    let done = match reserve_flow(moment.now) {
        table::KNOWN => write_flow(packet, ends, state | IN_PLACE, moment) != 0,
        table::NEW => {
            write_flow(packet, ends, state, moment) != 0
                && table::enter_in_steps(
                    || room_for_flow(moment.now),
                    |place, last| enter_flow(place, last, 0),
                )
        }
        _ => false,
    };
    if done { Ok(()) } else { Err(Reason::KernelError) }
}

/// Above the flags in a state's number: the packet is of the original direction; there was an entry; the source
/// is the key's `high`; the row is the key's already.
const ORIGINAL: u32 = 1 << 16;
const FOUND: u32 = 1 << 17;
const HIGH: u32 = 1 << 18;
const IN_PLACE: u32 = 1 << 19;

/// Writes the row that was reserved.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_flow(packet: *const Packet, ends: *const Ends, state: u32, moment: *const Moment) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(ends), Some(moment), Some(asked)) =
        (unsafe { (packet.as_ref(), ends.as_ref(), moment.as_ref(), table::asked()) })
    else {
        return 0;
    };
    let high = state & HIGH != 0;
    let original = state & ORIGINAL != 0;
    let mut flags =
        state as u16 | flags_of(packet, original) | if original == high { flow_flags::FROM_HIGH } else { 0 };
    let taken = if state & IN_PLACE == 0 {
        table::reserved::<Flows>(asked)
    } else {
        let Some(found) = table::known::<Flows>(asked) else { return 1 };
        // Known after all: a connection's first packet comes again.
        if state & FOUND == 0 && is_live(packet, found, high, moment.now) {
            flags |= Entry { found, high }.flags();
        }
        table::take_held::<Flows>(found)
    };
    // Where there is none, another CPU writes what it has found out about the flow.
    let Some(mut taken) = taken else { return 1 };
    write(taken.value(), ends, original, flags, moment);
    if state & IN_PLACE != 0 {
        taken.publish();
    }
    1
}

#[inline(always)]
fn write(flow: &mut Flow, ends: &Ends, original: bool, flags: u16, moment: &Moment) {
    let (from, to) =
        if original { (&ends.source, &ends.destination) } else { (&ends.destination, &ends.source) };
    *flow = Flow {
        judged_at: moment.epoch,
        seen_at: moment.now,
        source_identity: from.identity,
        destination_identity: to.identity,
        original_ifindex: to.ifindex,
        reply_ifindex: from.ifindex,
        // Slots and classes are what the layout says: fewer than these take.
        original_node: to.node as u16,
        reply_node: from.node as u16,
        flags,
        source_class: from.class as u8,
        destination_class: to.class as u8,
    };
}

/// The clock of the flow table: coarse, because a fine one costs as much as a look-up.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
