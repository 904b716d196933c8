//! The kernel in memory: what tests and the fleet simulator run the daemon against.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use weft_shared::layout::{Point, Reason, maps::Counter};

use super::{Datapath, Hook, KernelError};
use crate::plan::tables::{Step, Tables};

/// What a twin holds.
#[derive(Debug, Default)]
pub struct TwinState {
    pub tables: Tables,
    /// Every step ever written, in order.
    pub steps: Vec<Step>,
    pub attached: BTreeMap<u32, Hook>,
    /// The node's counter of changes, and the epochs of subjects and nodes.
    pub epoch: u64,
    pub subject_epochs: BTreeMap<u32, u64>,
    pub node_epochs: BTreeMap<u32, u64>,
    /// Writes fail with this text while it is set.
    pub broken: Option<String>,
}

/// Clones share one state, so a test keeps one and gives the daemon another.
#[derive(Clone, Debug, Default)]
pub struct Twin {
    state: Arc<Mutex<TwinState>>,
}

impl Twin {
    /// Looks at (or changes) the state.
    pub fn with<R>(&self, look: impl FnOnce(&mut TwinState) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TwinState {
    fn write(&mut self, step: &Step) {
        self.tables.apply(step);
        if let Step::Bump { subjects, nodes } = step {
            let next = self.epoch + 1;
            self.subject_epochs.extend(subjects.iter().map(|slot| (*slot, next)));
            self.node_epochs.extend(nodes.iter().map(|slot| (*slot, next)));
            self.epoch = next;
        }
        self.steps.push(step.clone());
    }
}

impl Datapath for Twin {
    fn read_tables(&mut self) -> Result<Tables, KernelError> {
        Ok(self.with(|state| state.tables.clone()))
    }

    fn write(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        self.with(|state| match &state.broken {
            Some(why) => Err(KernelError::new("write the twin's tables", why.as_str())),
            None => {
                steps.iter().for_each(|step| state.write(step));
                Ok(())
            }
        })
    }

    fn attach(&mut self, ifindex: u32, hook: Hook) -> Result<(), KernelError> {
        self.with(|state| state.attached.insert(ifindex, hook));
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.with(|state| state.attached.remove(&ifindex));
        Ok(())
    }

    fn attached(&mut self) -> Result<Vec<u32>, KernelError> {
        Ok(self.with(|state| state.attached.keys().copied().collect()))
    }

    fn counters(&mut self) -> Result<Vec<(Point, Reason, Counter)>, KernelError> {
        Ok(Vec::new())
    }

    fn events_lost(&mut self) -> Result<u64, KernelError> {
        Ok(0)
    }

    fn map_bytes(&mut self) -> Result<u64, KernelError> {
        Ok(0)
    }
}
