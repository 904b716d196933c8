//! What nodes find out about backends, from the report to what every node and operator is told, whichever controller they are
//! with, and after a restart.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use support::{DEADLINE, Fleet, Node, endpoint, fleet, fleet_beside, fleet_on, selector, within};
use weft_controller::{
    StoreConfig,
    store::{Etcd, EtcdConfig, Memory, Store},
};
use weft_proto::v1::{
    self, BackendState, Health, Kind, ResourceType, node_report::Report, object::Kind as Of,
};
use weft_test_etcd::{Cluster, Options};

fn service(name: &str, backends: &[&str]) -> v1::Object {
    let listed = |address: &&str| v1::Backend { address: (*address).to_owned(), ..v1::Backend::default() };
    let listed = v1::BackendList { items: backends.iter().map(listed).collect() };
    let frontend = v1::Frontend {
        address: "10.96.0.1".to_owned(),
        port: 80,
        protocol: v1::Protocol::Tcp.into(),
        r#type: v1::FrontendType::Cluster.into(),
    };
    let service = v1::Service {
        metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
        frontends: vec![frontend],
        selector: backends.is_empty().then(|| selector("app", "api")),
        backends: (!backends.is_empty()).then_some(listed),
        health_check: Some(v1::HealthCheck::default()),
        ..v1::Service::default()
    };
    v1::Object { kind: Some(Of::Service(service)) }
}

/// Attaches an endpoint that is ready. Returns its address.
async fn ready(node: &mut Node, name: &str) -> String {
    let address = node.address(5);
    let mut endpoint = endpoint(name, &[("app", "api")], &[&address]);
    endpoint.status.get_or_insert_default().state = v1::EndpointState::Ready.into();
    node.report(Report::Endpoint(v1::EndpointReport { endpoint: Some(endpoint) })).await;
    node.until("it is taken in", |node| node.answers.contains_key(name)).await;
    address
}

async fn find(node: &Node, address: &str, healthy: bool) {
    find_all(node, &[(address, healthy)]).await;
}

/// All that the node probes of the service.
async fn find_all(node: &Node, found: &[(&str, bool)]) {
    let backend = |(address, healthy): &(&str, bool)| {
        let (health, error) =
            if *healthy { (Health::Healthy, "") } else { (Health::Unhealthy, "connection refused") };
        v1::BackendHealth {
            address: (*address).to_owned(),
            health: health.into(),
            since: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            error: error.to_owned(),
            ..v1::BackendHealth::default()
        }
    };
    let backends = found.iter().map(backend).collect();
    let health = v1::ServiceHealth { service: "api".to_owned(), backends };
    node.report(Report::Health(v1::HealthReport { services: vec![health] })).await;
}

/// Addresses and states that the node was told of.
fn told(node: &Node) -> Vec<(String, BackendState)> {
    let Some(bytes) = node.held.get(&(ResourceType::Service, "api".to_owned())) else { return Vec::new() };
    let backends = v1::NodeService::decode(&**bytes).unwrap().backends.into_iter();
    backends.map(|backend| (backend.address.clone(), backend.state())).collect()
}

async fn hears(node: &mut Node, expected: &[(&str, BackendState)]) {
    let expected: Vec<_> = expected.iter().map(|(address, state)| ((*address).to_owned(), *state)).collect();
    node.until(&format!("it hears {expected:?}"), |node| told(node) == expected).await;
}

async fn status(fleet: &mut Fleet) -> v1::ServiceState {
    let request = v1::ServiceStatusRequest { name: "api".to_owned(), ..v1::ServiceStatusRequest::default() };
    within(fleet.operator.service_status(request)).await.unwrap().into_inner().services.remove(0)
}

/// Asks until the answer is as is wanted.
async fn status_until(fleet: &mut Fleet, wanted: impl Fn(&v1::ServiceState) -> bool) -> v1::ServiceState {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let found = status(fleet).await;
        if wanted(&found) {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "the status does not get there: {found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const ACTIVE: BackendState = BackendState::Active;
const QUARANTINED: BackendState = BackendState::Quarantined;

#[tokio::test]
async fn a_backend_that_its_node_finds_broken_is_quarantined_everywhere_and_stays_so_over_a_restart() {
    let mut fleet = fleet().await;
    let mut one = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut two = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    fleet.apply(vec![service("api", &[])]).await.unwrap();
    let (here, there) = (ready(&mut one, "on-1").await, ready(&mut two, "on-2").await);
    hears(&mut one, &[(&here, ACTIVE), (&there, ACTIVE)]).await;
    let unknown = status(&mut fleet).await;
    assert_eq!((unknown.backends[1].health(), unknown.backends_unhealthy), (Health::Unspecified, 0));
    assert_eq!(unknown.health_check.unwrap().interval_milliseconds, 2000, "defaults are written out");
    assert_eq!(
        unknown.backends[1].probes,
        [v1::BackendProbe { node: "node-2".to_owned(), ..Default::default() }]
    );

    find(&one, &here, true).await;
    find(&two, &there, false).await;
    hears(&mut one, &[(&here, ACTIVE), (&there, QUARANTINED)]).await;
    hears(&mut two, &[(&here, ACTIVE), (&there, QUARANTINED)]).await;
    let found = status(&mut fleet).await;
    assert_eq!((found.backends_active, found.backends_unhealthy), (1, 1));
    let [healthy, broken] = &found.backends[..] else { panic!("two: {found:?}") };
    assert_eq!((healthy.health(), healthy.share_basis_points), (Health::Healthy, 10_000));
    assert_eq!(
        (broken.health(), broken.state(), broken.share_basis_points),
        (Health::Unhealthy, QUARANTINED, 0)
    );
    let probe = &broken.probes[0];
    assert_eq!((probe.node.as_str(), probe.error.as_str()), ("node-2", "connection refused"));
    assert_eq!(probe.since.unwrap().seconds, 1_700_000_000);

    // The first word of a controller that has just begun says so, whether the prober is back or not.
    drop(two);
    let mut fleet = fleet.restart().await;
    assert_eq!(status(&mut fleet).await.backends, found.backends);
    let mut one = fleet.node("node-1", "192.0.2.1").await;
    one.until("it has the service", |node| !told(node).is_empty()).await;
    assert_eq!(told(&one), [(here.clone(), ACTIVE), (there.clone(), QUARANTINED)]);

    // Both broken: both answer, as operators are told.
    find(&one, &here, false).await;
    hears(&mut one, &[(&here, QUARANTINED), (&there, QUARANTINED)]).await;
    let all = status(&mut fleet).await;
    assert_eq!((all.condition(), all.backends_active), (v1::ServiceCondition::Serving, 2));
    assert_eq!(all.reason, "IPv4: all backends are quarantined, so all of these answer");
}

#[tokio::test]
async fn controllers_agree_whichever_has_the_node_and_a_stream_begins_where_the_last_one_ended() {
    controllers_agree(Arc::new(Memory::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_agree_on_etcd_too() {
    let etcd = etcd();
    controllers_agree(Arc::new(Etcd::connect(&of(&etcd), Duration::ZERO).await.unwrap())).await;
}

fn etcd() -> Cluster {
    let flags = ["--heartbeat-interval=10", "--election-timeout=100"].map(str::to_owned).to_vec();
    Cluster::start(1, &Options { flags, ..Options::default() }).unwrap()
}

fn of(etcd: &Cluster) -> EtcdConfig {
    EtcdConfig { members: etcd.urls(), tls: None, user: None }
}

async fn controllers_agree(store: Arc<dyn Store>) {
    let mut first = fleet_beside("first", Arc::clone(&store)).await;
    let mut second = fleet_beside("second", Arc::clone(&store)).await;
    let mut prober = first.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut other = second.node("node-2", "192.0.2.2").await.in_sync().await;
    first.apply(vec![service("api", &[])]).await.unwrap();
    let address = ready(&mut prober, "on-1").await;
    find(&prober, &address, false).await;
    hears(&mut other, &[(&address, QUARANTINED)]).await;
    let broken = |state: &v1::ServiceState| state.backends_unhealthy == 1;
    assert_eq!(
        status_until(&mut first, broken).await.backends,
        status_until(&mut second, broken).await.backends
    );

    // It comes to the other controller, and says what it knows: nothing new, and nothing yet.
    drop(prober);
    let prober = second.node("node-1", "192.0.2.1").await.in_sync().await;
    let revision = store.revision().await.unwrap();
    let services = vec!["api".to_owned()];
    prober.report(Report::HealthInventory(v1::HealthInventory { services })).await;
    find(&prober, &address, false).await;
    let backend = v1::BackendHealth { address: address.clone(), ..v1::BackendHealth::default() };
    let nothing_yet = v1::ServiceHealth { service: "api".to_owned(), backends: vec![backend] };
    prober.report(Report::Health(v1::HealthReport { services: vec![nothing_yet] })).await;
    find(&prober, &address, true).await;
    hears(&mut other, &[(&address, ACTIVE)]).await;
    let health = |key: &str| key.starts_with("/weft/v1/backend-health/");
    let mut watch = store.watch("/weft/v1/", revision).await.unwrap();
    let mut written = 0;
    loop {
        let batch = within(watch.next()).await.unwrap().unwrap();
        written += batch.events.iter().filter(|event| health(&event.key)).count();
        if written > 0 {
            break;
        }
    }
    assert_eq!(store.get("/weft/v1/backend-health/node-1/api").await.unwrap().0.unwrap().version, 2);

    // Of what it does not probe any more nothing is kept.
    find(&prober, &address, false).await;
    hears(&mut other, &[(&address, QUARANTINED)]).await;
    prober.report(Report::HealthInventory(v1::HealthInventory::default())).await;
    hears(&mut other, &[(&address, ACTIVE)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_is_on_etcd_when_controllers_and_etcd_have_been_down_and_goes_with_its_node() {
    let mut etcd = etcd();
    let on_etcd = StoreConfig::Etcd(of(&etcd));
    let mut fleet = fleet_on(&on_etcd, tempfile::tempdir().unwrap()).await.unwrap();
    let mut prober = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    fleet.apply(vec![service("api", &["203.0.113.5", "203.0.113.6"])]).await.unwrap();
    find_all(&prober, &[("203.0.113.5", false), ("203.0.113.6", true)]).await;
    let expected = [("203.0.113.5", QUARANTINED), ("203.0.113.6", ACTIVE)];
    hears(&mut prober, &expected).await;
    drop(prober);
    let directory = fleet.stop().await;
    etcd.member(0).kill().unwrap();
    etcd.member(0).start().unwrap();

    let mut fleet = fleet_on(&on_etcd, directory).await.unwrap();
    let mut other = fleet.node("node-2", "192.0.2.2").await;
    other.until("it has the service", |node| !told(node).is_empty()).await;
    assert_eq!(told(&other), expected.map(|(address, state)| (address.to_owned(), state)), "its first word");
    let store = Etcd::connect(&of(&etcd), Duration::ZERO).await.unwrap();
    let key = "/weft/v1/backend-health/node-1/api";
    assert!(store.get(key).await.unwrap().0.is_some());

    let request = v1::DeleteRequest { kind: Kind::Node.into(), name: "node-1".to_owned(), if_revision: None };
    within(fleet.operator.delete(request)).await.unwrap();
    hears(&mut other, &[("203.0.113.5", ACTIVE), ("203.0.113.6", ACTIVE)]).await;
    assert_eq!(store.get(key).await.unwrap().0, None);
}

#[tokio::test]
async fn outside_of_the_fleet_the_nodes_that_were_chosen_decide_and_one_that_is_removed_leaves_nothing() {
    let mut fleet = fleet().await;
    let outside = "203.0.113.5";
    let mut nodes = Vec::new();
    for number in 1..=3 {
        let name = format!("node-{number}");
        nodes.push(fleet.node(&name, &format!("192.0.2.{number}")).await.in_sync().await);
    }
    fleet.apply(vec![service("api", &[outside])]).await.unwrap();
    hears(&mut nodes[0], &[(outside, ACTIVE)]).await;
    find(&nodes[0], outside, false).await;
    find(&nodes[1], outside, true).await;
    let split = status_until(&mut fleet, |state| {
        state.backends[0].probes.iter().filter(|probe| probe.health() != Health::Unspecified).count() == 2
    });
    let split = split.await;
    let probers: Vec<&str> = split.backends[0].probes.iter().map(|probe| probe.node.as_str()).collect();
    assert_eq!(probers, ["node-1", "node-2", "node-3"]);
    assert_eq!((split.backends[0].health(), split.backends[0].state()), (Health::Healthy, ACTIVE));
    find(&nodes[2], outside, false).await;
    hears(&mut nodes[0], &[(outside, QUARANTINED)]).await;

    drop(nodes.remove(2));
    let request = v1::DeleteRequest { kind: Kind::Node.into(), name: "node-3".to_owned(), if_revision: None };
    let deadline = tokio::time::Instant::now() + DEADLINE;
    // Its controller has to notice that it went.
    while let Err(refused) = fleet.operator.delete(request.clone()).await {
        assert!(tokio::time::Instant::now() < deadline, "{refused:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    hears(&mut nodes[0], &[(outside, ACTIVE)]).await;
    assert_eq!(status(&mut fleet).await.backends[0].probes.len(), 2);
    let again = fleet.node("node-3", "192.0.2.3").await.in_sync().await;
    assert_eq!(told(&again), [(outside.to_owned(), ACTIVE)], "what it said is not remembered");
}

#[tokio::test]
async fn a_report_that_is_wrong_ends_the_stream_with_its_place() {
    let fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    find(&node, "10.0.0.01", false).await;
    let ended = loop {
        match within(node.inbound.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), tonic::Code::InvalidArgument);
    assert!(ended.message().contains("backends[0].address: \"10.0.0.01\""), "{ended:?}");
}
