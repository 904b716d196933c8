//! Tables of connections, seen from outside: how full they are, and what is in them. Rows that are over need not be taken out:
//! whoever needs one takes them. Only the programs write while packets go on; what is written here is for tables that are nobody
//! else's.

use std::{io, marker::PhantomData, os::fd::AsFd as _, path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapData},
};
use bytemuck::Pod;
use nix::time::{ClockId, clock_gettime};
use weft_shared::layout::{
    Config, Connection, ConnectionKey, ConnectionRow, Flow, FlowKey, FlowRow,
    maps::{self as names, MapName},
    table::{Line, Mark, PLACES, Row, sizes, spot},
    timeout_nanoseconds,
};

use super::{
    Counted, KernelError,
    maps::{failed, take},
    trusted::tables,
};

/// The flow table.
pub(crate) type FlowTable = Table<Flow, { size_of::<FlowRow>() / 8 }>;
/// The table of connections to services.
pub(crate) type ConnectionTable = Table<Connection, { size_of::<ConnectionRow>() / 8 }>;

/// What is remembered under a key.
pub(crate) trait Remembered: Pod {
    type Key: Pod;
    const ROWS: MapName;
    const INDEX: MapName;
    fn words(key: &Self::Key) -> [u64; 5];
    /// 0 in rows that are nobody's.
    fn seen_at(&mut self) -> &mut u64;
}

impl Remembered for Flow {
    type Key = FlowKey;
    const ROWS: MapName = names::FLOWS;
    const INDEX: MapName = names::FLOW_INDEX;

    fn words(key: &FlowKey) -> [u64; 5] {
        key.words()
    }

    fn seen_at(&mut self) -> &mut u64 {
        &mut self.seen_at
    }
}

impl Remembered for Connection {
    type Key = ConnectionKey;
    const ROWS: MapName = names::CONNECTIONS;
    const INDEX: MapName = names::CONNECTION_INDEX;

    fn words(key: &ConnectionKey) -> [u64; 5] {
        key.words()
    }

    fn seen_at(&mut self) -> &mut u64 {
        &mut self.seen_at
    }
}

/// What the programs must know of the tables when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Of the flow table: a power of two.
    pub(crate) rows: u32,
    /// Of all tables.
    pub(crate) seed: u64,
}

impl Shape {
    /// That of the tables that are pinned in a directory, or of new ones with so many flows.
    pub(crate) fn of(directory: Option<&Path>, flows: u32) -> Result<Self, KernelError> {
        if let Some(directory) = directory {
            keep_whole::<Connection>(directory)?;
            if keep_whole::<Flow>(directory)? {
                let pin = directory.join(names::FLOWS.pin);
                let map = MapData::from_pin(pin).map_err(failed(names::FLOWS))?;
                let rows = map.info().map_err(failed(names::FLOWS))?.max_entries();
                let first: Vec<[u64; size_of::<FlowRow>() / 8]> =
                    tables::read(map.fd().as_fd(), 1).map_err(failed(names::FLOWS))?;
                // 0: the daemon that made the table came no further.
                return Ok(match first.first().map_or(0, |row| row[0]) {
                    0 => Self { rows, seed: new_seed() },
                    seed => Self { rows, seed },
                });
            }
        }
        Ok(Self { rows: sizes(flows).0, seed: new_seed() })
    }

    pub(crate) const fn lines(self) -> u32 {
        sizes(self.rows).1
    }
}

/// Whether a table is pinned, rows and index. One without the other is of no use, and is taken away.
fn keep_whole<V: Remembered>(directory: &Path) -> Result<bool, KernelError> {
    let pins = [V::ROWS, V::INDEX].map(|map| (map, directory.join(map.pin)));
    let there: Vec<_> = pins.into_iter().filter(|(_, pin)| pin.exists()).collect();
    if let [(map, pin)] = &there[..] {
        std::fs::remove_file(pin).map_err(failed(*map))?;
    }
    Ok(there.len() == 2)
}

/// Places, and what no row is in.
const WORDS_OF_LINE: usize = size_of::<Line>() / size_of::<u32>();

fn new_seed() -> u64 {
    rand::random::<u64>() | 1
}

/// A table while programs work with it. `WORDS`: of a row.
pub(crate) struct Table<V, const WORDS: usize> {
    rows: Array<MapData, [u64; WORDS]>,
    index: Array<MapData, [u32; WORDS_OF_LINE]>,
    seed: u64,
    /// The row up to which the count has come that goes on.
    counted: Option<u32>,
    value: PhantomData<V>,
}

impl<V: Remembered, const WORDS: usize> Table<V, WORDS> {
    /// Where in a row the value begins: after the key and the mark.
    const VALUE: usize = size_of::<V::Key>() / 8 + 1;

    /// Takes the table that the programs were loaded with.
    pub(crate) fn take(ebpf: &Ebpf, seed: u64) -> Result<Self, KernelError> {
        Self::new(take(ebpf, V::ROWS)?, take(ebpf, V::INDEX)?, seed)
    }

    /// That of a daemon that runs, with its maps below the directory.
    pub(crate) fn pinned(directory: &Path) -> Result<Self, KernelError> {
        let open = |map: MapName| {
            let data = MapData::from_pin(directory.join(map.pin)).map_err(failed(map))?;
            aya::maps::Map::from_map_data(data).map_err(failed(map))
        };
        let rows: Array<MapData, [u64; WORDS]> = open(V::ROWS)?.try_into().map_err(failed(V::ROWS))?;
        let seed = rows.get(&0, 0).map_err(failed(V::ROWS))?[0];
        Self::new(rows, open(V::INDEX)?.try_into().map_err(failed(V::INDEX))?, seed)
    }

    fn new(
        mut rows: Array<MapData, [u64; WORDS]>,
        index: Array<MapData, [u32; WORDS_OF_LINE]>,
        seed: u64,
    ) -> Result<Self, KernelError> {
        const { assert!(size_of::<Row<V::Key, V>>() == WORDS * 8 && size_of::<V::Key>() == 40) };
        if rows.get(&0, 0).map_err(failed(V::ROWS))?[0] != seed {
            let mut first = [0; WORDS];
            first[0] = seed;
            rows.set(0, first, 0).map_err(failed(V::ROWS))?;
        }
        Ok(Self { rows, index, seed, counted: None, value: PhantomData })
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.rows.len().into()
    }

    /// Rows that somebody has, as they are while packets go on: some may come twice or not at all.
    pub(crate) fn rows(&self) -> Result<Vec<(V::Key, V)>, KernelError> {
        let rows = tables::read(self.rows.map().fd().as_fd(), self.rows.len()).map_err(failed(V::ROWS))?;
        Ok(rows.iter().filter_map(Self::row).collect())
    }

    /// Counts on, through at most so many rows, those of which the test is true.
    pub(crate) fn count(
        &mut self,
        rows_max: u32,
        counts: impl Fn(&V::Key, &V) -> bool,
    ) -> Result<Counted, KernelError> {
        let map = self.rows.map().fd().as_fd();
        let rows = tables::read_after(map, self.counted, rows_max).map_err(failed(V::ROWS))?;
        let entries = rows.iter().filter_map(Self::row).filter(|(key, value)| counts(key, value)).count();
        let looked_at = u32::try_from(rows.len()).unwrap_or(rows_max);
        let end = self.counted.map_or(0, |last| last + 1).saturating_add(looked_at);
        let finished = end >= self.rows.len() || looked_at == 0;
        self.counted = if finished { None } else { Some(end - 1) };
        Ok(Counted { entries: entries as u64, finished })
    }

    /// What is remembered under a key.
    pub(crate) fn get(&self, key: &V::Key) -> Result<Option<V>, KernelError> {
        Ok(self.find(key)?.map(|(_, _, value)| value))
    }

    /// Remembers, where no program does meanwhile; `None` forgets.
    pub(crate) fn set(&mut self, key: &V::Key, value: Option<V>) -> Result<(), KernelError> {
        if let Some((number, line, _)) = self.find(key)? {
            let mut row = self.rows.get(&number, 0).map_err(failed(V::ROWS))?;
            // Left to whoever comes by, as the programs leave one.
            row[Self::VALUE..].fill(0);
            self.rows.set(number, row, 0).map_err(failed(V::ROWS))?;
            let mut places = self.index.get(&line, 0).map_err(failed(V::INDEX))?;
            places.iter_mut().filter(|place| **place & self.mask() == number).for_each(|place| *place = 0);
            self.index.set(line, places, 0).map_err(failed(V::INDEX))?;
        }
        match value {
            Some(value) => self.put(key, &value),
            None => Ok(()),
        }
    }

    fn put(&mut self, key: &V::Key, value: &V) -> Result<(), KernelError> {
        let full = || KernelError::new(format!("map {}", V::ROWS.pin), "no room for another row");
        let (line, tag) = self.spot(key);
        let mut places = self.index.get(&line, 0).map_err(failed(V::INDEX))?;
        let place = places[..PLACES].iter().position(|place| *place == 0).ok_or_else(full)?;
        let number = self.nobodys()?.ok_or_else(full)?;
        let mut row = [0; WORDS];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut row);
        bytes[..size_of::<V::Key>()].copy_from_slice(bytemuck::bytes_of(key));
        bytes[Self::VALUE * 8..][..size_of::<V>()].copy_from_slice(bytemuck::bytes_of(value));
        row[Self::VALUE - 1] = Mark(2 << 32).at(line, u32::try_from(place).unwrap_or_default()).0;
        self.rows.set(number, row, 0).map_err(failed(V::ROWS))?;
        places[place] = tag & !self.mask() | number;
        self.index.set(line, places, 0).map_err(failed(V::INDEX))
    }

    /// A row that nobody has.
    fn nobodys(&self) -> Result<Option<u32>, KernelError> {
        for number in 1..self.rows.len() {
            let row = self.rows.get(&number, 0).map_err(failed(V::ROWS))?;
            if Self::row(&row).is_none() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// The row's number, the line in which it is, and what is remembered.
    fn find(&self, key: &V::Key) -> Result<Option<(u32, u32, V)>, KernelError> {
        let (line, tag) = self.spot(key);
        let places = self.index.get(&line, 0).map_err(failed(V::INDEX))?;
        for place in places.into_iter().filter(|place| (place ^ tag) & !self.mask() == 0) {
            let number = place & self.mask();
            let row = self.rows.get(&number, 0).map_err(failed(V::ROWS))?;
            if let Some((known, value)) = Self::row(&row)
                && number != 0
                && bytemuck::bytes_of(&known) == bytemuck::bytes_of(key)
            {
                return Ok(Some((number, line, value)));
            }
        }
        Ok(None)
    }

    /// The line and the tag of a key.
    fn spot(&self, key: &V::Key) -> (u32, u32) {
        let spot = spot(V::words(key), self.seed);
        (spot.line & (self.index.len() - 1), spot.tag)
    }

    fn mask(&self) -> u32 {
        self.rows.len() - 1
    }

    /// `None`: it is nobody's.
    fn row(row: &[u64; WORDS]) -> Option<(V::Key, V)> {
        let bytes: &[u8] = bytemuck::cast_slice(row);
        let key = bytemuck::pod_read_unaligned(&bytes[..size_of::<V::Key>()]);
        let mut value: V = bytemuck::pod_read_unaligned(&bytes[Self::VALUE * 8..][..size_of::<V>()]);
        let is_somebodys = *value.seen_at() != 0 && !Mark(row[Self::VALUE - 1]).is_taken();
        is_somebodys.then_some((key, value))
    }
}

/// Whether a flow is remembered still.
pub(crate) fn is_alive(config: &Config, key: &FlowKey, flow: &Flow, now: u64) -> bool {
    now.saturating_sub(flow.seen_at) <= timeout_nanoseconds(config, key.protocol, flow.flags)
}

/// The clock of the programs, in nanoseconds.
pub(crate) fn now() -> Result<u64, KernelError> {
    let failed = |error: io::Error| KernelError::new("read the clock", error);
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|error| failed(error.into()))?;
    u64::try_from(Duration::from(time).as_nanos()).map_err(|error| failed(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weft_shared::layout::Address;

    use super::*;

    const ROWS: u32 = 1024;
    /// `BPF_F_MMAPABLE`.
    const SHARED: u32 = 1 << 10;

    fn table(rows: u32) -> FlowTable {
        let (rows, lines) = sizes(rows);
        let array = Array::create(rows, SHARED).expect("a map (tests need root)");
        FlowTable::new(array, Array::create(lines, SHARED).unwrap(), new_seed()).unwrap()
    }

    fn key(port: u16) -> FlowKey {
        FlowKey {
            low: Address::from_v4(1),
            high: Address::from_v4(2),
            low_port: port,
            high_port: 80,
            protocol: 17,
            asker: 0,
            zero: [0; 2],
        }
    }

    fn flow(seen_at: u64) -> Flow {
        Flow { seen_at, ..bytemuck::Zeroable::zeroed() }
    }

    fn ports(table: &FlowTable) -> BTreeSet<u16> {
        table.rows().unwrap().iter().map(|(key, _)| key.low_port).collect()
    }

    #[test]
    fn what_is_remembered_is_found_until_it_is_forgotten() {
        let mut table = table(ROWS);
        for port in 0..100 {
            table.set(&key(port), Some(flow(1 + u64::from(port)))).unwrap();
        }
        assert_eq!(ports(&table), (0..100).collect());
        assert_eq!(table.get(&key(7)).unwrap(), Some(flow(8)));
        table.set(&key(7), Some(flow(9))).unwrap();
        assert_eq!(table.get(&key(7)).unwrap(), Some(flow(9)));
        table.set(&key(7), None).unwrap();
        table.set(&key(8), None).unwrap();
        assert_eq!(table.get(&key(7)).unwrap(), None);
        assert_eq!(ports(&table), (0..100).filter(|port| *port != 7 && *port != 8).collect());
        table.set(&key(200), Some(flow(1))).unwrap();
        assert_eq!(ports(&table).len(), 99, "a row that was left is used again");
    }

    #[test]
    fn a_count_in_slices_sees_each_row_once() {
        let mut table = table(ROWS);
        for port in 0..300 {
            table.set(&key(port), Some(flow(if port < 100 { 1 } else { 2 }))).unwrap();
        }
        for _ in 0..2 {
            let mut slices = Vec::new();
            while slices.last().is_none_or(|slice: &Counted| !slice.finished) {
                slices.push(table.count(300, |_, flow| flow.seen_at == 2).unwrap());
            }
            assert_eq!(slices.len(), 4, "{slices:?}");
            assert_eq!(slices.iter().map(|slice| slice.entries).sum::<u64>(), 200);
        }
    }

    #[test]
    fn a_flow_is_alive_until_its_timeout_is_over() {
        const CONFIG: Config = Config::DEFAULT;
        let last = 1000 + CONFIG.timeout_other;
        assert!(is_alive(&CONFIG, &key(1), &flow(1000), last));
        assert!(!is_alive(&CONFIG, &key(1), &flow(1000), last + 1));
        assert!(is_alive(&CONFIG, &key(1), &flow(1000), 0), "a clock that another CPU is behind on");
    }

    #[test]
    fn a_table_has_room_for_as_many_as_were_asked_for_and_a_seed_of_its_own() {
        let shape = |flows| Shape::of(None, flows).unwrap();
        assert_eq!((shape(1024).rows, shape(1024).lines()), (1024, 128));
        assert_eq!(shape(1025).rows, 2048);
        assert_ne!(shape(1024).seed, shape(1024).seed);
        assert_eq!(size_of::<Line>(), 64);
    }
}
