//! Probes: who probes which backend, and what their words make of it.
use weft_shared::service::model::{Backend, BackendState, HealthCheck, Service};

use super::{
    services::{listed, listing, put_service, ready, selecting},
    *,
};

pub(super) fn check() -> HealthCheck {
    HealthCheck {
        interval_milliseconds: 1000,
        timeout_milliseconds: 500,
        unhealthy_after: 3,
        healthy_after: 2,
        http: None,
    }
}

fn checked(service: Service) -> Service {
    Service { health_check: Some(check()), ..service }
}

/// What a node says of backends, by their addresses, and whether they are healthy; `None`: no more.
pub(super) fn said<'a>(
    node: u8,
    service: &str,
    words: Option<impl Iterator<Item = (&'a str, bool)>>,
) -> Change {
    let words = words.map(|words| {
        let word = |healthy| Word { healthy, since: None, error: String::new() };
        words.map(|(address, healthy)| ((address.parse().unwrap(), None), word(healthy))).collect()
    });
    Change::Health { node: format!("n{node}"), service: service.to_owned(), words }
}

fn says(node: u8, service: &str, words: &[(&str, bool)]) -> Change {
    said(node, service, Some(words.iter().copied()))
}

/// The state of each backend, as nodes are told.
fn states(fleet: &mut Fleet, holder: &mut Holder, service: &str) -> Vec<(String, v1::BackendState)> {
    settle(fleet, "n3", holder);
    let backends = told(holder, service).backends.into_iter();
    backends.map(|backend| (backend.address.clone(), backend.state())).collect()
}

fn told(holder: &Holder, name: &str) -> v1::NodeService {
    let bytes = &holder.held[&(ResourceType::Service, name.to_owned())];
    <v1::NodeService as prost::Message>::decode(&**bytes).unwrap()
}

const ACTIVE: v1::BackendState = v1::BackendState::Active;
const QUARANTINED: v1::BackendState = v1::BackendState::Quarantined;

#[test]
fn a_backend_that_its_own_node_finds_broken_is_quarantined_until_it_answers() {
    let mut fleet = web_and_api();
    let (one, two) = ("10.200.1.9", "10.200.2.5");
    let changes = [
        put_service(checked(selecting("api", selector("api")))),
        ready(put_endpoint("api-1", 2, 257, two)),
        ready(put_endpoint("api-2", 1, 257, one)),
    ];
    apply_each(&mut fleet, changes);
    let mut node = connected(&mut fleet, "n3");
    let mut after = |fleet: &mut Fleet, change: Change| {
        apply_each(fleet, [change]);
        states(fleet, &mut node, "api").into_iter().map(|(_, state)| state).collect::<Vec<_>>()
    };
    assert_eq!(after(&mut fleet, config()), [ACTIVE, ACTIVE], "nobody knows, so both answer");
    assert_eq!(after(&mut fleet, says(1, "api", &[(one, true)])), [ACTIVE, ACTIVE]);
    assert_eq!(after(&mut fleet, says(2, "api", &[(two, false)])), [ACTIVE, QUARANTINED]);
    // What is not its own, or of another service, does not count.
    assert_eq!(after(&mut fleet, says(3, "api", &[(one, false), (two, true)])), [ACTIVE, QUARANTINED]);
    assert_eq!(after(&mut fleet, says(1, "web", &[(one, false)])), [ACTIVE, QUARANTINED]);
    assert_eq!(after(&mut fleet, says(1, "api", &[(one, false)])), [QUARANTINED, QUARANTINED]);
    assert_eq!(after(&mut fleet, says(2, "api", &[(two, true)])), [QUARANTINED, ACTIVE]);
    // It moves: the node where it was says nothing of it any more.
    assert_eq!(
        after(&mut fleet, ready(put_endpoint("api-2", 3, 257, one))),
        [QUARANTINED, ACTIVE],
        "n3 has said so"
    );
    assert_eq!(after(&mut fleet, said(3, "api", None::<std::iter::Empty<_>>)), [ACTIVE, ACTIVE]);
    assert_eq!(after(&mut fleet, says(3, "api", &[(one, false)])), [QUARANTINED, ACTIVE]);
    // Without a check nothing of it matters.
    assert_eq!(after(&mut fleet, put_service(selecting("api", selector("api")))), [ACTIVE, ACTIVE]);
}

#[test]
fn what_an_operator_has_taken_out_probes_do_not_bring_back() {
    let mut fleet = web_and_api();
    let in_state = |address, state| Backend { state, ..listed(address, 1) };
    let list = vec![
        in_state("203.0.113.5", BackendState::Maintenance),
        in_state("203.0.113.6", BackendState::Quarantined),
        in_state("203.0.113.7", BackendState::Terminating),
    ];
    apply_each(&mut fleet, [put_service(checked(listing("out", list)))]);
    let mut node = connected(&mut fleet, "n3");
    let before = states(&mut fleet, &mut node, "out");
    let all: Vec<&str> = before.iter().map(|(address, _)| address.as_str()).collect();
    for healthy in [true, false] {
        let words: Vec<(&str, bool)> = all.iter().map(|address| (*address, healthy)).collect();
        apply_each(&mut fleet, [says(1, "out", &words), says(2, "out", &words), says(3, "out", &words)]);
        assert_eq!(states(&mut fleet, &mut node, "out"), before);
    }
}

#[test]
fn outside_of_the_fleet_those_who_were_chosen_decide_and_more_must_find_it_broken_than_not() {
    let mut fleet = web_and_api();
    let outside = "203.0.113.5";
    let more = (4..=9).map(put_node);
    apply_each(&mut fleet, more.chain([put_service(checked(listing("out", vec![listed(outside, 1)])))]));
    let mut node = connected(&mut fleet, "n3");
    let probers = told(&node, "out").backends[0].probed_by.clone();
    assert_eq!(probers.len(), 3, "{probers:?}");
    let numbers =
        |probers: &[String]| probers.iter().map(|name| name[1..].parse().unwrap()).collect::<Vec<u8>>();
    let [first, second, third] = numbers(&probers)[..] else { panic!("three") };
    let others: Vec<u8> = (1..=9).filter(|number| ![first, second, third].contains(number)).collect();
    let mut after = |fleet: &mut Fleet, node_number: u8, healthy| {
        apply_each(fleet, [says(node_number, "out", &[(outside, healthy)])]);
        states(fleet, &mut node, "out")[0].1
    };
    for other in others {
        assert_eq!(after(&mut fleet, other, false), ACTIVE, "n{other} was not chosen");
    }
    assert_eq!(after(&mut fleet, first, true), ACTIVE);
    assert_eq!(after(&mut fleet, second, false), ACTIVE, "as many");
    assert_eq!(after(&mut fleet, third, false), QUARANTINED);
    assert_eq!(after(&mut fleet, second, true), ACTIVE);
    assert_eq!(after(&mut fleet, second, false), QUARANTINED);

    // One that is away is not asked: another one probes, which found it broken, too.
    apply_each(&mut fleet, [Change::Away { node: format!("n{first}"), away: true }]);
    settle(&mut fleet, "n3", &mut node);
    let chosen = told(&node, "out").backends[0].probed_by.clone();
    assert!(chosen.len() == 3 && !chosen.contains(&format!("n{first}")), "{chosen:?}");
    apply_each(&mut fleet, [Change::Away { node: format!("n{first}"), away: false }]);
    settle(&mut fleet, "n3", &mut node);
    assert_eq!(told(&node, "out").backends[0].probed_by, probers, "as before");
}

#[test]
fn a_word_that_changes_nothing_for_nodes_is_no_news_for_them() {
    let mut fleet = web_and_api();
    let address = "10.200.2.5";
    apply_each(
        &mut fleet,
        [
            put_service(checked(selecting("api", selector("api")))),
            ready(put_endpoint("api-1", 2, 257, address)),
        ],
    );
    connected(&mut fleet, "n3");
    fleet.take_news();
    apply_each(&mut fleet, [says(2, "api", &[(address, true)]), says(1, "gone", &[(address, false)])]);
    assert_eq!(fleet.take_news(), Vec::<String>::new());
    apply_each(&mut fleet, [says(2, "api", &[(address, false)])]);
    assert_eq!(fleet.take_news(), ["n3"]);
}
