//! The flow table: which flow a packet belongs to, in which direction, and whether what is remembered of it still holds.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_coarse_ns,
};
use weft_shared::layout::{
    Address, Class, Endpoint, Flow, FlowKey, Peer, Reason, flow_flags, host, timeout_nanoseconds,
};

use crate::{
    maps::{self, FLOWS, NODES, ROW, SUBJECTS},
    parse::{Echo, Packet, Service, protocol, tcp},
    verdict::Moment,
};

/// The flags are changed together with the rest of their eight bytes, in which they are the third quarter (little endian).
const WORD_OF_FLAGS: usize = core::mem::offset_of!(Flow, original_node);
const FLAGS_SHIFT: u32 = 32;
const _: () = assert!(WORD_OF_FLAGS % 8 == 0 && core::mem::offset_of!(Flow, flags) == WORD_OF_FLAGS + 4);

/// A live entry and this packet's place in it.
#[derive(Clone, Copy)]
pub struct Entry {
    pub flow: NonNull<Flow>,
    high: bool,
}

impl Entry {
    /// What was found for a packet. The pointer is carried by itself from where it was found to where the packet is judged:
    /// the less is known there, the fewer ways there are for the verifier.
    #[inline(always)]
    pub fn of(packet: &Packet, flow: Option<NonNull<Flow>>) -> Option<Self> {
        Some(Self { flow: flow?, high: source_is_high(packet) })
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

/// The key of the packet's flow, and whether its source is `high` there. Swapped by masks and not by branches: the verifier
/// would follow the rest of the program for each of them.
#[inline(always)]
fn key(packet: &Packet) -> (FlowKey, bool) {
    let high = source_is_high(packet);
    let mask = 0_u32.wrapping_sub(high.into());
    let word = |index: usize| {
        let (source, destination) = (packet.source.words[index], packet.destination.words[index]);
        let swap = (source ^ destination) & mask;
        (source ^ swap, destination ^ swap)
    };
    let words = [word(0), word(1), word(2), word(3)];
    let swap = (packet.source_port ^ packet.destination_port) & mask as u16;
    let asker = match (packet.echo, high) {
        (Echo::No, _) => 0,
        (Echo::Request, false) | (Echo::Reply, true) => FlowKey::ASKER_LOW,
        (Echo::Request, true) | (Echo::Reply, false) => FlowKey::ASKER_HIGH,
    };
    let key = FlowKey {
        low: Address { words: words.map(|word| word.0) },
        high: Address { words: words.map(|word| word.1) },
        low_port: packet.source_port ^ swap,
        high_port: packet.destination_port ^ swap,
        protocol: packet.protocol,
        asker,
        zero: [0; 2],
    };
    (key, high)
}

/// Looks for the live entry of the flow of a packet in registers. Not for one that opens a connection, which is most likely
/// not known: it is judged as its flow's first, and [`remember`] finds out.
#[inline(always)]
pub fn find(packet: &Packet, now: u64) -> Option<Entry> {
    if packet.tcp_opens() {
        return None;
    }
    let (key, high) = key(packet);
    Some(Entry { flow: live(packet, &key, high, now)?, high })
}

/// Looks for the live entry of the flow of a packet that is kept.
#[inline(always)]
pub fn find_kept(packet: &Packet, now: u64) -> Option<NonNull<Flow>> {
    if packet.tcp_opens() {
        return None;
    }
    find_any(packet, now)
}

/// The same, also for a packet that opens a connection. A function of its own: the stack has no room for the key on every way.
#[inline(never)]
pub fn find_any(packet: &Packet, now: u64) -> Option<NonNull<Flow>> {
    let row = aside()?;
    let high = make_key(packet, row) != 0;
    live(packet, &row.key, high, now)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_key(packet: *const Packet, row: *mut Row) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(row)) = (unsafe { (packet.as_ref(), row.as_mut()) }) else {
        return 0;
    };
    let high;
    (row.key, high) = key(packet);
    high.into()
}

/// A row of the flow table in the making.
#[derive(Clone, Copy)]
pub struct Row {
    key: FlowKey,
    flow: Flow,
}

#[inline(always)]
fn aside() -> Option<&'static mut Row> {
    // SAFETY: an element of an array, which never moves, and only this program's now (see `Packet::keep`).
    ROW.get_ptr_mut(0).map(|row| unsafe { &mut *row })
}

/// The live entry of the packet's flow. One that is over is none: timed out, or closed and opened again.
#[inline(always)]
fn live(packet: &Packet, key: &FlowKey, high: bool, now: u64) -> Option<NonNull<Flow>> {
    let pointer = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the kernel's element. Two CPUs may see an entry while the least recently used is taken for another key; the
    // window is the kernel's, of every user of these maps.
    let flow = unsafe { &*pointer };
    let flags = flow.flags;
    let entry = Entry { flow: NonNull::new(pointer)?, high };
    if now.saturating_sub(flow.seen_at) > timeout_nanoseconds(&maps::config(), packet.protocol, flags) {
        return None;
    }
    // A new connection on the same ports: over a closed one, or from the party that only ever answered.
    if packet.tcp_opens() && (!entry.original() || is_closed(flags)) {
        return None;
    }
    Some(entry.flow)
}

#[inline(always)]
fn is_closed(flags: u16) -> bool {
    const BOTH: u16 = flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY;
    flags & flow_flags::RST != 0 || flags & BOTH == BOTH
}

impl Entry {
    #[inline(always)]
    fn flow(&self) -> &Flow {
        // SAFETY: as in `live`.
        unsafe { self.flow.as_ref() }
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

    /// State to carry over when the flow is judged again.
    #[inline(always)]
    pub fn flags(&self) -> u16 {
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

    /// Notes the packet: when, and what it changes of the flow's state.
    #[inline(always)]
    pub fn touch(&self, packet: &Packet, now: u64) {
        // SAFETY: as in `live`; other CPUs may do the same, and any of the times is right.
        unsafe { (*self.flow.as_ptr()).seen_at = now };
        let flags = self.flow().flags;
        let news = flags_of(packet, self.original()) & !flags;
        if news != 0 {
            // SAFETY: an aligned word inside of the kernel's element; other CPUs only set bits, too. The target's `core` has
            // no such operation, the kernel (5.12) has.
            unsafe {
                asm!(
                    "lock *(u64 *)({flow} + {offset}) |= {news}",
                    flow = in(reg) self.flow.as_ptr(),
                    offset = const WORD_OF_FLAGS,
                    news = in(reg) u64::from(news) << FLAGS_SHIFT,
                );
            }
        }
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
    let state = match previous {
        Some(flags) => u32::from(flags) | FOUND,
        None => 0,
    } | if original { ORIGINAL } else { 0 };
    if write_flow(packet, ends, state, moment) == 0 { Ok(()) } else { Err(Reason::KernelError) }
}

/// Above the previous flags in `write_flow`'s `state`: the packet is of the original direction; there was an entry.
const ORIGINAL: u32 = 1 << 16;
const FOUND: u32 = 1 << 17;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_flow(packet: *const Packet, ends: *const Ends, state: u32, moment: *const Moment) -> u32 {
    // SAFETY: null, or memory of that type, as the verifier has seen at each call.
    let (Some(packet), Some(ends), Some(moment), Some(row)) =
        (unsafe { (packet.as_ref(), ends.as_ref(), moment.as_ref(), aside()) })
    else {
        return 1;
    };
    let high;
    (row.key, high) = key(packet);
    let original = state & ORIGINAL != 0;
    let (from, to) =
        if original { (&ends.source, &ends.destination) } else { (&ends.destination, &ends.source) };
    let from_high = if original == high { flow_flags::FROM_HIGH } else { 0 };
    row.flow = Flow {
        judged_at: moment.epoch,
        seen_at: moment.now,
        source_identity: from.identity,
        destination_identity: to.identity,
        original_ifindex: to.ifindex,
        reply_ifindex: from.ifindex,
        // Slots and classes are what the layout says: fewer than these take.
        original_node: to.node as u16,
        reply_node: from.node as u16,
        flags: state as u16 | from_high | flags_of(packet, original),
        source_class: from.class as u8,
        destination_class: to.class as u8,
    };
    if state & FOUND == 0 {
        if FLOWS.insert(&row.key, &row.flow, BPF_NOEXIST.into()).is_ok() {
            return 0;
        }
        // Known after all: a connection's first packet comes again, or what is there is over.
        if let Some(flow) = live(packet, &row.key, high, moment.now) {
            row.flow.flags |= Entry { flow, high }.flags();
        }
    }
    // Replaced as a whole, so that no other CPU sees half of one verdict and half of another.
    FLOWS.insert(&row.key, &row.flow, BPF_ANY.into()).is_err().into()
}

/// The clock of the flow table: coarse, because a fine one costs as much as a look-up.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
