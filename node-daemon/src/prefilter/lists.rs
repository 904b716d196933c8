//! What the kernel's maps of prefilters hold, as plain values, and the steps that change it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::IpNet;
use weft_proto::v1::ResourceType;
use weft_shared::digest::Digest;

/// What a slot's note has for a prefilter's name.
pub fn name_digest(name: &str) -> [u64; 2] {
    bytemuck::cast(Digest::of(ResourceType::Prefilter.into(), name, &[], &[]).to_bytes())
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Whose each slot is, by [`name_digest`].
    pub slots: BTreeMap<u32, [u64; 2]>,
    /// The list that a prefix counts for.
    pub prefixes: BTreeMap<IpNet, u32>,
    pub senders: BTreeMap<Ipv4Addr, u32>,
    /// Words of blocks that prefixes meet that are not 0.
    pub blocks: BTreeMap<u32, u64>,
    /// Words of what is held open that are not 0.
    pub open: BTreeMap<u32, u64>,
}

/// One change of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Open {
        word: u32,
        bits: u64,
    },
    Block {
        word: u32,
        bits: u64,
    },
    /// A slot that gets a list counts from 0 on; `None` frees it.
    List {
        slot: u32,
        name: Option<[u64; 2]>,
    },
    /// `None` removes.
    Prefix {
        net: IpNet,
        slot: Option<u32>,
    },
    Sender {
        sender: Ipv4Addr,
        slot: Option<u32>,
    },
}

impl Lists {
    /// Whether there is any source to drop: otherwise no program is needed.
    pub fn drop_nothing(&self) -> bool {
        self.prefixes.is_empty() && self.senders.is_empty()
    }

    /// What the maps hold after a step.
    pub fn apply(&mut self, step: &Step) {
        match *step {
            Step::Open { word, bits } => set(&mut self.open, word, (bits != 0).then_some(bits)),
            Step::Block { word, bits } => set(&mut self.blocks, word, (bits != 0).then_some(bits)),
            Step::List { slot, name } => set(&mut self.slots, slot, name),
            Step::Prefix { net, slot } => set(&mut self.prefixes, net, slot),
            Step::Sender { sender, slot } => set(&mut self.senders, sender, slot),
        }
    }
}

fn set<K: Ord, V>(rows: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(rows.insert(key, value)),
        None => drop(rows.remove(&key)),
    }
}
