//! Services and prefilters at the operator API: who has a frontend or an address is settled in the transaction, whichever
//! controller is asked, and whoever is at it at the same moment.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::sync::Arc;

use prost::Message as _;
use support::{Fleet, Node, config, fleet, fleet_beside, hello, selector, within};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use weft_controller::store::{Memory, Store};
use weft_proto::v1::{self, Kind, ResourceType, object::Kind as Of};

fn metadata(name: &str) -> v1::Metadata {
    v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }
}

fn frontend(address: &str, port: u32) -> v1::Frontend {
    let kind = if address.is_empty() { v1::FrontendType::NodePort } else { v1::FrontendType::Cluster };
    v1::Frontend {
        address: address.to_owned(),
        port,
        protocol: v1::Protocol::Tcp.into(),
        r#type: kind.into(),
    }
}

/// Of endpoints with the label `app=api`.
fn service(name: &str, frontends: &[(&str, u32)]) -> v1::Object {
    object(v1::Service {
        metadata: Some(metadata(name)),
        frontends: frontends.iter().map(|(address, port)| frontend(address, *port)).collect(),
        selector: Some(selector("app", "api")),
        ..v1::Service::default()
    })
}

fn object(service: v1::Service) -> v1::Object {
    v1::Object { kind: Some(Of::Service(service)) }
}

fn prefilter(name: &str, cidrs: &[&str], senders: &[&str]) -> v1::Object {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let prefilter = v1::Prefilter {
        metadata: Some(metadata(name)),
        nodes: None,
        cidrs: texts(cidrs),
        arp_senders: texts(senders),
    };
    v1::Object { kind: Some(Of::Prefilter(prefilter)) }
}

/// The default pools, changed.
fn configured(change: impl FnOnce(&mut v1::FleetConfig)) -> v1::Object {
    let mut object = config(&[("10.200.0.0/16", 24), ("fd00:77::/48", 64)]);
    let Some(Of::FleetConfig(config)) = &mut object.kind else { panic!("a configuration") };
    change(config);
    object
}

async fn delete(fleet: &mut Fleet, kind: Kind, name: &str) {
    let request = v1::DeleteRequest { kind: kind.into(), name: name.to_owned(), if_revision: None };
    within(fleet.operator.delete(request)).await.unwrap();
}

#[track_caller]
fn refused_at(result: Result<v1::ApplyResponse, Status>, field: &str, expected: &str) {
    let Err(status) = result else { panic!("it was taken in, expected an error at {field}") };
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    let found = violations.iter().find(|violation| violation.field == field);
    let found = found.unwrap_or_else(|| panic!("expected {field}, found {violations:?}"));
    assert!(found.description.contains(expected), "{found:?}");
}

async fn status(fleet: &mut Fleet, name: &str) -> v1::ServiceState {
    let request = v1::ServiceStatusRequest { name: name.to_owned(), ..v1::ServiceStatusRequest::default() };
    let mut answer = within(fleet.operator.service_status(request)).await.unwrap().into_inner();
    answer.services.remove(0)
}

#[tokio::test]
async fn two_services_that_claim_one_frontend_are_both_named() {
    let mut fleet = fleet().await;
    fleet.apply(vec![service("a", &[("10.96.0.1", 80), ("", 30_080)])]).await.unwrap();
    let taken =
        fleet.apply(vec![service("c", &[("10.96.0.9", 80)]), service("b", &[("10.96.0.1", 80)])]).await;
    refused_at(
        taken,
        "objects[1].service.frontends[0]",
        "services \"a\" and \"b\" both claim 10.96.0.1:80/TCP",
    );
    let taken = fleet.apply(vec![service("b", &[("10.96.0.2", 80), ("", 30_080)])]).await;
    refused_at(taken, "objects[0].service.frontends[1]", "both claim node port 30080/TCP");
    let both = vec![service("x", &[("10.96.0.3", 80)]), service("y", &[("10.96.0.3", 80)])];
    refused_at(fleet.apply(both).await, "objects[1].service.frontends[0]", "services \"x\" and \"y\"");

    // Another port, another protocol, and itself again.
    let mut udp = service("udp", &[("10.96.0.1", 80)]);
    if let Some(Of::Service(service)) = &mut udp.kind {
        service.frontends[0].protocol = v1::Protocol::Udp.into();
    }
    fleet.apply(vec![service("b", &[("10.96.0.1", 81)]), udp]).await.unwrap();
    fleet.apply(vec![service("a", &[("10.96.0.1", 80), ("10.96.0.1", 8080)])]).await.unwrap();
    // The node port is free; and two that exchange their frontends in one request are right.
    fleet.apply(vec![service("d", &[("", 30_080)])]).await.unwrap();
    let swapped = vec![service("a", &[("10.96.0.1", 81)]), service("b", &[("10.96.0.1", 80)])];
    fleet.apply(swapped).await.unwrap();
    delete(&mut fleet, Kind::Service, "b").await;
    fleet.apply(vec![service("c", &[("10.96.0.1", 80)])]).await.unwrap();
}

#[tokio::test]
async fn of_two_controllers_that_are_asked_for_one_frontend_at_once_one_gives_it() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let mut first = fleet_beside("first", Arc::clone(&store)).await;
    let mut second = fleet_beside("second", store).await;
    for round in 0..20 {
        let address = format!("10.96.1.{round}");
        let (one, other) = (format!("one{round}"), format!("other{round}"));
        let (one, other) = tokio::join!(
            first.apply(vec![service(&one, &[(&address, 80)])]),
            second.apply(vec![service(&other, &[(&address, 80)])])
        );
        assert_ne!(one.is_ok(), other.is_ok(), "{one:?} {other:?}");
        let refused = one.err().or(other.err()).unwrap();
        assert!(refused.message().contains("both claim"), "{refused:?}");
    }
}

#[tokio::test]
async fn a_frontend_is_no_endpoints_and_no_nodes_address() {
    let mut fleet = fleet().await;
    let _node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let inside = fleet.apply(vec![service("a", &[("10.96.0.1", 80), ("10.200.7.7", 80)])]).await;
    refused_at(inside, "objects[0].service.frontends[1].address", "inside the pool 10.200.0.0/16");
    let nodes = fleet.apply(vec![service("a", &[("192.0.2.1", 80)])]).await;
    refused_at(nodes, "objects[0].service.frontends[0].address", "an address of node node-1");
    fleet.apply(vec![service("a", &[("192.0.2.2", 80)])]).await.unwrap();

    // The other way round.
    let Err(refused) = fleet.try_node(hello("node-2", "192.0.2.2")).await else { panic!("it was taken in") };
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    assert!(refused.message().contains("192.0.2.2:80/TCP is a frontend of service a"), "{refused:?}");
    fleet.try_node(hello("node-2", "192.0.2.3")).await.unwrap().in_sync().await;
    delete(&mut fleet, Kind::Service, "a").await;
    fleet.try_node(hello("node-3", "192.0.2.2")).await.unwrap().in_sync().await;
}

#[tokio::test]
async fn a_node_and_a_service_that_want_an_address_at_once_never_both_have_it() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let mut first = fleet_beside("first", Arc::clone(&store)).await;
    let second = fleet_beside("second", store).await;
    for round in 0..20 {
        let address = format!("192.0.2.{}", 100 + round);
        let (name, node) = (format!("s{round}"), format!("node-{round}"));
        let (applied, registered) = tokio::join!(
            first.apply(vec![service(&name, &[(&address, 80)])]),
            second.try_node(hello(&node, &address))
        );
        assert_ne!(applied.is_ok(), registered.is_ok(), "{applied:?}");
    }
}

/// A node that sends for others from these ports.
fn sending_from(name: &str, address: &str, first: u32, last: u32) -> v1::Hello {
    v1::Hello { snat_ports: Some(v1::SnatPorts { first, last }), ..hello(name, address) }
}

fn node_ports(first: u32, last: u32) -> v1::Object {
    configured(|config| config.node_ports = Some(v1::NodePorts { first, last }))
}

#[tokio::test]
async fn what_a_node_sends_from_for_others_is_never_among_the_node_ports() {
    let mut fleet = fleet().await;
    for (first, last) in [(32_767, 33_000), (29_000, 30_000), (1024, 65_535), (30_100, 30_200)] {
        let refused = fleet.try_node(sending_from("node-1", "192.0.2.1", first, last)).await;
        let Err(refused) = refused else { panic!("{first} to {last} were taken in") };
        let expected = format!(
            "the node's SNAT ports {first} to {last} (--snat-ports) meet the fleet's node ports 30000 to 32767 (nodePorts)"
        );
        assert!(refused.message().contains(&expected), "{refused:?}");
    }
    for (first, last) in [(32_768, 65_536), (61_000, 60_000), (1023, 2000)] {
        let refused = fleet.try_node(sending_from("node-1", "192.0.2.1", first, last)).await;
        let Err(refused) = refused else { panic!("{first} to {last} were taken in") };
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains("hello.snatPorts: expected"), "{refused:?}");
    }
    fleet.try_node(sending_from("node-1", "192.0.2.1", 32_768, 33_000)).await.unwrap().in_sync().await;

    // The other way round.
    refused_at(
        fleet.apply(vec![node_ports(31_000, 32_768)]).await,
        "objects[0].fleetConfig.nodePorts",
        "31000 to 32768 meet the SNAT ports 32768 to 33000 of node node-1",
    );
    fleet.apply(vec![node_ports(33_001, 34_000)]).await.unwrap();
    // Started with others, the node makes room.
    fleet.try_node(sending_from("node-1", "192.0.2.1", 61_000, 65_535)).await.unwrap().in_sync().await;
    fleet.apply(vec![node_ports(31_000, 32_768)]).await.unwrap();
}

#[tokio::test]
async fn a_node_and_a_configuration_that_want_a_port_at_once_never_both_have_it() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let mut first = fleet_beside("first", Arc::clone(&store)).await;
    let second = fleet_beside("second", store).await;
    for round in 0..20 {
        let ports = 40_000 + 100 * round;
        let hello = sending_from("node-1", "192.0.2.1", ports, ports + 99);
        let (applied, registered) =
            tokio::join!(first.apply(vec![node_ports(ports + 99, ports + 99)]), second.try_node(hello));
        assert!(applied.is_err() || registered.is_err(), "both have {}", ports + 99);
        assert!(applied.is_ok() || registered.is_ok(), "{applied:?}");
    }
}

#[tokio::test]
async fn a_configuration_takes_no_frontend_its_ground() {
    let mut fleet = fleet().await;
    fleet.apply(vec![service("a", &[("10.96.0.1", 80), ("", 30_080)])]).await.unwrap();
    let pool = |config: &mut v1::FleetConfig| {
        config.pools.push(v1::Pool { cidr: "10.96.0.0/16".to_owned(), node_prefix_length: 24 });
    };
    refused_at(
        fleet.apply(vec![configured(pool)]).await,
        "objects[0].fleetConfig.pools[2].cidr",
        "10.96.0.0/16 covers 10.96.0.1:80/TCP, a frontend of service \"a\"",
    );
    refused_at(
        fleet.apply(vec![node_ports(31_000, 32_000)]).await,
        "objects[0].fleetConfig.nodePorts",
        "node port 30080/TCP of service \"a\"",
    );
    refused_at(
        fleet.apply(vec![node_ports(1_023, 9)]).await,
        "objects[0].fleetConfig.nodePorts.first",
        "1024 to 65535",
    );

    // What goes with it in one request is judged by it.
    let moved = service("a", &[("10.97.0.1", 80), ("", 33_080)]);
    refused_at(
        fleet.apply(vec![moved.clone()]).await,
        "objects[0].service.frontends[1].port",
        "33080 is no node port of this fleet: expected 30000 to 32767",
    );
    refused_at(
        fleet.apply(vec![node_ports(33_000, 33_079), moved.clone()]).await,
        "objects[1].service.frontends[1].port",
        "expected 33000 to 33079",
    );
    let both = configured(|config| {
        pool(config);
        config.node_ports = Some(v1::NodePorts { first: 33_000, last: 33_080 });
    });
    fleet.apply(vec![both, moved]).await.unwrap();
    for port in [32_999, 33_081] {
        let outside = fleet.apply(vec![service("b", &[("", port)])]).await;
        refused_at(outside, "objects[0].service.frontends[0].port", "expected 33000 to 33080");
    }
}

async fn ready(node: &mut Node, name: &str, labels: &[(&str, &str)], address: &str) {
    let mut endpoint = support::endpoint(name, labels, &[address]);
    endpoint.status.as_mut().unwrap().set_state(v1::EndpointState::Ready);
    let report = v1::EndpointReport { endpoint: Some(endpoint) };
    node.answers.remove(name);
    node.report(v1::node_report::Report::Endpoint(report)).await;
    node.until("an answer", |node| node.answers.contains_key(name)).await;
    assert!(node.answers[name].accepted, "{:?}", node.answers[name]);
}

fn told(node: &Node, name: &str) -> Option<v1::NodeService> {
    let bytes = node.held.get(&(ResourceType::Service, name.to_owned()))?;
    Some(v1::NodeService::decode(&**bytes).unwrap())
}

#[tokio::test]
async fn a_service_rejects_until_an_endpoint_is_ready_and_is_shown_so() {
    let mut fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    fleet.apply(vec![service("a", &[("10.96.0.1", 80)])]).await.unwrap();
    node.until("it has the service", |node| told(node, "a").is_some()).await;
    let sent = node.deltas.iter().flat_map(|delta| &delta.upserts).find(|one| one.name == "a").unwrap();
    assert_eq!(sent.requires, ["services"]);
    let state = status(&mut fleet, "a").await;
    assert_eq!(state.condition(), v1::ServiceCondition::Rejecting);
    assert_eq!(state.reason, "no backends: no ready endpoint is selected");

    let address = node.address(5);
    assert!(node.attach("api-1", &[("app", "api")], &[&address]).await.accepted);
    assert_eq!(status(&mut fleet, "a").await.backends_total, 0, "it is not ready yet");
    ready(&mut node, "api-1", &[("app", "api")], &address).await;
    let has_it = |node: &Node| told(node, "a").is_some_and(|service| service.backends.len() == 1);
    node.until("the endpoint is its backend", has_it).await;
    let state = status(&mut fleet, "a").await;
    assert_eq!((state.condition(), state.reason.as_str()), (v1::ServiceCondition::Serving, ""));
    let expected = v1::ServiceBackend {
        address: address.clone(),
        weight: 1,
        state: v1::BackendState::Active.into(),
        node: "node-1".to_owned(),
        endpoint: "api-1".to_owned(),
        share_basis_points: 10_000,
        ..v1::ServiceBackend::default()
    };
    assert_eq!(state.backends, [expected]);
}

fn backend(address: &str, weight: u32, state: v1::BackendState) -> v1::Backend {
    v1::Backend { address: address.to_owned(), port: 0, weight: Some(weight), state: state.into() }
}

#[tokio::test]
async fn where_all_backends_are_quarantined_they_answer_and_it_is_said() {
    let mut fleet = fleet().await;
    let items = vec![
        backend("203.0.113.1", 1, v1::BackendState::Quarantined),
        backend("203.0.113.2", 3, v1::BackendState::Quarantined),
        backend("203.0.113.3", 4, v1::BackendState::Maintenance),
    ];
    let listed = v1::Service {
        metadata: Some(metadata("listed")),
        frontends: vec![frontend("10.96.0.1", 80)],
        backends: Some(v1::BackendList { items }),
        ..v1::Service::default()
    };
    fleet.apply(vec![object(listed)]).await.unwrap();
    let state = status(&mut fleet, "listed").await;
    assert_eq!(state.condition(), v1::ServiceCondition::Serving);
    assert_eq!(state.reason, "IPv4: all backends are quarantined, so all of these answer");
    assert_eq!((state.backends_active, state.backends_total), (2, 3));
    let shares: Vec<_> = state.backends.iter().map(|one| one.share_basis_points).collect();
    assert_eq!(shares, [2_500, 7_500, 0]);
}

#[tokio::test]
async fn shares_follow_the_weights_of_the_active_of_each_family() {
    let mut fleet = fleet().await;
    let items = vec![
        backend("203.0.113.1", 1, v1::BackendState::Active),
        backend("203.0.113.2", 3, v1::BackendState::Active),
        backend("203.0.113.3", 9, v1::BackendState::Terminating),
        backend("2001:db8::1", 5, v1::BackendState::Maintenance),
        backend("10.200.9.9", 1, v1::BackendState::Active),
    ];
    let listed = v1::Service {
        metadata: Some(metadata("listed")),
        frontends: vec![frontend("10.96.0.1", 80), frontend("2001:db8:96::1", 80)],
        backends: Some(v1::BackendList { items }),
        ..v1::Service::default()
    };
    fleet.apply(vec![object(listed)]).await.unwrap();
    let state = status(&mut fleet, "listed").await;
    assert_eq!(state.condition(), v1::ServiceCondition::Serving);
    assert_eq!(state.reason, "rejecting IPv6: no backends");
    assert_eq!((state.backends_active, state.backends_total), (2, 5));
    let shares: Vec<_> =
        state.backends.iter().map(|one| (&*one.address, one.share_basis_points, one.absent)).collect();
    let expected = [
        ("203.0.113.1", 2_500, false),
        ("203.0.113.2", 7_500, false),
        ("203.0.113.3", 0, false),
        ("2001:db8::1", 0, false),
        ("10.200.9.9", 0, true),
    ];
    assert_eq!(shares, expected);
}

#[tokio::test]
async fn services_are_listed_page_by_page_with_who_rejects_them() {
    let mut fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    node.rejects.insert((ResourceType::Service, "b".to_owned()), "this node lacks services".to_owned());
    let services = ["a", "b", "c"].iter().zip(1..).map(|(name, port)| service(name, &[("10.96.0.1", port)]));
    let applied = fleet.apply(services.collect()).await.unwrap();
    let names = |answer: &v1::ServiceStatusResponse| {
        answer.services.iter().map(|one| one.name.clone()).collect::<Vec<_>>()
    };
    let page = |page_token: &str| v1::ServiceStatusRequest {
        page_size: 2,
        page_token: page_token.to_owned(),
        ..v1::ServiceStatusRequest::default()
    };
    let first = fleet.operator.service_status(page("")).await.unwrap().into_inner();
    assert_eq!((names(&first), first.next_page_token.as_str()), (vec!["a".to_owned(), "b".to_owned()], "b"));
    let last = fleet.operator.service_status(page("b")).await.unwrap().into_inner();
    assert_eq!((names(&last), last.next_page_token.as_str()), (vec!["c".to_owned()], ""));
    assert_eq!(
        fleet.operator.service_status(page("no token!")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let unknown = v1::ServiceStatusRequest { name: "d".to_owned(), ..v1::ServiceStatusRequest::default() };
    assert_eq!(fleet.operator.service_status(unknown).await.unwrap_err().code(), Code::NotFound);

    let taken = node.until("it has them", |node| told(node, "c").is_some());
    let (waited, ()) =
        within(async { tokio::join!(fleet.wait_realised(applied.revision, support::DEADLINE), taken) }).await;
    assert_eq!(waited.unwrap_err().message(), "node node-1 rejected service b: this node lacks services");
    let state = status(&mut fleet, "b").await;
    let rejection =
        v1::ServiceRejection { node: "node-1".to_owned(), reason: "this node lacks services".to_owned() };
    assert_eq!((state.nodes_rejecting, state.rejections), (1, vec![rejection]));
    assert_eq!(status(&mut fleet, "a").await.nodes_rejecting, 0);
}

#[tokio::test]
async fn what_selects_by_labels_that_make_no_identity_is_warned_of() {
    let mut fleet = fleet().await;
    let Some(Of::Service(mut volatile)) = service("a", &[("10.96.0.1", 80)]).kind else {
        panic!("a service")
    };
    volatile.selector = Some(selector("build", "7"));
    volatile.topology_label = Some("instance".to_owned());
    let applied = fleet.apply(vec![object(volatile)]).await.unwrap();
    let fields: Vec<_> = applied.warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["objects[0].service.selector", "objects[0].service.topologyLabel"]);
}

#[tokio::test]
async fn a_prefilter_drops_nobody_who_is_protected() {
    let mut fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let failsafe = v1::Failsafe {
        protocol: v1::Protocol::Tcp.into(),
        port: Some(22),
        direction: v1::Direction::Ingress.into(),
        cidrs: vec!["198.51.100.0/24".to_owned()],
        ..v1::Failsafe::default()
    };
    let protecting = |prefixes: &[&str]| {
        configured(|config| {
            config.protected_prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
            config.failsafe = Some(v1::FailsafeList { items: vec![failsafe.clone()] });
        })
    };
    refused_at(
        fleet.apply(vec![protecting(&["10.0.0.1/8"])]).await,
        "objects[0].fleetConfig.protectedPrefixes[0]",
        "host bits",
    );
    fleet.apply(vec![protecting(&["2001:db8:1::/48"])]).await.unwrap();
    let drops = |cidr: &str| vec![prefilter("f", &["203.0.113.0/24", cidr], &[])];
    for (cidr, expected) in [
        ("2001:db8::/32", "2001:db8::/32 meets 2001:db8:1::/48, which is protected"),
        ("2001:db8:1:5::/64", "is protected"),
        ("198.51.100.128/25", "in a failsafe entry"),
        ("192.0.0.0/16", "192.0.2.1/32, which is an address of node node-1"),
        ("192.0.2.1/32", "192.0.2.1/32 is an address of node node-1"),
    ] {
        refused_at(fleet.apply(drops(cidr)).await, "objects[0].prefilter.cidrs[1]", expected);
    }
    let sender = fleet.apply(vec![prefilter("f", &[], &["192.0.2.1"])]).await;
    refused_at(sender, "objects[0].prefilter.arpSenders[0]", "192.0.2.1 is an address of node node-1");

    fleet.apply(vec![prefilter("f", &["203.0.113.0/24"], &["192.0.2.66"])]).await.unwrap();
    let name = (ResourceType::Prefilter, "f".to_owned());
    node.until("it has the prefilter", |node| node.held.contains_key(&name)).await;
    let sent = v1::NodePrefilter::decode(&*node.held[&name]).unwrap();
    assert_eq!(
        (sent.cidrs, sent.arp_senders),
        (vec!["203.0.113.0/24".to_owned()], vec!["192.0.2.66".to_owned()])
    );
    refused_at(
        fleet.apply(vec![protecting(&["203.0.0.0/16"])]).await,
        "objects[0].fleetConfig.protectedPrefixes[0]",
        "prefilter \"f\" drops 203.0.113.0/24",
    );
    for address in ["203.0.113.9", "192.0.2.66"] {
        let Err(refused) = fleet.try_node(hello("node-2", address)).await else { panic!("it was taken in") };
        assert!(refused.message().contains(&format!("prefilter f drops {address}")), "{refused:?}");
    }
    delete(&mut fleet, Kind::Prefilter, "f").await;
    node.until("it is gone", |node| !node.held.contains_key(&name)).await;
}
