//! Prefilters: what is desired into the kernel, and what somebody else changed there mended. The XDP program is on uplinks only
//! while there is something to drop: what is off costs nothing.

use std::collections::BTreeMap;

use tracing::{info, warn};
use weft_proto::v1::{self, ResourceType};
use weft_shared::policy::model::Failsafe;

use super::{State, repairs::Repair};
use crate::{
    kernel::{Attached, Datapath, KernelError, Mode, links::Links},
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
    /// Where the program is, by interface index.
    modes: BTreeMap<u32, Mode>,
    /// … as the controller of this stream was told.
    told: BTreeMap<u32, Mode>,
    /// Uplinks that it can't be attached to, by name, and why.
    bare: BTreeMap<String, String>,
}

struct Settled {
    desired: Desired,
    failsafe: Vec<Failsafe>,
    sweep: Sweep,
}

impl Prefilters {
    pub(super) fn begin(actual: Lists) -> Self {
        Self {
            actual,
            settled: None,
            slots: BTreeMap::new(),
            unrealised: Vec::new(),
            modes: BTreeMap::new(),
            told: BTreeMap::new(),
            bare: BTreeMap::new(),
        }
    }

    pub(super) fn mode(&self, ifindex: u32) -> v1::XdpMode {
        match self.modes.get(&ifindex) {
            None => v1::XdpMode::None,
            Some(Mode::Native) => v1::XdpMode::Native,
            Some(Mode::Generic) => v1::XdpMode::Generic,
        }
    }

    /// The controller is told where the program is.
    pub(super) fn tell(&mut self) {
        self.told.clone_from(&self.modes);
    }

    /// For people: where nothing is dropped that should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.bare.iter().map(|(name, why)| format!("prefilters drop nothing on {name}: {why}"))
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
        self.hold_prefilters();
        self.tell_unrealised();
        Ok(())
    }

    /// A list that has no program to look at it is not realised, either.
    fn tell_unrealised(&mut self) {
        let Prefilters { slots, unrealised, bare, .. } = &*self.prefilters;
        let why = bare.iter().next().map(|(name, why)| format!("nothing is dropped on {name}: {why}"));
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

    /// The XDP program is on every uplink while there is something to drop, and nowhere otherwise.
    pub(super) fn hold_prefilters(&mut self) {
        self.prefilters.bare.clear();
        let wanted = !self.prefilters.actual.drop_nothing();
        if wanted {
            for uplink in self.uplinks.clone() {
                self.hold_prefilter(uplink.ifindex, &uplink.name);
            }
        }
        if let Err(error) = self.bare_others(wanted) {
            warn!(%error, "an XDP program that nobody needs stays");
        }
    }

    /// The controller hears of devices with the next stream's first word.
    pub(super) fn tell_of_modes(&mut self) {
        if self.prefilters.told != self.prefilters.modes && self.connection.is_some() {
            self.connection = None;
        }
    }

    fn hold_prefilter(&mut self, ifindex: u32, name: &str) {
        let prefilters = &mut self.prefilters;
        match self.datapath.attach_prefilter(ifindex) {
            Ok((found, mode)) => {
                let former = prefilters.modes.insert(ifindex, mode);
                if found == Attached::Anew && former.is_some() {
                    warn!(uplink = %name, ?mode, "somebody had taken the XDP program off: it is attached again");
                    self.repairs.note(Repair::Programs);
                } else if former.is_none() {
                    info!(uplink = %name, ?mode, "prefilters drop here");
                }
            }
            Err(error) => {
                warn!(uplink = %name, %error, "the XDP program can't be attached; tried again");
                prefilters.modes.remove(&ifindex);
                prefilters.bare.insert(name.to_owned(), error.to_string());
            }
        }
    }

    /// Interfaces that are no uplinks keep their program until a controller has said that all was sent, as tc's.
    fn bare_others(&mut self, wanted: bool) -> Result<(), KernelError> {
        for ifindex in self.datapath.prefilters_attached()? {
            let is_uplink = self.uplinks.iter().any(|uplink| uplink.ifindex == ifindex);
            if !wanted || (self.synced && !is_uplink) {
                self.datapath.detach_prefilter(ifindex)?;
                self.prefilters.modes.remove(&ifindex);
                info!(ifindex, "prefilters drop nothing here any more");
            }
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
