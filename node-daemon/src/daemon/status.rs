//! What operators are shown.

use weft_proto::v1;
use weft_shared::layout::Direction;

use super::State;
use crate::{
    kernel::{Datapath, links::Links},
    observe::{dump, fill},
    plan::compile,
};

impl<D: Datapath, L: Links> State<D, L> {
    pub(super) fn capabilities(&self) -> v1::NodeCapabilities {
        v1::NodeCapabilities {
            kernel: self.settings.kernel_release.clone(),
            btf: self.settings.btf,
            tcx: self.settings.tcx,
            esp: false,
            devices: self
                .uplinks
                .iter()
                .map(|uplink| v1::Device {
                    name: uplink.name.clone(),
                    xdp: self.xdp.mode(uplink.ifindex).into(),
                    mtu_bytes: uplink.mtu_bytes,
                })
                .collect(),
        }
    }

    pub(super) fn status(&mut self) -> v1::StatusResponse {
        let mut problems = self.problems();
        let maps = fill::of(&self.actual);
        problems.extend(maps.iter().filter_map(fill::pressing));
        let drops = self.datapath.counters().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let drops = drops.into_iter().map(|(point, reason, count)| v1::DropCount {
            reason: reason.name().to_owned(),
            point: point.name().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
        });
        let prefilters = self.prefilter_drops().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let round_trips = self.round_trips().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        v1::StatusResponse {
            node: self.settings.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            controller: self.connection.as_ref().map(|up| up.controller.clone()).unwrap_or_default(),
            connected: self.connection.is_some(),
            realised_revision: self.realised,
            identities_through: self.actual.identities_through,
            capabilities: Some(self.capabilities()),
            map_bytes: self.datapath.map_bytes().unwrap_or_default(),
            drops: drops.collect(),
            events_lost: self.datapath.events_lost().unwrap_or_default(),
            problems,
            flows: Some(self.flow_table()),
            repairs: self.repairs.list(),
            enforced_after: self.enforced_after.and_then(|after| after.try_into().ok()),
            maps,
            node_judged: self.node_judged(),
            prefilters,
            round_trips,
            endpoints: u32::try_from(self.attachments.endpoints.len()).unwrap_or(u32::MAX),
        }
    }

    fn node_judged(&self) -> Vec<i32> {
        // What the kernel has, and not what is still to be written.
        if self.actual.host.is_none() {
            return Vec::new();
        }
        let directions = compile::node_is_judged(&self.settings.node, &self.desired).into_iter();
        let words = directions.map(|direction| match direction {
            Direction::Ingress => v1::Direction::Ingress.into(),
            Direction::Egress => v1::Direction::Egress.into(),
        });
        words.collect()
    }

    fn flow_table(&mut self) -> v1::FlowTable {
        v1::FlowTable {
            entries: self.flows.entries,
            capacity: self.datapath.flows_capacity().unwrap_or_default(),
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        problems.extend(self.network_problems.iter().cloned());
        if self.settings.cgroup.is_none() && !self.desired.services().is_empty() {
            problems.push(
                "no cgroup2 hierarchy is mounted: processes don't reach services by their sockets".to_owned(),
            );
        }
        problems.extend(self.snat_problems());
        problems.extend(self.xdp.problems());
        problems.extend(self.services.problem());
        problems.extend(self.shaping.problem());
        problems.extend(self.failure.iter().map(|why| format!("not written: {why}")));
        let rejected = self.desired.rejected().chain(self.unrealised.iter().cloned());
        problems.extend(rejected.map(|rejected| {
            format!("rejected {} \"{}\": {}", rejected.r#type().as_str_name(), rejected.name, rejected.reason)
        }));
        if self.connection.is_none() {
            let why = self.unconnected.as_deref().unwrap_or("the stream ended");
            problems.push(if self.guarded { why.to_owned() } else { format!("no controller: {why}") });
        }
        problems
    }

    pub(super) fn dump(&mut self, map: &str) -> Result<Vec<v1::DumpMapResponse>, String> {
        let tables = self.datapath.read_tables().map_err(|error| error.to_string())?;
        dump::rows(&tables, map, &self.names.load())
    }
}
