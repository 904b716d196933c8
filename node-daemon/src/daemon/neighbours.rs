//! Next hops of what XDP sends on: the kernel is asked to keep their MACs known, since nothing else on the node need talk to them.

use std::{collections::BTreeSet, net::IpAddr};

use tracing::warn;

use super::{State, repairs::Repair};
use crate::{
    balance::{service::Backend, view},
    kernel::{Datapath, KernelError, links::Links},
    plan::compile,
};

impl<D: Datapath, L: Links> State<D, L> {
    /// To whom XDP sends packets from outside: backends outside of the fleet, and nodes that have backends.
    fn xdp_places(&self) -> BTreeSet<IpAddr> {
        let input = self.input();
        let services = self.desired.services().values();
        let backends = services.flat_map(|service| view::sent_on(service, &self.settings.node));
        let place = |backend: &Backend| match backend.node.as_str() {
            "" => Some(backend.address),
            node => compile::underlay_address(input, node),
        };
        backends.filter_map(place).collect()
    }

    /// Follows services and nodes. What can't be done is tried again with all of the node's network.
    pub(super) async fn follow_neighbours(&mut self) {
        if self.neighbours.as_ref() != Some(&self.xdp_places())
            && let Err(error) = self.mend_neighbours().await
        {
            warn!(%error, "XDP may not know the way to backends; tried again");
        }
    }

    pub(super) async fn mend_neighbours(&mut self) -> Result<(), KernelError> {
        let wanted = self.xdp_places();
        let same = self.neighbours.as_ref() == Some(&wanted);
        if same && wanted.is_empty() {
            return Ok(());
        }
        let uplinks = self.uplinks.iter().map(|uplink| uplink.ifindex).collect();
        if self.links.keep_neighbours(&uplinks, &wanted).await? && same {
            warn!("next hops to backends had changed: the kernel keeps them resolved again");
            self.repairs.note(Repair::Routes);
        }
        self.neighbours = Some(wanted);
        Ok(())
    }
}
