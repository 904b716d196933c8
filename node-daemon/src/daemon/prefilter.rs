//! Prefilters: what is desired into the kernel, and what somebody else changed there mended. Where the program is that drops,
//! see [`super::xdp`].

use std::collections::BTreeMap;

use tracing::warn;
use weft_proto::v1::{self, ResourceType};
use weft_shared::policy::model::Failsafe;

use super::{State, repairs::Repair};
use crate::{
    kernel::{Datapath, KernelError, links::Links},
    plan::diff::Sweep,
    prefilter::{self, Desired, LIMITS, lists::Lists},
};

/// What the daemon knows of its prefilters.
pub(super) struct Prefilters {
    /// What the kernel holds, as far as this daemon knows.
    actual: Lists,
    /// Of what the kernel was brought to last; `None`: it was not.
    settled: Option<Settled>,
    /// Slots of those that are realised.
    slots: BTreeMap<String, u32>,
    /// Those that are not, and why.
    unrealised: Vec<(String, String)>,
}

struct Settled {
    desired: Desired,
    failsafe: Vec<Failsafe>,
    sweep: Sweep,
}

impl Prefilters {
    pub(super) fn begin(actual: Lists) -> Self {
        Self { actual, settled: None, slots: BTreeMap::new(), unrealised: Vec::new() }
    }

    /// Whether no packet is dropped.
    pub(super) fn drop_nothing(&self) -> bool {
        self.actual.drop_nothing()
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// Brings the kernel to the prefilters that are desired. What can't be realised is told as rejected, and keeps nothing else
    /// from being written.
    pub(super) fn write_prefilters(&mut self, sweep: Sweep) -> Result<(), KernelError> {
        let desired = self.desired.prefilters();
        let failsafe = self.desired.fleet().map_or(&[][..], |fleet| &fleet.failsafe);
        let prefilters = &mut self.prefilters;
        let is_settled = prefilters.settled.as_ref().is_some_and(|settled| {
            settled.sweep == sweep && settled.desired == *desired && settled.failsafe == failsafe
        });
        if !is_settled {
            prefilters.settled = None;
            let plan = prefilter::plan(desired, failsafe, &prefilters.actual, sweep, LIMITS);
            if let Err(error) = self.datapath.write_prefilters(&plan.steps) {
                prefilters.actual = self.datapath.read_prefilters()?;
                return Err(error);
            }
            for step in &plan.steps {
                prefilters.actual.apply(step);
            }
            (prefilters.slots, prefilters.unrealised) = (plan.slots, plan.unrealised);
            let (desired, failsafe) = (desired.clone(), failsafe.to_vec());
            prefilters.settled = Some(Settled { desired, failsafe, sweep });
        }
        self.hold_xdp();
        self.tell_unrealised();
        Ok(())
    }

    /// A list that has no program to look at it is not realised, either.
    fn tell_unrealised(&mut self) {
        let Prefilters { slots, unrealised, .. } = &*self.prefilters;
        let why = self.xdp.bare().next().map(|(name, why)| format!("nothing is dropped on {name}: {why}"));
        let bare = why.iter().flat_map(|why| slots.keys().map(move |name| (name.clone(), why.clone())));
        self.unrealised.extend(unrealised.iter().cloned().chain(bare).map(|(name, reason)| {
            v1::RejectedResource { r#type: ResourceType::Prefilter.into(), name, reason }
        }));
    }

    /// Reads what the kernel holds: what differs from what was written is written again next.
    pub(super) fn look_at_prefilters(&mut self) -> Result<(), KernelError> {
        let found = self.datapath.read_prefilters()?;
        if found != self.prefilters.actual {
            warn!("somebody else changed the kernel's tables of prefilters; they are mended");
            self.repairs.note(Repair::Rows);
            self.prefilters.actual = found;
            self.prefilters.settled = None;
        }
        Ok(())
    }

    /// What each list has dropped.
    pub(super) fn prefilter_drops(&mut self) -> Result<Vec<v1::PrefilterDrops>, KernelError> {
        let Prefilters { slots, .. } = &*self.prefilters;
        let counters = self.datapath.prefiltered(&slots.values().copied().collect::<Vec<_>>())?;
        let drops = slots.iter().filter_map(|(name, slot)| {
            let counter = counters.get(slot)?;
            let list = self.desired.prefilters().get(name)?;
            Some(v1::PrefilterDrops {
                name: name.clone(),
                prefixes: u64::try_from(list.prefixes.len()).unwrap_or(u64::MAX),
                arp_senders: u64::try_from(list.senders.len()).unwrap_or(u64::MAX),
                packets: counter.packets,
                bytes: counter.bytes,
            })
        });
        Ok(drops.collect())
    }
}
