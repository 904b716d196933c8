//! The daemon with the kernel's twin.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_noded::{
    balance::ports::{Ports, SocketPorts},
    daemon::{
        AttachError, AttachSpec, Core, EndpointState, Ground, Loaded, Settings, StartError, Target,
        VXLAN_DEVICE,
    },
    desired::disk::Disk,
    kernel::twin::{Twin, TwinLinks},
    stream::client,
};
use weft_proto::v1;

use super::fake::SOON;

/// Between two looks at what does not tell of its changes.
const POLL: Duration = Duration::from_millis(10);

pub(crate) struct Node {
    pub(crate) core: Core,
    cancel: CancellationToken,
}

/// The node's kernel, which outlives its daemons.
#[derive(Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) maps: Twin,
    pub(crate) links: TwinLinks,
}

fn settings() -> Settings {
    Settings {
        node: "n1".to_owned(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        addresses: Vec::new(),
        uplinks: Vec::new(),
        vxlan_device: VXLAN_DEVICE.to_owned(),
        vxlan_port: 8472,
        snat_ports: Ports::DEFAULT,
        socket_ports: SocketPorts::default(),
        // The twin takes any name.
        cgroup: Some("/the/cgroup".into()),
        boot_id: "boot-1".to_owned(),
        kernel_release: "6.1".to_owned(),
        tcx: true,
        btf: true,
    }
}

impl Node {
    pub(crate) async fn try_start(
        kernel: &Kernel,
        state: &Path,
        controllers: &[&str],
    ) -> Result<Self, StartError> {
        let loaded = Loaded::from(Disk::open(state)?)?;
        let ground = Ground::prepare(&settings(), &kernel.links).await?;
        let links = Arc::new(kernel.links.clone());
        let core = Core::start(settings(), loaded, ground, kernel.maps.clone(), links).await?;
        let cancel = CancellationToken::new();
        let controllers = controllers.iter().map(ToString::to_string).collect();
        tokio::spawn(client::run(core.clone(), controllers, cancel.clone()));
        Ok(Self { core, cancel })
    }

    pub(crate) async fn start(kernel: &Kernel, state: &Path, controllers: &[&str]) -> Self {
        Self::try_start(kernel, state, controllers).await.expect("the daemon starts")
    }

    /// As by SIGKILL: nothing is said to anyone.
    pub(crate) fn kill(self) {
        self.cancel.cancel();
    }

    pub(crate) async fn status(&self) -> v1::StatusResponse {
        self.core.status().await.expect("the core lives")
    }

    /// Waits until the status is as `is` wants it.
    pub(crate) async fn status_until(&self, is: impl Fn(&v1::StatusResponse) -> bool) -> v1::StatusResponse {
        let deadline = Instant::now() + SOON;
        loop {
            let status = self.status().await;
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "the status does not get there: {status:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn attach(&self, name: &str, app: &str) -> v1::Endpoint {
        self.try_attach(name, app).await.expect("attached")
    }

    pub(crate) async fn try_attach(&self, name: &str, app: &str) -> Result<v1::Endpoint, AttachError> {
        let spec = AttachSpec {
            name: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            // The test's own namespace: the twin never enters it.
            target: Target::Netns("/proc/self/ns/net".to_owned()),
            addresses: Vec::new(),
            interface_name: "eth0".to_owned(),
            container_id: String::new(),
            ingress_bits_per_second: None,
            egress_bits_per_second: None,
        };
        self.core.attach(spec).await.expect("the core lives")
    }

    /// Waits until the endpoint is where `is` wants it.
    pub(crate) async fn endpoint(&self, name: &str, is: impl Fn(&EndpointState) -> bool) -> EndpointState {
        let mut changed = self.core.changed();
        let waited = tokio::time::timeout(SOON, async {
            loop {
                changed.mark_unchanged();
                let state = self.core.endpoint(name.to_owned()).await.expect("the core lives");
                if is(&state) {
                    return state;
                }
                changed.changed().await.expect("the core lives");
            }
        });
        waited.await.unwrap_or_else(|_| panic!("the endpoint {name} does not get there"))
    }
}
