//! Writing what should be: disk first, then kernel, then the acknowledgement.

use tokio::time::Instant;
use tracing::{error, info, warn};
use weft_proto::v1::{self, ResourceType};

use super::{Saved, State, Wants, repairs::Repair};
use crate::{
    desired::{Batch, disk::DiskError},
    kernel::{Datapath, KernelError, links::Links},
    observe::names::Names,
    plan::{
        compile::{self, Compiled, Input, Stale},
        diff::{self, Sweep},
        tables::Step,
    },
};

impl<D: Datapath, L: Links> State<D, L> {
    /// The disk comes first: after a crash between the two, the restart goes forward and never back. An error means that
    /// there is nothing to acknowledge; the stream ends, and all is sent and tried again.
    pub(super) fn realise(&mut self, batch: Batch) -> Result<v1::Ack, String> {
        let began = Instant::now();
        if !self.desired.agrees(&batch) {
            self.wants = Wants::Everything;
            return Err(
                "what this node would hold is not what the controller says: all is sent anew".to_owned()
            );
        }
        if batch.listed.is_some() {
            self.wants = Wants::Differences;
            if let Some(store_id) = self.adopting.take() {
                self.desired.begin_anew(store_id);
            }
        } else if self.adopting.is_some() {
            return Err("the store that adopts this node did not send everything".to_owned());
        }
        let (nonce, in_sync) = (batch.nonce, batch.in_sync);
        let only_progress = batch.is_only_progress() && self.failure.is_none();
        self.desired.apply(batch);
        if only_progress {
            // Comes several times a second. Not on disk: a restart that knows less far is behind, never wrong.
            let written = self.write_progress();
            written.map_err(|error| self.failed(&error))?;
            self.note_realised();
        } else {
            self.saved = Saved::NotYet;
            let stored = self.save();
            stored.map_err(|error| self.failed(&error))?;
            self.sweep_due |= in_sync && !self.synced;
            self.synced |= in_sync;
            let written = self.write_kernel();
            written.map_err(|error| self.failed(&error))?;
            self.failure = None;
            self.attachments.forget_gone(self.desired.endpoints(), in_sync);
            self.after_change();
        }
        Ok(self.ack(nonce, began))
    }

    fn save(&mut self) -> Result<(), DiskError> {
        if self.saved == Saved::NotYet {
            self.disk.store_desired(&self.desired)?;
            self.saved = Saved::Yes;
        }
        Ok(())
    }

    fn ack(&self, nonce: u64, began: Instant) -> v1::Ack {
        let rejected: Vec<_> = self.desired.rejected().chain(self.unrealised.iter().cloned()).collect();
        let revision = if rejected.is_empty() { self.desired.revision } else { self.realised };
        let through = self.desired.identities_through;
        let apply_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        info!(revision, through, apply_micros, rejected = rejected.len(), "realised");
        v1::Ack { nonce, revision, apply_micros, rejected }
    }

    fn write_progress(&mut self) -> Result<(), KernelError> {
        let identity = self.desired.identities_through;
        if !self.desired.complete || identity <= self.actual.identities_through {
            return Ok(());
        }
        self.write_steps(&[Step::IdentitiesThrough { identity }])
    }

    pub(super) fn failed(&mut self, error: &dyn std::error::Error) -> String {
        error!(%error, "could not be written; tried again");
        self.failure = Some(error.to_string());
        error.to_string()
    }

    /// Brings the kernel to what is desired. Before a controller has said that all was sent, nothing is removed.
    pub(super) fn write_kernel(&mut self) -> Result<(), KernelError> {
        let sweep = if self.synced { Sweep::Remove } else { Sweep::Keep };
        let mut compiled = self.compile(Stale::Keep);
        self.write_steps(&diff::diff(&self.actual, &compiled.tables, sweep))?;
        if compiled.unfinished && sweep == Sweep::Remove {
            compiled = self.compile(Stale::Drop);
            self.write_steps(&diff::diff(&self.actual, &compiled.tables, sweep))?;
        }
        if sweep == Sweep::Remove {
            self.former_sets.clone_from(self.desired.sets());
        }
        self.note_problems(compiled);
        self.write_services(sweep)?;
        self.note_realised();
        Ok(())
    }

    fn compile(&self, stale: Stale) -> Compiled {
        let input = Input {
            node: &self.settings.node,
            own_addresses: &self.own_addresses,
            host_addresses: &self.host_addresses,
            desired: &self.desired,
            attachments: &self.attachments,
            former_sets: &self.former_sets,
        };
        compile::compile(input, &self.actual, stale)
    }

    /// Keeps `actual` true, also when the kernel refuses in the middle.
    pub(super) fn write_steps(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        if steps.is_empty() {
            return Ok(());
        }
        match self.datapath.write(steps) {
            Ok(()) => {
                self.actual.apply_all(steps);
                Ok(())
            }
            Err(error) => {
                self.actual = self.datapath.read_tables()?;
                Err(error)
            }
        }
    }

    /// A policy whose subject is closed is not realised, and nothing that came with it.
    fn note_realised(&mut self) {
        if self.unrealised.is_empty() {
            self.realised = self.desired.realised;
        }
    }

    fn note_problems(&mut self, compiled: Compiled) {
        self.problems = compiled.problems;
        self.unrealised.clear();
        self.closed.clear();
        for unfit in compiled.unfit {
            let closed = format!("{unfit}: whoever has it is closed");
            self.problems.push(closed.clone());
            self.closed.insert(unfit.subject().0, closed);
            let (subject, sets) = (unfit.subject(), self.desired.sets());
            let of_endpoints = compile::policies_of(subject, &self.desired, sets);
            let of_node = compile::host_policies_of(subject.0, &self.desired, sets);
            for policy in of_endpoints.chain(of_node) {
                self.unrealised.push(v1::RejectedResource {
                    r#type: ResourceType::Policy.into(),
                    name: policy.name.clone(),
                    reason: unfit.to_string(),
                });
            }
        }
    }

    /// Tells those who wait, and reports endpoints that became ready.
    pub(super) fn after_change(&mut self) {
        self.attachments.return_lent(self.desired.endpoints());
        self.names.store(std::sync::Arc::new(Names::of(&self.desired, &self.attachments)));
        self.set_right();
        self.report_endpoints();
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Compares the kernel with what it should hold, and mends it.
    pub(super) fn mend(&mut self) {
        let found = match self.datapath.read_tables() {
            Ok(found) => found,
            Err(error) => return drop(self.failed(&error)),
        };
        if found != self.actual {
            warn!("somebody else changed the kernel's tables; they are mended");
            self.repairs.note(Repair::Rows);
            self.actual = found;
        }
        if let Err(error) = self.look_at_services() {
            return drop(self.failed(&error));
        }
        let stored = self.save().and_then(|()| match self.failure {
            Some(_) => self.attachments.store(&self.disk),
            None => Ok(()),
        });
        if let Err(error) = stored {
            return drop(self.failed(&error));
        }
        match self.write_kernel() {
            Ok(()) => {
                if self.failure.take().is_some() {
                    info!("written at last");
                    self.after_change();
                }
            }
            Err(error) => drop(self.failed(&error)),
        }
    }
}
