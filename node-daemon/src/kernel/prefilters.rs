//! The maps of prefilters: read into [`Lists`], changed by [`Step`]s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::AsFd as _,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, IterableMap, MapData, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_shared::layout::{
    maps::{self as names, Counter},
    prefilter::{BLOCK_ROW_WORDS, BLOCK_ROWS, BlockRow, PrefilterNote},
};

use super::{
    KernelError,
    maps::{absent_is_fine, all, failed, set, take},
    trusted::{Plain, tables},
};
use crate::prefilter::lists::{Lists, Step};

/// A free slot's.
const NOBODY: [u64; 2] = [0; 2];

pub(super) struct PrefilterMaps {
    v4: LpmTrie<MapData, [u8; 4], u32>,
    v6: LpmTrie<MapData, [u8; 16], u32>,
    senders: HashMap<MapData, [u8; 4], u32>,
    open: Array<MapData, u64>,
    blocks: Array<MapData, Plain<BlockRow>>,
    lists: Array<MapData, Plain<PrefilterNote>>,
    counters: PerCpuArray<MapData, Plain<Counter>>,
}

impl PrefilterMaps {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            v4: take(ebpf, names::PREFILTER4)?,
            v6: take(ebpf, names::PREFILTER6)?,
            senders: take(ebpf, names::PREFILTER_SENDERS)?,
            open: take(ebpf, names::PREFILTER_OPEN)?,
            blocks: take(ebpf, names::PREFILTER_BLOCKS)?,
            lists: take(ebpf, names::PREFILTER_LISTS)?,
            counters: take(ebpf, names::PREFILTER_COUNTERS)?,
        })
    }

    pub(super) fn read(&self) -> Result<Lists, KernelError> {
        let mut lists = Lists::default();
        for (key, slot) in all(self.v4.iter(), names::PREFILTER4)? {
            let net = Ipv4Net::new(key.data().into(), length(key.prefix_len()));
            lists.prefixes.insert(net.map_err(|error| odd(names::PREFILTER4.pin, error))?.into(), slot);
        }
        for (key, slot) in all(self.v6.iter(), names::PREFILTER6)? {
            let net = Ipv6Net::new(key.data().into(), length(key.prefix_len()));
            lists.prefixes.insert(net.map_err(|error| odd(names::PREFILTER6.pin, error))?.into(), slot);
        }
        let senders = all(self.senders.iter(), names::PREFILTER_SENDERS)?;
        lists.senders = senders.map(|(sender, slot)| (Ipv4Addr::from(sender), slot)).collect();
        for (word, bits) in (0..).zip(self.open.iter()) {
            let bits = bits.map_err(failed(names::PREFILTER_OPEN))?;
            if bits != 0 {
                lists.open.insert(word, bits);
            }
        }
        let rows = self.rows()?;
        lists.blocks = (0..).zip(rows.concat()).filter(|(_, bits)| *bits != 0).collect();
        for (slot, note) in (0..).zip(self.lists.iter()) {
            let Plain(note) = note.map_err(failed(names::PREFILTER_LISTS))?;
            if note.digest != NOBODY {
                lists.slots.insert(slot, note.digest);
            }
        }
        Ok(lists)
    }

    /// In order, and no further than the first that fails; words of blocks that stand together, of which there may be very
    /// many, in one call.
    pub(super) fn write_all(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        let are_blocks =
            |one: &Step, next: &Step| matches!((one, next), (Step::Block { .. }, Step::Block { .. }));
        for run in steps.chunk_by(are_blocks) {
            if matches!(run[0], Step::Block { .. }) {
                self.write_blocks(run)?;
                continue;
            }
            run.iter().try_for_each(|step| self.write(step))?;
        }
        Ok(())
    }

    fn rows(&self) -> Result<Vec<BlockRow>, KernelError> {
        tables::read(IterableMap::map(&self.blocks).fd().as_fd(), BLOCK_ROWS)
            .map_err(|error| KernelError::new(names::PREFILTER_BLOCKS.pin, error))
    }

    /// A row that is being written may be read in part: bits mean nothing to each other.
    fn write_blocks(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        let mut rows = self.rows()?;
        let mut changed = BTreeSet::new();
        for step in steps {
            let Step::Block { word, bits } = *step else { continue };
            let (row, place) = (word / BLOCK_ROW_WORDS, word % BLOCK_ROW_WORDS);
            if let Some(words) = rows.get_mut(row as usize) {
                words[place as usize] = bits;
                changed.insert(row);
            }
        }
        let (numbers, rows): (Vec<u32>, Vec<BlockRow>) =
            changed.into_iter().map(|row| (row, rows[row as usize])).unzip();
        tables::write(IterableMap::map(&self.blocks).fd().as_fd(), &numbers, &rows)
            .map_err(|error| KernelError::new(names::PREFILTER_BLOCKS.pin, error))
    }

    fn write(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::Open { word, bits } => self.open.set(*word, bits, 0).map_err(failed(names::PREFILTER_OPEN)),
            Step::Block { .. } => self.write_blocks(std::slice::from_ref(step)),
            Step::List { slot, name } => {
                if name.is_some() {
                    self.begin_to_count(*slot)?;
                }
                let note = PrefilterNote { digest: name.unwrap_or(NOBODY) };
                self.lists.set(*slot, Plain(note), 0).map_err(failed(names::PREFILTER_LISTS))
            }
            Step::Prefix { net: IpNet::V4(net), slot } => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                match slot {
                    Some(slot) => self.v4.insert(&key, slot, 0),
                    None => absent_is_fine(self.v4.remove(&key)),
                }
                .map_err(failed(names::PREFILTER4))
            }
            Step::Prefix { net: IpNet::V6(net), slot } => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                match slot {
                    Some(slot) => self.v6.insert(&key, slot, 0),
                    None => absent_is_fine(self.v6.remove(&key)),
                }
                .map_err(failed(names::PREFILTER6))
            }
            Step::Sender { sender, slot } => {
                set(&mut self.senders, &sender.octets(), *slot, names::PREFILTER_SENDERS)
            }
        }
    }

    fn begin_to_count(&mut self, slot: u32) -> Result<(), KernelError> {
        let none = Plain(Counter { packets: 0, bytes: 0 });
        let cpus = nr_cpus().map_err(|(what, error)| KernelError::new(what, error))?;
        let zeros = PerCpuValues::try_from(vec![none; cpus])
            .map_err(|error| KernelError::new(names::PREFILTER_COUNTERS.pin, error))?;
        self.counters.set(slot, zeros, 0).map_err(failed(names::PREFILTER_COUNTERS))
    }

    /// What was dropped for each list, by its slot.
    pub(super) fn dropped(&self, slots: &[u32]) -> Result<BTreeMap<u32, Counter>, KernelError> {
        let mut dropped = BTreeMap::new();
        for slot in slots {
            let cpus = self.counters.get(slot, 0).map_err(failed(names::PREFILTER_COUNTERS))?;
            let sum = cpus.iter().fold(Counter { packets: 0, bytes: 0 }, |sum, Plain(cpu)| Counter {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
            });
            dropped.insert(*slot, sum);
        }
        Ok(dropped)
    }
}

/// Lengths that are none are refused as such.
fn length(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

fn odd(pin: &str, error: ipnet::PrefixLenError) -> KernelError {
    KernelError::new(format!("map {pin}"), error)
}
