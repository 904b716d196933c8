//! Services, from the controller's word to the kernel.

use std::{collections::BTreeSet, net::IpAddr};

use prost::Message as _;
use weft_noded::{
    balance::tables::{OwnAddresses, Services},
    kernel::Mode,
};
use weft_proto::v1::{self, ResourceType, node_report::Report};
use weft_shared::layout::service::{Party, SocketPeer};

use crate::{
    answer, base, endpoint,
    fake::Fake,
    full,
    node::{Kernel, Node},
    synced, upsert,
};

fn service(name: &str, frontend: &str, backends: &[&str]) -> v1::Upsert {
    service_at(name, v1::FrontendType::Cluster, frontend, backends)
}

fn service_at(name: &str, kind: v1::FrontendType, frontend: &str, backends: &[&str]) -> v1::Upsert {
    let backend = |address: &&str| v1::NodeBackend {
        address: (*address).to_owned(),
        port: 8080,
        weight: 1,
        state: v1::BackendState::Active.into(),
        ..v1::NodeBackend::default()
    };
    let frontend =
        v1::NodeFrontend { address: frontend.to_owned(), port: 80, protocol: 6, r#type: kind.into() };
    let sent = v1::NodeService {
        frontends: vec![frontend],
        backends: backends.iter().map(backend).collect(),
        algorithm: v1::Algorithm::Maglev.into(),
        internal_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        external_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        forwarding_mode: v1::ForwardingMode::Snat.into(),
        slots: 251,
        ..v1::NodeService::default()
    };
    v1::Upsert { requires: vec!["services".to_owned()], ..upsert(ResourceType::Service, name, &sent) }
}

fn services(kernel: &Kernel) -> Services {
    kernel.maps.with(|state| state.services.clone())
}

fn delta(revision: u64, upserts: Vec<v1::Upsert>) -> v1::Delta {
    v1::Delta { nonce: revision, revision, upserts, ..v1::Delta::default() }
}

#[tokio::test]
async fn services_are_in_the_kernel_when_they_are_acknowledged() {
    let (_state, kernel, _fake, _node, mut stream) =
        synced(vec![service("web", "10.96.0.1", &["10.200.1.5", "10.200.2.5"])]).await;
    let first = services(&kernel);
    assert_eq!((first.frontends.len(), first.tables.len()), (1, 1));
    stream.delta(delta(6, vec![service("web", "10.96.0.1", &["10.200.1.5"])])).await;
    assert_eq!(stream.ack().await.revision, 6);
    let second = services(&kernel);
    assert_eq!(first.frontends, second.frontends);
    assert_ne!(first.tables, second.tables);
    let removes = vec![v1::Remove { r#type: ResourceType::Service.into(), name: "web".to_owned() }];
    stream.delta(v1::Delta { removes, ..delta(7, Vec::new()) }).await;
    stream.ack().await;
    assert_eq!(services(&kernel), Services::default());
}

/// Of datagrams; connections go on as they began.
#[tokio::test]
async fn flows_are_judged_again_when_an_address_becomes_a_service() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("a", "web").await;
    stream.report(|report| matches!(report, Report::Endpoint(_)).then_some(())).await;
    answer(&stream, "a", true, "", 6).await;
    stream.delta(delta(6, vec![endpoint("a", 300, true)])).await;
    stream.ack().await;
    let epochs = |kernel: &Kernel| kernel.maps.with(|state| state.subject_epochs.clone());
    let mut before = epochs(&kernel);
    assert!(!before.is_empty());
    let mut of_udp = service("dns", "10.96.0.1", &["10.200.1.5"]);
    let mut sent = v1::NodeService::decode(of_udp.bytes.clone()).unwrap();
    sent.frontends[0].protocol = 17;
    of_udp.bytes = sent.encode_to_vec().into();
    let steps = [
        (service("web", "10.96.0.1", &["10.200.1.5"]), false),
        (of_udp.clone(), true),
        (of_udp, false),
        (service("dns", "10.96.0.2", &["10.200.1.5"]), false),
    ];
    for (revision, (upsert, again)) in (7..).zip(steps) {
        stream.delta(delta(revision, vec![upsert])).await;
        stream.ack().await;
        let now = epochs(&kernel);
        assert_eq!(now.iter().all(|(slot, epoch)| *epoch > before[slot]), again, "{revision}");
        before = now;
    }
}

#[tokio::test]
async fn a_service_that_outsiders_reach_brings_the_program_of_uplinks_and_takes_it_along() {
    let (_state, kernel, _fake, node, mut stream) =
        synced(vec![service("inside", "10.96.0.1", &["10.200.1.5"])]).await;
    let modes =
        |kernel: &Kernel| kernel.maps.with(|state| state.prefiltering.values().copied().collect::<Vec<_>>());
    assert_eq!(modes(&kernel), [], "nobody outside reaches an address of the fleet");
    assert_ne!(services(&kernel).own, OwnAddresses::default());
    let outside = service_at("outside", v1::FrontendType::External, "198.51.100.10", &["203.0.113.5"]);
    stream.delta(delta(6, vec![outside])).await;
    assert_eq!(stream.ack().await.revision, 6);
    assert_eq!(modes(&kernel), [Mode::Native]);
    let status = node.status().await;
    assert_eq!(status.capabilities.expect("capabilities").devices[0].xdp(), v1::XdpMode::Native);
    let removes = vec![v1::Remove { r#type: ResourceType::Service.into(), name: "outside".to_owned() }];
    stream.delta(v1::Delta { removes, ..delta(7, Vec::new()) }).await;
    stream.ack().await;
    assert_eq!(modes(&kernel), []);
}

/// A service with a backend on another node, one on this node and one outside of the fleet.
fn spread(mode: v1::ForwardingMode, kind: v1::FrontendType) -> v1::Upsert {
    let backend = |(address, node): (&str, &str)| v1::NodeBackend {
        address: address.to_owned(),
        port: 8080,
        weight: 1,
        state: v1::BackendState::Active.into(),
        node: node.to_owned(),
        ..v1::NodeBackend::default()
    };
    let base = service_at("spread", kind, "198.51.100.10", &[]);
    let mut sent = v1::NodeService::decode(base.bytes.clone()).expect("encoded above");
    let backends = [("10.200.1.5", "n1"), ("10.200.2.5", "n2"), ("203.0.113.5", "")];
    sent.backends = backends.map(backend).into();
    sent.forwarding_mode = mode.into();
    v1::Upsert { bytes: sent.encode_to_vec().into(), ..base }
}

#[tokio::test]
async fn next_hops_of_backends_that_outsiders_are_sent_to_are_kept_resolved_as_long_as_they_are() {
    use v1::{ForwardingMode::*, FrontendType::*};
    let (state, kernel, fake, node, mut stream) = synced(vec![spread(Dsr, Cluster)]).await;
    let kept = |kernel: &Kernel| kernel.links.with(|state| state.neighbours.clone());
    let addresses = |texts: &[&str]| {
        texts.iter().map(|text| text.parse().expect("an address")).collect::<BTreeSet<IpAddr>>()
    };
    assert_eq!(kept(&kernel), addresses(&[]), "nobody outside is sent to its backends");
    let cases: [(_, _, &[&str]); 3] = [
        (Dsr, External, &["192.0.2.12", "203.0.113.5"]),
        (Snat, External, &["203.0.113.5"]),
        (Dsr, Cluster, &[]),
    ];
    for (revision, (mode, kind, expected)) in (6..).zip(cases) {
        stream.delta(delta(revision, vec![spread(mode, kind)])).await;
        stream.ack().await;
        assert_eq!(kept(&kernel), addresses(expected), "{mode:?} {kind:?}");
    }
    stream.delta(delta(9, vec![spread(Dsr, External)])).await;
    stream.ack().await;
    let both = addresses(&["192.0.2.12", "203.0.113.5"]);

    let routes = |status: v1::StatusResponse| {
        let found = status.repairs.into_iter().find(|repair| repair.what == "routes");
        found.map_or(0, |repair| repair.times)
    };
    assert_eq!(routes(node.status().await), 0);
    kernel.links.with(|state| state.neighbours.clear());
    node.core.check().await.expect("the core lives");
    assert_eq!(kept(&kernel), both, "somebody flushed them");
    assert_eq!(routes(node.status().await), 1);

    // A daemon that starts knows not what another one left.
    drop((stream, fake));
    node.kill();
    kernel.links.with(|state| state.neighbours = addresses(&["192.0.2.99"]));
    let _node = Node::start(&kernel, state.path(), &[]).await;
    assert_eq!(kept(&kernel), both);
}

#[tokio::test]
async fn a_node_port_among_the_ports_of_snat_is_a_problem_as_long_as_it_is_there() {
    let at = |port| {
        let frontend = v1::NodeFrontend {
            address: String::new(),
            port,
            protocol: 6,
            r#type: v1::FrontendType::NodePort.into(),
        };
        let base = service("web", "10.96.0.1", &["10.200.1.5"]);
        let mut sent = v1::NodeService::decode(base.bytes.clone()).expect("encoded above");
        sent.frontends.push(frontend);
        v1::Upsert { bytes: sent.encode_to_vec().into(), ..base }
    };
    let (_state, _kernel, _fake, node, mut stream) = synced(vec![at(61_000)]).await;
    let expected = "SNAT ports 61000-65535: 61000 is a node port of service \"web\"";
    let is_told = |status: &v1::StatusResponse| status.problems.iter().any(|text| text.starts_with(expected));
    assert!(is_told(&node.status().await));
    stream.delta(delta(6, vec![at(30_080)])).await;
    stream.ack().await;
    assert!(!is_told(&node.status().await));
}

#[tokio::test]
async fn the_first_service_brings_the_socket_programs_and_a_restart_keeps_them() {
    let (state, kernel, fake, node, stream) = synced(Vec::new()).await;
    let attached = |kernel: &Kernel| kernel.maps.with(|state| state.cgroup.clone());
    assert_eq!(attached(&kernel), None, "no call of a process pays for services that there are not");
    stream.delta(delta(6, vec![service("web", "10.96.0.1", &["10.200.1.5"])])).await;
    let mut stream = stream;
    assert_eq!(stream.ack().await.revision, 6);
    assert_eq!(attached(&kernel), Some("/the/cgroup".into()));

    let removes = vec![v1::Remove { r#type: ResourceType::Service.into(), name: "web".to_owned() }];
    stream.delta(v1::Delta { removes, ..delta(7, Vec::new()) }).await;
    stream.ack().await;
    drop((stream, fake));
    node.kill();
    kernel.maps.with(|state| state.cgroup = Some("/another".into()));
    let _node = Node::start(&kernel, state.path(), &[]).await;
    assert_eq!(attached(&kernel), Some("/the/cgroup".into()), "an earlier daemon's are taken over");
}

#[tokio::test]
async fn where_the_kernel_refuses_socket_programs_every_service_is_told_and_nothing_else_is_harmed() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    kernel.maps.with(|state| state.refuses_sockets = Some("load sock_connect4: too complex".to_owned()));
    stream.delta(delta(6, vec![service("web", "10.96.0.1", &["10.200.1.5"])])).await;
    let ack = stream.ack().await;
    assert_eq!((ack.revision, ack.rejected.len()), (5, 1), "{:?}", ack.rejected);
    let rejected = &ack.rejected[0];
    assert_eq!((rejected.r#type(), rejected.name.as_str()), (ResourceType::Service, "web"));
    assert!(rejected.reason.contains("too complex"), "{rejected:?}");
    assert_eq!(services(&kernel).frontends.len(), 1, "packets reach it all the same");
    let problems = node.status().await.problems;
    assert!(problems.iter().any(|problem| problem.contains("by their sockets")), "{problems:?}");
    assert!(problems.iter().all(|problem| !problem.contains("not written")), "{problems:?}");

    kernel.maps.with(|state| state.refuses_sockets = None);
    node.core.check().await.expect("the core lives");
    assert_eq!(kernel.maps.with(|state| state.cgroup.clone()), Some("/the/cgroup".into()));
    let problems = node.status().await.problems;
    assert!(problems.iter().all(|problem| !problem.contains("by their sockets")), "{problems:?}");
    stream.delta(delta(7, Vec::new())).await;
    assert_eq!(stream.ack().await.revision, 7);
}

#[tokio::test]
async fn a_daemon_starts_where_the_kernel_refuses_the_socket_programs_of_its_services() {
    let (state, kernel, fake, node, stream) =
        synced(vec![service("web", "10.96.0.1", &["10.200.1.5"])]).await;
    drop((stream, fake));
    node.kill();
    kernel.maps.with(|state| state.refuses_sockets = Some("load sock_connect4: too complex".to_owned()));
    let node = Node::start(&kernel, state.path(), &[]).await;
    let problems = node.status().await.problems;
    assert!(problems.iter().any(|problem| problem.contains("rejected") && problem.contains("web")));
    assert!(problems.iter().any(|problem| problem.contains("too complex")), "{problems:?}");
}

#[tokio::test]
async fn a_service_that_is_wrong_is_rejected_by_name_and_keeps_its_last_good_form() {
    let (_state, kernel, _fake, _node, mut stream) =
        synced(vec![service("web", "10.96.0.1", &["10.200.1.5"])]).await;
    let before = services(&kernel);
    let wrong = service("web", "10.96.0.300", &["10.200.1.6"]);
    stream.delta(delta(6, vec![wrong, service("db", "10.96.0.2", &["10.200.1.7"])])).await;
    let ack = stream.ack().await;
    assert_eq!((ack.revision, ack.rejected.len()), (5, 1));
    assert_eq!((ack.rejected[0].r#type(), ack.rejected[0].name.as_str()), (ResourceType::Service, "web"));
    assert!(ack.rejected[0].reason.contains("frontends[0].address"), "{:?}", ack.rejected);
    let after = services(&kernel);
    assert!(before.frontends.iter().all(|(key, frontend)| after.frontends[key] == *frontend));
    assert_eq!(after.frontends.len(), 2, "the other one is there");
}

#[tokio::test]
async fn a_frontend_that_another_service_has_is_told_of_until_it_is_free() {
    let (_state, kernel, _fake, node, mut stream) =
        synced(vec![service("a", "10.96.0.1", &["10.200.1.5"])]).await;
    let before = services(&kernel);
    stream.delta(delta(6, vec![service("b", "10.96.0.1", &["10.200.1.6"])])).await;
    let ack = stream.ack().await;
    assert_eq!((ack.revision, ack.rejected[0].name.as_str()), (5, "b"));
    assert_eq!(services(&kernel), before);
    // Deltas about other things tell of it, too.
    stream.delta(delta(7, vec![crate::address("10.200.2.9", 300)])).await;
    assert_eq!(stream.ack().await.rejected.len(), 1);
    let problems = node.status().await.problems;
    assert!(
        problems.iter().any(|problem| problem.contains("10.96.0.1 port 80 is the service a's")),
        "{problems:?}"
    );
    let removes = vec![v1::Remove { r#type: ResourceType::Service.into(), name: "a".to_owned() }];
    stream.delta(v1::Delta { removes, ..delta(8, Vec::new()) }).await;
    assert_eq!(stream.ack().await.revision, 8);
    assert_eq!(services(&kernel).frontends.len(), 1);
}

#[tokio::test]
async fn a_restart_swaps_nothing_and_removes_nothing_before_all_was_sent() {
    let (state, kernel, fake, node, stream) = synced(vec![
        service("web", "10.96.0.1", &["10.200.1.5", "10.200.2.5"]),
        service("db", "10.96.0.2", &["10.200.1.6"]),
    ])
    .await;
    drop(stream);
    node.kill();
    let (before, steps) = kernel.maps.with(|state| (state.services.clone(), state.service_steps.len()));
    let _node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    assert_eq!(kernel.maps.with(|state| state.service_steps.len()), steps, "equal tables are not swapped");
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 6).await;
    let first = base().into_iter().chain([service("db", "10.96.0.2", &["10.200.1.6"])]).collect();
    stream.delta(delta(6, first)).await;
    stream.ack().await;
    assert_eq!(services(&kernel), before);
    stream.delta(v1::Delta { in_sync: true, full: true, ..delta(7, Vec::new()) }).await;
    stream.ack().await;
    let after = services(&kernel);
    assert_eq!((after.frontends.len(), after.tables.len()), (1, 1), "what was not sent is gone");
}

#[tokio::test]
async fn what_the_disk_says_is_enforced_without_a_controller() {
    let (state, kernel, _fake, node, stream) =
        synced(vec![service("web", "10.96.0.1", &["10.200.1.5"])]).await;
    drop(stream);
    node.kill();
    let before = services(&kernel);
    kernel.maps.with(|state| state.services = Services::default());
    let _node = Node::start(&kernel, state.path(), &["http://127.0.0.1:1"]).await;
    assert_eq!(services(&kernel), before);
}

#[tokio::test]
async fn what_somebody_else_changed_is_mended_and_counted() {
    let (_state, kernel, _fake, node, _stream) =
        synced(vec![service("web", "10.96.0.1", &["10.200.1.5", "10.200.2.5"])]).await;
    let before = services(&kernel);
    kernel.maps.with(|state| {
        state.services.frontends.clear();
        state.services.tables.insert(7, [1, 2]);
        state.services.tables.remove(&1);
    });
    node.core.check().await.expect("the core lives");
    assert_eq!(services(&kernel), before);
    let repairs = node.status().await.repairs;
    assert!(repairs.iter().any(|repair| repair.what == "rows"), "{repairs:?}");
}

#[tokio::test]
async fn sockets_of_backends_that_have_gone_are_ended_once_all_was_sent() {
    let udp = |backends: &[&str]| {
        let mut upsert = service("dns", "10.96.0.53", backends);
        let mut sent = v1::NodeService::decode(upsert.bytes.clone()).unwrap();
        sent.frontends[0].protocol = 17;
        let node_port = v1::FrontendType::NodePort.into();
        sent.frontends.push(v1::NodeFrontend {
            port: 30_053,
            protocol: 17,
            r#type: node_port,
            ..Default::default()
        });
        upsert.bytes = sent.encode_to_vec().into();
        upsert
    };
    let party = |address: &str, port: u16| Party {
        address: address.parse::<IpAddr>().unwrap().into(),
        port: port.to_be(),
        zero: 0,
    };
    let socket = |frontend, backend| (17, SocketPeer { frontend, backend: party(backend, 8080) });
    let service = || party("10.96.0.53", 80);
    let sockets = [
        socket(service(), "10.200.1.5"),
        socket(party("192.0.2.11", 30_053), "10.200.1.5"),
        socket(service(), "10.200.1.6"),
        socket(party("10.96.0.54", 80), "10.200.1.5"),
    ];
    let (state, kernel, fake) = (tempfile::tempdir().unwrap(), Kernel::default(), Fake::start().await);
    kernel.maps.with(|state| state.sockets = sockets.to_vec());
    let _node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 5).await;
    stream.delta(delta(4, base().into_iter().chain([udp(&["10.200.1.5"])]).collect())).await;
    stream.ack().await;
    assert_eq!(kernel.maps.with(|state| state.sockets.clone()), sockets, "more may come");
    stream.delta(v1::Delta { in_sync: true, ..delta(5, Vec::new()) }).await;
    stream.ack().await;
    assert_eq!(kernel.maps.with(|state| state.sockets.clone()), sockets[..2], "by an address, and by a port");
    stream.delta(delta(6, vec![udp(&["10.200.1.7"])])).await;
    stream.ack().await;
    assert_eq!(kernel.maps.with(|state| state.sockets.clone()), []);
}

#[tokio::test]
async fn tcp_connections_are_ended_of_services_that_ask_for_it_and_of_those_that_asked_and_are_gone() {
    let tcp = |name: &str, address: &str, end_connections| {
        let mut upsert = service(name, address, &["10.200.1.5"]);
        let sent = v1::NodeService::decode(upsert.bytes.clone()).unwrap();
        upsert.bytes = v1::NodeService { end_connections, ..sent }.encode_to_vec().into();
        upsert
    };
    let party = |address: &str, port: u16| Party {
        address: address.parse::<IpAddr>().unwrap().into(),
        port: port.to_be(),
        zero: 0,
    };
    let socket = |service: &str, backend: &str| {
        (6, SocketPeer { frontend: party(service, 80), backend: party(backend, 8080) })
    };
    let sockets = [
        socket("10.96.0.1", "10.200.1.5"),
        socket("10.96.0.1", "10.200.1.6"),
        socket("10.96.0.2", "10.200.1.6"),
    ];
    let (state, kernel, fake) = (tempfile::tempdir().unwrap(), Kernel::default(), Fake::start().await);
    kernel.maps.with(|state| state.sockets = sockets.to_vec());
    let _node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 5).await;
    let services = [tcp("asks", "10.96.0.1", true), tcp("does-not", "10.96.0.2", false)];
    let all = v1::Delta { in_sync: true, ..delta(4, base().into_iter().chain(services).collect()) };
    stream.delta(all).await;
    stream.ack().await;
    let left = kernel.maps.with(|state| state.sockets.clone());
    assert_eq!(left, [sockets[0], sockets[2]]);
    let removes = vec![v1::Remove { r#type: ResourceType::Service.into(), name: "asks".to_owned() }];
    stream.delta(v1::Delta { removes, ..delta(5, Vec::new()) }).await;
    stream.ack().await;
    assert_eq!(kernel.maps.with(|state| state.sockets.clone()), [sockets[2]]);
}

#[tokio::test]
async fn what_the_kernel_refuses_comes_again() {
    let (_state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    kernel.maps.with(|state| state.broken = Some("no memory for a table".to_owned()));
    stream.delta(delta(6, vec![service("web", "10.96.0.1", &["10.200.1.5"])])).await;
    while let Some(message) = stream.next().await {
        assert!(!matches!(message, v1::node_message::Message::Ack(_)), "acknowledged what was not written");
    }
    let status = node.status().await;
    assert!(status.problems.iter().any(|problem| problem.contains("no memory")), "{:?}", status.problems);
    kernel.maps.with(|state| state.broken = None);
    let mut stream = reconnected(&fake).await;
    let all = base().into_iter().chain([service("web", "10.96.0.1", &["10.200.1.5"])]).collect();
    stream.delta(full(6, all)).await;
    assert_eq!(stream.ack().await.revision, 6);
    assert_eq!(services(&kernel).frontends.len(), 1);
}

async fn reconnected(fake: &Fake) -> crate::fake::Stream {
    let stream = fake.stream().await;
    stream.welcome("store-1", 6).await;
    stream
}

#[tokio::test]
async fn what_the_kernel_holds_of_a_service_is_told_table_by_table() {
    let (_state, kernel, _fake, node, _stream) =
        synced(vec![service("web", "10.96.0.1", &["10.200.1.5", "10.200.2.5"])]).await;
    let tables = node.core.service_tables("web".to_owned()).await.unwrap().unwrap();
    let [frontend] = &tables.frontends[..] else { panic!("one: {tables:?}") };
    assert_eq!(frontend.frontend.as_ref().unwrap().address, "10.96.0.1");
    let [table] = &tables.tables[..] else { panic!("one: {tables:?}") };
    assert_eq!((frontend.inside, frontend.outside, frontend.ipv6), (table.slot, table.slot, false));
    let backends: Vec<_> =
        table.backends.iter().map(|one| (one.address.as_str(), one.port, one.new_flows)).collect();
    assert_eq!(backends, [("10.200.1.5", 8080, true), ("10.200.2.5", 8080, true)]);
    assert_eq!((table.maglev_slots, table.backends.iter().map(|one| one.slots).sum::<u32>()), (251, 251));
    assert_eq!(tables.rejected, "");

    // What somebody else took away is not there, whatever is desired.
    kernel.maps.with(|state| state.services.frontends.clear());
    let tables = node.core.service_tables("web".to_owned()).await.unwrap().unwrap();
    assert_eq!((tables.frontends[0].inside, tables.tables.len()), (0, 0));
    let error = node.core.service_tables("wep".to_owned()).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "this node was told of no service \"wep\"");
}
