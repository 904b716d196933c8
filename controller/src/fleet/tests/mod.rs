//! The compiler's first half: whatever happened in between, nodes hold what the final contents say; and who has realised
//! what, when.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use weft_proto::v1;
use weft_shared::policy::model::{Class, Mode, Peer, Requirement, Rule, RuleAction, Selector, Subject, Tier};

use super::*;
use crate::limits;

mod health;
mod histories;
mod selected;
mod services;

// ---- Words for fleets ----

fn labels(app: &str) -> Labels {
    Labels::from([("app".to_owned(), app.to_owned())])
}

fn selector(app: &str) -> Selector {
    Selector::new([Requirement::In { key: "app".to_owned(), values: BTreeSet::from([app.to_owned()]) }])
}

fn policy(name: &str, subject: Selector, action: RuleAction, peer: Peer) -> Policy {
    let rule = Rule { name: "0".to_owned(), action, peers: Some(vec![peer]), ports: None };
    Policy {
        name: name.to_owned(),
        tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(subject),
        ingress: Some(vec![rule]),
        egress: None,
    }
}

fn put_policy(policy: Policy) -> Change {
    Change::Policy { name: policy.name.clone(), policy: Some(policy) }
}

fn api_from_web() -> Change {
    put_policy(policy("api-from-web", selector("api"), RuleAction::Allow, Peer::Endpoints(selector("web"))))
}

fn put_node(number: u8) -> Change {
    put_node_as(number, 0)
}

fn put_node_as(number: u8, identity: u32) -> Change {
    let facts = NodeFacts {
        addresses: vec![format!("192.0.2.{number}")],
        endpoint_cidrs: vec![format!("10.200.{number}.0/24")],
        identity,
        controller: String::new(),
        snat_ports: None,
    };
    Change::Node { name: format!("n{number}"), facts: Some(facts) }
}

fn put_identity(number: u32, app: &str) -> Change {
    Change::Identity { number, labels: Some(labels(app)) }
}

fn put_endpoint(name: &str, node: u8, identity: u32, address: &str) -> Change {
    let facts = EndpointFacts {
        node: format!("n{node}"),
        identity,
        addresses: vec![address.parse().unwrap()],
        uid: format!("uid of {name}"),
        instance: String::new(),
        ready: false,
        report: Digest::default(),
    };
    Change::Endpoint { name: name.to_owned(), facts: Some(facts) }
}

fn remove_endpoint(name: &str) -> Change {
    Change::Endpoint { name: name.to_owned(), facts: None }
}

fn config() -> Change {
    Change::Config(Some(crate::fleet_config::default()))
}

/// Changes with revisions of their own.
fn apply_each(fleet: &mut Fleet, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        fleet.apply(fleet.revision() + 1, Duration::ZERO, vec![change]);
    }
}

type Held = BTreeMap<(ResourceType, String), Vec<u8>>;

/// What a node holds, and the deltas that it has not acknowledged.
#[derive(Debug, Default)]
struct Holder {
    held: Held,
    unacknowledged: Vec<u64>,
}

impl Holder {
    fn take(&mut self, delta: &Delta) {
        if delta.full {
            self.held.clear();
        }
        let mut named = BTreeSet::new();
        for resource in &delta.upserts {
            let name = (resource.key.kind, resource.key.name.to_string());
            assert!(named.insert(name.clone()), "{name:?} is in the delta twice");
            self.held.insert(name, resource.bytes.to_vec());
        }
        for key in &delta.removes {
            let name = (key.kind, key.name.to_string());
            assert!(named.insert(name.clone()), "{name:?} is in the delta twice");
            assert!(self.held.remove(&name).is_some(), "{name:?} is removed and was not held");
        }
        self.unacknowledged.push(delta.nonce);
    }

    fn names(&self, kind: ResourceType) -> Vec<&str> {
        self.held.keys().filter(|(held, _)| *held == kind).map(|(_, name)| name.as_str()).collect()
    }
}

/// Drains and acknowledges until nothing is left.
fn settle(fleet: &mut Fleet, node: &str, holder: &mut Holder) {
    loop {
        for nonce in std::mem::take(&mut holder.unacknowledged) {
            fleet.acknowledge(node, nonce, Vec::new());
        }
        match fleet.drain(node) {
            Some(delta) => holder.take(&delta),
            None => return,
        }
    }
}

fn connected(fleet: &mut Fleet, node: &str) -> Holder {
    let mut holder = Holder::default();
    fleet.connect(node, None);
    settle(fleet, node, &mut holder);
    holder
}

// ---- Scope ----

fn web_and_api() -> Fleet {
    let mut fleet = Fleet::default();
    apply_each(
        &mut fleet,
        [
            config(),
            put_node(1),
            put_node(2),
            put_node(3),
            put_identity(256, "web"),
            put_identity(257, "api"),
            put_endpoint("web-1", 1, 256, "10.200.1.5"),
            put_endpoint("api-1", 2, 257, "10.200.2.5"),
        ],
    );
    fleet
}

#[test]
fn a_node_is_sent_only_what_its_own_endpoints_need() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [api_from_web()]);

    let (web, api, idle) =
        (connected(&mut fleet, "n1"), connected(&mut fleet, "n2"), connected(&mut fleet, "n3"));

    assert_eq!(api.names(ResourceType::Policy), ["api-from-web"]);
    assert_eq!(api.names(ResourceType::Address), ["10.200.1.5"]);
    assert_eq!(api.names(ResourceType::IdentitySetMember).len(), 2, "its own in the subject, and web's");
    assert_eq!(api.names(ResourceType::Endpoint), ["api-1"]);
    assert_eq!(web.names(ResourceType::Policy), Vec::<&str>::new());
    assert_eq!(web.names(ResourceType::Address), Vec::<&str>::new());
    assert_eq!(idle.names(ResourceType::Node), ["n1", "n2", "n3"]);
    assert_eq!(idle.names(ResourceType::Fleet), ["fleet"]);
    assert_eq!(idle.held.len(), 4);
}

#[test]
fn an_endpoint_of_a_known_identity_costs_one_address() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [api_from_web()]);
    connected(&mut fleet, "n2");

    apply_each(&mut fleet, [put_endpoint("web-2", 1, 256, "10.200.1.6")]);

    let delta = fleet.drain("n2").unwrap();
    let names: Vec<&str> = delta.upserts.iter().map(|resource| &*resource.key.name).collect();
    assert_eq!((names, delta.removes), (vec!["10.200.1.6"], vec![]));
}

#[test]
fn a_policy_concerns_only_nodes_that_host_its_subjects() {
    let mut fleet = web_and_api();
    connected(&mut fleet, "n1");
    connected(&mut fleet, "n2");
    fleet.take_news();

    apply_each(&mut fleet, [api_from_web()]);

    assert_eq!(fleet.take_news(), ["n2"]);
    assert_eq!(fleet.realised("n1"), fleet.revision(), "nothing is pending there");
    assert_eq!(fleet.realised("n2"), fleet.revision() - 1);
}

#[test]
fn a_node_whose_policy_denies_by_labels_is_sent_every_used_address() {
    let mut fleet = web_and_api();
    let node_fleet = |holder: &Holder| {
        let bytes = &holder.held[&(ResourceType::Fleet, "fleet".to_owned())];
        <v1::NodeFleet as prost::Message>::decode(&**bytes).unwrap().unknown_pool_address()
    };
    let mut api = connected(&mut fleet, "n2");
    assert_eq!(node_fleet(&api), v1::Entity::Fleet);

    let deny = Peer::Endpoints(selector("db"));
    apply_each(&mut fleet, [put_policy(policy("no-db", selector("api"), RuleAction::Deny, deny))]);
    settle(&mut fleet, "n2", &mut api);
    assert_eq!(node_fleet(&api), v1::Entity::Unmanaged);
    assert_eq!(api.names(ResourceType::Address), ["10.200.1.5", "10.200.2.5"]);

    apply_each(&mut fleet, [Change::Policy { name: "no-db".to_owned(), policy: None }]);
    settle(&mut fleet, "n2", &mut api);
    assert_eq!(node_fleet(&api), v1::Entity::Fleet);
    assert_eq!(api.names(ResourceType::Address), Vec::<&str>::new());
}

#[test]
fn a_resource_is_encoded_once_for_all_nodes() {
    let mut fleet = web_and_api();
    connected(&mut fleet, "n1");
    connected(&mut fleet, "n2");
    apply_each(&mut fleet, [put_node(4)]);
    let (first, second) = (fleet.drain("n1").unwrap(), fleet.drain("n2").unwrap());
    assert_eq!(first.upserts[0].bytes.as_ptr(), second.upserts[0].bytes.as_ptr());
}

// ---- Pending, acknowledged, realised ----

#[test]
fn what_changes_and_changes_back_while_a_node_lags_is_not_sent() {
    let mut fleet = web_and_api();
    connected(&mut fleet, "n2");
    apply_each(
        &mut fleet,
        [api_from_web(), Change::Policy { name: "api-from-web".to_owned(), policy: None }],
    );
    assert!(fleet.drain("n2").is_none());
    assert_eq!(fleet.realised("n2"), fleet.revision());
}

#[test]
fn a_node_that_does_not_acknowledge_is_sent_four_deltas_and_then_one_with_the_rest() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [api_from_web()]);
    let mut api = connected(&mut fleet, "n2");
    let mut sent = 0;
    for number in 10..60 {
        let address = format!("10.200.1.{number}");
        apply_each(&mut fleet, [put_endpoint(&format!("web-{number}"), 1, 256, &address)]);
        if let Some(delta) = fleet.drain("n2") {
            api.take(&delta);
            sent += 1;
        }
    }
    assert_eq!(sent, limits::UNACKNOWLEDGED_DELTAS_MAX);
    let first = api.unacknowledged.remove(0);
    assert!(fleet.acknowledge("n2", first, Vec::new()));
    let rest = fleet.drain("n2").unwrap();
    assert_eq!(rest.upserts.len(), 50 - sent);
}

#[test]
fn memory_is_bounded_by_resources_while_a_node_takes_nothing() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [api_from_web()]);
    connected(&mut fleet, "n2");
    let before = fleet.index.resources.keys();
    for round in 0..5_000_u32 {
        let name = format!("brief-{round}");
        let address = format!("10.201.{}.{}", round / 250, round % 250);
        apply_each(&mut fleet, [put_endpoint(&name, 1, 256, &address), remove_endpoint(&name)]);
    }
    assert_eq!(fleet.index.resources.keys(), before);
    assert!(fleet.drain("n2").is_none());
}

#[test]
fn the_realised_revision_stops_below_what_was_rejected_until_it_is_realised() {
    let mut fleet = web_and_api();
    connected(&mut fleet, "n2");
    apply_each(&mut fleet, [api_from_web()]);
    let rejected_at = fleet.revision();
    let delta = fleet.drain("n2").unwrap();
    let rejected = vec![(ResourceType::Policy, "api-from-web".to_owned(), "too large".to_owned())];
    fleet.acknowledge("n2", delta.nonce, rejected);
    apply_each(&mut fleet, [put_identity(300, "other")]);
    assert_eq!(fleet.realised("n2"), rejected_at - 1);
    assert_eq!(fleet.rejections("n2")[0].reason, "too large");

    apply_each(&mut fleet, [Change::Policy { name: "api-from-web".to_owned(), policy: None }]);
    let delta = fleet.drain("n2").unwrap();
    fleet.acknowledge("n2", delta.nonce, Vec::new());
    assert_eq!(fleet.realised("n2"), fleet.revision());
}

#[test]
fn what_was_not_acknowledged_is_not_realised_after_the_connection_is_lost() {
    let mut fleet = web_and_api();
    connected(&mut fleet, "n2");
    apply_each(&mut fleet, [api_from_web()]);
    let before = fleet.revision() - 1;
    fleet.drain("n2").unwrap();
    fleet.disconnect("n2");
    assert_eq!(fleet.realised("n2"), before);
    fleet.connect("n2", None);
    assert!(fleet.realised("n2") <= before);
    assert!(fleet.drain("n2").unwrap().full);
}

#[test]
fn a_node_without_other_news_is_told_of_new_identities_once() {
    let mut fleet = web_and_api();
    let mut idle = connected(&mut fleet, "n3");
    assert!(fleet.drain_identities_through("n3").is_none());
    apply_each(&mut fleet, [put_identity(258, "db")]);
    assert!(fleet.drain("n3").is_none());
    let delta = fleet.drain_identities_through("n3").unwrap();
    assert_eq!((delta.identities_through, delta.upserts.len()), (258, 0));
    assert!(fleet.drain_identities_through("n3").is_none());
    idle.take(&delta);
    settle(&mut fleet, "n3", &mut idle);
    assert_eq!(fleet.realised("n3"), fleet.revision());
}

// ---- Opening ----

fn is_open(holder: &Holder, endpoint: &str) -> bool {
    let bytes = &holder.held[&(ResourceType::Endpoint, endpoint.to_owned())];
    <v1::NodeEndpoint as prost::Message>::decode(&**bytes).unwrap().open
}

/// api's node is connected and has not acknowledged that web-2 is there.
fn opening() -> (Fleet, Holder, Delta) {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [api_from_web()]);
    let (mut web, _) = (connected(&mut fleet, "n1"), connected(&mut fleet, "n2"));
    apply_each(&mut fleet, [put_endpoint("web-2", 1, 256, "10.200.1.6")]);
    settle(&mut fleet, "n1", &mut web);
    assert!(!is_open(&web, "web-2"));
    let told = fleet.drain("n2").unwrap();
    (fleet, web, told)
}

#[test]
fn an_endpoint_opens_when_the_nodes_that_must_know_it_have_acknowledged() {
    let (mut fleet, mut web, told) = opening();
    fleet.acknowledge("n2", told.nonce, Vec::new());
    settle(&mut fleet, "n1", &mut web);
    assert!(is_open(&web, "web-2"));
}

#[test]
fn an_endpoint_does_not_wait_for_what_a_node_has_rejected() {
    let mut fleet = web_and_api();
    apply_each(&mut fleet, [api_from_web()]);
    let mut web = connected(&mut fleet, "n1");
    fleet.connect("n2", None);
    let first = fleet.drain("n2").unwrap();
    let rejected = vec![(ResourceType::Policy, "api-from-web".to_owned(), "too large".to_owned())];
    fleet.acknowledge("n2", first.nonce, rejected);
    apply_each(&mut fleet, [put_endpoint("web-2", 1, 256, "10.200.1.6")]);
    let told = fleet.drain("n2").unwrap();
    fleet.acknowledge("n2", told.nonce, Vec::new());
    settle(&mut fleet, "n1", &mut web);
    assert!(is_open(&web, "web-2"));
}

#[test]
fn an_endpoint_opens_when_its_hold_has_passed() {
    let (mut fleet, mut web, _) = opening();
    let deadline = fleet.next_deadline().unwrap();
    fleet.tick(deadline.saturating_sub(Duration::from_millis(1)));
    settle(&mut fleet, "n1", &mut web);
    assert!(!is_open(&web, "web-2"));
    fleet.tick(deadline);
    settle(&mut fleet, "n1", &mut web);
    assert!(is_open(&web, "web-2"));
    assert_eq!(fleet.next_deadline(), None);
}

#[test]
fn an_endpoint_does_not_wait_for_a_node_that_is_gone() {
    let (mut fleet, mut web, _) = opening();
    fleet.disconnect("n2");
    settle(&mut fleet, "n1", &mut web);
    assert!(is_open(&web, "web-2"));
}

#[test]
fn an_endpoint_that_nobody_must_know_is_open_at_once() {
    let mut fleet = web_and_api();
    assert!(is_open(&connected(&mut fleet, "n1"), "web-1"));
}
