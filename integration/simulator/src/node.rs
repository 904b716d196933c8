//! A simulated machine: kernel, interfaces and disk, and the real daemon on it, which can die and come again.
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use tempfile::TempDir;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use weft_noded::{
    balance::ports::{Ports, SocketPorts},
    daemon::{AttachSpec, Core, Ground, Loaded, Settings, StartError, Target, VXLAN_DEVICE},
    desired::disk::{Disk, DiskError},
    kernel::twin::{Twin, TwinLinks},
    stream::client,
};
use weft_shared::policy::model::Labels;

use crate::{
    inspect::Inspector,
    kernel::{Kernel, Power},
    network::Uplink,
    operator::ZONES,
};

/// What the twin of the interfaces says of every machine.
pub(crate) const HOST_ADDRESSES: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11))];

/// Where its cgroups are.
pub(crate) const CGROUP: &str = "/cgroup";

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) labels: Labels,
    pub(crate) twin: Twin,
    links: TwinLinks,
    boot: u32,
    disk: TempDir,
    controllers: Vec<String>,
    pub(crate) daemon: Option<Daemon>,
}

pub(crate) struct Daemon {
    pub(crate) core: Core,
    pub(crate) power: Arc<Power>,
    pub(crate) inspector: Inspector,
    tasks: [AbortHandle; 2],
}

impl Node {
    /// Machines have numbers from 0 on.
    pub(crate) fn new(number: u8, controllers: Vec<String>) -> io::Result<Self> {
        let zone = ZONES[usize::from(number) % ZONES.len()];
        Ok(Self {
            name: format!("node-{number}"),
            address: IpAddr::V4(Ipv4Addr::new(198, 18, 0, number)),
            labels: Labels::from([("zone".to_owned(), zone.to_owned())]),
            twin: Twin::default(),
            links: TwinLinks::default(),
            boot: 1,
            disk: TempDir::new_in(fast_directory())?,
            controllers,
            daemon: None,
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.disk.path()
    }

    pub(crate) async fn start(&mut self, uplink: Uplink, inspector: Inspector) -> Result<(), StartError> {
        let power = Arc::new(Power::default());
        let kernel =
            Kernel { twin: self.twin.clone(), power: Arc::clone(&power), inspector: inspector.clone() };
        let settings = self.settings();
        let loaded = Loaded::from(Disk::open(self.directory())?)?;
        let ground = Ground::prepare(&settings, &self.links).await?;
        let links = Arc::new(self.links.clone());
        let (core, serve) = Core::start_here(settings, loaded, ground, kernel, links).await?;
        let (stream, controllers) = (core.clone(), self.controllers.clone());
        let client = async move {
            client::run_over(&uplink, stream, controllers, CancellationToken::new()).await;
        };
        let span = tracing::info_span!("daemon", node = self.name);
        let tasks = [
            tokio::spawn(serve.instrument(span.clone())).abort_handle(),
            tokio::spawn(client.instrument(span)).abort_handle(),
        ];
        self.daemon = Some(Daemon { core, power, inspector, tasks });
        Ok(())
    }

    fn settings(&self) -> Settings {
        Settings {
            node: self.name.clone(),
            labels: self.labels.clone(),
            addresses: vec![self.address],
            uplinks: Vec::new(),
            vxlan_device: VXLAN_DEVICE.to_owned(),
            vxlan_port: 8472,
            snat_ports: Ports::DEFAULT,
            socket_ports: SocketPorts::default(),
            cgroup: Some(CGROUP.into()),
            boot_id: format!("boot-{}", self.boot),
            kernel_release: "6.12".to_owned(),
            tcx: true,
            btf: true,
        }
    }

    /// As by SIGKILL: nothing is said, nothing more is written.
    pub(crate) fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.power.turn_off();
            daemon.tasks.iter().for_each(AbortHandle::abort);
        }
    }

    /// The machine forgets all but its disk.
    pub(crate) fn reboot(&mut self) {
        self.kill();
        self.boot += 1;
        (self.twin, self.links) = (Twin::default(), TwinLinks::default());
    }

    /// While no daemon runs.
    pub(crate) fn lose_disk(&mut self) -> Result<(), DiskError> {
        let disk = Disk::open(self.directory())?;
        disk.move_aside(weft_noded::desired::disk::Content::Desired, "lost")?;
        Ok(())
    }
}

/// Where syncing costs nothing.
fn fast_directory() -> std::path::PathBuf {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() }
}

/// A workload in a namespace of its own.
pub(crate) fn workload(name: &str, labels: &Labels, addresses: Vec<String>) -> AttachSpec {
    AttachSpec {
        name: name.to_owned(),
        labels: labels.clone(),
        // There must be one; the twin never enters it.
        target: Target::Netns("/proc/self/ns/net".to_owned()),
        addresses,
        interface_name: "eth0".to_owned(),
        container_id: String::new(),
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
    }
}
