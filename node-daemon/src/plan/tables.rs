//! The rows that should be (or are) in the kernel's maps, as plain values. The planner compares two of these; the kernel
//! (real or twin) is read into one and changed by [`Step`]s.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_shared::{
    layout::{
        Address, CLASS_RULEBOOKS, Class, Direction, Endpoint, FailsafeKey, Peer, PeerKey, PolicyRow, PortKey,
        PrefixKey, class_rulebook, host,
    },
    policy::compile::Rulebook,
};

/// A row of `NODES` without its epoch, which only [`Step::Bump`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub address: Address,
    pub identity: u32,
}

/// A row of `SUBJECTS` without its epoch, which only [`Step::Bump`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectRow {
    pub identity: u32,
    /// Numbers of rulebooks, by [`class_rulebook`].
    pub rulebooks: [u32; CLASS_RULEBOOKS],
}

/// How the node itself is judged, where host policies select it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRow {
    /// The slot of its subject; never 0.
    pub subject: u32,
    /// Whether what it sends to its own endpoints is not judged.
    pub own_endpoints_free: bool,
}

impl HostRow {
    /// As the programs read it (`RuntimeState::host`), and they find `None` as 0.
    pub fn word(row: Option<Self>) -> u32 {
        row.map_or(0, |Self { subject, own_endpoints_free }| {
            subject | if own_endpoints_free { host::OWN_ENDPOINTS_FREE } else { 0 }
        })
    }

    /// The row of a word.
    pub fn of(word: u32) -> Option<Self> {
        let (subject, own_endpoints_free) = (word & host::SUBJECT, word & host::OWN_ENDPOINTS_FREE != 0);
        (word != 0).then_some(Self { subject, own_endpoints_free })
    }
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
    /// By slot. Slot 0 is never used.
    pub subjects: BTreeMap<u32, SubjectRow>,
    /// Numbers of rulebooks.
    pub peer_rules: BTreeMap<PeerKey, u32>,
    /// Numbers of the rulebooks of what no host policy can stop.
    pub failsafe: BTreeMap<FailsafeKey, u32>,
    /// `None`: the node itself is not judged.
    pub host: Option<HostRow>,
    /// By number; 0 is never used, and no number is ever used for another one.
    pub rulebooks: BTreeMap<u32, Arc<Rulebook>>,
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
        subject: Option<SubjectRow>,
    },
    /// A whole rulebook, which nobody finds while it is written or taken away.
    Rulebook {
        number: u32,
        rows: Option<Arc<Rulebook>>,
    },
    PeerRules {
        key: PeerKey,
        rulebook: Option<u32>,
    },
    Failsafe {
        key: FailsafeKey,
        rulebook: Option<u32>,
    },
    /// Who judges the node itself. All that it needs is there.
    Host {
        host: Option<HostRow>,
    },
    /// Every packet that is being judged now has been judged: what the steps before have hidden, nobody has in hand any
    /// more.
    Settle,
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
            Step::Subject { slot, subject } => set(&mut self.subjects, *slot, *subject),
            Step::Rulebook { number, rows } => set(&mut self.rulebooks, *number, rows.clone()),
            Step::PeerRules { key, rulebook } => set(&mut self.peer_rules, *key, *rulebook),
            Step::Failsafe { key, rulebook } => set(&mut self.failsafe, *key, *rulebook),
            Step::Host { host } => self.host = *host,
            Step::Settle | Step::Bump { .. } => {}
            Step::IdentitiesThrough { identity } => self.identities_through = *identity,
        }
    }

    /// The number of the rulebook that a peer's flows find, as the kernel programs look for it. The host has its class's:
    /// its identity may be other nodes', too.
    pub fn rulebook(&self, subject: &SubjectRow, direction: Direction, identity: u32, class: Class) -> u32 {
        if class == Class::Host {
            return subject.rulebooks[class_rulebook(direction, class)];
        }
        let key = PeerKey { subject: subject.identity, peer: identity, direction: direction as u32 };
        let own = self.peer_rules.get(&key).copied();
        own.unwrap_or(subject.rulebooks[class_rulebook(direction, class)])
    }

    /// What the subject in a slot says of a flow, as the kernel programs find it. `None` drops.
    pub fn row(
        &self,
        slot: u32,
        direction: Direction,
        (identity, class): (u32, Class),
        (protocol, port): (u8, u16),
    ) -> Option<PolicyRow> {
        let number = self.rulebook(self.subjects.get(&slot)?, direction, identity, class);
        let rulebook = self.rulebooks.get(&number)?;
        let flow = PortKey::exact(protocol, port);
        (0..=PortKey::FULL_BITS).rev().find_map(|bits| rulebook.get(&flow.cut(bits)).copied())
    }

    /// Numbers of rulebooks that a subject, a peer or a failsafe prefix has.
    pub fn used_rulebooks(&self) -> BTreeSet<u32> {
        let of_classes = self.subjects.values().flat_map(|subject| subject.rulebooks);
        let others = self.peer_rules.values().chain(self.failsafe.values());
        of_classes.chain(others.copied()).collect()
    }
}
