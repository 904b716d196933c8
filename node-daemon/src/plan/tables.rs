//! The rows that should be (or are) in the kernel's maps, as plain values. The planner compares two of these; the kernel
//! (real or twin) is read into one and changed by [`Step`]s.

use std::collections::BTreeMap;

use weft_shared::layout::{Address, Endpoint, Peer, PolicyKey, PolicyRow, PrefixKey};

/// Rows of one subject's policy table.
pub type PolicyTable = BTreeMap<PolicyKey, PolicyRow>;

/// A row of `NODES` without its epoch, which only [`Step::Bump`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub address: Address,
    pub identity: u32,
}

/// Everything that the daemon writes into the kernel's maps. Two equal values judge every packet alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By interface index of the host's side.
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub ipcache: BTreeMap<Address, Peer>,
    pub prefixes: BTreeMap<PrefixKey, Peer>,
    /// By slot; 0 is this node.
    pub nodes: BTreeMap<u32, NodeRow>,
    pub node_addresses: BTreeMap<Address, u32>,
    /// Slot → identity. Slot 0 is never used.
    pub subjects: BTreeMap<u32, u32>,
    /// Slot → rows.
    pub policies: BTreeMap<u32, PolicyTable>,
    pub identities_through: u32,
}

/// One change of the kernel's maps. Each is atomic for a packet that is judged meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `None` removes, here and below.
    Endpoint {
        ifindex: u32,
        endpoint: Option<Endpoint>,
    },
    Ipcache {
        address: Address,
        peer: Option<Peer>,
    },
    Prefix {
        prefix: PrefixKey,
        peer: Option<Peer>,
    },
    /// Keeps the slot's epoch.
    Node {
        slot: u32,
        node: Option<NodeRow>,
    },
    NodeAddress {
        address: Address,
        slot: Option<u32>,
    },
    /// Keeps the slot's epoch.
    Subject {
        slot: u32,
        identity: Option<u32>,
    },
    /// The whole table, built beside and swapped.
    PolicyTable {
        slot: u32,
        table: Option<PolicyTable>,
    },
    /// One row in place.
    PolicyRow {
        slot: u32,
        key: PolicyKey,
        row: Option<PolicyRow>,
    },
    /// The counter's next value into the epochs of all these, then into the counter.
    Bump {
        subjects: Vec<u32>,
        nodes: Vec<u32>,
    },
    IdentitiesThrough {
        identity: u32,
    },
}

impl Tables {
    /// The tables after these steps.
    pub fn apply_all(&mut self, steps: &[Step]) {
        for step in steps {
            self.apply(step);
        }
    }

    /// The tables after a step; epochs are not in them.
    pub fn apply(&mut self, step: &Step) {
        fn set<K: Ord, V>(rows: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => drop(rows.insert(key, value)),
                None => drop(rows.remove(&key)),
            }
        }
        match step {
            Step::Endpoint { ifindex, endpoint } => set(&mut self.endpoints, *ifindex, *endpoint),
            Step::Ipcache { address, peer } => set(&mut self.ipcache, *address, *peer),
            Step::Prefix { prefix, peer } => set(&mut self.prefixes, *prefix, *peer),
            Step::Node { slot, node } => set(&mut self.nodes, *slot, *node),
            Step::NodeAddress { address, slot } => set(&mut self.node_addresses, *address, *slot),
            Step::Subject { slot, identity } => set(&mut self.subjects, *slot, *identity),
            Step::PolicyTable { slot, table } => set(&mut self.policies, *slot, table.clone()),
            Step::PolicyRow { slot, key, row } => set(self.policies.entry(*slot).or_default(), *key, *row),
            Step::Bump { .. } => {}
            Step::IdentitiesThrough { identity } => self.identities_through = *identity,
        }
    }
}
