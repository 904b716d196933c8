//! The XDP program on uplinks. It is there only while it has something to do: sources to drop, or services that outsiders reach.
//! What is off costs nothing.

use std::collections::BTreeMap;

use tracing::{info, warn};
use weft_proto::v1;

use super::{State, repairs::Repair};
use crate::kernel::{Attached, Datapath, KernelError, Mode, links::Links};

/// Where the program is.
#[derive(Default)]
pub(super) struct Uplinks {
    /// By interface index.
    modes: BTreeMap<u32, Mode>,
    /// … as the controller of this stream was told.
    told: BTreeMap<u32, Mode>,
    /// Uplinks that it can't be attached to, by name, and why.
    bare: BTreeMap<String, String>,
}

impl Uplinks {
    pub(super) fn mode(&self, ifindex: u32) -> v1::XdpMode {
        match self.modes.get(&ifindex) {
            None => v1::XdpMode::None,
            Some(Mode::Native) => v1::XdpMode::Native,
            Some(Mode::Generic) => v1::XdpMode::Generic,
        }
    }

    /// The controller is told where the program is.
    pub(super) fn tell(&mut self) {
        self.told.clone_from(&self.modes);
    }

    /// Uplinks without the program, and why.
    pub(super) fn bare(&self) -> impl Iterator<Item = (&String, &String)> {
        self.bare.iter()
    }

    /// For people: where nothing is dropped or balanced that should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.bare
            .iter()
            .map(|(name, why)| format!("prefilters and services have no program on {name}: {why}"))
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// The program is on every uplink while there is something to do, and nowhere otherwise.
    pub(super) fn hold_xdp(&mut self) {
        self.xdp.bare.clear();
        let wanted = !self.prefilters.drop_nothing() || self.services.are_reached_from_outside();
        if wanted {
            for uplink in self.uplinks.clone() {
                self.hold_xdp_on(uplink.ifindex, &uplink.name);
            }
        }
        if let Err(error) = self.take_xdp_off_others(wanted) {
            warn!(%error, "an XDP program that nobody needs stays");
        }
    }

    /// The controller hears of devices with the next stream's first word.
    pub(super) fn tell_of_modes(&mut self) {
        if self.xdp.told != self.xdp.modes && self.connection.is_some() {
            self.connection = None;
        }
    }

    fn hold_xdp_on(&mut self, ifindex: u32, name: &str) {
        match self.datapath.attach_xdp(ifindex) {
            Ok((found, mode)) => {
                let former = self.xdp.modes.insert(ifindex, mode);
                if found == Attached::Anew && former.is_some() {
                    warn!(uplink = %name, ?mode, "somebody had taken the XDP program off: it is attached again");
                    self.repairs.note(Repair::Programs);
                } else if former.is_none() {
                    info!(uplink = %name, ?mode, "the XDP program is on an uplink");
                }
            }
            Err(error) => {
                warn!(uplink = %name, %error, "the XDP program can't be attached; tried again");
                self.xdp.modes.remove(&ifindex);
                self.xdp.bare.insert(name.to_owned(), error.to_string());
            }
        }
    }

    /// Interfaces that are no uplinks keep their program until a controller has said that all was sent, as tc's.
    fn take_xdp_off_others(&mut self, wanted: bool) -> Result<(), KernelError> {
        for ifindex in self.datapath.xdp_attached()? {
            let is_uplink = self.uplinks.iter().any(|uplink| uplink.ifindex == ifindex);
            if !wanted || (self.synced && !is_uplink) {
                self.datapath.detach_xdp(ifindex)?;
                self.xdp.modes.remove(&ifindex);
                info!(ifindex, "the XDP program has nothing to do any more, and is off");
            }
        }
        Ok(())
    }
}
