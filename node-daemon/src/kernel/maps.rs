//! The kernel's maps, typed: read into [`Tables`], changed by [`Step`]s.

use std::{
    collections::BTreeMap,
    mem,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use weft_shared::{
    layout::{
        Address, CLASS_RULEBOOKS, Endpoint, FailsafeKey, Node, Peer, PeerKey, Point, PolicyRow, PortKey,
        PrefixKey, Reason, RuleKey, RuntimeState, Subject,
        maps::{self as names, Counter, MapName, counter_index},
    },
    policy::compile::Rulebook,
};

use super::{
    KernelError,
    books::Books,
    grace::Grace,
    runs::{Run, runs},
    trusted::{self, Plain, PlainHash},
};
use crate::plan::tables::{HostRow, NodeRow, Step, SubjectRow, Tables};

/// All maps that the daemon writes, and its counters.
pub(crate) struct Maps {
    endpoints: HashMap<MapData, u32, Plain<Endpoint>>,
    ipcache: HashMap<MapData, Plain<Address>, Plain<Peer>>,
    prefixes: LpmTrie<MapData, Plain<Address>, Plain<Peer>>,
    nodes: Array<MapData, Plain<Node>>,
    node_addresses: HashMap<MapData, Plain<Address>, u32>,
    subjects: Array<MapData, Plain<Subject>>,
    peer_rules: PlainHash<PeerKey, u32>,
    rules: LpmTrie<MapData, [u8; 8], Plain<PolicyRow>>,
    failsafe: LpmTrie<MapData, [u32; 5], u32>,
    runtime: Array<MapData, Plain<RuntimeState>>,
    counters: PerCpuArray<MapData, Plain<Counter>>,
    events_lost: PerCpuArray<MapData, u64>,
    /// What `rules` holds, to take a rulebook's rows away.
    rulebooks: BTreeMap<u32, Arc<Rulebook>>,
    /// Those of them that are short.
    books: Books,
    grace: Grace,
}

/// A failed call on a map, with the map's name.
pub(crate) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    map: MapName,
) -> impl Fn(E) -> KernelError {
    move |source| KernelError::new(format!("map {}", map.pin), source)
}

/// A handle of its own to a map of the object, which keeps its own for its life: a program that is loaded later finds the map
/// by the number of that descriptor.
pub(crate) fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &Ebpf, map: MapName) -> Result<T, KernelError> {
    let handle = descriptor(ebpf, map)?;
    let handle = MapData::from_fd(handle).and_then(Map::from_map_data);
    handle.and_then(T::try_from).map_err(failed(map))
}

/// A descriptor of its own, for what aya has no calls for.
pub(crate) fn descriptor(ebpf: &Ebpf, map: MapName) -> Result<OwnedFd, KernelError> {
    let what = || format!("map {}", map.pin);
    let found = ebpf.map(map.object).and_then(data);
    let found = found.ok_or_else(|| KernelError::new(what(), "the object has no such map"))?;
    found.fd().as_fd().try_clone_to_owned().map_err(|error| KernelError::new(what(), error))
}

/// Of the types that the object has.
pub(crate) const fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

impl Maps {
    pub(crate) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        let mut maps = Self {
            endpoints: take(ebpf, names::ENDPOINTS)?,
            ipcache: take(ebpf, names::IPCACHE)?,
            prefixes: take(ebpf, names::PREFIXES)?,
            nodes: take(ebpf, names::NODES)?,
            node_addresses: take(ebpf, names::NODE_ADDRESSES)?,
            subjects: take(ebpf, names::SUBJECTS)?,
            peer_rules: take(ebpf, names::PEER_RULES)?,
            rules: take(ebpf, names::RULES)?,
            failsafe: take(ebpf, names::FAILSAFE)?,
            runtime: take(ebpf, names::RUNTIME)?,
            counters: take(ebpf, names::COUNTERS)?,
            events_lost: take(ebpf, names::EVENTS_LOST)?,
            rulebooks: BTreeMap::new(),
            books: Books::take(ebpf)?,
            grace: Grace::take(ebpf)?,
        };
        maps.rulebooks = maps.read_rules()?;
        Ok(maps)
    }

    /// For who writes them from now on: what is in them twice says the same.
    pub(crate) fn own(&mut self) -> Result<(), KernelError> {
        self.books.match_all(&self.rulebooks, &mut self.grace)
    }

    pub(crate) fn read(&mut self) -> Result<Tables, KernelError> {
        let rules = self.read_rules()?;
        let written = mem::replace(&mut self.rulebooks, rules);
        let runtime = self.runtime()?;
        let mut tables = Tables {
            endpoints: all(self.endpoints.iter(), names::ENDPOINTS)?
                .map(|(ifindex, row)| (ifindex, row.0))
                .collect(),
            ipcache: all(self.ipcache.iter(), names::IPCACHE)?
                .map(|(address, row)| (address.0, row.0))
                .collect(),
            prefixes: all(self.prefixes.iter(), names::PREFIXES)?
                .map(|(key, row)| (prefix_key(&key), row.0))
                .collect(),
            node_addresses: all(self.node_addresses.iter(), names::NODE_ADDRESSES)?
                .map(|(address, slot)| (address.0, slot))
                .collect(),
            peer_rules: all(self.peer_rules.iter(), names::PEER_RULES)?
                .map(|(key, number)| (key.0, number.0))
                .collect(),
            rulebooks: self.rulebooks_beside(&written)?,
            failsafe: all(self.failsafe.iter(), names::FAILSAFE)?
                .map(|(key, number)| (failsafe_key(&key), number))
                .collect(),
            host: HostRow::of(runtime.host),
            identities_through: runtime.identities_through,
            ..Tables::default()
        };
        for (slot, node) in (0..).zip(self.nodes.iter()) {
            let Plain(node) = node.map_err(failed(names::NODES))?;
            if node.address != Address::UNSPECIFIED {
                tables.nodes.insert(slot, NodeRow { address: node.address, identity: node.identity });
            }
        }
        for (slot, subject) in (0..).zip(self.subjects.iter()) {
            let Plain(subject) = subject.map_err(failed(names::SUBJECTS))?;
            if subject.identity != 0 {
                let row = SubjectRow { identity: subject.identity, rulebooks: subject.rulebooks };
                tables.subjects.insert(slot, row);
            }
        }
        Ok(tables)
    }

    /// Each rulebook as it is. Where it is there twice, and the two say different things: the one that is not as written.
    fn rulebooks_beside(
        &self,
        written: &BTreeMap<u32, Arc<Rulebook>>,
    ) -> Result<BTreeMap<u32, Arc<Rulebook>>, KernelError> {
        let mut found = self.rulebooks.clone();
        for (number, rows) in &mut found {
            if written.get(number) == Some(rows)
                && let Some(short) = self.books.read(*number)?
                && **rows != short
            {
                *rows = Arc::new(short);
            }
        }
        Ok(found)
    }

    fn read_rules(&self) -> Result<BTreeMap<u32, Arc<Rulebook>>, KernelError> {
        let mut found: BTreeMap<u32, Rulebook> = BTreeMap::new();
        for (key, Plain(row)) in all(self.rules.iter(), names::RULES)? {
            let (number, port) = rule_key(&key).ok_or_else(|| {
                KernelError::new("map rules", format!("a key of {} bits", key.prefix_len()))
            })?;
            found.entry(number).or_default().insert(port, row);
        }
        Ok(found.into_iter().map(|(number, rows)| (number, Arc::new(rows))).collect())
    }

    /// In order, and no further than the first that fails.
    pub(crate) fn write_all(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        let refused = |map: MapName| move |error| KernelError::new(format!("map {}", map.pin), error);
        for run in runs(steps) {
            match run {
                Run::Peers { keys, rulebooks } => {
                    trusted::write(&mut self.peer_rules, &keys, &rulebooks)
                        .map_err(refused(names::PEER_RULES))?;
                }
                Run::Addresses { keys, peers } => {
                    trusted::write(&mut self.ipcache, &keys, &peers).map_err(refused(names::IPCACHE))?;
                }
                Run::One(step) => self.write(step)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::Endpoint { ifindex, endpoint } => {
                set(&mut self.endpoints, ifindex, endpoint.as_ref().map(|row| Plain(*row)), names::ENDPOINTS)
            }
            Step::Ipcache { address, peer } => {
                set(&mut self.ipcache, &Plain(*address), peer.as_ref().map(|row| Plain(*row)), names::IPCACHE)
            }
            Step::Prefix { prefix, peer } => self.write_prefix(prefix, *peer),
            Step::Node { slot, node } => self.write_node(*slot, *node),
            Step::NodeAddress { address, slot } => {
                set(&mut self.node_addresses, &Plain(*address), *slot, names::NODE_ADDRESSES)
            }
            Step::Subject { slot, subject } => {
                let nobody = SubjectRow { identity: 0, rulebooks: [0; CLASS_RULEBOOKS] };
                let SubjectRow { identity, rulebooks } = subject.unwrap_or(nobody);
                let row = Subject { identity, rulebooks, ..self.subject(*slot)? };
                self.subjects.set(*slot, Plain(row), 0).map_err(failed(names::SUBJECTS))
            }
            Step::Rulebook { number, rows } => self.write_rulebook(*number, rows.as_ref()),
            Step::PeerRules { key, rulebook } => {
                set(&mut self.peer_rules, &Plain(*key), rulebook.map(Plain), names::PEER_RULES)
            }
            Step::Failsafe { key, rulebook } => {
                let key = failsafe_parts(*key);
                match rulebook {
                    Some(number) => self.failsafe.insert(&key, number, 0),
                    None => absent_is_fine(self.failsafe.remove(&key)),
                }
                .map_err(failed(names::FAILSAFE))
            }
            Step::Host { host } => {
                let state = RuntimeState { host: HostRow::word(*host), ..self.runtime()? };
                self.runtime.set(0, Plain(state), 0).map_err(failed(names::RUNTIME))
            }
            Step::Settle => self.grace.wait(),
            Step::Bump { subjects, nodes } => self.bump(subjects, nodes),
            Step::IdentitiesThrough { identity } => {
                let state = RuntimeState { identities_through: *identity, ..self.runtime()? };
                self.runtime.set(0, Plain(state), 0).map_err(failed(names::RUNTIME))
            }
        }
    }

    fn write_prefix(&mut self, prefix: &PrefixKey, peer: Option<Peer>) -> Result<(), KernelError> {
        let key = Key::new(prefix.bits, Plain(prefix.address));
        match peer {
            Some(peer) => self.prefixes.insert(&key, Plain(peer), 0),
            None => absent_is_fine(self.prefixes.remove(&key)),
        }
        .map_err(failed(names::PREFIXES))
    }

    fn write_node(&mut self, slot: u32, node: Option<NodeRow>) -> Result<(), KernelError> {
        let Plain(before) = self.nodes.get(&slot, 0).map_err(failed(names::NODES))?;
        let row = node.unwrap_or(NodeRow { address: Address::UNSPECIFIED, identity: 0 });
        let after = Node { address: row.address, epoch: before.epoch, identity: row.identity, reserved: 0 };
        self.nodes.set(slot, Plain(after), 0).map_err(failed(names::NODES))
    }

    /// All rows, and none of another rulebook that had the number.
    fn write_rulebook(&mut self, number: u32, rows: Option<&Arc<Rulebook>>) -> Result<(), KernelError> {
        let failed = failed(names::RULES);
        self.books.remove(number)?;
        for port in self.rulebooks.remove(&number).iter().flat_map(|former| former.keys()) {
            if !rows.is_some_and(|rows| rows.contains_key(port)) {
                absent_is_fine(self.rules.remove(&rules_key(number, *port))).map_err(&failed)?;
            }
        }
        for (port, row) in rows.into_iter().flat_map(|rows| rows.iter()) {
            self.rules.insert(&rules_key(number, *port), Plain(*row), 0).map_err(&failed)?;
        }
        if let Some(rows) = rows {
            self.rulebooks.insert(number, Arc::clone(rows));
            self.books.put(number, rows)?;
        }
        Ok(())
    }

    /// The order is what makes a remembered verdict safe: see `RuntimeState::epoch`.
    fn bump(&mut self, subjects: &[u32], nodes: &[u32]) -> Result<(), KernelError> {
        let state = self.runtime()?;
        let epoch = state.epoch + 1;
        for slot in subjects {
            let subject = Subject { epoch, ..self.subject(*slot)? };
            self.subjects.set(*slot, Plain(subject), 0).map_err(failed(names::SUBJECTS))?;
        }
        for slot in nodes {
            let Plain(node) = self.nodes.get(slot, 0).map_err(failed(names::NODES))?;
            self.nodes.set(*slot, Plain(Node { epoch, ..node }), 0).map_err(failed(names::NODES))?;
        }
        self.runtime.set(0, Plain(RuntimeState { epoch, ..state }), 0).map_err(failed(names::RUNTIME))
    }

    fn runtime(&self) -> Result<RuntimeState, KernelError> {
        self.runtime.get(&0, 0).map(|state| state.0).map_err(failed(names::RUNTIME))
    }

    fn subject(&self, slot: u32) -> Result<Subject, KernelError> {
        self.subjects.get(&slot, 0).map(|subject| subject.0).map_err(failed(names::SUBJECTS))
    }

    /// Counters that are not zero, summed over the CPUs.
    pub(crate) fn counters(&self) -> Result<Vec<(Point, Reason, Counter)>, KernelError> {
        let mut counters = Vec::new();
        for point in Point::ALL {
            for reason in Reason::ALL {
                let index = counter_index(*point, *reason);
                let cpus = self.counters.get(&index, 0).map_err(failed(names::COUNTERS))?;
                let sum = cpus.iter().fold(Counter { packets: 0, bytes: 0 }, |sum, Plain(cpu)| Counter {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                });
                if sum.packets != 0 {
                    counters.push((*point, *reason, sum));
                }
            }
        }
        Ok(counters)
    }

    pub(crate) fn events_lost(&self) -> Result<u64, KernelError> {
        let cpus = self.events_lost.get(&0, 0).map_err(failed(names::EVENTS_LOST))?;
        Ok(cpus.iter().sum())
    }
}

/// From the kernel's description of the file descriptor. Kernels before 6.4 only estimate it there.
pub(crate) fn memory_bytes(map: &MapData) -> Result<u64, KernelError> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|error| KernelError::new(path.clone(), error))?;
    let value = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    value
        .and_then(|value| value.trim().parse().ok())
        .ok_or_else(|| KernelError::new(path, "it has no memlock"))
}

pub(crate) fn set<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    value: Option<V>,
    name: MapName,
) -> Result<(), KernelError> {
    match value {
        Some(value) => map.insert(key, value, 0),
        None => absent_is_fine(map.remove(key)),
    }
    .map_err(failed(name))
}

pub(crate) fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

/// Every row of a map. Only the daemon writes these maps, so that nothing moves meanwhile.
pub(crate) fn all<K, V>(
    rows: impl Iterator<Item = Result<(K, V), MapError>>,
    name: MapName,
) -> Result<impl Iterator<Item = (K, V)>, KernelError> {
    let rows: Vec<_> = rows.collect::<Result<_, _>>().map_err(failed(name))?;
    Ok(rows.into_iter())
}

fn rules_key(number: u32, port: PortKey) -> Key<[u8; 8]> {
    let RuleKey { bits, rulebook: [a, b, c, d], protocol, port: [high, low], zero } =
        RuleKey::new(number, port);
    Key::new(bits, [a, b, c, d, protocol, high, low, zero])
}

/// `None`: no key that the daemon writes.
fn rule_key(key: &Key<[u8; 8]>) -> Option<(u32, PortKey)> {
    let [a, b, c, d, protocol, high, low, zero] = key.data();
    let rulebook = [a, b, c, d];
    let key = RuleKey { bits: key.prefix_len(), rulebook, protocol, port: [high, low], zero };
    Some((u32::from_be_bytes(rulebook), key.port_key()?))
}

fn failsafe_parts(key: FailsafeKey) -> Key<[u32; 5]> {
    let FailsafeKey { bits, direction, address: Address { words: [a, b, c, d] } } = key;
    Key::new(bits, [direction, a, b, c, d])
}

fn failsafe_key(key: &Key<[u32; 5]>) -> FailsafeKey {
    let [direction, a, b, c, d] = key.data();
    FailsafeKey { bits: key.prefix_len(), direction, address: Address { words: [a, b, c, d] } }
}

fn prefix_key(key: &Key<Plain<Address>>) -> PrefixKey {
    PrefixKey { bits: key.prefix_len(), address: key.data().0 }
}
