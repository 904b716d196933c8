//! What a reconnect costs on the wire, in both directions, HTTP/2 and all: a real daemon core on the kernel's twin, behind a
//! wire that counts.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use tokio_util::sync::CancellationToken;
use weft_noded::{
    balance::ports::{Ports, SocketPorts},
    daemon::{AttachSpec, Core, Ground, Loaded, Settings, Target, VXLAN_DEVICE},
    desired::disk::Disk,
    kernel::twin::{Twin, TwinLinks},
    stream::client::{self, Network, Reach},
};
use weft_proto::v1;

use super::{
    PATIENCE,
    operator::{Operator, policy},
};
use crate::{bench::report::Figure, wire::Wire};

/// Policies that the node holds; 1 % of them is changed.
const POLICIES: u32 = 1000;
const CHANGED: u32 = POLICIES / 100;
/// As many as one Apply takes.
const APPLIED_AT_ONCE: usize = 50;
/// After the last that is waited for, for what is still on its way.
const SETTLE: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const ROUNDS: u32 = 5;
/// Endpoints beside the first, to tell what each costs.
const ENDPOINTS_MORE: u32 = 16;
/// What the node and its first endpoint are called.
const NODE: &str = "held";

/// TCP, by a node that chance lets wait for little: of what is measured, waiting is no part.
struct Eager;

impl Reach for Eager {
    type Channel = <Network as Reach>::Channel;
    type Error = <Network as Reach>::Error;

    async fn connect(&self, url: &str) -> Result<Self::Channel, Self::Error> {
        Network.connect(url).await
    }

    fn random(&self) -> f64 {
        0.002
    }
}

pub(super) async fn measure(url: &str, operator: &mut Operator) -> Result<Vec<Figure>> {
    let (wire, directory) = (Wire::start(url).await?, tempfile::tempdir()?);
    let core = daemon(directory.path()).await?;
    let cancel = CancellationToken::new();
    let (running, urls, stop) = (core.clone(), vec![wire.url.clone()], cancel.clone());
    tokio::spawn(async move { client::run_over(&Eager, running, urls, stop).await });
    connected(&core).await?;
    attach(&core, NODE).await?;
    let mut revision = change(operator, 0..POLICIES, 1).await?;
    realised(&core, revision).await?;
    ready(&core).await?;
    let (mut none, mut some, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        none.push(reconnect(&core, &wire, revision).await?);
        wire.set_up(false);
        disconnected(&core).await?;
        revision = change(operator, 0..CHANGED, 2 + 2 * round).await?;
        some.push(back(&core, &wire, revision).await?);
        wire.set_up(false);
        disconnected(&core).await?;
        revision = change(operator, 0..POLICIES, 3 + 2 * round).await?;
        all.push(back(&core, &wire, revision).await?);
    }
    for number in 0..ENDPOINTS_MORE {
        attach(&core, &format!("{NODE}-{number}")).await?;
    }
    ready(&core).await?;
    let few = none.iter().copied().fold(f64::INFINITY, f64::min);
    let mut each = Vec::new();
    for _ in 0..ROUNDS {
        each.push((reconnect(&core, &wire, revision).await? - few) / f64::from(ENDPOINTS_MORE));
    }
    cancel.cancel();
    wire.set_up(false);
    // Nobody waits for it from here on.
    operator.remove_node(NODE).await?;
    Ok(vec![
        Figure::paired("control.reconnect.changed_0", "B", &none, "control.reconnect.changed_100", &all),
        Figure::plain("control.reconnect.changed_0.each_endpoint_more", "B", &each),
        Figure::paired("control.reconnect.changed_1", "B", &some, "control.reconnect.changed_100", &all),
        Figure::plain("control.reconnect.changed_100", "B", &all),
    ])
}

async fn reconnect(core: &Core, wire: &Wire, revision: u64) -> Result<f64> {
    wire.set_up(false);
    disconnected(core).await?;
    back(core, wire, revision).await
}

#[expect(clippy::cast_precision_loss, reason = "few bytes")]
async fn back(core: &Core, wire: &Wire, revision: u64) -> Result<f64> {
    wire.take_passed();
    wire.set_up(true);
    connected(core).await?;
    realised(core, revision).await?;
    tokio::time::sleep(SETTLE).await;
    Ok(wire.take_passed() as f64)
}

async fn change(operator: &mut Operator, which: std::ops::Range<u32>, version: u32) -> Result<u64> {
    let objects: Vec<_> =
        which.map(|number| policy(&format!("held-{number:04}"), "held", 1024 + version)).collect();
    let mut revision = 0;
    for objects in objects.chunks(APPLIED_AT_ONCE) {
        revision = operator.apply(objects.to_vec()).await?;
    }
    Ok(revision)
}

async fn realised(core: &Core, revision: u64) -> Result<()> {
    until(core, |status| status.connected && status.realised_revision >= revision).await
}

/// All endpoints are open.
async fn ready(core: &Core) -> Result<()> {
    let waited = async {
        loop {
            let endpoints = core.endpoints().await?;
            let state = |endpoint: &v1::Endpoint| endpoint.status.as_ref().map(v1::EndpointStatus::state);
            if endpoints.iter().all(|endpoint| state(endpoint) == Some(v1::EndpointState::Ready)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.context("the endpoints do not open")?
}

async fn connected(core: &Core) -> Result<()> {
    until(core, |status| status.connected && status.realised_revision > 0).await
}

async fn disconnected(core: &Core) -> Result<()> {
    until(core, |status| !status.connected).await
}

async fn until(core: &Core, is: impl Fn(&v1::StatusResponse) -> bool) -> Result<()> {
    let waited = async {
        loop {
            if is(&core.status().await?) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.context("the node does not get there")?
}

async fn daemon(directory: &std::path::Path) -> Result<Core> {
    let settings = Settings {
        node: NODE.to_owned(),
        labels: BTreeMap::new(),
        addresses: vec!["198.19.0.1".parse()?],
        uplinks: Vec::new(),
        vxlan_device: VXLAN_DEVICE.to_owned(),
        vxlan_port: 8472,
        snat_ports: Ports::DEFAULT,
        socket_ports: SocketPorts::default(),
        cgroup: None,
        boot_id: "boot".to_owned(),
        kernel_release: "6.12".to_owned(),
        tcx: true,
        btf: true,
    };
    let links = TwinLinks::default();
    let loaded = Loaded::from(Disk::open(directory)?)?;
    let ground = Ground::prepare(&settings, &links).await?;
    Ok(Core::start(settings, loaded, ground, Twin::default(), Arc::new(links)).await?)
}

async fn attach(core: &Core, name: &str) -> Result<()> {
    core.attach(workload(name)).await?.map(drop).map_err(|error| anyhow!("{error}"))
}

fn workload(name: &str) -> AttachSpec {
    AttachSpec {
        name: name.to_owned(),
        labels: BTreeMap::from([("app".to_owned(), "held".to_owned())]),
        target: Target::Netns("/proc/self/ns/net".to_owned()),
        addresses: Vec::new(),
        interface_name: "eth0".to_owned(),
        container_id: String::new(),
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
    }
}
