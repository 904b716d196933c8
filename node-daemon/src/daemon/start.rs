//! Start: what the disk and the kernel say is taken over, and enforced before any controller is asked.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{Core, Ground, Settings, State, command::Command};
use crate::{
    desired::{
        Desired,
        attachments::Attachments,
        disk::{Disk, DiskError},
    },
    kernel::{
        Datapath, Hook, KernelError,
        links::{Link, Links},
    },
    limits::COMMANDS_QUEUED_MAX,
    observe::names::Names,
};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("there is no interface {0}; name an uplink with --uplink")]
    NoUplink(String),
    #[error("no default route tells the uplink; name it with --uplink")]
    NoDefaultRoute,
    #[error("the uplinks have no address; give this node's with --address")]
    NoAddress,
}

/// What was read before the kernel is touched.
#[derive(Debug)]
pub struct Loaded {
    disk: Disk,
    desired: Desired,
    attachments: Attachments,
}

impl Loaded {
    /// Fails where a file is not whole.
    pub fn from(disk: Disk) -> Result<Self, DiskError> {
        let desired = disk.load_desired()?;
        let attachments = Attachments::load(&disk)?;
        Ok(Self { disk, desired, attachments })
    }
}

impl Core {
    /// Takes over what is there, enforces it, and serves commands on a thread of its own: kernel writes block.
    pub async fn start<D: Datapath, L: Links>(
        settings: Settings,
        loaded: Loaded,
        ground: Ground,
        datapath: D,
        links: Arc<L>,
    ) -> Result<Self, StartError> {
        let (core, state, queue) = Self::take_over(settings, loaded, ground, datapath, links).await?;
        super::run::spawn(state, queue)?;
        Ok(core)
    }

    /// As [`Core::start`], without a thread: commands are served by the future, for as long as somebody polls it.
    pub async fn start_here<D: Datapath, L: Links>(
        settings: Settings,
        loaded: Loaded,
        ground: Ground,
        datapath: D,
        links: Arc<L>,
    ) -> Result<(Self, impl Future<Output = ()> + use<D, L>), StartError> {
        let (core, state, queue) = Self::take_over(settings, loaded, ground, datapath, links).await?;
        Ok((core, state.run(queue)))
    }

    async fn take_over<D: Datapath, L: Links>(
        settings: Settings,
        loaded: Loaded,
        ground: Ground,
        mut datapath: D,
        links: Arc<L>,
    ) -> Result<(Self, State<D, L>, mpsc::Receiver<Command>), StartError> {
        let (commands, queue) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (changed, watcher) = watch::channel(0);
        let names = Arc::new(ArcSwap::from_pointee(Names::default()));
        let actual = datapath.read_tables()?;
        let services = super::balance::Balance::begin(&settings, datapath.read_services()?);
        let (health, probed) = super::health::Health::begin();
        let prefilters = Box::new(super::prefilter::Prefilters::begin(datapath.read_prefilters()?));
        let mut state = State {
            settings,
            former_sets: loaded.desired.sets().clone(),
            standing: None,
            disk: loaded.disk,
            journal: None,
            datapath,
            links,
            desired: loaded.desired,
            attachments: loaded.attachments,
            actual,
            services,
            prefilters,
            health,
            shaping: super::shaping::Shaping::default(),
            xdp: Box::default(),
            uplinks: ground.uplinks.clone(),
            overlay_ifindex: ground.overlay_ifindex,
            own_addresses: ground.addresses,
            host_addresses: ground.host_addresses,
            endpoint_mtu_bytes: ground.endpoint_mtu_bytes,
            routed: BTreeMap::new(),
            neighbours: None,
            synced: false,
            flows: super::count::Flows::default(),
            repairs: super::repairs::Repairs::default(),
            network_problems: Vec::new(),
            wants: super::Wants::Differences,
            adopting: None,
            saved: super::Saved::Yes,
            realised: 0,
            enforced_after: None,
            sweep_due: false,
            connection: None,
            problems: Vec::new(),
            unrealised: Vec::new(),
            closed: BTreeMap::new(),
            failure: None,
            unconnected: Some("not tried yet".to_owned()),
            guarded: false,
            told: weft_shared::digest::Digest::default(),
            reported: BTreeMap::new(),
            set_right: BTreeMap::new(),
            refused: BTreeMap::new(),
            changed,
            names: Arc::clone(&names),
        };
        state.drop_ended_attachments().await?;
        state.shaping.departures = state.keeps_departures().await?;
        state.write_kernel()?;
        state.attach_programs(&ground.uplinks, ground.overlay_ifindex).await?;
        state.follow_overlay_routes().await;
        state.follow_neighbours().await;
        if state.datapath.sockets_attached()? {
            state.need_sockets();
        }
        if state.datapath.pacing_attached()? {
            state.need_pacing();
        }
        if let Err(error) = state.datapath.settle() {
            warn!(%error, "what an earlier version left stays");
        }
        for problem in state.snat_problems() {
            warn!(%problem);
        }
        info!(
            revision = state.desired.revision,
            endpoints = state.attachments.endpoints.len(),
            "the last known state is enforced"
        );
        Ok((Self { commands, changed: watcher, names, probed }, state, queue))
    }
}

impl<D: Datapath, L: Links> State<D, L> {
    /// Endpoints end with their interface, or with the boot of the node.
    async fn drop_ended_attachments(&mut self) -> Result<(), StartError> {
        let same_boot = self.attachments.boot_id == self.settings.boot_id;
        let mut ended = Vec::new();
        for attachment in self.attachments.endpoints.values() {
            let link = self.links.find(&attachment.interface).await?;
            if !same_boot || link.map(|link| link.ifindex) != Some(attachment.ifindex) {
                ended.push(attachment.name.clone());
            }
        }
        let changed = !same_boot || !ended.is_empty();
        for name in ended {
            warn!(endpoint = %name, "the endpoint's interface is gone");
            self.forget_attachment(&name)?;
        }
        if changed {
            self.attachments.boot_id.clone_from(&self.settings.boot_id);
            self.attachments.store(&self.disk)?;
        }
        Ok(())
    }

    /// An endpoint's rows go even before a controller is heard: its interface is no more.
    pub(super) fn forget_attachment(&mut self, name: &str) -> Result<(), KernelError> {
        let ended = self.attachments.end(name, self.desired.endpoints());
        let Some(attachment) = ended else { return Ok(()) };
        let used_by_other =
            self.attachments.endpoints.values().any(|other| other.ifindex == attachment.ifindex);
        if used_by_other {
            return Ok(());
        }
        let steps = crate::plan::diff::remove_endpoint(&self.actual, attachment.ifindex);
        self.write_steps(&steps)
    }

    /// Programs of an earlier daemon are replaced in place, so no packet meets an interface without.
    async fn attach_programs(&mut self, uplinks: &[Link], overlay_ifindex: u32) -> Result<(), StartError> {
        for attachment in self.attachments.endpoints.values() {
            self.datapath.attach(attachment.ifindex, Hook::Endpoint)?;
        }
        self.datapath.attach(overlay_ifindex, Hook::Overlay)?;
        self.links.set_up(overlay_ifindex).await?;
        for uplink in uplinks {
            self.datapath.attach(uplink.ifindex, Hook::Uplink)?;
        }
        let attachments: Vec<_> = self.attachments.endpoints.values().cloned().collect();
        for attachment in attachments {
            let addresses: Vec<IpAddr> = attachment.addresses().collect();
            self.links.connect_endpoint(attachment.ifindex, &addresses, attachment.mac).await?;
        }
        Ok(())
    }
}
