//! A node's kernel: the twin, with a power switch. Writes are taken step by step, so that a crash or an error can be in the
//! middle, and each step can be looked at.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use weft_noded::{
    balance::tables::{Services, Step as ServiceStep},
    kernel::{Attached, Counted, Datapath, Hook, KernelError, Mode, twin::Twin},
    plan::tables::{Step, Tables},
    prefilter::lists::{Lists, Step as PrefilterStep},
};
use weft_shared::layout::{
    Point, Reason,
    maps::Counter,
    service::{Element, SocketPeer},
    shaping::{Pair, RoundTrips},
};

use crate::inspect::Inspector;

/// What one life of a daemon can do to its kernel.
#[derive(Debug, Default)]
pub(crate) struct Power {
    off: AtomicBool,
    plan: Mutex<Option<Mishap>>,
    /// The last write went through: the kernel holds what the disk says.
    at_rest: AtomicBool,
}

/// What is to happen in a coming write, after so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// The daemon dies there.
    Crash { after: u32 },
    /// The kernel refuses, once.
    Error { after: u32 },
}

impl Power {
    fn plan(&self) -> MutexGuard<'_, Option<Mishap>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn expect(&self, mishap: Option<Mishap>) {
        *self.plan() = mishap;
    }

    pub(crate) fn turn_off(&self) {
        self.off.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::Relaxed)
    }

    /// Before each step.
    fn strain(&self) -> Result<(), KernelError> {
        if self.is_off() {
            return Err(KernelError::new("write the twin's tables", "simulated: the daemon is dead"));
        }
        let mut plan = self.plan();
        match *plan {
            Some(Mishap::Crash { after: 0 }) => {
                self.turn_off();
                Err(KernelError::new("write the twin's tables", "simulated: the daemon dies here"))
            }
            Some(Mishap::Error { after: 0 }) => {
                *plan = None;
                Err(KernelError::new("write the twin's tables", "simulated: the kernel refuses once"))
            }
            Some(Mishap::Crash { after }) => {
                *plan = Some(Mishap::Crash { after: after - 1 });
                Ok(())
            }
            Some(Mishap::Error { after }) => {
                *plan = Some(Mishap::Error { after: after - 1 });
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The kernel as one daemon has it.
pub(crate) struct Kernel {
    pub(crate) twin: Twin,
    pub(crate) power: Arc<Power>,
    pub(crate) inspector: Inspector,
}

impl Kernel {
    fn alive(&self) -> Result<(), KernelError> {
        let dead = || KernelError::new("reach the kernel", "simulated: the daemon is dead");
        if self.power.is_off() { Err(dead()) } else { Ok(()) }
    }
}

impl Datapath for Kernel {
    fn read_tables(&mut self) -> Result<Tables, KernelError> {
        self.alive()?;
        self.twin.read_tables()
    }

    fn write(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        self.power.at_rest.store(false, Ordering::Relaxed);
        let before = self.inspector.wants_to_look().then(|| self.twin.with(|state| state.tables.clone()));
        let desired = before.as_ref().and_then(|_| self.inspector.desired());
        for step in steps {
            self.power.strain()?;
            self.twin.write(std::slice::from_ref(step))?;
            self.twin.with(|state| {
                // Nobody reads them here.
                state.steps.clear();
                if let (Some(before), Some(desired)) = (&before, &desired) {
                    self.inspector.on_the_way(before, &state.tables, desired, step);
                }
            });
        }
        self.power.at_rest.store(true, Ordering::Relaxed);
        if let Some(desired) = &desired {
            self.twin.with(|state| self.inspector.at_rest(&state.tables, desired));
        }
        Ok(())
    }

    fn read_services(&mut self) -> Result<Services, KernelError> {
        self.alive()?;
        self.twin.read_services()
    }

    fn read_table(&mut self, slot: u32) -> Result<Vec<Element>, KernelError> {
        self.alive()?;
        self.twin.read_table(slot)
    }

    fn write_services(&mut self, steps: &[ServiceStep]) -> Result<(), KernelError> {
        for step in steps {
            self.power.strain()?;
            self.twin.write_services(std::slice::from_ref(step))?;
            self.twin.with(|state| self.inspector.every_frontend_leads_to_a_table(&state.services, step));
        }
        Ok(())
    }

    fn end_sockets(
        &mut self,
        namespaces: &[String],
        protocols: &[u8],
        serves: &(dyn Fn(u8, &SocketPeer) -> bool + Sync),
    ) -> Result<u64, KernelError> {
        self.alive()?;
        self.twin.end_sockets(namespaces, protocols, serves)
    }

    fn sockets_attached(&mut self) -> Result<bool, KernelError> {
        self.alive()?;
        self.twin.sockets_attached()
    }

    fn attach_sockets(&mut self, cgroup: &Path) -> Result<Attached, KernelError> {
        self.alive()?;
        self.twin.attach_sockets(cgroup)
    }

    fn pacing_attached(&mut self) -> Result<bool, KernelError> {
        self.alive()?;
        self.twin.pacing_attached()
    }

    fn attach_pacing(&mut self, cgroup: &Path) -> Result<Attached, KernelError> {
        self.alive()?;
        self.twin.attach_pacing(cgroup)
    }

    fn pace_cgroups(&mut self, root: &Path, rates: &BTreeMap<PathBuf, u32>) -> Result<(), KernelError> {
        self.alive()?;
        self.twin.pace_cgroups(root, rates)
    }

    fn round_trips(&mut self) -> Result<BTreeMap<Pair, RoundTrips>, KernelError> {
        self.twin.round_trips()
    }

    fn read_prefilters(&mut self) -> Result<Lists, KernelError> {
        self.alive()?;
        self.twin.read_prefilters()
    }

    fn write_prefilters(&mut self, steps: &[PrefilterStep]) -> Result<(), KernelError> {
        for step in steps {
            self.power.strain()?;
            self.twin.write_prefilters(std::slice::from_ref(step))?;
        }
        Ok(())
    }

    fn prefiltered(&mut self, slots: &[u32]) -> Result<BTreeMap<u32, Counter>, KernelError> {
        self.twin.prefiltered(slots)
    }

    fn attach_xdp(&mut self, ifindex: u32) -> Result<(Attached, Mode), KernelError> {
        self.alive()?;
        self.twin.attach_xdp(ifindex)
    }

    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.alive()?;
        self.twin.detach_xdp(ifindex)
    }

    fn xdp_attached(&mut self) -> Result<Vec<u32>, KernelError> {
        self.alive()?;
        self.twin.xdp_attached()
    }

    fn attach(&mut self, ifindex: u32, hook: Hook) -> Result<Attached, KernelError> {
        self.alive()?;
        self.twin.attach(ifindex, hook)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.alive()?;
        self.twin.detach(ifindex)
    }

    fn attached(&mut self) -> Result<Vec<(u32, Hook)>, KernelError> {
        self.alive()?;
        self.twin.attached()
    }

    fn counters(&mut self) -> Result<Vec<(Point, Reason, Counter)>, KernelError> {
        self.twin.counters()
    }

    fn events_lost(&mut self) -> Result<u64, KernelError> {
        self.twin.events_lost()
    }

    fn settle(&mut self) -> Result<(), KernelError> {
        self.twin.settle()
    }

    fn count_flows(&mut self) -> Result<Counted, KernelError> {
        self.twin.count_flows()
    }

    fn flows_capacity(&mut self) -> Result<u64, KernelError> {
        self.twin.flows_capacity()
    }

    fn map_bytes(&mut self) -> Result<u64, KernelError> {
        self.twin.map_bytes()
    }
}
