//! Shapings: the programs that pace connections, and rates of cgroups. Rates of endpoints are in their rows.

use std::{cmp::Reverse, collections::BTreeMap, path::PathBuf};

use tracing::{info, warn};
use weft_proto::v1::{self, ResourceType};

use super::{State, repairs::Repair};
use crate::{
    kernel::{Attached, Datapath, KernelError, links::Links},
    shaping,
};

/// Told of at most.
const ROUND_TRIPS_SHOWN_MAX: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Shaping {
    /// The programs that pace, of this daemon, are attached: from the first rate of connections on.
    attached: bool,
    /// Why they are not, although they should be.
    refused: Option<String>,
    /// Of connections of cgroups, by their paths.
    rates: BTreeMap<PathBuf, u32>,
    /// The uplinks' queues keep to packets' times of departure.
    pub(super) departures: bool,
}

impl Shaping {
    /// For people: what connections do without.
    pub(super) fn problem(&self) -> Option<String> {
        self.refused.as_ref().map(|why| format!("connections can't be paced: {why}"))
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// Brings the kernel to the rates of connections that are desired. Where there can't be any, that is told.
    pub(super) fn write_pacing(&mut self) -> Result<(), KernelError> {
        let desired = self.desired.shapings();
        let wanting = desired.iter().filter(|(_, shaping)| shaping.rates.connection.is_some());
        let wanting: Vec<String> = wanting.map(|(name, _)| name.clone()).collect();
        if !wanting.is_empty() || self.shaping.refused.is_some() {
            self.need_pacing();
        }
        let why = match &self.settings.cgroup {
            None => Some("no cgroup2 hierarchy is mounted: connections can't be paced".to_owned()),
            Some(_) => self.shaping.problem(),
        };
        self.unrealised.extend(why.iter().flat_map(|why| {
            wanting.iter().map(move |name| v1::RejectedResource {
                r#type: ResourceType::Shaping.into(),
                name: name.clone(),
                reason: why.clone(),
            })
        }));
        self.shaping.rates = shaping::of_cgroups(self.desired.shapings());
        self.pace_cgroups()
    }

    /// What is off costs nothing, not even a load at the daemon's start. Once there they stay, so that connections are told when
    /// they have no rate any more; those that an earlier daemon attached are always taken over. Nothing else waits for a kernel
    /// that refuses them; they are tried again.
    pub(super) fn need_pacing(&mut self) {
        let Some(cgroup) = self.settings.cgroup.as_ref().filter(|_| !self.shaping.attached) else { return };
        let attached = self.datapath.attach_pacing(cgroup);
        match &attached {
            Ok(_) => info!(cgroup = %cgroup.display(), "TCP connections are paced"),
            Err(error) => warn!(%error, "programs that pace can't be attached; tried again"),
        }
        self.shaping.attached = attached.is_ok();
        self.shaping.refused = attached.err().map(|error| error.to_string());
    }

    /// The programs are where they belong, and cgroups that came have their rates.
    pub(super) fn hold_pacing(&mut self) {
        let Some(cgroup) = self.settings.cgroup.as_ref().filter(|_| self.shaping.attached) else { return };
        match self.datapath.attach_pacing(cgroup) {
            Ok(Attached::InPlace) => {}
            Ok(Attached::Anew) => {
                warn!(cgroup = %cgroup.display(), "somebody had taken programs that pace off: they are attached again");
                self.repairs.note(Repair::Programs);
            }
            Err(error) => warn!(%error, "programs that pace can't be attached; tried again"),
        }
        if let Err(error) = self.pace_cgroups() {
            warn!(%error, "cgroups don't have their rates; tried again");
        }
    }

    fn pace_cgroups(&mut self) -> Result<(), KernelError> {
        match self.settings.cgroup.as_ref().filter(|_| self.shaping.attached) {
            Some(root) => self.datapath.pace_cgroups(root, &self.shaping.rates),
            None => Ok(()),
        }
    }

    /// Whether endpoints' packets can wait for their time in the queues of all uplinks.
    pub(super) async fn follow_queues(&mut self) -> Result<(), KernelError> {
        let departures = self.keeps_departures().await?;
        if departures != self.shaping.departures {
            self.shaping.departures = departures;
            info!(departures, "whether endpoints that are too fast are delayed (fq) or dropped has changed");
            self.write_kernel()?;
        }
        Ok(())
    }

    pub(super) async fn keeps_departures(&self) -> Result<bool, KernelError> {
        for uplink in &self.uplinks {
            if !self.links.keeps_departures(uplink.ifindex).await? {
                return Ok(false);
            }
        }
        Ok(!self.uplinks.is_empty())
    }

    pub(super) fn round_trips(&mut self) -> Result<Vec<v1::RoundTrips>, KernelError> {
        let times = self.datapath.round_trips()?;
        let pairs = times.iter().map(|(pair, times)| v1::RoundTrips {
            local_identity: pair.local,
            remote_identity: pair.remote,
            samples: times.samples,
            mean_microseconds: times.sum_microseconds.checked_div(times.samples).unwrap_or_default(),
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_by_key(|pair| Reverse(pair.samples));
        pairs.truncate(ROUND_TRIPS_SHOWN_MAX);
        Ok(pairs)
    }
}
