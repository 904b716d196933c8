//! A node that returns, over a real stream to a real controller, on the kernel's twin: its endpoints are reported again
//! only where the store does not have them as they are.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weft_controller::{
    Config, Controller, keys,
    plan::Plan,
    store::{Memory, Store},
};
use weft_integration::wire::Wire;
use weft_noded::{
    balance::ports::{Ports, SocketPorts},
    daemon::{AttachSpec, Core, EndpointState, Ground, Loaded, Settings, Target, VXLAN_DEVICE},
    desired::disk::Disk,
    kernel::twin::{Twin, TwinLinks},
    stream::client::{self, Network, Reach},
};
use weft_proto::v1::{self, object::Kind as Of, operator_service_client::OperatorServiceClient};

const NODE: &str = "n1";
/// Nothing here takes as long unless something is wrong.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What a reconnect with nothing changed may cost on the wire, both ways (docs/PROMISES.md).
const RECONNECT_MAX_BYTES: u64 = 4096;

/// TCP, by a node that does not wait between two tries.
struct Eager;

impl Reach for Eager {
    type Channel = <Network as Reach>::Channel;
    type Error = <Network as Reach>::Error;

    async fn connect(&self, url: &str) -> Result<Channel, Self::Error> {
        Network.connect(url).await
    }

    fn random(&self) -> f64 {
        0.002
    }
}

/// A controller, and a node behind a wire that counts.
struct Pair {
    store: Arc<Memory>,
    operator: OperatorServiceClient<Channel>,
    wire: Wire,
    core: Core,
    stop: CancellationToken,
    _controller: Controller,
    _state: TempDir,
}

async fn controller(name: &str, store: Arc<dyn Store>) -> Controller {
    let config = Config { listen: "127.0.0.1:0".parse().unwrap(), name: name.to_owned(), insecure: false };
    Controller::start_with(config, store).await.unwrap()
}

async fn daemon(directory: &std::path::Path) -> Core {
    let settings = Settings {
        node: NODE.to_owned(),
        labels: BTreeMap::new(),
        addresses: vec!["198.19.0.1".parse().unwrap()],
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
    let loaded = Loaded::from(Disk::open(directory).unwrap()).unwrap();
    let ground = Ground::prepare(&settings, &links).await.unwrap();
    Core::start(settings, loaded, ground, Twin::default(), Arc::new(links)).await.unwrap()
}

impl Pair {
    async fn start() -> Self {
        let (store, state) = (Arc::new(Memory::default()), tempfile::tempdir().unwrap());
        let controller = controller("controller-1", Arc::clone(&store) as _).await;
        let url = format!("http://{}", controller.address());
        let (wire, core) = (Wire::start(&url).await.unwrap(), daemon(state.path()).await);
        let mut operator = OperatorServiceClient::connect(url).await.unwrap();
        // Room for hundreds of endpoints on a node.
        let config = v1::FleetConfig {
            metadata: Some(v1::Metadata { name: "fleet".to_owned(), ..v1::Metadata::default() }),
            pools: vec![v1::Pool { cidr: "10.200.0.0/16".to_owned(), node_prefix_length: 22 }],
            ..v1::FleetConfig::default()
        };
        let objects = vec![v1::Object { kind: Some(Of::FleetConfig(config)) }];
        operator.apply(v1::ApplyRequest { objects, ..v1::ApplyRequest::default() }).await.unwrap();
        let mut pair = Self {
            store,
            operator,
            wire,
            core,
            stop: CancellationToken::new(),
            _controller: controller,
            _state: state,
        };
        pair.connect_to(vec![pair.wire.url.clone()]).await;
        pair
    }

    /// The daemon's stream goes to these from here on.
    async fn connect_to(&mut self, urls: Vec<String>) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        let (core, stop) = (self.core.clone(), self.stop.clone());
        tokio::spawn(async move { client::run_over(&Eager, core, urls, stop).await });
        self.until("in sync", |status| status.connected && status.realised_revision > 0).await;
    }

    async fn until(&self, what: &str, is: impl Fn(&v1::StatusResponse) -> bool) {
        let waited = async {
            while !is(&self.core.status().await.unwrap()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("the node is never {what}"));
    }

    async fn attach(&self, name: &str, app: &str) {
        let spec = AttachSpec {
            name: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            target: Target::Netns("/proc/self/ns/net".to_owned()),
            addresses: Vec::new(),
            interface_name: "eth0".to_owned(),
            container_id: String::new(),
            ingress_bits_per_second: None,
            egress_bits_per_second: None,
        };
        self.core.attach(spec).await.unwrap().unwrap();
    }

    /// Waits until a name is open here.
    async fn ready(&self, name: &str) {
        let waited = async {
            while !matches!(self.core.endpoint(name.to_owned()).await.unwrap(), EndpointState::Ready(_)) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("{name} is never open"));
    }

    /// The store's endpoints, by their names: the value of the label `app`, and whether they are open.
    async fn stored(&mut self) -> BTreeMap<String, (String, bool)> {
        let request = v1::ListRequest { kind: v1::Kind::Endpoint.into(), ..v1::ListRequest::default() };
        let objects = self.operator.list(request).await.unwrap().into_inner().objects;
        let endpoints = objects.into_iter().map(|object| match object.kind {
            Some(Of::Endpoint(endpoint)) => {
                let metadata = endpoint.metadata.expect("a name");
                let open = endpoint.status.is_some_and(|status| status.state() == v1::EndpointState::Ready);
                (metadata.name, (metadata.labels["app"].clone(), open))
            }
            other => panic!("not an endpoint: {other:?}"),
        });
        endpoints.collect()
    }

    /// Waits until the store has just these, all open.
    async fn stores(&mut self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, (String, bool)> =
            expected.iter().map(|(name, app)| ((*name).to_owned(), ((*app).to_owned(), true))).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = self.stored().await;
            if found == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the store has {found:?}, expected {expected:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn part(&self) {
        self.wire.set_up(false);
        self.until("away", |status| !status.connected).await;
        self.wire.take_passed();
    }

    async fn come_back(&self) {
        self.wire.set_up(true);
        self.until("back", |status| status.connected && status.realised_revision > 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_with_nothing_changed_sends_less_than_4_kib_however_many_endpoints_there_are() {
    let mut pair = Pair::start().await;
    let names: Vec<String> = (0..300).map(|number| format!("workload-of-some-team-{number:04}")).collect();
    for name in &names {
        pair.attach(name, "api").await;
    }
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "api")).collect();
    pair.stores(&all).await;
    pair.part().await;

    pair.come_back().await;
    // Reports keep their order: once this one was answered, there is none of the others left to come.
    pair.attach("last", "api").await;
    pair.ready("last").await;

    let passed = pair.wire.take_passed();
    assert!(passed < RECONNECT_MAX_BYTES, "{passed} bytes, one new endpoint's among them");
    let with_last: Vec<(&str, &str)> = all.iter().copied().chain([("last", "api")]).collect();
    pair.stores(&with_last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_attached_detached_and_changed_while_away_is_told() {
    let mut pair = Pair::start().await;
    for name in ["changes", "goes", "stays"] {
        pair.attach(name, "api").await;
    }
    pair.stores(&[("changes", "api"), ("goes", "api"), ("stays", "api")]).await;
    pair.part().await;
    for name in ["goes", "changes"] {
        assert!(pair.core.detach(name.to_owned()).await.unwrap().unwrap());
    }
    pair.attach("comes", "web").await;
    pair.attach("changes", "web").await;

    pair.come_back().await;

    pair.stores(&[("changes", "web"), ("comes", "web"), ("stays", "api")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_lost_or_has_otherwise_is_told_again() {
    let mut pair = Pair::start().await;
    for name in ["lost", "other", "stays"] {
        pair.attach(name, "api").await;
    }
    pair.stores(&[("lost", "api"), ("other", "api"), ("stays", "api")]).await;
    pair.part().await;
    let mut plan = Plan::default();
    plan.delete(keys::object(v1::Kind::Endpoint, "lost"));
    let key = keys::object(v1::Kind::Endpoint, "other");
    let (stored, _) = pair.store.get(&key).await.unwrap();
    let mut endpoint = weft_controller::resource::decode_endpoint(&stored.unwrap()).unwrap();
    endpoint.metadata.as_mut().unwrap().labels.insert("app".to_owned(), "web".to_owned());
    let object = weft_controller::resource::object(Of::Endpoint(endpoint));
    plan.put(key, weft_controller::resource::encode(object));
    plan.commit(pair.store.as_ref()).await.unwrap().unwrap();

    pair.come_back().await;

    pair.stores(&[("lost", "api"), ("other", "api"), ("stays", "api")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_has_not_yet_heard_of_the_node_knows_its_endpoints_from_the_store() {
    let mut pair = Pair::start().await;
    pair.attach("stays", "api").await;
    pair.stores(&[("stays", "api")]).await;
    pair.part().await;
    let other = controller("controller-2", Arc::clone(&pair.store) as _).await;
    pair.attach("comes", "web").await;

    pair.connect_to(vec![format!("http://{}", other.address())]).await;

    pair.stores(&[("comes", "web"), ("stays", "api")]).await;
}
