use proptest::{collection::vec, prelude::*};
use weft_shared::layout::maps::SERVICES_MAX;

use super::*;
use crate::balance::sources::Numbers;

fn desired(services: &[(&str, v1::NodeService)]) -> Desired {
    services.iter().map(|(name, sent)| ((*name).to_owned(), Arc::new(parse(sent)))).collect()
}

fn applied(actual: &Services, steps: &[Step]) -> Services {
    let mut after = actual.clone();
    for step in steps {
        after.apply(step);
    }
    after
}

/// What a flow finds.
fn found(services: &Services, key: &FrontendKey, scope: Scope) -> Option<[u64; 2]> {
    let frontend = services.frontends.get(key)?;
    let slot = if scope == Scope::Inside { frontend.inside } else { frontend.outside };
    Some(services.tables.get(&slot).copied().expect("a frontend leads to a table"))
}

#[test]
fn tables_come_before_frontends_and_go_after_them() {
    let mut balancer = Balancer::new(here());
    let one = desired(&[("one", sent(&[("10.96.0.1", 80)], &["10.0.0.1", "10.0.0.2"]))]);
    let plan = balancer.plan(&one, &Services::default(), Sweep::Remove);
    assert!(matches!(plan.steps.as_slice(), [Step::Tables { .. }, Step::Frontend { .. }]), "{plan:?}");
    let actual = applied(&Services::default(), &plan.steps);
    assert_eq!(balancer.plan(&one, &actual, Sweep::Remove), Plan::default(), "nothing is left to do");
    assert_eq!(
        Balancer::new(here()).plan(&one, &actual, Sweep::Remove),
        Plan::default(),
        "nor for another daemon"
    );
    let plan = balancer.plan(&Desired::new(), &actual, Sweep::Remove);
    assert!(
        matches!(plan.steps.as_slice(), [Step::Frontend { frontend: None, .. }, Step::Tables { .. }]),
        "{plan:?}"
    );
    assert_eq!(applied(&actual, &plan.steps), Services::default());
    assert_eq!(balancer.plan(&Desired::new(), &actual, Sweep::Keep), Plan::default());
}

fn with_sources(cidrs: &[&str]) -> v1::NodeService {
    let action = v1::source_ranges::Action::Allow.into();
    let cidrs = cidrs.iter().map(|text| (*text).to_owned()).collect();
    let source_ranges = Some(v1::SourceRanges { action, cidrs });
    v1::NodeService { source_ranges, ..sent(&[("10.96.0.1", 80)], &["10.0.0.1"]) }
}

#[test]
fn a_set_of_sources_is_there_before_the_table_that_names_it_and_goes_after_it() {
    let mut balancer = Balancer::new(here());
    let first = desired(&[("one", with_sources(&["192.0.2.0/24", "2001:db8::/32"]))]);
    let plan = balancer.plan(&first, &Services::default(), Sweep::Remove);
    let [Step::Sources { .. }, Step::Sources { .. }, Step::Tables { .. }, Step::Frontend { .. }] =
        plan.steps.as_slice()
    else {
        panic!("{plan:?}")
    };
    let actual = applied(&Services::default(), &plan.steps);
    assert_eq!(Balancer::new(here()).plan(&first, &actual, Sweep::Remove), Plan::default());

    // Another set has another number, and who shares one shares its number.
    let other = with_sources(&["192.0.2.0/25", "2001:db8::/32"]);
    let mut same = with_sources(&["192.0.2.0/25"]);
    same.frontends[0].port = 81;
    let second = desired(&[("one", other), ("two", same)]);
    let plan = balancer.plan(&second, &actual, Sweep::Remove);
    let numbers: Vec<(u32, bool)> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Sources { number, set } => Some((*number, set.is_some())),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [(3, true), (1, false)], "{plan:?}");
    assert!(matches!(plan.steps.last(), Some(Step::Sources { set: None, .. })), "{plan:?}");
    let kept = applied(&actual, &balancer.plan(&second, &actual, Sweep::Keep).steps);
    assert_eq!(kept.sources.len(), 3);
    let swept = applied(&kept, &balancer.plan(&Desired::new(), &kept, Sweep::Remove).steps);
    assert_eq!(swept, Services::default());
}

#[test]
fn a_service_that_judges_sources_has_another_table_when_the_nodes_addresses_let_it_in() {
    let mut balancer = Balancer::new(Here { addresses: Addresses::default(), ..here() });
    let other = sent(&[("10.96.0.2", 80)], &["10.0.0.1"]);
    let both = desired(&[("judging", with_sources(&["192.0.2.0/24"])), ("other", other)]);
    let plan = balancer.plan(&both, &Services::default(), Sweep::Remove);
    let actual = applied(&Services::default(), &plan.steps);
    balancer.follow_addresses(Addresses::default());
    assert!(balancer.knows(&both));
    balancer.follow_addresses(here().addresses);
    assert!(!balancer.knows(&both));
    let plan = balancer.plan(&both, &actual, Sweep::Remove);
    let [Step::Tables { tables }] = plan.steps.as_slice() else { panic!("{plan:?}") };
    assert_eq!(tables.len(), 1);
}

#[test]
fn a_service_whose_sources_find_no_room_is_told_and_found_by_nobody() {
    let many = |service: u32| {
        let prefix = |number: u32| std::net::Ipv4Addr::from(number << 8 | service).to_string() + "/32";
        let cidrs: Vec<String> = (0..1024).map(prefix).collect();
        let mut sent = with_sources(&cidrs.iter().map(String::as_str).collect::<Vec<_>>());
        sent.frontends[0].port = 80 + service;
        sent
    };
    let services: Vec<(String, v1::NodeService)> =
        (0..129).map(|service| (format!("service-{service:03}"), many(service))).collect();
    let named: Vec<(&str, v1::NodeService)> =
        services.iter().map(|(name, sent)| (name.as_str(), sent.clone())).collect();
    let plan = Balancer::new(here()).plan(&desired(&named), &Services::default(), Sweep::Remove);
    assert!(plan.unrealised.iter().all(|(name, _)| name == "service-128"), "{:?}", plan.unrealised);
    assert!(plan.unrealised.iter().any(|(_, why)| why.contains("source ranges is full")));
    assert_eq!(applied(&Services::default(), &plan.steps).frontends.len(), 128);
}

#[test]
fn a_service_that_changes_keeps_its_slot_and_its_frontends_stay_untouched() {
    let mut balancer = Balancer::new(here());
    let frontends = [("10.96.0.1", 80), ("10.96.0.1", 81)];
    let before = desired(&[("one", sent(&frontends, &["10.0.0.1", "10.0.0.2"]))]);
    let actual =
        applied(&Services::default(), &balancer.plan(&before, &Services::default(), Sweep::Remove).steps);
    let after = desired(&[("one", sent(&frontends, &["10.0.0.1", "10.0.0.3"]))]);
    let plan = balancer.plan(&after, &actual, Sweep::Remove);
    let [Step::Tables { tables }] = plan.steps.as_slice() else { panic!("{plan:?}") };
    assert_eq!(tables.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1]);
}

#[test]
fn of_two_services_with_one_frontend_the_first_has_it_and_the_other_is_told() {
    let mut balancer = Balancer::new(here());
    let both = desired(&[
        ("a", sent(&[("10.96.0.1", 80)], &["10.0.0.1"])),
        ("b", sent(&[("10.96.0.1", 80), ("10.96.0.2", 80)], &["10.0.0.2"])),
    ]);
    let plan = balancer.plan(&both, &Services::default(), Sweep::Remove);
    assert_eq!(plan.unrealised, [("b".to_owned(), "10.96.0.1 port 80 is the service a's".to_owned())]);
    let actual = applied(&Services::default(), &plan.steps);
    assert_eq!((actual.frontends.len(), actual.tables.len()), (2, 2));
    let table = |service: &str| view::shares(&both[service], &here(), Numbers::default())[0].table.digest();
    let key = *view::shares(&both["a"], &here(), Numbers::default())[0].references.first().unwrap();
    assert_eq!(found(&actual, &key.0, key.1), Some(table("a")));
}

#[test]
fn a_service_for_which_no_slot_is_left_is_named_and_the_others_stay() {
    let mut balancer = Balancer::new(here());
    let last = u32::try_from(SERVICES_MAX).unwrap();
    let actual = Services { tables: (1..last).map(|slot| (slot, [7, 7])).collect(), ..Services::default() };
    let one = desired(&[("one", sent(&[("10.96.0.1", 80)], &["10.0.0.1"]))]);
    let plan = balancer.plan(&one, &actual, Sweep::Keep);
    assert_eq!(plan.unrealised, [("one".to_owned(), "the table of services is full".to_owned())]);
    assert_eq!(plan.steps, []);
    let swept = applied(&actual, &balancer.plan(&one, &actual, Sweep::Remove).steps);
    let plan = balancer.plan(&one, &swept, Sweep::Remove);
    assert_eq!((plan.unrealised, applied(&swept, &plan.steps).tables.len()), (vec![], 1));
}

/// A few services that take frontends and backends from one another.
fn fleet() -> impl Strategy<Value = Desired> {
    let places = prop::sample::subsequence(
        vec![("10.96.0.1", 80), ("10.96.0.1", 81), ("fd96::1", 80), ("", 30_080)],
        0..=4,
    );
    let backends = prop::sample::subsequence(
        vec!["10.0.0.1@n1", "10.0.0.2@n2", "10.0.0.3", "fd00::1@n1", "fd00::2"],
        0..=5,
    );
    let service = (places, backends, 0..3_i32).prop_map(|(places, backends, local)| {
        let mut service = sent(&places, &backends);
        let policy = |local| if local { v1::TrafficPolicy::Local } else { v1::TrafficPolicy::Fleet }.into();
        service.internal_traffic_policy = policy(local == 2);
        service.external_traffic_policy = policy(local > 0);
        service
    });
    vec(service, 3).prop_map(|services| {
        let named: Vec<_> = ["a", "b", "c"].into_iter().zip(services).collect();
        desired(&named)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// What a flow to a frontend finds, at whatever moment, is what was before or what is after; and another daemon finds
    /// nothing to do.
    #[test]
    fn no_flow_meets_what_neither_revision_says(fleets in vec(fleet(), 2..5), keep in any::<bool>()) {
        let mut balancer = Balancer::new(here());
        let mut actual = Services::default();
        for fleet in &fleets {
            let sweep = if keep { Sweep::Keep } else { Sweep::Remove };
            let plan = balancer.plan(fleet, &actual, sweep);
            let after = applied(&actual, &plan.steps);
            let keys: Vec<FrontendKey> = actual.frontends.keys().chain(after.frontends.keys()).copied().collect();
            let mut now = actual.clone();
            for step in &plan.steps {
                now.apply(step);
                for (key, scope) in keys.iter().flat_map(|key| Scope::ALL.map(|scope| (key, scope))) {
                    let has = found(&now, key, scope);
                    prop_assert!(
                        has == found(&actual, key, scope) || has == found(&after, key, scope),
                        "{key:?} {scope:?} after {step:?}"
                    );
                }
            }
            prop_assert_eq!(Balancer::new(here()).plan(fleet, &after, sweep).steps, vec![]);
            let fresh = applied(&Services::default(), &Balancer::new(here()).plan(fleet, &Services::default(), Sweep::Remove).steps);
            for (key, scope) in fresh.frontends.keys().flat_map(|key| Scope::ALL.map(|scope| (key, scope))) {
                prop_assert_eq!(found(&after, key, scope), found(&fresh, key, scope));
            }
            if !keep {
                prop_assert_eq!(after.frontends.len(), fresh.frontends.len());
                prop_assert_eq!(after.tables.len(), fresh.tables.len());
            }
            actual = after;
        }
    }
}
