//! The maps of rates that no endpoint's row has, and of what is known of round trips.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use weft_shared::layout::{
    Direction, maps as names,
    shaping::{BucketKey, Pair, RoundTrips},
};

use super::{
    KernelError,
    maps::{absent_is_fine, all, failed, set, take},
    trusted::{Plain, PlainHash},
};

pub(super) struct ShapingMaps {
    buckets: HashMap<MapData, Plain<BucketKey>, u64>,
    cgroups: HashMap<MapData, u64, u32>,
    round_trips: PlainHash<Pair, RoundTrips>,
}

impl ShapingMaps {
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            buckets: take(ebpf, names::BUCKETS)?,
            cgroups: take(ebpf, names::PACED_CGROUPS)?,
            round_trips: take(ebpf, names::ROUND_TRIPS)?,
        })
    }

    /// Another endpoint may have the interface's number next.
    pub(super) fn forget(&mut self, ifindex: u32) -> Result<(), KernelError> {
        for direction in Direction::ALL {
            let key = BucketKey { ifindex, direction: direction as u32 };
            absent_is_fine(self.buckets.remove(&Plain(key))).map_err(failed(names::BUCKETS))?;
        }
        Ok(())
    }

    /// Brings the rates of cgroups to these, by their paths below a root. One that is not there has no processes.
    pub(super) fn pace(&mut self, root: &Path, rates: &BTreeMap<PathBuf, u32>) -> Result<(), KernelError> {
        let mut wanted = BTreeMap::new();
        for (path, rate) in rates {
            if let Some(number) = number(&root.join(path))? {
                wanted.insert(number, *rate);
            }
        }
        let found: BTreeMap<u64, u32> = all(self.cgroups.iter(), names::PACED_CGROUPS)?.collect();
        for (number, rate) in wanted.iter().filter(|(number, rate)| found.get(number) != Some(rate)) {
            set(&mut self.cgroups, number, Some(*rate), names::PACED_CGROUPS)?;
        }
        for number in found.keys().filter(|number| !wanted.contains_key(number)) {
            set(&mut self.cgroups, number, None, names::PACED_CGROUPS)?;
        }
        Ok(())
    }

    pub(super) fn round_trips(&self) -> Result<BTreeMap<Pair, RoundTrips>, KernelError> {
        let rows = all(self.round_trips.iter(), names::ROUND_TRIPS)?;
        Ok(rows.map(|(pair, times)| (pair.0, times.0)).collect())
    }
}

/// The number of a cgroup, which is that of its directory; `None`: there is none.
fn number(path: &Path) -> Result<Option<u64>, KernelError> {
    match fs::metadata(path) {
        Ok(directory) => Ok(Some(directory.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::new(format!("look for the cgroup {}", path.display()), error)),
    }
}
