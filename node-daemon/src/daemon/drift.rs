//! Drift: what somebody else changed in the kernel is found, mended, and reported. Rows, programs, endpoints' interfaces
//! here; the node's own network in [`super::network`].
//!
//! An interface of an endpoint without its programs is an open door: programs are looked after first and most often, and
//! where they can't be put back the interface is set down.

use std::net::IpAddr;

use tracing::{error, info, warn};

use super::{State, repairs::Repair};
use crate::{
    desired::attachments::Attachment,
    kernel::{
        Attached, Datapath, Hook, KernelError,
        links::{Changes, Links},
    },
};

impl<D: Datapath, L: Links> State<D, L> {
    /// Compares everything with what is desired.
    pub(super) async fn mend_all(&mut self) {
        self.hold_doors().await;
        self.mend();
        self.follow_network().await;
        for own in self.own_endpoints() {
            self.mend_endpoint(&own).await;
        }
    }

    /// Looks after what the kernel said has changed.
    pub(super) async fn follow(&mut self, changes: Changes) {
        let mut elsewhere = changes.others;
        for ifindex in changes.links {
            let own = self.attachments.endpoints.values().find(|own| own.ifindex == ifindex).cloned();
            match own {
                Some(own) => self.mend_endpoint(&own).await,
                None => elsewhere = true,
            }
        }
        if !elsewhere {
            return;
        }
        let mtu_bytes = self.endpoint_mtu_bytes;
        self.follow_network().await;
        if mtu_bytes != self.endpoint_mtu_bytes {
            for own in self.own_endpoints() {
                self.mend_endpoint(&own).await;
            }
        }
    }

    fn own_endpoints(&self) -> Vec<Attachment> {
        self.attachments.endpoints.values().cloned().collect()
    }

    /// Every program is where it belongs.
    pub(super) async fn hold_doors(&mut self) {
        for own in self.own_endpoints() {
            self.hold_door(&own).await;
        }
        let uplinks = self.uplinks.iter().map(|uplink| (uplink.ifindex, Hook::Uplink));
        let carriers: Vec<_> = uplinks.chain([(self.overlay_ifindex, Hook::Overlay)]).collect();
        for (ifindex, hook) in carriers {
            if let Err(error) = self.hold(ifindex, hook) {
                warn!(ifindex, %error, "programs can't be attached; tried again");
            }
        }
        self.hold_sockets();
        self.hold_pacing();
        self.hold_xdp();
        self.tell_of_modes();
    }

    /// `false`: it has no programs, and is closed therefore.
    async fn hold_door(&mut self, own: &Attachment) -> bool {
        let Err(error) = self.hold(own.ifindex, Hook::Endpoint) else { return true };
        if self.links.find_at(own.ifindex).await.is_ok_and(|link| link.is_none()) {
            // It has gone, and took its programs along.
            return false;
        }
        error!(endpoint = %own.name, %error, "its programs can't be attached: its interface is set down");
        let addresses: Vec<IpAddr> = own.addresses().collect();
        if let Err(error) = self.links.disconnect_endpoint(own.ifindex, &addresses).await {
            error!(endpoint = %own.name, %error, "its interface can't be set down");
        }
        false
    }

    pub(super) fn hold(&mut self, ifindex: u32, hook: Hook) -> Result<(), KernelError> {
        if self.datapath.attach(ifindex, hook)? == Attached::Anew {
            warn!(ifindex, ?hook, "somebody had taken programs off the interface: they are attached again");
            self.repairs.note(Repair::Programs);
        }
        Ok(())
    }

    /// An endpoint whose interface went unnoticed ends; the others' programs, routes and neighbours are set again.
    async fn mend_endpoint(&mut self, own: &Attachment) {
        let link = match self.links.find_at(own.ifindex).await {
            Ok(Some(link)) => link,
            Ok(None) => return self.link_gone(own.ifindex).await,
            Err(error) => {
                return warn!(endpoint = %own.name, %error, "the endpoint's interface can't be asked for");
            }
        };
        if !self.hold_door(own).await {
            return;
        }
        let addresses: Vec<IpAddr> = own.addresses().collect();
        match self.links.connect_endpoint(own.ifindex, &addresses, own.mac).await {
            Ok(false) => {}
            Ok(true) => {
                warn!(endpoint = %own.name, interface = %own.interface, "somebody had cut the endpoint off: it is connected again");
                self.repairs.note(Repair::Routes);
            }
            Err(error) => warn!(endpoint = %own.name, %error, "the endpoint's routes can't be set"),
        }
        if own.ours && link.mtu_bytes != self.endpoint_mtu_bytes {
            self.set_mtu(own).await;
        }
    }

    async fn set_mtu(&mut self, own: &Attachment) {
        let mtu_bytes = self.endpoint_mtu_bytes;
        match self.links.set_endpoint_mtu(own.ifindex, &own.netns, mtu_bytes).await {
            Ok(()) => {
                info!(endpoint = %own.name, mtu_bytes, "the endpoint's MTU is set");
            }
            Err(error) => warn!(endpoint = %own.name, %error, "the endpoint's MTU can't be set"),
        }
    }
}
