//! Writing what should be: disk first, then kernel, then the acknowledgement.

use tokio::time::Instant;
use tracing::{error, info, warn};
use weft_proto::v1::{self, ResourceType};

use super::{Saved, State, Wants, repairs::Repair};
use crate::{
    desired::{Batch, Touched, disk::DiskError, journal::Change},
    kernel::{Datapath, KernelError, links::Links},
    observe::names::Names,
    plan::{
        compile::{self, Compiled, Input, Stale},
        diff::{self, Sweep},
        narrow::Standing,
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
        let (touched, change) = (Touched::by(&batch), Change::of(&batch));
        self.desired.apply(batch);
        if only_progress {
            // Comes several times a second. Not on disk: a restart that knows less far is behind, never wrong.
            let written = self.write_progress();
            written.map_err(|error| self.failed(&error))?;
            self.note_realised();
        } else {
            // Whatever fails from here on, the desired state has changed and the kernel has not.
            let standing = self.standing.take();
            // What was not kept before is not in the change.
            let former = std::mem::replace(&mut self.saved, Saved::NotYet);
            let stored = match change.filter(|_| former == Saved::Yes) {
                Some(change) => self.save_change(&change),
                None => self.save(),
            };
            stored.map_err(|error| self.failed(&error))?;
            self.sweep_due |= in_sync && !self.synced;
            self.synced |= in_sync;
            let written = self.write_change(standing, touched);
            let narrow = written.map_err(|error| self.failed(&error))?;
            self.failure = None;
            self.attachments.forget_gone(self.desired.endpoints(), in_sync);
            if !narrow {
                self.take_names();
            }
            self.after_change_of_rows();
        }
        Ok(self.ack(nonce, began))
    }

    /// Brings the kernel to what is desired, after a batch. `true`: only members and addresses changed.
    fn write_change(
        &mut self,
        standing: Option<Standing>,
        touched: Option<Touched>,
    ) -> Result<bool, KernelError> {
        if let (Some(standing), Some(touched)) = (standing, touched)
            && self.failure.is_none()
            && self.write_narrow(standing, &touched)?
        {
            return Ok(touched.policies.is_empty());
        }
        self.write_kernel()?;
        Ok(false)
    }

    /// `false`: all must be looked at, and nothing was written.
    fn write_narrow(&mut self, mut standing: Standing, touched: &Touched) -> Result<bool, KernelError> {
        let Some(plan) = standing.plan(self.input(), &self.actual, touched) else { return Ok(false) };
        standing.note(&self.desired, &self.actual, touched, &plan);
        self.write_steps(&plan.steps)?;
        touched.copy_members(self.desired.sets(), &mut self.former_sets);
        self.note_realised();
        self.standing = Some(standing);
        Ok(true)
    }

    fn save(&mut self) -> Result<(), DiskError> {
        if self.saved == Saved::NotYet {
            self.journal = None;
            self.journal = Some(self.disk.store_desired(&self.desired)?);
            self.saved = Saved::Yes;
        }
        Ok(())
    }

    /// What changed alone, where all else is kept.
    fn save_change(&mut self, change: &Change) -> Result<(), DiskError> {
        // After an error there is none: all is written then.
        if let Some(mut journal) = self.journal.take()
            && journal.append(&self.desired, change)?
        {
            (self.journal, self.saved) = (Some(journal), Saved::Yes);
        }
        self.save()
    }

    fn ack(&self, nonce: u64, began: Instant) -> v1::Ack {
        let rejected: Vec<_> = self.desired.rejected().chain(self.unrealised.iter().cloned()).collect();
        let revision = if rejected.is_empty() { self.desired.revision } else { self.realised };
        let through = self.desired.identities_through;
        let apply_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        info!(revision, through, apply_micros, rejected = rejected.len(), "realised");
        v1::Ack { nonce, revision, apply_micros, rejected }
    }

    /// What does not fit was understood, and is not realised all the same.
    fn note_realised(&mut self) {
        let understood = self.desired.realised;
        self.realised = if self.unrealised.is_empty() { understood } else { self.realised.min(understood) };
    }

    fn write_progress(&mut self) -> Result<(), KernelError> {
        let identity = self.desired.identities_through;
        if !self.desired.complete || identity <= self.actual.identities_through {
            return Ok(());
        }
        let standing = self.standing.take();
        self.write_steps(&[Step::IdentitiesThrough { identity }])?;
        self.standing = standing;
        Ok(())
    }

    pub(super) fn failed(&mut self, error: &dyn std::error::Error) -> String {
        error!(%error, "could not be written; tried again");
        self.failure = Some(error.to_string());
        error.to_string()
    }

    /// Brings the kernel to what is desired. Before a controller has said that all was sent, nothing is removed.
    pub(super) fn write_kernel(&mut self) -> Result<(), KernelError> {
        self.standing = None;
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
        self.write_prefilters(sweep)?;
        self.write_pacing()?;
        self.note_realised();
        if sweep == Sweep::Remove && self.problems.is_empty() {
            self.standing = Standing::of(self.input(), &self.actual);
        }
        Ok(())
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input {
            node: &self.settings.node,
            own_addresses: &self.own_addresses,
            host_addresses: &self.host_addresses,
            desired: &self.desired,
            attachments: &self.attachments,
            departures: self.shaping.departures,
            former_sets: &self.former_sets,
        }
    }

    fn compile(&self, stale: Stale) -> Compiled {
        compile::compile(self.input(), &self.actual, stale)
    }

    /// Keeps `actual` true, also when the kernel refuses in the middle.
    pub(super) fn write_steps(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        self.standing = None;
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
        self.take_names();
        self.after_change_of_rows();
    }

    /// Names are of policies and of this node's endpoints.
    fn take_names(&self) {
        self.names.store(std::sync::Arc::new(Names::of(&self.desired, &self.attachments)));
    }

    fn after_change_of_rows(&mut self) {
        self.attachments.return_lent(self.desired.endpoints());
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
        if let Err(error) = self.look_at_services().and_then(|()| self.look_at_prefilters()) {
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
