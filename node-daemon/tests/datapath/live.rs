//! A whole daemon core on the real kernel, in a network namespace of the test's own. The test is its controller.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, sync::Arc, thread};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use prost::Message;
use tempfile::TempDir;
use tokio::sync::mpsc;
use weft_noded::{
    balance::ports::{Ports, SocketPorts},
    daemon::{AttachSpec, Core, EndpointState, Ground, Loaded, Settings, Target, VXLAN_DEVICE, Welcomed},
    desired::{Batch, disk::Disk},
    kernel::{
        netlink::Netlink,
        object::{self, Object, Options},
    },
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::layout::Config;

pub(crate) const UPLINK: &str = "up0";
pub(crate) const WEB_IDENTITY: u32 = 256;

/// What outlives a daemon: its files, its pins, and the namespace of its workload.
pub(crate) struct Machine {
    pub(crate) state: TempDir,
    pub(crate) pins: TempDir,
    pub(crate) workload: Namespace,
}

/// The daemon.
pub(crate) struct Live {
    pub(crate) core: Core,
    /// The core ends a stream by dropping the other half.
    _reports: mpsc::Receiver<v1::NodeReport>,
}

/// A network namespace that lives as long as its thread.
pub(crate) struct Namespace {
    path: String,
    _end: std::sync::mpsc::Sender<()>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests need root)");
            tell.send(gettid()).unwrap();
            ended.recv().ok();
        });
        let path = format!("/proc/self/task/{}/ns/net", told.recv().unwrap());
        Self { path, _end: end }
    }

    /// A file by which other processes find it, too.
    pub(crate) fn file(&self) -> String {
        self.path.replace("self", &std::process::id().to_string())
    }

    /// Does something in it.
    pub(crate) fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path.clone();
        let working = thread::spawn(move || {
            nix::sched::setns(fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        working.join().unwrap()
    }
}

/// Runs `ip` in the test's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip (iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn add_uplink() {
    ip(&format!("link add {UPLINK} type veth peer name fabric"));
    ip("link set fabric up");
    ip(&format!("addr add 192.0.2.11/24 dev {UPLINK}"));
    ip(&format!("link set {UPLINK} up"));
}

impl Machine {
    /// With an uplink, in a network namespace that the test's thread enters.
    pub(crate) fn new() -> Self {
        let workload = Namespace::new();
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests need root)");
        ip("link set lo up");
        let pins = tempfile::tempdir().unwrap();
        object::ensure_bpffs(pins.path()).expect("a bpffs (tests need root)");
        add_uplink();
        Self { state: tempfile::tempdir().unwrap(), pins, workload }
    }

    fn settings() -> Settings {
        Settings {
            node: "n1".to_owned(),
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            uplinks: vec![UPLINK.to_owned()],
            vxlan_device: VXLAN_DEVICE.to_owned(),
            vxlan_port: 8472,
            snat_ports: Ports::DEFAULT,
            socket_ports: SocketPorts::default(),
            cgroup: None,
            boot_id: "boot-1".to_owned(),
            kernel_release: "6.1".to_owned(),
            tcx: true,
            btf: true,
        }
    }

    /// Starts a daemon; it is not told anything yet.
    pub(crate) async fn start(&self) -> Live {
        let loaded = Loaded::from(Disk::open(self.state.path()).unwrap()).unwrap();
        let links = Arc::new(Netlink::open().unwrap());
        let ground = Ground::prepare(&Self::settings(), links.as_ref()).await.unwrap();
        let object = Object::load(&Options {
            directory: Some(self.pins.path().to_owned()),
            config: Config { overlay_ifindex: ground.overlay_ifindex, ..Config::DEFAULT },
            flows_max: Some(1024),
        })
        .unwrap();
        let core = Core::start(Self::settings(), loaded, ground, object, links).await.unwrap();
        let (reports, received) = mpsc::channel(1024);
        let welcomed = Welcomed {
            store_id: "store-1".to_owned(),
            adopts: false,
            endpoints_known: false,
            controller: "test".to_owned(),
        };
        core.connected(welcomed, reports).await.unwrap();
        Live { core, _reports: received }
    }

    pub(crate) fn pin(&self, below: &str) -> PathBuf {
        self.pins.path().join(below)
    }

    pub(crate) fn attachments(&self) -> PathBuf {
        self.state.path().join("attachments")
    }

    pub(crate) fn workload(&self) -> Target {
        Target::Netns(self.workload.path.clone())
    }

    /// The MTU of the workload's side.
    pub(crate) fn workload_mtu(&self) -> String {
        self.workload.within(|| ip("link show eth0"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        umount2(self.pins.path(), MntFlags::MNT_DETACH).ok();
    }
}

fn upsert(kind: ResourceType, name: &str, message: &impl Message) -> v1::Upsert {
    v1::Upsert {
        r#type: kind.into(),
        name: name.to_owned(),
        requires: Vec::new(),
        bytes: message.encode_to_vec().into(),
    }
}

/// What every node is sent, and the word that opens the endpoint `web`.
fn words() -> Vec<v1::Upsert> {
    let fleet = v1::NodeFleet {
        pools: vec!["10.200.0.0/16".to_owned()],
        unknown_pool_address: v1::Entity::Fleet.into(),
        ..v1::NodeFleet::default()
    };
    let route = |address: &str, cidr: &str| v1::NodeRoute {
        addresses: vec![address.to_owned()],
        endpoint_cidrs: vec![cidr.to_owned()],
        identity: 0,
    };
    let web = v1::NodeEndpoint { identity: WEB_IDENTITY, open: true, ..Default::default() };
    vec![
        upsert(ResourceType::Fleet, "fleet", &fleet),
        upsert(ResourceType::Node, "n1", &route("192.0.2.11", "10.200.1.0/24")),
        upsert(ResourceType::Node, "n2", &route("192.0.2.12", "10.200.2.0/24")),
        upsert(ResourceType::Endpoint, "web", &web),
    ]
}

impl Live {
    /// Says all there is to say.
    pub(crate) async fn sync(&self) {
        let batch = Batch {
            nonce: 1,
            revision: 5,
            identities_through: 300,
            upserts: words(),
            in_sync: true,
            ..Batch::default()
        };
        self.core.realise(batch).await.unwrap().unwrap();
        // What follows a first sync is done before the next command.
        self.status().await;
    }

    /// Attaches the endpoint `web`, and opens it.
    pub(crate) async fn attach_web(&self, target: Target) -> v1::Endpoint {
        self.attach_web_at(target, None).await
    }

    /// … with a rate of what it sends.
    pub(crate) async fn attach_web_at(&self, target: Target, egress: Option<u64>) -> v1::Endpoint {
        let spec = AttachSpec {
            name: "web".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
            target,
            addresses: vec!["10.200.1.7".to_owned()],
            interface_name: "eth0".to_owned(),
            container_id: String::new(),
            ingress_bits_per_second: None,
            egress_bits_per_second: egress,
        };
        self.core.attach(spec).await.unwrap().unwrap();
        let answer =
            v1::EndpointAnswer { name: "web".to_owned(), accepted: true, revision: 5, ..Default::default() };
        self.core.answer(answer).await.unwrap();
        match self.core.endpoint("web".to_owned()).await.unwrap() {
            EndpointState::Ready(endpoint) => endpoint,
            state => panic!("web is not ready: {state:?}"),
        }
    }

    pub(crate) async fn status(&self) -> v1::StatusResponse {
        self.core.status().await.unwrap()
    }

    /// How often a kind of thing was mended.
    pub(crate) async fn repairs(&self, what: &str) -> u64 {
        let repairs = self.status().await.repairs;
        repairs.iter().find(|repair| repair.what == what).map_or(0, |repair| repair.times)
    }

    /// Ends the daemon as SIGKILL does: what the kernel has stays.
    pub(crate) async fn kill(self) {
        let mut changed = self.core.changed();
        drop(self);
        // The last handle is gone; so is, soon, the sender of this.
        while changed.changed().await.is_ok() {}
    }
}
