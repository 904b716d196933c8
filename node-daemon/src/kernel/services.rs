//! The maps of services: read into [`Services`], changed by [`Step`]s.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, MapError, MapInfo,
        lpm_trie::{Key, LpmTrie},
    },
};
use bytemuck::{Pod, Zeroable as _};
use ipnet::IpNet;
use weft_shared::{
    balance::table::Table,
    layout::{
        Address, Connection, ConnectionKey, PrefixKey,
        maps::{self as names, MapName},
        service::{
            ANY_SERVED, Affinity, AffinityKey, Element, Frontend, FrontendKey, Party, SERVED_WORDS,
            SocketFlowKey, SourceKey, TableNote, Way, served_bit,
        },
    },
};

use super::{
    KernelError,
    connections::ConnectionTable,
    maps::{absent_is_fine, all, descriptor, failed, set, take},
    trusted::{Plain, PlainHash, tables},
};
use crate::{
    balance::{
        sources::Set,
        tables::{NO_TABLE, OwnAddresses, Services, Step, UNKNOWN_TABLE},
    },
    limits::TABLES_IN_ONE_WRITE_MAX,
    plan::compile::{prefix_key, prefix_of},
};

pub(super) struct ServiceMaps {
    frontends: HashMap<MapData, Plain<FrontendKey>, Plain<Frontend>>,
    services: OwnedFd,
    notes: OwnedFd,
    flows: PlainHash<SocketFlowKey, Party>,
    connections: ConnectionTable,
    affinity: PlainHash<AffinityKey, Affinity>,
    served: Array<MapData, u64>,
    own: Array<MapData, Plain<Address>>,
    sources: LpmTrie<MapData, [u32; 5], u32>,
    /// What `sources` holds.
    sets: BTreeMap<u32, Arc<Set>>,
    /// Elements of all tables, by slot.
    elements: BTreeMap<u32, u64>,
}

impl ServiceMaps {
    pub(super) fn take(ebpf: &Ebpf, seed: u64) -> Result<Self, KernelError> {
        let frontends = take(ebpf, names::FRONTENDS)?;
        let services = descriptor(ebpf, names::SERVICES)?;
        let notes = descriptor(ebpf, names::TABLE_NOTES)?;
        let flows = take(ebpf, names::SOCKET_FLOWS)?;
        let connections = ConnectionTable::take(ebpf, seed)?;
        let affinity = take(ebpf, names::AFFINITY)?;
        let (served, own) = (take(ebpf, names::SERVED_PORTS)?, take(ebpf, names::OWN_ADDRESSES)?);
        let sources = take(ebpf, names::SOURCES)?;
        Ok(Self {
            frontends,
            services,
            notes,
            flows,
            connections,
            affinity,
            served,
            own,
            sources,
            sets: BTreeMap::new(),
            elements: BTreeMap::new(),
        })
    }

    /// The frontend by which a socket came to a backend, as far as that is remembered.
    pub(super) fn called(&self, cookie: u64, backend: Party) -> Option<Party> {
        let key = SocketFlowKey { cookie, party: backend, way: Way::FromBackend as u32 };
        // None that is not found is ended.
        self.flows.get(&Plain(key), 0).ok().map(|frontend| frontend.0)
    }

    /// The table of connections as it is while packets go on: rows may come twice or not at all.
    pub(super) fn connections(&self) -> Result<Vec<(ConnectionKey, Connection)>, KernelError> {
        self.connections.rows()
    }

    pub(super) fn forget_connection(&mut self, key: &ConnectionKey) -> Result<(), KernelError> {
        self.connections.set(key, None)
    }

    pub(super) fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, KernelError> {
        one(&self.frontends, key, names::FRONTENDS)
    }

    /// What the programs of a daemon that runs remember of who calls, with its maps below the directory: these programs remember it
    /// from now on, too. Looking leaves no trace: a system call does not count as use.
    pub(super) fn recall(
        &mut self,
        maps: &Path,
        connection: &ConnectionKey,
        client: &AffinityKey,
    ) -> Result<(Option<Connection>, Option<Affinity>), KernelError> {
        let known = ConnectionTable::pinned(maps)?.get(connection)?;
        let kept = one(&pinned(maps, names::AFFINITY)?, client, names::AFFINITY)?;
        self.connections.set(connection, known)?;
        set(&mut self.affinity, &Plain(*client), kept.map(Plain), names::AFFINITY)?;
        Ok((known, kept))
    }

    pub(super) fn read(&mut self) -> Result<Services, KernelError> {
        let frontends = all(self.frontends.iter(), names::FRONTENDS)?;
        let frontends = frontends.map(|(key, frontend)| (key.0, frontend.0)).collect();
        self.mend_served(&frontends)?;
        let own = self.own_addresses()?;
        let slots = u32::try_from(names::SERVICES_MAX).unwrap_or(u32::MAX);
        let notes = tables::read::<TableNote>(self.notes.as_fd(), slots).map_err(not_known)?;
        let notes = (0..).zip(notes).filter(|(_, note)| note.digest != NO_TABLE);
        self.elements.clear();
        let mut found = BTreeMap::new();
        for (slot, TableNote { digest, elements }) in notes {
            found.insert(slot, digest);
            self.elements.insert(slot, elements);
        }
        self.sets = self.read_sources()?;
        let sources = self.sets.clone();
        Ok(Services { frontends, tables: found, own, sources })
    }

    /// Bits of ports that no frontend has any more cost a look-up, and are taken away only here.
    fn mend_served(&mut self, frontends: &BTreeMap<FrontendKey, Frontend>) -> Result<(), KernelError> {
        let mut wanted = BTreeMap::new();
        for (word, bits) in frontends.keys().flat_map(served) {
            *wanted.entry(word).or_default() |= bits;
        }
        for word in 0..SERVED_WORDS {
            let wanted = wanted.get(&word).copied().unwrap_or(0);
            if self.served.get(&word, 0).map_err(failed(names::SERVED_PORTS))? != wanted {
                self.served.set(word, wanted, 0).map_err(failed(names::SERVED_PORTS))?;
            }
        }
        Ok(())
    }

    /// Packets to a port whose bit is not set are not looked for: it is set before the frontend is there.
    fn serve(&mut self, key: &FrontendKey) -> Result<(), KernelError> {
        for (word, bits) in served(key) {
            let there = self.served.get(&word, 0).map_err(failed(names::SERVED_PORTS))?;
            if there & bits != bits {
                self.served.set(word, there | bits, 0).map_err(failed(names::SERVED_PORTS))?;
            }
        }
        Ok(())
    }

    fn read_sources(&self) -> Result<BTreeMap<u32, Arc<Set>>, KernelError> {
        let mut sets: BTreeMap<u32, Set> = BTreeMap::new();
        for (key, _) in all(self.sources.iter(), names::SOURCES)? {
            let [set, a, b, c, d] = key.data();
            let bits = key.prefix_len().saturating_sub(SourceKey::SET_BITS);
            let prefix = prefix_of(PrefixKey { bits, address: Address { words: [a, b, c, d] } });
            let odd = || KernelError::new(names::SOURCES.pin, "a row is no prefix");
            sets.entry(set).or_default().insert(prefix.ok_or_else(odd)?);
        }
        Ok(sets.into_iter().map(|(number, set)| (number, Arc::new(set))).collect())
    }

    /// A number that is given has no rows yet.
    fn write_sources(&mut self, number: u32, set: Option<&Arc<Set>>) -> Result<(), KernelError> {
        if let Some(set) = set {
            for prefix in set.iter() {
                let key = source_key(number, *prefix);
                self.sources.insert(&key, 1, 0).map_err(failed(names::SOURCES))?;
            }
            self.sets.insert(number, Arc::clone(set));
            return Ok(());
        }
        for prefix in self.sets.remove(&number).iter().flat_map(|set| set.iter()) {
            let removed = self.sources.remove(&source_key(number, *prefix));
            absent_is_fine(removed).map_err(failed(names::SOURCES))?;
        }
        Ok(())
    }

    /// What is there is ours, or somebody else's that is mended.
    fn own_addresses(&self) -> Result<OwnAddresses, KernelError> {
        let mut found = Vec::new();
        for address in self.own.iter() {
            let Plain(address) = address.map_err(failed(names::OWN_ADDRESSES))?;
            found.extend((address != Address::UNSPECIFIED).then(|| IpAddr::from(address)));
        }
        Ok(OwnAddresses::of(&found))
    }

    fn set_own(&mut self, own: OwnAddresses) -> Result<(), KernelError> {
        let addresses = [own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6)];
        for (index, address) in (0..).zip(addresses) {
            let address = address.map_or(Address::UNSPECIFIED, Address::from);
            self.own.set(index, Plain(address), 0).map_err(failed(names::OWN_ADDRESSES))?;
        }
        Ok(())
    }

    /// What is in a slot now, as programs find it.
    pub(super) fn table(&self, slot: u32) -> Result<Vec<Element>, KernelError> {
        let read = || {
            let Some(id) = tables::id(self.services.as_fd(), slot)? else {
                return Ok(vec![Element::zeroed()]);
            };
            // It may have been swapped meanwhile, and be no more.
            let table = MapInfo::from_id(id).map_err(io::Error::other)?;
            let descriptor = table.fd().map_err(io::Error::other)?;
            tables::read(descriptor.as_fd(), table.max_entries())
        };
        read().map_err(|error| KernelError::new(format!("table {slot} of services"), error))
    }

    pub(super) fn write(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::OwnAddresses(own) => self.set_own(*own),
            Step::Sources { number, set } => self.write_sources(*number, set.as_ref()),
            Step::Frontend { key, frontend } => {
                if frontend.is_some() {
                    self.serve(key)?;
                }
                let row = frontend.map(Plain);
                set(&mut self.frontends, &Plain(*key), row, names::FRONTENDS)
            }
            Step::Tables { tables } => {
                tables.chunks(TABLES_IN_ONE_WRITE_MAX).try_for_each(|some| self.put(some))
            }
        }
    }

    /// Tables are made before the first of them is swapped. What is known of a slot is never more than is so: after a crash in
    /// between, the table is another one than any that is desired.
    fn put(&mut self, some: &[(u32, Option<Arc<Table>>)]) -> Result<(), KernelError> {
        let made = make(some).map_err(|error| KernelError::new("make a table of a service", error))?;
        let slots: Vec<u32> = some.iter().map(|(slot, _)| *slot).collect();
        let made: Vec<BorrowedFd<'_>> = made.iter().map(|table| table.as_fd()).collect();
        let notes: Vec<TableNote> = some.iter().map(|(_, table)| note(table.as_deref())).collect();
        let unknown: Vec<_> = notes.iter().map(|note| TableNote { digest: UNKNOWN_TABLE, ..*note }).collect();
        tables::write(self.notes.as_fd(), &slots, &unknown).map_err(not_known)?;
        tables::put(self.services.as_fd(), &slots, &made).map_err(not_put)?;
        tables::write(self.notes.as_fd(), &slots, &notes).map_err(not_known)?;
        self.elements.extend(slots.iter().zip(&notes).map(|(slot, note)| (*slot, note.elements)));
        Ok(())
    }

    /// Memory that the tables take, in whole pages.
    pub(super) fn table_bytes(&self) -> u64 {
        self.elements.values().map(|elements| array_bytes(*elements)).sum()
    }
}

fn one<K: Pod, V: Pod>(map: &PlainHash<K, V>, key: &K, name: MapName) -> Result<Option<V>, KernelError> {
    match map.get(&Plain(*key), 0) {
        Ok(Plain(row)) => Ok(Some(row)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed(name)(error)),
    }
}

/// A map of a daemon that runs.
fn pinned<K: Pod, V: Pod>(maps: &Path, name: MapName) -> Result<PlainHash<K, V>, KernelError> {
    let map = MapData::from_pin(maps.join(name.pin)).map_err(failed(name))?;
    Map::from_map_data(map).and_then(HashMap::try_from).map_err(failed(name))
}

fn source_key(set: u32, prefix: IpNet) -> Key<[u32; 5]> {
    let PrefixKey { bits, address: Address { words: [a, b, c, d] } } = prefix_key(prefix);
    Key::new(SourceKey::SET_BITS + bits, [set, a, b, c, d])
}

/// What is set in `SERVED_PORTS` for a frontend.
fn served(key: &FrontendKey) -> impl Iterator<Item = (u32, u64)> + use<> {
    let port = served_bit(key.protocol, u16::from_be(key.port));
    port.into_iter().chain(port.map(|_| (ANY_SERVED, 1)))
}

fn note(table: Option<&Table>) -> TableNote {
    table.map_or(TableNote { digest: NO_TABLE, elements: 0 }, |table| TableNote {
        digest: table.digest(),
        elements: table.length().into(),
    })
}

/// Memory of an array, in whole pages; none of one without elements, which is no table.
fn array_bytes(elements: u64) -> u64 {
    const PAGE_BYTES: u64 = 4096;
    /// The kernel's own part.
    const HEAD_BYTES: u64 = 384;
    if elements == 0 {
        return 0;
    }
    (HEAD_BYTES + elements * size_of::<Element>() as u64).next_multiple_of(PAGE_BYTES)
}

/// Slots of many backends take their time: on as many threads as there are processors.
fn make(some: &[(u32, Option<Arc<Table>>)]) -> io::Result<Vec<OwnedFd>> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let part = some.len().div_ceil(workers).max(1);
    let make_part = |part: &[(u32, Option<Arc<Table>>)]| -> io::Result<Vec<OwnedFd>> {
        part.iter()
            .map(|(_, table)| match table {
                Some(table) => tables::create(&table.elements()),
                None => tables::create(&[Element::zeroed()]),
            })
            .collect()
    };
    if part == some.len() || some.len() < workers {
        return make_part(some);
    }
    thread::scope(|scope| {
        let parts: Vec<_> = some.chunks(part).map(|part| scope.spawn(move || make_part(part))).collect();
        let mut made = Vec::with_capacity(some.len());
        for part in parts {
            made.extend(part.join().map_err(|_| io::Error::other("a thread that makes tables panicked"))??);
        }
        Ok(made)
    })
}

fn not_put(error: io::Error) -> KernelError {
    KernelError::new(format!("map {}", names::SERVICES.pin), error)
}

fn not_known(error: io::Error) -> KernelError {
    KernelError::new(format!("map {}", names::TABLE_NOTES.pin), error)
}

#[cfg(test)]
mod tests {
    use weft_shared::balance::table::{Backend, Manner};

    use super::*;

    #[test]
    fn ten_thousand_services_of_a_hundred_backends_take_less_than_700_mib() {
        let backend = |last| Backend {
            address: IpAddr::from([10, 0, 0, last]),
            port: 80,
            weight: 1,
            new_flows: true,
            local: false,
        };
        let table = Table::new(Manner::plain(16_381), (0..100).map(backend).collect());
        let bytes = 10_000 * array_bytes(table.length().into());
        assert_eq!(bytes / (1024 * 1024), 351);
    }
}
