//! What the kernel's maps of services hold, as plain values, and the steps that change it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use weft_shared::{
    balance::table::Table,
    layout::service::{Frontend, FrontendKey, TCP},
};

use super::sources::Set;

/// The digest of a slot that has no table.
pub const NO_TABLE: [u64; 2] = [0; 2];

/// … and of one whose table may be another one than was written last: no table has it.
pub const UNKNOWN_TABLE: [u64; 2] = [u64::MAX; 2];

/// Frontends, and for each slot the digest of its table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    pub tables: BTreeMap<u32, [u64; 2]>,
    pub own: OwnAddresses,
    /// By their numbers.
    pub sources: BTreeMap<u32, Arc<Set>>,
}

/// With which addresses the node sends to backends: of IPv4, of IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl OwnAddresses {
    /// The first of each family.
    pub fn of(addresses: &[IpAddr]) -> Self {
        let mut own = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => own.v4 = own.v4.or(Some(*v4)),
                IpAddr::V6(v6) => own.v6 = own.v6.or(Some(*v6)),
            }
        }
        own
    }
}

/// One change of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The tables of slots, each changed as a whole; `None` leaves none. When this is done, no program has a former one in
    /// hand any more, nor a frontend's row that was changed before.
    Tables {
        tables: Vec<(u32, Option<Arc<Table>>)>,
    },
    OwnAddresses(OwnAddresses),
    /// A set of sources that is not there, or of which nothing is; `None` removes.
    Sources {
        number: u32,
        set: Option<Arc<Set>>,
    },
    /// `None` removes.
    Frontend {
        key: FrontendKey,
        frontend: Option<Frontend>,
    },
}

impl Services {
    /// Whether flows that are known may go elsewhere after a step: to a frontend that was none. Connections go on as they began.
    pub fn leads_flows_elsewhere(&self, step: &Step) -> bool {
        match step {
            Step::Frontend { key, frontend: Some(_) } => {
                key.protocol != TCP && !self.frontends.contains_key(key)
            }
            _ => false,
        }
    }

    /// What the maps hold after a step.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Tables { tables } => {
                for (slot, table) in tables {
                    match table {
                        Some(table) => drop(self.tables.insert(*slot, table.digest())),
                        None => drop(self.tables.remove(slot)),
                    }
                }
            }
            Step::Frontend { key, frontend: Some(frontend) } => {
                self.frontends.insert(*key, *frontend);
            }
            Step::Sources { number, set: Some(set) } => {
                self.sources.insert(*number, Arc::clone(set));
            }
            Step::Sources { number, set: None } => drop(self.sources.remove(number)),
            Step::OwnAddresses(own) => self.own = *own,
            Step::Frontend { key, frontend: None } => drop(self.frontends.remove(key)),
        }
    }
}
