//! Which backend a flow to a service gets. Whatever fails on the way is no backend: a flow never goes to where the tables do
//! not send it.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
};
use weft_shared::layout::{
    Address,
    maps::BACKENDS_MAX,
    service::{
        Affinity, AffinityKey, Frontend, FrontendKey, Party, SLOTS_PER_ELEMENT, ServiceBackend,
        ServiceHeader, SlotsElement, SourceKey, backend_flags, service_flags, slot_element, slot_of,
    },
    table::words,
};

use crate::maps::{AFFINITY, FRONTENDS, SERVICES, SOURCES, ServiceTable};

/// Halvings that find one of `BACKENDS_MAX` backends.
const HALVINGS: u32 = 11;
const _: () = assert!(BACKENDS_MAX < 1 << HALVINGS);
const NANOSECONDS: u64 = 1_000_000_000;

/// One revision of a service's table.
#[derive(Clone, Copy)]
pub struct Table {
    elements: &'static ServiceTable,
    header: &'static ServiceHeader,
}

/// The frontend of an address's port.
#[inline(always)]
pub fn frontend(key: &FrontendKey) -> Option<Frontend> {
    /// On the stack, where words of eight bytes may be written.
    #[repr(C, align(8))]
    struct Aligned(MaybeUninit<FrontendKey>);
    const { assert!(size_of::<FrontendKey>() == 20) };
    // In words as long as those in which the kernel reads them: a CPU gives to a read what one write before it wrote, but waits with
    // what several did until the last of them is in the cache, behind all other writes.
    let [a, b] = words(key.address.words);
    let last = u32::from(key.port) | u32::from(key.protocol) << 16 | u32::from(key.kind) << 24;
    let mut wide = Aligned(MaybeUninit::uninit());
    let to = wide.0.as_mut_ptr().cast::<u64>();
    // SAFETY: as many bytes as asserted, aligned; rows are replaced, never written in place, and the memory stays a row while the
    // program runs (RCU).
    unsafe {
        to.write_volatile(a);
        to.add(1).write_volatile(b);
        to.add(2).cast::<u32>().write_volatile(last);
        FRONTENDS.get(wide.0.assume_init_ref()).copied()
    }
}

impl Table {
    /// `None`: there is none, which is to be as if nobody took new flows.
    #[inline(always)]
    pub fn of(slot: u32) -> Option<Self> {
        let elements = SERVICES.get(slot)?;
        let header = bytemuck::cast_ref::<[u64; 4], ServiceHeader>(elements.get(0)?);
        Some(Self { elements, header })
    }

    /// Whether flows are judged by their source.
    #[inline(always)]
    pub fn judges_sources(&self) -> bool {
        self.header.flags & service_flags::SOURCES != 0
    }

    /// Whether the service is for this source.
    #[inline(always)]
    pub fn admits(&self, source: &Address) -> bool {
        if !self.judges_sources() {
            return true;
        }
        let Address { words: [a, b, c, d] } = *source;
        let set = self.header.sources;
        let bits = SourceKey::SET_BITS + 128;
        let listed = set != 0 && SOURCES.get(&Key::new(bits, [set, a, b, c, d])).is_some();
        listed == (self.header.flags & service_flags::SOURCES_DENIED == 0)
    }

    /// Whether the service, which judges sources, is for this node's own processes.
    #[inline(always)]
    pub fn admits_node(&self) -> bool {
        self.header.flags & service_flags::SOURCES_NODE != 0
    }

    /// Whether connections to backends that have gone are to be ended.
    #[inline(always)]
    pub fn ends_connections(&self) -> bool {
        self.header.flags & service_flags::END_CONNECTIONS != 0
    }

    /// For how long a client keeps its backend, in nanoseconds; 0: not at all.
    #[inline(always)]
    pub fn affinity_nanoseconds(&self) -> u64 {
        u64::from(self.header.affinity_seconds) * NANOSECONDS
    }

    /// The backend of a new flow.
    #[inline(always)]
    pub fn pick(&self, hash: u32) -> Option<&'static ServiceBackend> {
        let hash = if self.header.flags & service_flags::RANDOM != 0 {
            // SAFETY: a helper without arguments.
            unsafe { bpf_get_prandom_u32() }
        } else {
            hash
        };
        if self.header.slots == 0 {
            return None;
        }
        self.in_slot(slot_of(hash, self.header.slots))
    }

    /// The backend of a new flow that is told of by its packets: by their hash alone, whatever the service's algorithm, so that
    /// every program and every node that meets one of them finds the same.
    #[inline(always)]
    pub fn place(&self, hash: u32) -> Option<&'static ServiceBackend> {
        self.header.slots.checked_sub(1)?;
        self.in_slot(slot_of(hash, self.header.slots))
    }

    #[inline(always)]
    fn in_slot(&self, slot: u32) -> Option<&'static ServiceBackend> {
        let element = self.elements.get(slot_element(self.header.backends, slot))?;
        let slots = bytemuck::cast_ref::<[u64; 4], SlotsElement>(element);
        self.backend(slots[(slot % SLOTS_PER_ELEMENT) as usize].into())
    }

    /// Whether backends answer the client themselves.
    #[inline(always)]
    pub fn is_dsr(&self) -> bool {
        self.header.flags & service_flags::DSR != 0
    }

    /// What tells this revision from others: the first half of its digest.
    #[inline(always)]
    pub fn digest(&self) -> u64 {
        self.header.digest[0]
    }

    /// By its number, in the order of the table.
    #[inline(always)]
    pub fn backend(&self, number: u32) -> Option<&'static ServiceBackend> {
        if number >= self.header.backends.into() {
            return None;
        }
        Some(bytemuck::cast_ref::<[u64; 4], ServiceBackend>(self.elements.get(1 + number)?))
    }

    /// The backend that a client or a socket had, if it still is one.
    #[inline(always)]
    pub fn find(&self, party: &Party) -> Option<&'static ServiceBackend> {
        let wanted = ServiceBackend::order(&party.address, party.port);
        let (mut from, mut length) = (0_u32, u32::from(self.header.backends));
        for _ in 0..HALVINGS {
            let half = length / 2;
            // Beyond the last element: all were before, and the rest has no length.
            let Some(element) = self.elements.get(1 + from + half) else { break };
            let backend = bytemuck::cast_ref::<[u64; 4], ServiceBackend>(element);
            let after = backend.is_before(wanted) & u32::from(length != 0);
            from += after * (half + 1);
            length = half + after * length.wrapping_sub(2 * half + 1);
        }
        let backend = self.backend(from)?;
        (Party { address: backend.address, port: backend.port, zero: 0 }).is(party).then_some(backend)
    }
}

/// The backend that the client had last, if that is not too long ago.
#[inline(always)]
pub fn kept(key: &AffinityKey, table: &Table) -> Option<Party> {
    // SAFETY: what is torn by a writer is a party that is not in the table, or is.
    let row = unsafe { AFFINITY.get(key) }?;
    let since = now().saturating_sub(row.seen_at);
    (since <= table.affinity_nanoseconds()).then_some(row.backend)
}

/// Remembers the client's backend.
#[inline(always)]
pub fn keep(key: &AffinityKey, backend: Party) {
    let row = Affinity { backend, reserved: 0, seen_at: now() };
    // Without it the client's next flow is one of a new client.
    AFFINITY.insert(key, &row, 0).unwrap_or_default();
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether the backend takes new flows.
#[inline(always)]
pub fn takes_new_flows(backend: &ServiceBackend) -> bool {
    backend.flags & backend_flags::NEW_FLOWS != 0
}

/// Word by word: a copy of memory is a call, and a program with functions is looked at for longer until kernel 6.3.
///
/// # Safety
///
/// There is a party at the pointer.
#[inline(always)]
pub unsafe fn write_party(to: *mut Party, party: &Party) {
    let [a, b, c, d] = party.address.words;
    // SAFETY: the caller's.
    unsafe {
        ptr::write_volatile(&raw mut (*to).address.words[0], a);
        ptr::write_volatile(&raw mut (*to).address.words[1], b);
        ptr::write_volatile(&raw mut (*to).address.words[2], c);
        ptr::write_volatile(&raw mut (*to).address.words[3], d);
        ptr::write_volatile(&raw mut (*to).port, party.port);
        ptr::write_volatile(&raw mut (*to).zero, 0);
    }
}
