//! Sets of sources, each with the number by which tables name it. A set never changes: another one gets another number, so that a
//! table and its set change at once. Which number a set has is read from the kernel, so nothing has to be remembered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_shared::{balance::table, layout::maps::SOURCE_PREFIXES_MAX};

/// Prefixes of one family.
pub type Set = BTreeSet<IpNet>;

/// Who may come to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    pub v4: Arc<Set>,
    pub v6: Arc<Set>,
    /// All but those in the set; else only those.
    pub denied: bool,
}

/// The numbers of a service's sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub v4: u32,
    pub v6: u32,
}

impl Sources {
    /// As a table has them.
    pub fn of_family(&self, v4: bool, numbers: Numbers, own: &Addresses) -> table::Sources {
        table::Sources {
            set: if v4 { numbers.v4 } else { numbers.v6 },
            denied: self.denied,
            node: self.admit_node(v4, own),
        }
    }

    /// The node's own processes: which of its addresses the kernel will choose for them is not known. Let in are they where all
    /// by which the fleet knows it are listed, or where none that it has is denied; never where it has none of the family.
    fn admit_node(&self, v4: bool, own: &Addresses) -> bool {
        let set = if v4 { &self.v4 } else { &self.v6 };
        let listed = |address: &IpAddr| set.iter().any(|net| net.contains(address));
        let of_family = |address: &&IpAddr| address.is_ipv4() == v4;
        let mut known = own.known.iter().filter(of_family).peekable();
        if known.peek().is_none() {
            return false;
        }
        if self.denied {
            !known.chain(own.others.iter().filter(of_family)).any(listed)
        } else {
            known.all(listed)
        }
    }
}

/// The addresses of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// By which the fleet knows it.
    pub known: Vec<IpAddr>,
    /// Which it has for other purposes. May have known ones among them.
    pub others: Vec<IpAddr>,
}

/// Gives numbers.
#[derive(Debug)]
pub(super) struct Numbering<'a> {
    actual: &'a BTreeMap<u32, Arc<Set>>,
    numbers: BTreeMap<Arc<Set>, u32>,
    /// What is wanted.
    pub(super) sets: BTreeMap<u32, Arc<Set>>,
    prefixes: usize,
    next: u32,
}

impl<'a> Numbering<'a> {
    pub(super) fn new(actual: &'a BTreeMap<u32, Arc<Set>>) -> Self {
        let numbers = actual.iter().map(|(number, set)| (Arc::clone(set), *number)).collect();
        Self { actual, numbers, sets: BTreeMap::new(), prefixes: 0, next: 1 }
    }

    /// `None`: there is no room.
    pub(super) fn of(&mut self, sources: &Sources) -> Option<Numbers> {
        Some(Numbers { v4: self.number(&sources.v4)?, v6: self.number(&sources.v6)? })
    }

    fn number(&mut self, set: &Arc<Set>) -> Option<u32> {
        // The set that nobody is in is not written.
        if set.is_empty() {
            return Some(0);
        }
        let known = self.numbers.get(set).copied();
        if let Some(number) = known.filter(|number| self.sets.contains_key(number)) {
            return Some(number);
        }
        let prefixes = self.prefixes + set.len();
        if prefixes > SOURCE_PREFIXES_MAX {
            return None;
        }
        let number = known.unwrap_or_else(|| self.free());
        self.prefixes = prefixes;
        self.numbers.insert(Arc::clone(set), number);
        self.sets.insert(number, Arc::clone(set));
        Some(number)
    }

    fn free(&mut self) -> u32 {
        while self.actual.contains_key(&self.next) {
            self.next += 1;
        }
        self.next += 1;
        self.next - 1
    }
}
