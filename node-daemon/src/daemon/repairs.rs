//! What somebody else had changed in the kernel and the daemon has mended: counted by kind, for status.

use std::{collections::BTreeMap, time::SystemTime};

use weft_proto::v1;

/// Kinds of what is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repair {
    /// Rows of maps, tables of policies among them.
    Rows,
    /// Programs that had been taken off an interface.
    Programs,
    /// An endpoint's interface that was down, its routes, its neighbours.
    Routes,
    /// The overlay's device.
    Overlay,
    /// Kernel settings (sysctl).
    Settings,
}

impl Repair {
    const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Programs => "programs",
            Self::Routes => "routes",
            Self::Overlay => "overlay",
            Self::Settings => "settings",
        }
    }
}

/// How often each kind was mended since the daemon's start, and when last.
#[derive(Clone, Debug, Default)]
pub(super) struct Repairs(BTreeMap<Repair, (u64, Option<SystemTime>)>);

impl Repairs {
    pub(super) fn note(&mut self, repair: Repair) {
        let (times, last) = self.0.entry(repair).or_default();
        *times += 1;
        *last = Some(SystemTime::now());
    }

    pub(super) fn list(&self) -> Vec<v1::Repair> {
        let repair = |(repair, (times, last)): (&Repair, &(u64, Option<SystemTime>))| v1::Repair {
            what: repair.name().to_owned(),
            times: *times,
            last: last.map(Into::into),
        };
        self.0.iter().map(repair).collect()
    }
}
