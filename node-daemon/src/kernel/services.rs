//! The maps of services: read into [`Services`], changed by [`Step`]s.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
};
use bytemuck::Zeroable as _;
use weft_shared::{
    balance::table::Table,
    layout::{
        maps as names,
        service::{Element, Frontend, FrontendKey, SLOTS_PER_ELEMENT, ServiceHeader},
    },
};

use super::{
    KernelError,
    maps::{all, set, take},
    trusted::{Plain, tables},
};
use crate::{
    balance::tables::{NO_TABLE, Services, Step},
    limits::TABLES_IN_ONE_WRITE_MAX,
};

pub(super) struct ServiceMaps {
    frontends: HashMap<MapData, Plain<FrontendKey>, Plain<Frontend>>,
    services: OwnedFd,
    /// Elements of the table in each slot that has one.
    lengths: BTreeMap<u32, u32>,
}

impl ServiceMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let frontends = take(ebpf, names::FRONTENDS)?;
        let what = || format!("map {}", names::SERVICES.pin);
        let Some(Map::ArrayOfMaps(services)) = ebpf.take_map(names::SERVICES.object) else {
            return Err(KernelError::new(what(), "the object has no such map"));
        };
        let services = services.fd().as_fd().try_clone_to_owned();
        let services = services.map_err(|error| KernelError::new(what(), error))?;
        Ok(Self { frontends, services, lengths: BTreeMap::new() })
    }

    pub(super) fn read(&mut self) -> Result<Services, KernelError> {
        let frontends = all(self.frontends.iter(), names::FRONTENDS)?;
        let frontends = frontends.map(|(key, frontend)| (key.0, frontend.0)).collect();
        let mut found = BTreeMap::new();
        self.lengths.clear();
        for slot in 1..u32::try_from(names::SERVICES_MAX).unwrap_or(u32::MAX) {
            let first = tables::first_element(self.services.as_fd(), slot).map_err(not_done)?;
            let Some(header) = first.map(bytemuck::cast::<_, ServiceHeader>) else { continue };
            if header.digest != NO_TABLE {
                found.insert(slot, header.digest);
                self.lengths.insert(slot, length(&header));
            }
        }
        Ok(Services { frontends, tables: found })
    }

    pub(super) fn write(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::Frontend { key, frontend } => {
                let row = frontend.map(Plain);
                set(&mut self.frontends, &Plain(*key), row, names::FRONTENDS)
            }
            Step::Tables { tables } => {
                tables.chunks(TABLES_IN_ONE_WRITE_MAX).try_for_each(|some| self.put(some))
            }
        }
    }

    /// Tables are made before the first of them is swapped.
    fn put(&mut self, some: &[(u32, Option<Arc<Table>>)]) -> Result<(), KernelError> {
        let made = make(some).map_err(|error| KernelError::new("make a table of a service", error))?;
        let slots: Vec<u32> = some.iter().map(|(slot, _)| *slot).collect();
        let made: Vec<BorrowedFd<'_>> = made.iter().map(|table| table.as_fd()).collect();
        tables::put(self.services.as_fd(), &slots, &made).map_err(not_done)?;
        for (slot, table) in some {
            match table {
                Some(table) => drop(self.lengths.insert(*slot, table.length())),
                None => drop(self.lengths.remove(slot)),
            }
        }
        Ok(())
    }

    /// Memory that the tables take, in whole pages.
    pub(super) fn table_bytes(&self) -> u64 {
        const PAGE_BYTES: u64 = 4096;
        /// The kernel's own part of an array.
        const ARRAY_BYTES: u64 = 384;
        let bytes = |elements: &u32| ARRAY_BYTES + u64::from(*elements) * size_of::<Element>() as u64;
        self.lengths.values().map(|elements| bytes(elements).next_multiple_of(PAGE_BYTES)).sum()
    }
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

fn length(header: &ServiceHeader) -> u32 {
    1 + u32::from(header.backends) + u32::from(header.slots).div_ceil(SLOTS_PER_ELEMENT)
}

fn not_done(error: io::Error) -> KernelError {
    KernelError::new(format!("map {}", names::SERVICES.pin), error)
}
