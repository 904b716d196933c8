//! Services and prefilters: who answers, what of it nodes are told, and when.
use weft_shared::service::model::{
    Algorithm, Backend, BackendState, Backends, Forwarding, Frontend, FrontendKind, Place, Prefilter,
    Protocol, Rates, Service, Shaped, Shaping, TrafficPolicy,
};

use super::*;

/// Each service has an address of its own.
fn service(name: &str, backends: Backends) -> Service {
    let address = name.bytes().fold(0_u8, u8::wrapping_add);
    let place = Place {
        address: Some([10, 96, 0, address].into()),
        port: 80.try_into().unwrap(),
        protocol: Protocol::Tcp,
    };
    Service {
        name: name.to_owned(),
        frontends: vec![Frontend { at: place, kind: FrontendKind::Cluster }],
        backends,
        algorithm: Algorithm::Maglev,
        affinity_seconds: None,
        internal: TrafficPolicy::Fleet,
        external: TrafficPolicy::Fleet,
        source_ranges: None,
        forwarding: Forwarding::Snat,
        health_check: None,
        topology_label: None,
        end_connections: false,
    }
}

pub(super) fn selecting(name: &str, selector: Selector) -> Service {
    service(name, Backends::Selected { selector, port: None })
}

pub(super) fn listing(name: &str, backends: Vec<Backend>) -> Service {
    service(name, Backends::Listed(backends))
}

pub(super) fn listed(address: &str, weight: u16) -> Backend {
    Backend { address: address.parse().unwrap(), port: None, weight, state: BackendState::Active }
}

pub(super) fn put_service(service: Service) -> Change {
    Change::Service { name: service.name.clone(), service: Some(service) }
}

pub(super) fn put_prefilter(prefilter: Prefilter) -> Change {
    Change::Prefilter { name: prefilter.name.clone(), prefilter: Some(prefilter) }
}

pub(super) fn put_shaping(name: &str, shaped: Shaped, connection: u64) -> Change {
    let rates = Rates { connection: Some(connection), ..Rates::default() };
    Change::Shaping { name: name.to_owned(), shaping: Some(Shaping { name: name.to_owned(), shaped, rates }) }
}

pub(super) fn ready(mut change: Change) -> Change {
    if let Change::Endpoint { facts: Some(facts), .. } = &mut change {
        facts.ready = true;
    }
    change
}

pub(super) fn config_of_pool(cidr: &str) -> Change {
    let pools = vec![v1::Pool { cidr: cidr.to_owned(), node_prefix_length: 24 }];
    Change::Config(Some(v1::FleetConfig { pools, ..crate::fleet_config::default() }))
}

fn told(holder: &Holder, name: &str) -> v1::NodeService {
    let bytes = &holder.held[&(ResourceType::Service, name.to_owned())];
    <v1::NodeService as prost::Message>::decode(&**bytes).unwrap()
}

/// Address, node and topology of each backend.
fn backends(holder: &Holder, name: &str) -> Vec<(String, String, String)> {
    let backends = told(holder, name).backends.into_iter();
    backends.map(|backend| (backend.address, backend.node, backend.topology)).collect()
}

fn addresses(holder: &Holder, name: &str) -> Vec<String> {
    backends(holder, name).into_iter().map(|(address, ..)| address).collect()
}

#[test]
fn every_node_is_told_of_every_service_and_it_is_encoded_once() {
    let mut fleet = web_and_api();
    connected(&mut fleet, "n1");
    connected(&mut fleet, "n3");
    apply_each(&mut fleet, [put_service(selecting("api", selector("api")))]);
    let (first, second) = (fleet.drain("n1").unwrap(), fleet.drain("n3").unwrap());
    assert_eq!(first.upserts[0].key, Key::new(ResourceType::Service, "api"));
    assert_eq!(*first.upserts[0].requires, ["services".to_owned()]);
    assert_eq!(first.upserts[0].bytes.as_ptr(), second.upserts[0].bytes.as_ptr());
    let late = connected(&mut fleet, "n2");
    assert_eq!(late.names(ResourceType::Service), ["api"]);

    apply_each(&mut fleet, [Change::Service { name: "api".to_owned(), service: None }]);
    assert_eq!(&*fleet.drain("n1").unwrap().removes[0].name, "api");
}

#[test]
fn an_endpoint_is_a_backend_while_it_is_ready_wherever_it_is_and_whatever_it_becomes() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [put_service(selecting("api", selector("api")))]);
    let mut node = connected(&mut fleet, "n3");
    assert_eq!(addresses(&node, "api"), Vec::<String>::new(), "api-1 is not ready yet");
    let mut after = |fleet: &mut Fleet, change: Change| {
        apply_each(fleet, [change]);
        settle(fleet, "n3", &mut node);
        backends(&node, "api").into_iter().map(|(address, node, _)| (address, node)).collect::<Vec<_>>()
    };
    let on = |address: &str, node: &str| (address.to_owned(), node.to_owned());

    let change = ready(put_endpoint("api-1", 2, 257, "10.200.2.5"));
    assert_eq!(after(&mut fleet, change), [on("10.200.2.5", "n2")]);
    let change = ready(put_endpoint("api-2", 1, 257, "10.200.1.9"));
    assert_eq!(after(&mut fleet, change), [on("10.200.1.9", "n1"), on("10.200.2.5", "n2")]);
    // It moves, ...
    let change = ready(put_endpoint("api-2", 3, 257, "10.200.3.9"));
    assert_eq!(after(&mut fleet, change), [on("10.200.2.5", "n2"), on("10.200.3.9", "n3")]);
    // ...is relabelled, ...
    let change = ready(put_endpoint("api-2", 3, 256, "10.200.3.9"));
    assert_eq!(after(&mut fleet, change), [on("10.200.2.5", "n2")]);
    // ...and goes; another's labels change.
    assert_eq!(after(&mut fleet, remove_endpoint("api-2")), [on("10.200.2.5", "n2")]);
    assert_eq!(after(&mut fleet, put_identity(257, "db")), []);
    assert_eq!(after(&mut fleet, put_identity(257, "api")), [on("10.200.2.5", "n2")]);
    assert_eq!(after(&mut fleet, put_endpoint("api-1", 2, 257, "10.200.2.5")), []);
}

#[test]
fn what_concerns_no_service_tells_nobody_of_one() {
    let mut fleet = web_and_api();
    apply_each(
        &mut fleet,
        [put_service(selecting("api", selector("api"))), ready(put_endpoint("api-1", 2, 257, "10.200.2.5"))],
    );
    connected(&mut fleet, "n3");
    fleet.take_news();
    apply_each(&mut fleet, [ready(put_endpoint("web-2", 1, 256, "10.200.1.6"))]);
    assert_eq!(fleet.take_news(), Vec::<String>::new());
}

#[test]
fn a_listed_address_is_where_its_endpoint_is_or_outside_of_the_fleet() {
    let mut fleet = web_and_api();
    let list = vec![listed("10.200.2.5", 3), listed("10.200.9.9", 1), listed("203.0.113.5", 2)];
    apply_each(&mut fleet, [put_service(listing("mixed", list))]);
    let mut node = connected(&mut fleet, "n3");
    assert_eq!(addresses(&node, "mixed"), ["203.0.113.5"], "no ready endpoint has the others");

    apply_each(&mut fleet, [ready(put_endpoint("api-1", 2, 257, "10.200.2.5"))]);
    settle(&mut fleet, "n3", &mut node);
    let sent = told(&node, "mixed").backends;
    let sent: Vec<_> = sent.iter().map(|one| (&*one.address, &*one.node, one.weight)).collect();
    assert_eq!(sent, [("10.200.2.5", "n2", 3), ("203.0.113.5", "", 2)]);
    let answering = fleet.answering(fleet.service("mixed").unwrap());
    assert_eq!(answering.absent.into_keys().collect::<Vec<_>>(), [("10.200.9.9".parse().unwrap(), None)]);

    // The pools shrink: the address is somebody else's.
    apply_each(&mut fleet, [config_of_pool("10.200.0.0/21")]);
    settle(&mut fleet, "n3", &mut node);
    assert_eq!(addresses(&node, "mixed"), ["10.200.2.5", "10.200.9.9", "203.0.113.5"]);
}

#[test]
fn a_listed_address_is_nobodys_while_an_endpoint_has_it_that_is_not_ready() {
    let mut fleet = web_and_api();
    let outside = "10.201.0.5";
    apply_each(&mut fleet, [put_service(listing("one", vec![listed(outside, 1)]))]);
    let mut node = connected(&mut fleet, "n3");
    assert_eq!(addresses(&node, "one"), [outside]);
    apply_each(&mut fleet, [put_endpoint("late", 1, 256, outside)]);
    settle(&mut fleet, "n3", &mut node);
    assert_eq!(addresses(&node, "one"), Vec::<String>::new());
}

#[test]
fn backends_say_their_nodes_value_of_the_topology_label() {
    let mut fleet = web_and_api();
    let zoned =
        |number, app: &str| Change::Identity { number, labels: Some(crate::identity::of_node(&labels(app))) };
    let service = Service { topology_label: Some("app".to_owned()), ..selecting("api", selector("api")) };
    apply_each(&mut fleet, [put_service(service), ready(put_endpoint("api-1", 2, 257, "10.200.2.5"))]);
    let mut node = connected(&mut fleet, "n3");
    let mut after = |fleet: &mut Fleet, change: Change| {
        apply_each(fleet, [change]);
        settle(fleet, "n3", &mut node);
        backends(&node, "api").into_iter().map(|(.., topology)| topology).collect::<Vec<_>>()
    };
    assert_eq!(after(&mut fleet, put_node_as(2, 300)), [""], "the identity is not known yet");
    assert_eq!(after(&mut fleet, zoned(300, "east")), ["east"]);
    assert_eq!(after(&mut fleet, zoned(301, "west")), ["east"]);
    assert_eq!(after(&mut fleet, put_node_as(2, 301)), ["west"]);
    assert_eq!(after(&mut fleet, zoned(301, "north")), ["north"]);
}

#[test]
fn only_addresses_of_families_that_frontends_have_are_backends() {
    let mut fleet = web_and_api();
    let Change::Endpoint { name, facts: Some(mut facts) } =
        ready(put_endpoint("api-1", 2, 257, "10.200.2.5"))
    else {
        panic!("an endpoint");
    };
    facts.addresses.push("fd00:77::5".parse().unwrap());
    let mut both = selecting("both", selector("api"));
    both.frontends[0] =
        Frontend { at: Place { address: None, ..both.frontends[0].at }, kind: FrontendKind::NodePort };
    let four = selecting("four", selector("api"));
    let change = Change::Endpoint { name, facts: Some(facts) };
    apply_each(&mut fleet, [put_service(both), put_service(four), change]);
    let node = connected(&mut fleet, "n3");
    assert_eq!(addresses(&node, "four"), ["10.200.2.5"]);
    assert_eq!(addresses(&node, "both"), ["10.200.2.5", "fd00:77::5"]);
}

#[test]
fn a_frontend_can_pass_from_one_service_to_another_in_one_revision() {
    let (one, other) = (selecting("one", selector("api")), selecting("other", selector("api")));
    let place = one.frontends[0].at;
    let taking = Service { frontends: one.frontends.clone(), ..other.clone() };
    let leaving = Service { frontends: other.frontends.clone(), ..one.clone() };
    for turned in [false, true] {
        let mut fleet = web_and_api();
        apply_each(&mut fleet, [put_service(one.clone()), put_service(other.clone())]);
        assert_eq!(fleet.service_at(&place), Some("one"));
        let mut changes = vec![put_service(taking.clone()), put_service(leaving.clone())];
        if turned {
            changes.reverse();
        }
        fleet.apply(fleet.revision() + 1, Duration::ZERO, changes);
        assert_eq!(fleet.service_at(&place), Some("other"));
        assert_eq!(fleet.service_on(place.address.unwrap()).map(|(_, name)| name), Some("other"));
        assert_eq!(fleet.service_on("10.96.0.0".parse().unwrap()), None);
    }
}

#[test]
fn a_prefilter_goes_to_the_nodes_that_it_selects() {
    let mut fleet = web_and_api();
    let prefilter = |nodes| Prefilter {
        name: "scanners".to_owned(),
        nodes,
        cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        arp_senders: Vec::new(),
    };
    let gateway =
        Change::Identity { number: 300, labels: Some(crate::identity::of_node(&labels("gateway"))) };
    apply_each(&mut fleet, [put_prefilter(prefilter(selector("gateway"))), put_node_as(2, 300)]);
    let (mut one, mut two) = (connected(&mut fleet, "n1"), connected(&mut fleet, "n2"));
    let held = |holder: &Holder| !holder.names(ResourceType::Prefilter).is_empty();
    assert!(!held(&one) && !held(&two), "its labels are not known yet");
    apply_each(&mut fleet, [gateway]);
    settle(&mut fleet, "n2", &mut two);
    assert!(held(&two));

    apply_each(&mut fleet, [put_prefilter(prefilter(Selector::default()))]);
    settle(&mut fleet, "n1", &mut one);
    assert!(held(&one), "all nodes, also one whose labels nobody knows");
    apply_each(&mut fleet, [put_prefilter(prefilter(selector("other")))]);
    settle(&mut fleet, "n1", &mut one);
    settle(&mut fleet, "n2", &mut two);
    assert!(!held(&one) && !held(&two));
}

#[test]
fn a_shaping_goes_to_the_nodes_whose_processes_or_endpoints_it_is_about() {
    let mut fleet = web_and_api();
    let processes = Shaped::Nodes { nodes: selector("gateway"), cgroup: "system.slice".to_owned() };
    let gateway =
        Change::Identity { number: 300, labels: Some(crate::identity::of_node(&labels("gateway"))) };
    apply_each(&mut fleet, [put_shaping("backup", processes, 1_000_000), put_node_as(2, 300)]);
    let (mut one, mut two) = (connected(&mut fleet, "n1"), connected(&mut fleet, "n2"));
    assert!(two.names(ResourceType::Shaping).is_empty(), "its labels are not known yet");
    apply_each(&mut fleet, [gateway, put_shaping("batch", Shaped::Endpoints(selector("web")), 1_000_000)]);
    settle(&mut fleet, "n1", &mut one);
    settle(&mut fleet, "n2", &mut two);
    assert_eq!(one.names(ResourceType::Shaping), ["batch"]);
    assert_eq!(two.names(ResourceType::Shaping), ["backup"], "it has no such endpoint");
    apply_each(&mut fleet, [Change::Shaping { name: "backup".to_owned(), shaping: None }]);
    settle(&mut fleet, "n2", &mut two);
    assert!(two.names(ResourceType::Shaping).is_empty());
}

/// In the delta that says who the endpoint is, so that it is never open without.
#[test]
fn a_shaping_goes_with_the_first_endpoint_that_it_is_about_and_leaves_with_the_last() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [put_shaping("batch", Shaped::Endpoints(selector("web")), 1_000_000)]);
    let (mut one, mut two) = (connected(&mut fleet, "n1"), connected(&mut fleet, "n2"));
    settle(&mut fleet, "n1", &mut one);
    settle(&mut fleet, "n2", &mut two);
    assert_eq!(one.names(ResourceType::Shaping), ["batch"]);
    assert!(two.names(ResourceType::Shaping).is_empty());

    let web =
        Change::Endpoint { name: "web-1".to_owned(), facts: fleet.index.endpoints.get("web-1").cloned() };
    let Change::Endpoint { facts: Some(mut facts), name } = web else { panic!("web-1 is on n1") };
    facts.node = "n2".to_owned();
    apply_each(&mut fleet, [Change::Endpoint { name, facts: Some(facts) }]);
    let delta = fleet.drain("n2").expect("it has an endpoint more");
    let named = |kind| delta.upserts.iter().any(|resource| resource.key.kind == kind);
    assert!(named(ResourceType::Endpoint) && named(ResourceType::Shaping), "{delta:?}");
    two.take(&delta);
    settle(&mut fleet, "n1", &mut one);
    assert!(one.names(ResourceType::Shaping).is_empty());

    // Another of the same identity comes, the first one goes: it stays.
    apply_each(&mut fleet, [put_endpoint("web-9", 2, 256, "10.200.2.99"), remove_endpoint("web-1")]);
    settle(&mut fleet, "n2", &mut two);
    assert_eq!(two.names(ResourceType::Shaping), ["batch"]);
    apply_each(&mut fleet, [remove_endpoint("web-9")]);
    settle(&mut fleet, "n2", &mut two);
    assert!(two.names(ResourceType::Shaping).is_empty());
}

#[test]
fn labels_that_make_no_identity_keep_no_shaping_from_a_node() {
    let is =
        |key: &str, value: &str| Requirement::In { key: key.to_owned(), values: [value.to_owned()].into() };
    let absent = |key: &str| Requirement::DoesNotExist { key: key.to_owned() };
    let mut fleet = web_and_api();
    let of = |requirements: Vec<Requirement>| Shaped::Endpoints(Selector::new(requirements));
    apply_each(
        &mut fleet,
        [
            put_shaping("a-build", of(vec![is("app", "web"), is("build", "7")]), 1_000_000),
            put_shaping("b-any-build", of(vec![absent("build"), is("commit", "c0ffee")]), 1_000_000),
            put_shaping("c-tier", of(vec![is("app", "web"), is("tier", "batch")]), 1_000_000),
        ],
    );
    let mut one = connected(&mut fleet, "n1");
    settle(&mut fleet, "n1", &mut one);
    assert_eq!(one.names(ResourceType::Shaping), ["a-build", "b-any-build"]);
    // By another configuration, `tier` makes no identity.
    let mut config = crate::fleet_config::default();
    config.identity_labels =
        Some(v1::IdentityLabels { include: vec!["app".to_owned()], exclude: Vec::new() });
    apply_each(&mut fleet, [Change::Config(Some(config))]);
    settle(&mut fleet, "n1", &mut one);
    assert_eq!(one.names(ResourceType::Shaping), ["a-build", "b-any-build", "c-tier"]);
}
