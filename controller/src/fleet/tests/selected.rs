//! Nodes as subjects and peers, CIDR sets, what every node is told, and identities that nobody bears.
use weft_shared::policy::{
    model::{CidrSet, CidrSetSelector, Failsafe},
    wire,
};

use super::*;

fn put_node_identity(number: u32, role: &str) -> Change {
    let labels = crate::identity::of_node(&labels(role));
    Change::Identity { number, labels: Some(labels) }
}

fn put_cidr_set(name: &str, kind: &str, cidr: &str) -> Change {
    let set = CidrSet { name: name.to_owned(), labels: labels(kind), cidrs: vec![cidr.parse().unwrap()] };
    Change::CidrSet { name: name.to_owned(), set: Some(set) }
}

/// n1 is a gateway and hosts web, n2 is none and hosts api.
fn gateways() -> Fleet {
    let mut fleet = web_and_api();
    apply_each(
        &mut fleet,
        [
            put_node_identity(300, "gateway"),
            put_node_identity(301, "plain"),
            put_node_as(1, 300),
            put_node_as(2, 301),
        ],
    );
    fleet
}

#[test]
fn a_host_policy_goes_to_the_nodes_that_it_selects_with_the_members_of_its_peers() {
    let mut fleet = gateways();
    let mut host =
        policy("gateways", selector("gateway"), RuleAction::Allow, Peer::Nodes(Selector::default()));
    host.subject = Subject::Nodes(selector("gateway"));
    apply_each(&mut fleet, [put_policy(host)]);
    let (mut gateway, mut plain) = (connected(&mut fleet, "n1"), connected(&mut fleet, "n2"));
    assert_eq!(gateway.names(ResourceType::Policy), ["gateways"]);
    let members = gateway.names(ResourceType::IdentitySetMember);
    assert_eq!(members.len(), 3, "its own in the subject, and both nodes' as peers: {members:?}");
    assert!(members.iter().all(|name| name.starts_with("nodes-")), "{members:?}");
    assert_eq!(plain.names(ResourceType::Policy), Vec::<&str>::new());

    // Relabelled, the other one is selected, too.
    apply_each(&mut fleet, [put_node_as(2, 300)]);
    settle(&mut fleet, "n2", &mut plain);
    assert_eq!(plain.names(ResourceType::Policy), ["gateways"]);
    apply_each(&mut fleet, [put_node_as(1, 301)]);
    settle(&mut fleet, "n1", &mut gateway);
    assert_eq!(gateway.names(ResourceType::Policy), Vec::<&str>::new());
}

#[test]
fn selectors_of_endpoints_select_no_nodes_and_selectors_of_nodes_no_endpoints() {
    let mut fleet = gateways();
    let peers = [Peer::Endpoints(Selector::default()), Peer::Nodes(Selector::default())];
    let [endpoints, nodes] = peers.map(|peer| policy("all", selector("api"), RuleAction::Allow, peer));
    let peers_of = |fleet: &mut Fleet, policy: Policy| {
        apply_each(fleet, [put_policy(policy)]);
        let holder = connected(fleet, "n2");
        let names = holder.names(ResourceType::IdentitySetMember).into_iter();
        let numbers = names.filter_map(|name| name.rsplit_once('/')?.1.parse().ok());
        numbers.collect::<BTreeSet<u32>>()
    };
    assert_eq!(peers_of(&mut fleet, endpoints), [256, 257].into());
    assert_eq!(peers_of(&mut fleet, nodes), [257, 300, 301].into(), "257 is the subject");
}

#[test]
fn a_cidr_set_goes_to_nodes_whose_policies_mean_it_and_a_change_of_it_alone_is_sent() {
    let mut fleet = web_and_api();
    let by_label = Peer::CidrSet(CidrSetSelector::MatchLabels(labels("partner")));
    apply_each(
        &mut fleet,
        [
            put_cidr_set("one", "partner", "198.51.100.0/24"),
            put_cidr_set("other", "scanner", "203.0.113.0/24"),
            put_policy(policy("from-partners", selector("api"), RuleAction::Allow, by_label)),
        ],
    );
    let (mut api, web) = (connected(&mut fleet, "n2"), connected(&mut fleet, "n1"));
    assert_eq!(api.names(ResourceType::CidrSet), ["one"]);
    assert_eq!(web.names(ResourceType::CidrSet), Vec::<&str>::new());

    apply_each(&mut fleet, [put_cidr_set("one", "partner", "198.51.0.0/16")]);
    let delta = fleet.drain("n2").unwrap();
    let names: Vec<&str> = delta.upserts.iter().map(|resource| &*resource.key.name).collect();
    assert_eq!(names, ["one"], "the policy is as it was");
    api.take(&delta);

    // A set that gets the label later is meant from then on.
    apply_each(&mut fleet, [put_cidr_set("other", "partner", "203.0.113.0/24")]);
    settle(&mut fleet, "n2", &mut api);
    assert_eq!(api.names(ResourceType::CidrSet), ["one", "other"]);
    let bytes = &api.held[&(ResourceType::Policy, "from-partners".to_owned())];
    let sent = <v1::NodePolicy as prost::Message>::decode(&**bytes).unwrap();
    let peers = sent.ingress.unwrap().items[0].peers.clone().unwrap();
    let sets = v1::NodeCidrSets { names: vec!["one".to_owned(), "other".to_owned()] };
    assert_eq!(peers.items[0].peer, Some(v1::node_peer::Peer::CidrSets(sets)));

    apply_each(&mut fleet, [Change::CidrSet { name: "one".to_owned(), set: None }]);
    settle(&mut fleet, "n2", &mut api);
    assert_eq!(api.names(ResourceType::CidrSet), ["other"]);
}

#[test]
fn nodes_are_told_of_the_failsafe_entries_and_of_what_is_judged() {
    let mut fleet = web_and_api();
    let node_fleet = |holder: &Holder| {
        let bytes = &holder.held[&(ResourceType::Fleet, "fleet".to_owned())];
        <v1::NodeFleet as prost::Message>::decode(&**bytes).unwrap()
    };
    let mut holder = connected(&mut fleet, "n1");
    assert_eq!(node_fleet(&holder).failsafe, wire::failsafe_to_node(&Failsafe::defaults()));
    let config = v1::FleetConfig {
        failsafe: Some(v1::FailsafeList::default()),
        host_to_endpoint: v1::HostToEndpoint::Policy.into(),
        ..crate::fleet_config::default()
    };
    apply_each(&mut fleet, [Change::Config(Some(config))]);
    settle(&mut fleet, "n1", &mut holder);
    let sent = node_fleet(&holder);
    assert_eq!((sent.failsafe.len(), sent.host_to_endpoint()), (0, v1::HostToEndpoint::Policy));
}

#[test]
fn identities_that_nobody_bears_are_those_of_no_endpoint_and_no_node() {
    let mut fleet = gateways();
    apply_each(&mut fleet, [put_identity(258, "db"), put_node_identity(302, "old")]);
    let unused =
        |fleet: &Fleet| fleet.identities_without_bearer().map(|(number, _)| number).collect::<Vec<_>>();
    assert_eq!(unused(&fleet), [258, 302]);
    apply_each(&mut fleet, [put_endpoint("db-1", 1, 258, "10.200.1.9"), put_node_as(3, 302)]);
    assert_eq!(unused(&fleet), Vec::<u32>::new());
    apply_each(&mut fleet, [remove_endpoint("db-1"), Change::Node { name: "n3".to_owned(), facts: None }]);
    assert_eq!(unused(&fleet), [258, 302]);
}
