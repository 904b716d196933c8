//! A service's table, as the kernel has it (`layout::service`): what it says, and the elements that say so.

use std::{hash::Hasher as _, net::IpAddr};

use bytemuck::Zeroable as _;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::maglev::{self, Member};
use crate::layout::{
    Address,
    service::{
        Element, SLOTS_PER_ELEMENT, ServiceBackend, ServiceHeader, SlotsElement, backend_flags, service_flags,
    },
};

/// The key of the hash of a table: another one for another meaning of the same elements, or other slots for the same backends.
const KEY: [u8; 16] = *b"weft table v1\0\0\0";

/// A backend in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: IpAddr,
    /// 0: the frontend's.
    pub port: u16,
    /// 1 to [`WEIGHT_MAX`](crate::service::shares::WEIGHT_MAX).
    pub weight: u16,
    /// One that does not keeps the flows that it has.
    pub new_flows: bool,
    /// An endpoint of this node.
    pub local: bool,
}

/// Everything that a table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    random: bool,
    dsr: bool,
    sources: Option<Sources>,
    end_connections: bool,
    affinity_seconds: u32,
    slots: u16,
    backends: Vec<Backend>,
    digest: [u64; 2],
}

/// Of what a table says, but for its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// By chance, and not by a hash of the flow.
    pub random: bool,
    pub dsr: bool,
    /// `None`: everybody may come.
    pub sources: Option<Sources>,
    /// Connections to backends that have gone are to be ended.
    pub end_connections: bool,
    /// 0: none.
    pub affinity_seconds: u32,
    /// Of the Maglev table, as [`maglev::is_size`] wants it, where several take new flows.
    pub slots: u16,
}

impl Manner {
    /// Of a service that asks for nothing in particular.
    pub const fn plain(slots: u16) -> Self {
        Self { random: false, dsr: false, sources: None, end_connections: false, affinity_seconds: 0, slots }
    }
}

/// Who may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Number of the set; 0: the one that nobody is in.
    pub set: u32,
    /// All but those in the set; else only those.
    pub denied: bool,
    /// The node itself is let in.
    pub node: bool,
}

impl Table {
    /// Backends may come in any order, each once; at most `u16::MAX`.
    pub fn new(manner: Manner, mut backends: Vec<Backend>) -> Self {
        backends.sort_unstable_by_key(|backend| (octets(backend.address), backend.port));
        let Manner { random, dsr, sources, end_connections, affinity_seconds, slots } = manner;
        let slots = match backends.iter().filter(|backend| backend.new_flows).take(2).count() {
            0 => 0,
            1 => 1,
            _ => slots,
        };
        let digest = [0; 2];
        let mut table =
            Self { random, dsr, sources, end_connections, affinity_seconds, slots, backends, digest };
        table.digest = table.hash();
        table
    }

    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    pub fn ends_connections(&self) -> bool {
        self.end_connections
    }

    /// The number of a backend for each slot; as long as there are slots.
    pub fn slots(&self) -> Vec<u16> {
        let taking: Vec<(u16, Member)> = (0..)
            .zip(&self.backends)
            .filter(|(_, backend)| backend.new_flows)
            .map(|(number, backend)| {
                let Backend { address, port, weight, .. } = *backend;
                (number, Member { address: octets(address), port, weight })
            })
            .collect();
        let members: Vec<Member> = taking.iter().map(|(_, member)| *member).collect();
        let mut slots = maglev::slots(&members, self.slots);
        for slot in &mut slots {
            *slot = taking[usize::from(*slot)].0;
        }
        slots
    }

    /// Equal for tables that say the same, whoever made them; not so by any other two.
    pub fn digest(&self) -> [u64; 2] {
        self.digest
    }

    fn hash(&self) -> [u64; 2] {
        let mut hasher = SipHasher24::new_with_key(&KEY);
        hasher.write(bytemuck::bytes_of(&self.header([0; 2])));
        for backend in &self.backends {
            hasher.write(bytemuck::bytes_of(&row(backend)));
        }
        let hash = hasher.finish128();
        [hash.h1, hash.h2]
    }

    /// How many elements there are, without making them.
    pub fn length(&self) -> u32 {
        let backends = u32::try_from(self.backends.len()).unwrap_or(u32::MAX);
        1 + backends + u32::from(self.slots).div_ceil(SLOTS_PER_ELEMENT)
    }

    /// As the kernel has it.
    pub fn elements(&self) -> Vec<Element> {
        let mut elements = Vec::with_capacity(self.length() as usize);
        elements.push(bytemuck::cast(self.header(self.digest())));
        elements.extend(self.backends.iter().map(|backend| bytemuck::cast::<_, Element>(row(backend))));
        elements.extend(self.slots().chunks(SLOTS_PER_ELEMENT as usize).map(|chunk| {
            let mut slots = SlotsElement::zeroed();
            slots[..chunk.len()].copy_from_slice(chunk);
            bytemuck::cast::<_, Element>(slots)
        }));
        elements
    }

    fn header(&self, digest: [u64; 2]) -> ServiceHeader {
        let flags = [
            (self.random, service_flags::RANDOM),
            (self.dsr, service_flags::DSR),
            (self.sources.is_some(), service_flags::SOURCES),
            (self.sources.is_some_and(|sources| sources.denied), service_flags::SOURCES_DENIED),
            (self.end_connections, service_flags::END_CONNECTIONS),
            (self.sources.is_some_and(|sources| sources.node), service_flags::SOURCES_NODE),
        ];
        ServiceHeader {
            digest,
            slots: self.slots,
            backends: u16::try_from(self.backends.len()).unwrap_or(u16::MAX),
            flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
            affinity_seconds: self.affinity_seconds,
            sources: self.sources.map_or(0, |sources| sources.set),
        }
    }
}

fn row(backend: &Backend) -> ServiceBackend {
    let flags = [(backend.new_flows, backend_flags::NEW_FLOWS), (backend.local, backend_flags::LOCAL)];
    ServiceBackend {
        address: Address::from(backend.address),
        port: backend.port.to_be(),
        flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
        weight: backend.weight,
        reserved: [0; 5],
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::service::slot_element;

    const MANNER: Manner = Manner::plain(251);

    fn backend(last: u8, new_flows: bool) -> Backend {
        Backend { address: IpAddr::from([10, 0, 0, last]), port: 80, weight: 1, new_flows, local: false }
    }

    #[test]
    fn elements_say_what_the_table_says() {
        let table = Table::new(MANNER, vec![backend(3, true), backend(1, false), backend(2, true)]);
        let elements = table.elements();
        assert_eq!(elements.len(), table.length() as usize);
        let header: ServiceHeader = bytemuck::cast(elements[0]);
        assert_eq!((header.slots, header.backends, header.digest), (251, 3, table.digest()));
        let backends: Vec<ServiceBackend> =
            elements[1..4].iter().map(|element| bytemuck::cast(*element)).collect();
        assert_eq!(backends.iter().map(|backend| backend.flags).collect::<Vec<_>>(), [0, 1, 1]);
        assert!(backends.is_sorted_by_key(|backend| ServiceBackend::order(&backend.address, backend.port)));
        for (slot, number) in (0..).zip(table.slots()) {
            let element = elements[slot_element(header.backends, slot) as usize];
            let slots: SlotsElement = bytemuck::cast(element);
            assert_eq!(slots[(slot % SLOTS_PER_ELEMENT) as usize], number);
            assert_ne!(number, 0, "10.0.0.1 takes no new flows");
        }
    }

    #[test]
    fn the_digest_tells_tables_apart_and_not_the_order_of_their_making() {
        let table = |manner, backends: &[Backend]| Table::new(manner, backends.to_vec()).digest();
        let judged = |sources| Manner { sources: Some(sources), ..MANNER };
        let [one, two] = [backend(1, true), backend(2, true)];
        let base = table(MANNER, &[one, two]);
        assert_eq!(base, table(MANNER, &[two, one]));
        let others = [
            table(MANNER, &[one]),
            table(MANNER, &[one, Backend { weight: 2, ..two }]),
            table(MANNER, &[one, Backend { port: 81, ..two }]),
            table(MANNER, &[one, Backend { new_flows: false, ..two }]),
            table(MANNER, &[one, Backend { local: true, ..two }]),
            table(Manner { random: true, ..MANNER }, &[one, two]),
            table(Manner { dsr: true, ..MANNER }, &[one, two]),
            table(Manner { end_connections: true, ..MANNER }, &[one, two]),
            table(judged(Sources { set: 1, denied: false, node: false }), &[one, two]),
            table(judged(Sources { set: 2, denied: false, node: false }), &[one, two]),
            table(judged(Sources { set: 2, denied: true, node: false }), &[one, two]),
            table(judged(Sources { set: 2, denied: true, node: true }), &[one, two]),
            table(Manner { affinity_seconds: 9, ..MANNER }, &[one, two]),
            table(Manner { slots: 509, ..MANNER }, &[one, two]),
        ];
        for (index, other) in others.iter().enumerate() {
            assert!(*other != base && !others[..index].contains(other), "{index}");
        }
    }

    #[test]
    fn a_table_without_takers_has_no_slots_and_one_with_one_has_one() {
        let none = Table::new(MANNER, vec![backend(1, false)]);
        assert_eq!((none.slots(), none.length()), (vec![], 2));
        let one = Table::new(MANNER, vec![backend(1, false), backend(2, true)]);
        assert_eq!((one.slots(), one.length()), (vec![1], 4));
        assert_eq!(Table::new(MANNER, Vec::new()).length(), 1);
    }
}
