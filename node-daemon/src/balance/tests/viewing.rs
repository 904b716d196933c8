use weft_proto::v1::BackendState::{Active, Maintenance, Quarantined, Terminating};

use super::*;
use crate::balance::{
    sources::Numbers,
    view::{Scope, shares},
};

/// Backends with slots, and those without, by the last part of their addresses, in one scope of the IPv4 table.
fn takers(sent: &v1::NodeService, wanted: Scope) -> (Vec<String>, Vec<String>) {
    let shares = shares(&parse(sent), &here(), Numbers::default());
    let share =
        shares.iter().find(|share| share.references.iter().any(|(_, scope)| *scope == wanted)).unwrap();
    let backends = share.table.backends().iter();
    let (taking, staying): (Vec<_>, Vec<_>) = backends.partition(|backend| backend.new_flows);
    let last = |backend: &weft_shared::balance::table::Backend| {
        backend.address.to_string().rsplit('.').next().unwrap().to_owned()
    };
    (taking.into_iter().map(last).collect(), staying.into_iter().map(last).collect())
}

fn of_states(states: &[v1::BackendState]) -> v1::NodeService {
    let mut service = sent(&[("10.96.0.1", 80)], &[]);
    let backends = (1..).zip(states).map(|(last, state)| backend(&format!("10.0.0.{last}"), *state));
    service.backends = backends.collect();
    service
}

#[test]
fn those_that_are_active_take_new_flows_and_those_that_end_keep_theirs() {
    let states = of_states(&[Active, Terminating, Quarantined, Maintenance, Active]);
    assert_eq!(takers(&states, Scope::Inside), (texts(&["1", "5"]), texts(&["2", "4"])));
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn if_none_is_active_all_that_are_quarantined_take_flows_and_no_other() {
    let states = of_states(&[Quarantined, Terminating, Quarantined, Maintenance]);
    assert_eq!(takers(&states, Scope::Outside), (texts(&["1", "3"]), texts(&["2", "4"])));
    assert_eq!(takers(&of_states(&[Terminating, Maintenance]), Scope::Inside).0, texts(&[]));
    assert_eq!(takers(&of_states(&[]), Scope::Inside), (texts(&[]), texts(&[])));
}

#[test]
fn a_local_policy_leaves_the_nodes_own_backends_in_its_scope() {
    let mut service = sent(&[("10.96.0.1", 80)], &["10.0.0.1@n1", "10.0.0.2@n2", "10.0.0.3"]);
    assert_eq!(shares(&parse(&service), &here(), Numbers::default()).len(), 1, "both scopes are alike");
    service.external_traffic_policy = v1::TrafficPolicy::Local.into();
    assert_eq!(takers(&service, Scope::Inside).0, texts(&["1", "2", "3"]));
    assert_eq!(takers(&service, Scope::Outside), (texts(&["1"]), texts(&[])));
    service.internal_traffic_policy = v1::TrafficPolicy::Local.into();
    assert_eq!(takers(&service, Scope::Inside), (texts(&["1"]), texts(&[])));
    service.backends[0].state = Quarantined.into();
    assert_eq!(takers(&service, Scope::Inside).0, texts(&["1"]), "better than nobody");
}

#[test]
fn flows_that_begin_here_prefer_backends_of_the_same_topology() {
    let mut service =
        sent(&[("10.96.0.1", 80)], &["10.0.0.1@n2/a", "10.0.0.2@n3/b", "10.0.0.3", "10.0.0.4@n4/a"]);
    service.topology_label = "zone".to_owned();
    assert_eq!(takers(&service, Scope::Inside), (texts(&["1", "4"]), texts(&["2", "3"])));
    assert_eq!(takers(&service, Scope::Outside).0, texts(&["1", "2", "3", "4"]));
    for index in [0, 3] {
        service.backends[index].state = Quarantined.into();
    }
    assert_eq!(takers(&service, Scope::Inside).0, texts(&["2", "3"]), "healthy before near");
    service.topology_label = "rack".to_owned();
    service.backends[0].state = Active.into();
    assert_eq!(takers(&service, Scope::Inside).0, texts(&["1", "2", "3"]), "this node has no such label");
}

#[test]
fn each_family_has_its_table_and_a_node_port_has_both() {
    let both = parse(&sent(&[("", 30_080), ("fd96::1", 80)], &["10.0.0.1", "fd00::1", "fd00::2"]));
    let shares = shares(&both, &here(), Numbers::default());
    let counts: Vec<_> =
        shares.iter().map(|share| (share.table.backends().len(), share.references.len())).collect();
    assert_eq!(counts, [(1, 2), (2, 4)]);
    let only_v4 = parse(&sent(&[("10.96.0.1", 80)], &["fd00::1"]));
    let shares = view::shares(&only_v4, &here(), Numbers::default());
    assert_eq!((shares.len(), shares[0].table.backends().len()), (1, 0), "it rejects");
}

#[test]
fn the_node_is_let_in_if_all_by_which_the_fleet_knows_it_are_listed_or_none_that_it_has_is_denied() {
    use v1::source_ranges::Action::{Allow, Deny};
    let lets_in = |action: v1::source_ranges::Action, cidrs: &[&str], own: &Addresses| {
        let source_ranges = Some(v1::SourceRanges { action: action.into(), cidrs: texts(cidrs) });
        let service = parse(&v1::NodeService { source_ranges, ..sent(&[], &[]) });
        let sources = service.sources.unwrap();
        [true, false].map(|v4| sources.of_family(v4, Numbers::default(), own).node)
    };
    for (action, cidrs, expected) in [
        (Allow, &["192.0.2.0/24", "2001:db8::/32"][..], [true, true]),
        (Allow, &["192.0.2.0/25"], [false, false]),
        (Allow, &["192.0.2.1/32", "192.0.2.200/32"], [true, false]),
        (Allow, &["172.17.0.0/16"], [false, false]),
        (Deny, &["198.51.100.0/24"], [true, true]),
        (Deny, &["192.0.2.200/32"], [false, true]),
        (Deny, &["172.17.0.0/16"], [false, true]),
        (Deny, &["2001:db8::1/128"], [true, false]),
    ] {
        assert_eq!(lets_in(action, cidrs, &here().addresses), expected, "{action:?} {cidrs:?}");
    }
    for action in [Allow, Deny] {
        let own = Addresses::default();
        assert_eq!(lets_in(action, &["192.0.2.0/24"], &own), [false, false], "it has no address");
    }
}
