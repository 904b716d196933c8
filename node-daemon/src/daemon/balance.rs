//! Services: what is desired into the kernel, and what somebody else changed there mended.

use std::collections::BTreeSet;

use tracing::{info, warn};
use weft_proto::v1::{self, ResourceType};
use weft_shared::layout::service::{TCP, UDP, frontend_flags};

use super::{Settings, State, repairs::Repair};
use crate::{
    balance::{
        Balancer, ports,
        sources::Addresses,
        tables::{OwnAddresses, Services, Step},
        view::Here,
    },
    kernel::{Attached, Datapath, KernelError, links::Links},
    plan::{self, diff::Sweep},
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
    /// Why they are not, although they should be.
    refused: Option<String>,
    /// Services may have asked for connections to be ended whose sockets were not looked at since.
    asked_to_end: bool,
    /// Flows may go on to addresses that have become services.
    may_be_misled: bool,
}

impl Balance {
    pub(super) fn begin(settings: &Settings, actual: Services) -> Self {
        let here = Here {
            node: settings.node.clone(),
            labels: settings.labels.clone(),
            addresses: Addresses::default(),
        };
        let may_be_misled = !actual.frontends.is_empty();
        Self {
            balancer: Balancer::new(here),
            actual,
            unrealised: Vec::new(),
            settled: None,
            at_sockets: false,
            refused: None,
            // Of an earlier daemon.
            asked_to_end: true,
            may_be_misled,
        }
    }

    /// For people: what processes do without.
    pub(super) fn problem(&self) -> Option<String> {
        self.refused.as_ref().map(|why| format!("processes don't reach services by their sockets: {why}"))
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
        if !self.desired.services().is_empty() || self.services.refused.is_some() {
            self.need_sockets();
        }
        self.write_own_addresses(sweep)?;
        let desired = self.desired.services();
        let services = &mut self.services;
        services.balancer.follow_addresses(Addresses {
            known: self.own_addresses.clone(),
            others: self.host_addresses.clone(),
        });
        if services.settled != Some(sweep) || !services.balancer.knows(desired) {
            services.settled = None;
            let plan = services.balancer.plan(desired, &services.actual, sweep);
            for step in &plan.steps {
                services.may_be_misled |= services.actual.leads_flows_elsewhere(step);
                // One by one: what is known stays true where the kernel refuses in the middle.
                if let Err(error) = self.datapath.write_services(std::slice::from_ref(step)) {
                    services.actual = self.datapath.read_services()?;
                    return Err(error);
                }
                services.actual.apply(step);
            }
            services.unrealised = plan.unrealised;
            self.judge_misled_flows()?;
            self.health.probe(self.desired.services(), &self.settings.node);
            self.services.settled = Some(sweep);
            if sweep == Sweep::Remove {
                self.end_sockets();
            }
        }
        self.tell_unrealised_services();
        Ok(())
    }

    /// Datagrams of a flow that named an address before it was a service go to it as soon as the flow is judged again.
    fn judge_misled_flows(&mut self) -> Result<(), KernelError> {
        let endpoints = self.actual.endpoints.values();
        let subjects: BTreeSet<u32> =
            endpoints.map(|endpoint| endpoint.subject).filter(|subject| *subject != 0).collect();
        if self.services.may_be_misled && !subjects.is_empty() {
            let bump =
                plan::tables::Step::Bump { subjects: subjects.into_iter().collect(), nodes: Vec::new() };
            self.write_steps(&[bump])?;
        }
        self.services.may_be_misled = false;
        Ok(())
    }

    /// A service that processes of this node don't reach by their sockets is not realised, either.
    fn tell_unrealised_services(&mut self) {
        let Balance { unrealised, .. } = &self.services;
        let problem = self.services.problem();
        let out_of_reach = problem.iter().flat_map(|why| {
            let others = self.desired.services().keys();
            let others = others.filter(|name| unrealised.iter().all(|(unrealised, _)| unrealised != *name));
            others.map(move |name| (name.clone(), why.clone()))
        });
        self.unrealised.extend(unrealised.iter().cloned().chain(out_of_reach).map(|(name, reason)| {
            v1::RejectedResource { r#type: ResourceType::Service.into(), name, reason }
        }));
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

    /// UDP sockets that are connected to backends that have gone would send into the void for ever: their processes are told. So are those
    /// of TCP connections, where a service asks for it: of the many that a node may have, those are not looked at else.
    fn end_sockets(&mut self) {
        let endpoints = self.attachments.endpoints.values();
        let namespaces: Vec<String> =
            endpoints.map(|own| own.netns.clone()).filter(|path| !path.is_empty()).collect();
        let serving = self.services.balancer.serving();
        let asks_to_end = serving.ends_connections();
        let protocols: &[u8] = if asks_to_end || self.services.asked_to_end { &[UDP, TCP] } else { &[UDP] };
        let ended = self
            .datapath
            .end_sockets(&namespaces, protocols, &|protocol, peer| serving.serves(protocol, peer));
        match ended {
            Ok(ended) => {
                self.services.asked_to_end = asks_to_end;
                if ended > 0 {
                    info!(ended, "sockets were connected to backends that have gone: they are ended");
                }
            }
            Err(error) => warn!(%error, "sockets stay connected to backends that have gone"),
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

    /// The first service needs the socket programs: without any, processes do without what they cost, and the daemon's start
    /// without their load. Those that an earlier daemon attached are always taken over. Nothing else waits for a kernel that
    /// refuses them; they are tried again.
    pub(super) fn need_sockets(&mut self) {
        let Some(cgroup) = self.settings.cgroup.as_ref().filter(|_| !self.services.at_sockets) else {
            return;
        };
        let attached = self.datapath.attach_sockets(cgroup);
        if let Err(error) = &attached {
            warn!(%error, "socket programs can't be attached; tried again");
        }
        self.services.at_sockets = attached.is_ok();
        self.services.refused = attached.err().map(|error| error.to_string());
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
