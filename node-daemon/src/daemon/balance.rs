//! Services: what is desired into the kernel, and what somebody else changed there mended.

use tracing::{info, warn};
use weft_proto::v1::{self, ResourceType};
use weft_shared::layout::service::frontend_flags;

use super::{Settings, State, repairs::Repair};
use crate::{
    balance::{
        Balancer, ports,
        tables::{OwnAddresses, Services, Step},
        view::Here,
    },
    kernel::{Attached, Datapath, KernelError, links::Links},
    plan::diff::Sweep,
};

/// What the daemon knows of its services.
pub(super) struct Balance {
    balancer: Balancer,
    /// What the kernel holds, as far as this daemon knows.
    actual: Services,
    /// Services that are not what they should be.
    unrealised: Vec<(String, String)>,
    /// How far the kernel was brought to what was desired last; `None`: it was not.
    settled: Option<Sweep>,
    /// The socket programs of this daemon are attached: from the first service on.
    at_sockets: bool,
}

impl Balance {
    pub(super) fn begin(settings: &Settings, actual: Services) -> Self {
        let here = Here { node: settings.node.clone(), labels: settings.labels.clone() };
        Self {
            balancer: Balancer::new(here),
            actual,
            unrealised: Vec::new(),
            settled: None,
            at_sockets: false,
        }
    }

    /// Whether there are frontends for those outside of the fleet.
    pub(super) fn are_reached_from_outside(&self) -> bool {
        self.actual.frontends.values().any(|frontend| frontend.flags & frontend_flags::CLUSTER == 0)
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// Brings the kernel to the services that are desired. What can't be realised is told as rejected, and keeps nothing else
    /// from being written.
    pub(super) fn write_services(&mut self, sweep: Sweep) -> Result<(), KernelError> {
        if !self.desired.services().is_empty() {
            self.need_sockets()?;
        }
        self.write_own_addresses(sweep)?;
        let desired = self.desired.services();
        let services = &mut self.services;
        if services.settled != Some(sweep) || !services.balancer.knows(desired) {
            services.settled = None;
            let plan = services.balancer.plan(desired, &services.actual, sweep);
            for step in &plan.steps {
                // One by one: what is known stays true where the kernel refuses in the middle.
                if let Err(error) = self.datapath.write_services(std::slice::from_ref(step)) {
                    services.actual = self.datapath.read_services()?;
                    return Err(error);
                }
                services.actual.apply(step);
            }
            services.unrealised = plan.unrealised;
            self.health.probe(desired, &self.settings.node);
            services.settled = Some(sweep);
            if sweep == Sweep::Remove {
                self.end_sockets();
            }
        }
        let services = &self.services;
        self.unrealised.extend(services.unrealised.iter().map(|(name, reason)| v1::RejectedResource {
            r#type: ResourceType::Service.into(),
            name: name.clone(),
            reason: reason.clone(),
        }));
        Ok(())
    }

    /// For people: who else has the ports of `snat`. Without services nobody is sent from them.
    pub(super) fn snat_problems(&self) -> Vec<String> {
        let (Settings { snat_ports, socket_ports, .. }, services) = (&self.settings, self.desired.services());
        if services.is_empty() { Vec::new() } else { ports::problems(*snat_ports, socket_ports, services) }
    }

    /// Where there are services, packets go to backends elsewhere with addresses of this node.
    fn write_own_addresses(&mut self, sweep: Sweep) -> Result<(), KernelError> {
        let some = !self.desired.services().is_empty();
        if !some && sweep == Sweep::Keep {
            return Ok(());
        }
        let own = if some { OwnAddresses::of(&self.own_addresses) } else { OwnAddresses::default() };
        if self.services.actual.own != own {
            let step = Step::OwnAddresses(own);
            self.datapath.write_services(std::slice::from_ref(&step))?;
            self.services.actual.apply(&step);
        }
        Ok(())
    }

    /// UDP sockets that are connected to backends that have gone would send into the void for ever: their processes are told.
    fn end_sockets(&mut self) {
        let endpoints = self.attachments.endpoints.values();
        let namespaces: Vec<String> =
            endpoints.map(|own| own.netns.clone()).filter(|path| !path.is_empty()).collect();
        let serving = self.services.balancer.serving();
        match self.datapath.end_sockets(&namespaces, &|peer| serving.serves(peer)) {
            Ok(0) => {}
            Ok(ended) => {
                info!(ended, "UDP sockets were connected to backends that have gone: they are ended");
            }
            Err(error) => warn!(%error, "UDP sockets stay connected to backends that have gone"),
        }
    }

    /// Reads what the kernel holds: what differs from what was written is written again next.
    pub(super) fn look_at_services(&mut self) -> Result<(), KernelError> {
        let found = self.datapath.read_services()?;
        if found != self.services.actual {
            warn!("somebody else changed the kernel's tables of services; they are mended");
            self.repairs.note(Repair::Rows);
            self.services.actual = found;
            self.services.settled = None;
        }
        Ok(())
    }

    /// The first service needs the socket programs: without any, processes do without what they cost. Those that an earlier
    /// daemon attached are always taken over.
    pub(super) fn need_sockets(&mut self) -> Result<(), KernelError> {
        if let Some(cgroup) = &self.settings.cgroup
            && !self.services.at_sockets
        {
            self.datapath.attach_sockets(cgroup)?;
            self.services.at_sockets = true;
        }
        Ok(())
    }

    /// The socket programs are where they belong.
    pub(super) fn hold_sockets(&mut self) {
        let Some(cgroup) = self.settings.cgroup.as_ref().filter(|_| self.services.at_sockets) else { return };
        match self.datapath.attach_sockets(cgroup) {
            Ok(Attached::InPlace) => {}
            Ok(Attached::Anew) => {
                warn!(cgroup = %cgroup.display(), "somebody had taken socket programs off: they are attached again");
                self.repairs.note(Repair::Programs);
            }
            Err(error) => warn!(%error, "socket programs can't be attached; tried again"),
        }
    }
}
