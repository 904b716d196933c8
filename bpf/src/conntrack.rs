//! The flow table: which flow a packet belongs to, in which direction, and whether what is remembered of it still holds.

use core::arch::asm;

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_coarse_ns};
use weft_shared::layout::{Address, Endpoint, Flow, FlowKey, Peer, Reason, flow_flags, timeout_nanoseconds};

use crate::{
    maps::{self, FLOWS, NODES, SUBJECTS},
    parse::{Echo, Packet, protocol, tcp},
    verdict::Moment,
};

/// The flags are changed together with what follows them: the first half of the word (little endian).
const FLAGS_AND_CLASSES: usize = core::mem::offset_of!(Flow, flags);
const _: () =
    assert!(FLAGS_AND_CLASSES % 8 == 0 && core::mem::offset_of!(Flow, classes) == FLAGS_AND_CLASSES + 4);

/// A live entry and this packet's place in it.
#[derive(Clone, Copy)]
pub struct Entry {
    pub flow: *mut Flow,
    /// The packet goes the way of the first.
    pub original: bool,
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

/// The key of the packet's flow, and whether its source is `high` there.
#[inline(always)]
pub fn key(packet: &Packet) -> (FlowKey, bool) {
    let high = source_is_high(packet);
    let asker = match (packet.echo, high) {
        (Echo::No, _) => 0,
        (Echo::Request, false) | (Echo::Reply, true) => FlowKey::ASKER_LOW,
        (Echo::Request, true) | (Echo::Reply, false) => FlowKey::ASKER_HIGH,
    };
    let key = if high {
        FlowKey {
            low: packet.destination,
            high: packet.source,
            low_port: packet.destination_port,
            high_port: packet.source_port,
            protocol: packet.protocol,
            asker,
            zero: [0; 2],
        }
    } else {
        FlowKey {
            low: packet.source,
            high: packet.destination,
            low_port: packet.source_port,
            high_port: packet.destination_port,
            protocol: packet.protocol,
            asker,
            zero: [0; 2],
        }
    };
    (key, high)
}

/// The live entry of the packet's flow. One that is over is none: timed out, or closed and opened again.
#[inline(always)]
pub fn find(packet: &Packet, key: &FlowKey, high: bool, now: u64) -> Option<Entry> {
    let pointer = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the kernel's element. Two CPUs may see an entry while the least recently used is taken for another key; the
    // window is the kernel's, of every user of these maps.
    let flow = unsafe { &*pointer };
    let flags = flow.flags;
    let original = (flags & flow_flags::FROM_HIGH != 0) == high;
    if now.saturating_sub(flow.seen_at) > timeout_nanoseconds(&maps::config(), packet.protocol, flags) {
        return None;
    }
    // A new connection on the same ports: over a closed one, or from the party that only ever answered.
    if packet.tcp_opens() && (!original || is_closed(flags)) {
        return None;
    }
    Some(Entry { flow: pointer, original })
}

#[inline(always)]
fn is_closed(flags: u32) -> bool {
    const BOTH: u32 = flow_flags::FIN_ORIGINAL | flow_flags::FIN_REPLY;
    flags & flow_flags::RST != 0 || flags & BOTH == BOTH
}

impl Entry {
    #[inline(always)]
    fn flow(&self) -> &Flow {
        // SAFETY: as in `find`.
        unsafe { &*self.flow }
    }

    /// State to carry over when the flow is judged again.
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        self.flow().flags & !flow_flags::FROM_HIGH
    }

    /// The parties as remembered, by this packet's direction.
    #[inline(always)]
    pub fn ends(&self) -> Ends {
        let flow = self.flow();
        let from = Peer {
            identity: flow.source_identity,
            class: flow.classes & 0xffff,
            node: flow.reply_node,
            ifindex: flow.reply_ifindex,
        };
        let to = Peer {
            identity: flow.destination_identity,
            class: flow.classes >> 16,
            node: flow.original_node,
            ifindex: flow.original_ifindex,
        };
        if self.original {
            Ends { source: from, destination: to }
        } else {
            Ends { source: to, destination: from }
        }
    }

    /// Whether no node behind which a party is has changed since the verdict.
    #[inline(always)]
    pub fn holds_for_nodes(&self) -> bool {
        let flow = self.flow();
        let unchanged = |slot: u32| match NODES.get(slot) {
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

    /// Notes the packet: when, and what it changes of the flow's state.
    #[inline(always)]
    pub fn touch(&self, packet: &Packet, now: u64) {
        // SAFETY: as in `find`; other CPUs may do the same, and any of the times is right.
        unsafe { (*self.flow).seen_at = now };
        let flags = self.flow().flags;
        let news = flags_of(packet, self.original) & !flags;
        if news != 0 {
            // SAFETY: an aligned word inside of the kernel's element; other CPUs only set bits, too. The target's `core` has
            // no such operation, the kernel (5.12) has.
            unsafe {
                asm!(
                    "lock *(u64 *)({flow} + {offset}) |= {news}",
                    flow = in(reg) self.flow,
                    offset = const FLAGS_AND_CLASSES,
                    news = in(reg) u64::from(news),
                );
            }
        }
    }
}

/// What a packet says about its flow's state.
#[inline(always)]
fn flags_of(packet: &Packet, original: bool) -> u32 {
    let mut flags = if original { 0 } else { flow_flags::REPLIED };
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

/// Remembers a verdict. `previous` are the flags of the entry that was judged again.
#[inline(always)]
pub fn remember(
    packet: &Packet,
    key: &FlowKey,
    high: bool,
    original: bool,
    ends: &Ends,
    previous: u32,
    moment: Moment,
) -> Result<(), Reason> {
    let (from, to) =
        if original { (&ends.source, &ends.destination) } else { (&ends.destination, &ends.source) };
    let from_high = if original == high { flow_flags::FROM_HIGH } else { 0 };
    let flow = Flow {
        judged_at: moment.epoch,
        seen_at: moment.now,
        source_identity: from.identity,
        destination_identity: to.identity,
        original_node: to.node,
        original_ifindex: to.ifindex,
        reply_node: from.node,
        reply_ifindex: from.ifindex,
        flags: previous | from_high | flags_of(packet, original),
        classes: from.class | to.class << 16,
    };
    // Replaced as a whole, so that no other CPU sees half of one verdict and half of another.
    FLOWS.insert(key, &flow, BPF_ANY.into()).map_err(|_| Reason::KernelError)
}

/// The clock of the flow table: coarse, because a fine one costs as much as a look-up.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
