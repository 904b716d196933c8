//! Any tables can become any others; what must hold on the way.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{array, collection::btree_map, option, prelude::*};
use weft_shared::{
    layout::{
        Action, Address, Class, Direction, Endpoint, FIRST_LOCAL_IDENTITY, FailsafeKey, PeerKey, PolicyRow,
        PortKey, PrefixKey, endpoint_flags,
    },
    policy::compile::Rulebook,
};

use super::*;
use crate::plan::{
    tables::{HostRow, NodeRow, SubjectRow},
    who::masked,
};

const FLEET: u32 = Class::Fleet as u32;
const UNMANAGED: u32 = Class::Unmanaged as u32;
const IFINDEXES: std::ops::Range<u32> = 10..14;

fn address() -> impl Strategy<Value = Address> {
    (0_u32..6).prop_map(|last| Address::from_v4((0x0ac8_0000 + last).to_be()))
}

fn peer() -> impl Strategy<Value = Peer> {
    (256_u32..260, prop::sample::select(vec![2_u32, 3]), 0_u32..3, option::of(IFINDEXES)).prop_map(
        |(identity, class, node, ifindex)| Peer { identity, class, node, ifindex: ifindex.unwrap_or(0) },
    )
}

/// What each number stands for, in all tables.
fn library(number: u32) -> Arc<Rulebook> {
    let action = if number.is_multiple_of(2) { Action::Allow } else { Action::Deny };
    Arc::new([(PortKey::EVERYTHING, PolicyRow::of(action, number))].into())
}

fn number() -> std::ops::Range<u32> {
    1..6
}

fn subject_row() -> impl Strategy<Value = SubjectRow> {
    (256_u32..260, array::uniform10(number()))
        .prop_map(|(identity, rulebooks)| SubjectRow { identity, rulebooks })
}

fn peer_rules() -> impl Strategy<Value = BTreeMap<PeerKey, u32>> {
    let identity =
        prop::sample::select(vec![256_u32, 257, 258, FIRST_LOCAL_IDENTITY, FIRST_LOCAL_IDENTITY + 1]);
    let key = (256_u32..260, identity, 1_u32..3).prop_map(|(subject, peer, direction)| PeerKey {
        subject,
        peer,
        direction,
    });
    btree_map(key, number(), 0..8)
}

fn prefixes() -> impl Strategy<Value = BTreeMap<PrefixKey, Peer>> {
    let peer = prop_oneof![
        prop::sample::select(vec![FLEET, UNMANAGED]).prop_map(|class| Peer {
            identity: class,
            class,
            node: 0,
            ifindex: 0
        }),
        (0_u32..3).prop_map(|number| Peer {
            identity: FIRST_LOCAL_IDENTITY + number,
            class: 5,
            node: 0,
            ifindex: 0
        }),
    ];
    let key = (100_u32..128).prop_map(|bits| {
        let whole = Address::from_v4(0x0ac8_0000_u32.to_be());
        PrefixKey { bits, address: masked(whole, bits) }
    });
    btree_map(key, peer, 0..6)
}

fn failsafe() -> impl Strategy<Value = BTreeMap<FailsafeKey, u32>> {
    let key = (prop::bool::ANY, 96_u32..=128, prop::num::u32::ANY).prop_map(|(ingress, bits, address)| {
        let direction = if ingress { Direction::Ingress } else { Direction::Egress };
        let address = masked(Address::from_v4(address.to_be()), bits);
        FailsafeKey::new(direction, PrefixKey { bits, address })
    });
    btree_map(key, 1_u32..6, 0..3)
}

prop_compose! {
    fn tables()(
        subjects in btree_map(1_u32..5, subject_row(), 0..4),
        peer_rules in peer_rules(),
        endpoints in btree_map(IFINDEXES, (0_usize..4, prop::bool::ANY), 0..4),
        ipcache in btree_map(address(), peer(), 0..6),
        prefixes in prefixes(),
        nodes in btree_map(0_u32..4, (address(), 256_u32..260), 0..4),
        node_addresses in btree_map(address(), 0_u32..4, 0..4),
        host in option::of((0_usize..4, prop::bool::ANY)),
        failsafe in failsafe(),
        identities_through in 250_u32..300,
    ) -> Tables {
        let slots: Vec<u32> = subjects.keys().copied().collect();
        let endpoints = endpoints.into_iter().map(|(ifindex, (choice, open))| {
            let subject = slots.get(choice).copied().unwrap_or(0);
            let flags = if open && subject != 0 { endpoint_flags::OPEN } else { 0 };
            let endpoint = Endpoint {
                address4: Address::from_v4(ifindex.to_be()),
                address6: Address::UNSPECIFIED,
                identity: subjects.get(&subject).map_or(0, |row| row.identity),
                subject,
                flags,
                mac: [0; 6],
                gateway_mac: [0; 6],
                ingress_rate: 0, egress_rate: 0, connection_rate: 0, zero: 0,
            };
            (ifindex, endpoint)
        }).collect();
        let nodes = nodes.into_iter().map(|(slot, (address, identity))| (slot, NodeRow { address, identity })).collect();
        let rulebooks = BTreeMap::new();
        let host = host.and_then(|(choice, own_endpoints_free)| {
            Some(HostRow { subject: *slots.get(choice)?, own_endpoints_free })
        });
        let mut tables = Tables {
            endpoints, ipcache, prefixes, nodes, node_addresses, subjects, peer_rules, failsafe, host, rulebooks,
            identities_through,
        };
        tables.rulebooks = tables.used_rulebooks().into_iter().map(|number| (number, library(number))).collect();
        tables
    }
}

/// The tables after each step.
fn walk<'a>(from: &Tables, steps: &'a [Step]) -> Vec<(&'a Step, Tables)> {
    let mut now = from.clone();
    let mut walked = Vec::new();
    for step in steps {
        now.apply(step);
        walked.push((step, now.clone()));
    }
    walked
}

/// Whether a bump of this subject comes after the step at `place`.
fn bumped_after(steps: &[Step], place: usize, slot: u32) -> bool {
    steps[place + 1..]
        .iter()
        .any(|step| matches!(step, Step::Bump { subjects, .. } if subjects.contains(&slot)))
}

fn contains<K: Ord, V: PartialEq>(whole: &BTreeMap<K, V>, part: &BTreeMap<K, V>) -> bool {
    part.iter().all(|(key, value)| whole.get(key) == Some(value))
}

/// Whether all that shall be held open is: more may be, until what was held open before is taken back.
fn holds_failsafe(now: &Tables, desired: &Tables) -> bool {
    desired.failsafe.iter().all(|(key, wanted)| {
        let found = now.failsafe.get(key).and_then(|number| now.rulebooks.get(number));
        let is_open = |row: Option<&PolicyRow>| row.is_some_and(|row| row.action == Action::Allow as u32);
        let mut open = desired.rulebooks[wanted].iter().filter(|(_, row)| is_open(Some(row)));
        open.all(|(ports, _)| is_open(found.and_then(|book| book.get(ports))))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_steps_end_at_what_is_desired(actual in tables(), desired in tables()) {
        let mut now = actual.clone();
        now.apply_all(&diff(&actual, &desired, Sweep::Remove));
        prop_assert_eq!(now, desired);
    }

    #[test]
    fn equal_tables_take_no_step(tables in tables()) {
        prop_assert_eq!(diff(&tables, &tables, Sweep::Remove), Vec::new());
        prop_assert_eq!(diff(&tables, &tables, Sweep::Keep), Vec::new());
    }

    #[test]
    fn without_a_sweep_all_that_is_desired_is_there_and_nothing_is_removed(actual in tables(), desired in tables()) {
        let mut now = actual.clone();
        now.apply_all(&diff(&actual, &desired, Sweep::Keep));
        prop_assert!(contains(&now.endpoints, &desired.endpoints));
        prop_assert!(contains(&now.ipcache, &desired.ipcache));
        prop_assert!(contains(&now.prefixes, &desired.prefixes));
        prop_assert!(contains(&now.nodes, &desired.nodes));
        prop_assert!(contains(&now.node_addresses, &desired.node_addresses));
        prop_assert!(contains(&now.subjects, &desired.subjects));
        prop_assert!(contains(&now.peer_rules, &desired.peer_rules));
        prop_assert!(contains(&now.rulebooks, &desired.rulebooks));
        prop_assert!(contains(&now.failsafe, &desired.failsafe));
        prop_assert_eq!(now.host, desired.host.or(actual.host));
        prop_assert!(actual.failsafe.keys().all(|key| now.failsafe.contains_key(key)));
        prop_assert!(actual.endpoints.keys().all(|key| now.endpoints.contains_key(key)));
        prop_assert!(actual.ipcache.keys().all(|key| now.ipcache.contains_key(key)));
        prop_assert!(actual.prefixes.keys().all(|key| now.prefixes.contains_key(key)));
        prop_assert!(actual.nodes.keys().all(|key| now.nodes.contains_key(key)));
        prop_assert!(actual.node_addresses.keys().all(|key| now.node_addresses.contains_key(key)));
        prop_assert!(actual.subjects.keys().all(|key| now.subjects.contains_key(key)));
        prop_assert!(actual.rulebooks.keys().all(|key| now.rulebooks.contains_key(key)));
        // What a desired subject says of a peer is its policy's, not a row that is left.
        let of_desired = |key: &PeerKey| desired.subjects.values().any(|subject| subject.identity == key.subject);
        prop_assert!(actual.peer_rules.keys().all(|key| now.peer_rules.contains_key(key) || of_desired(key)));
    }

    #[test]
    fn no_endpoint_is_opened_before_its_policy_is_there(actual in tables(), desired in tables()) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        for (step, now) in walk(&actual, &steps) {
            let Step::Endpoint { endpoint: Some(endpoint), .. } = step else { continue };
            if endpoint.flags & endpoint_flags::OPEN != 0 {
                let policy = |tables: &Tables| {
                    let of = |key: &PeerKey| key.subject == endpoint.identity;
                    let peers: BTreeMap<_, _> = tables.peer_rules.iter().filter(|(key, _)| of(key)).map(|(key, number)| (*key, *number)).collect();
                    (tables.subjects.get(&endpoint.subject).copied(), peers)
                };
                prop_assert_eq!(policy(&now), policy(&desired));
            }
        }
    }

    #[test]
    fn the_node_is_judged_when_its_policy_is_there_and_that_is_announced(actual in tables(), desired in tables()) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        for (place, (step, now)) in walk(&actual, &steps).into_iter().enumerate() {
            match step {
                Step::Host { host: Some(host) } => {
                    prop_assert!(holds_failsafe(&now, &desired), "{:#?}", steps);
                    prop_assert_eq!(now.subjects.get(&host.subject), desired.subjects.get(&host.subject));
                    prop_assert!(contains(&now.peer_rules, &desired.peer_rules));
                    prop_assert!(bumped_after(&steps, place, host.subject), "{:#?}", steps);
                }
                Step::Failsafe { .. } => if let Some(host) = now.host {
                    prop_assert!(bumped_after(&steps, place, host.subject), "{:#?}", steps);
                },
                Step::Subject { slot, subject: None } => {
                    prop_assert!(now.host.is_none_or(|host| host.subject != *slot), "{:#?}", steps);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_changed_policy_is_announced_after_it_was_written(actual in tables(), desired in tables()) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        for (place, step) in steps.iter().enumerate() {
            match step {
                Step::Subject { slot, .. } => prop_assert!(bumped_after(&steps, place, *slot), "{:#?}", steps),
                Step::PeerRules { key, .. } => {
                    let subjects = desired.subjects.iter().filter(|(_, subject)| subject.identity == key.subject);
                    for (slot, _) in subjects {
                        prop_assert!(bumped_after(&steps, place, *slot), "{:#?}", steps);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_rulebook_is_written_before_anybody_finds_it_and_goes_when_nobody_has_it(
        actual in tables(),
        desired in tables(),
    ) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        let mut in_hand = actual.used_rulebooks();
        for (step, now) in walk(&actual, &steps) {
            let used = now.used_rulebooks();
            match step {
                Step::Settle => in_hand.clone_from(&used),
                Step::Rulebook { number, .. } => {
                    prop_assert!(!in_hand.contains(number) && !used.contains(number), "{number} in {steps:#?}");
                }
                _ => {}
            }
            prop_assert!(used.iter().all(|number| now.rulebooks.contains_key(number)), "{step:?} in {steps:#?}");
            in_hand.extend(used);
        }
    }

    #[test]
    fn an_address_that_becomes_somebody_else_is_announced_to_all_whom_it_concerns(
        actual in tables(),
        desired in tables(),
    ) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        let lengths = Lengths::of([&actual, &desired]);
        let (before, after) = (Who::new(&actual, &lengths), Who::new(&desired, &lengths));
        for (place, step) in steps.iter().enumerate() {
            let Step::Ipcache { address, .. } = step else { continue };
            let parties = [before.is(*address), after.is(*address)]
                .map(|peer| Party { identity: peer.identity, class: peer.class });
            for slot in policies::that_differ(&desired, parties) {
                prop_assert!(bumped_after(&steps, place, slot), "{address:?} {parties:?} {steps:#?}");
            }
        }
    }

    #[test]
    fn taking_an_endpoint_away_touches_nothing_else(actual in tables(), ifindex in IFINDEXES) {
        let mut now = actual.clone();
        now.apply_all(&remove_endpoint(&actual, ifindex));
        prop_assert!(!now.endpoints.contains_key(&ifindex));
        prop_assert!(now.ipcache.values().all(|peer| peer.ifindex != ifindex));
        let mut rest = actual;
        rest.endpoints.remove(&ifindex);
        rest.ipcache.retain(|_, peer| peer.ifindex != ifindex);
        prop_assert_eq!(now, rest);
    }
}

fn with_peers(peers: &[(u32, u32)]) -> Tables {
    let subject = SubjectRow { identity: 256, rulebooks: [1; 10] };
    let rows =
        peers.iter().map(|(peer, number)| (PeerKey { subject: 256, peer: *peer, direction: 1 }, *number));
    let mut tables =
        Tables { subjects: [(1, subject)].into(), peer_rules: rows.collect(), ..Tables::default() };
    tables.rulebooks = tables.used_rulebooks().into_iter().map(|number| (number, library(number))).collect();
    tables
}

#[test]
fn a_peer_that_joins_others_is_one_row() {
    let key = PeerKey { subject: 256, peer: 300, direction: 1 };
    let (before, after) = (with_peers(&[(299, 2)]), with_peers(&[(299, 2), (300, 2)]));
    let bump = Step::Bump { subjects: vec![1], nodes: Vec::new() };
    let joins = [Step::PeerRules { key, rulebook: Some(2) }, bump.clone()];
    assert_eq!(diff(&before, &after, Sweep::Remove), joins);
    let leaves = [Step::Settle, Step::PeerRules { key, rulebook: None }, bump];
    assert_eq!(diff(&after, &before, Sweep::Remove), leaves);
}

#[test]
fn unknown_addresses_are_closed_before_the_tables_and_opened_after_them() {
    let pool = |class: u32| {
        let key = PrefixKey { bits: 112, address: Address::from_v4(0x0ac8_0000_u32.to_be()) };
        BTreeMap::from([(key, Peer { identity: class, class, node: 0, ifindex: 0 })])
    };
    let open = Tables { prefixes: pool(FLEET), ..with_peers(&[]) };
    let closed = Tables { prefixes: pool(UNMANAGED), ..with_peers(&[(300, 2)]) };
    let place = |steps: &[Step]| {
        let prefix = steps.iter().position(|step| matches!(step, Step::Prefix { .. }));
        let table = steps.iter().position(|step| matches!(step, Step::PeerRules { .. }));
        (prefix, table)
    };
    let (prefix, table) = place(&diff(&open, &closed, Sweep::Remove));
    assert!(prefix < table);
    let (prefix, table) = place(&diff(&closed, &open, Sweep::Remove));
    assert!(prefix > table);
}

#[test]
fn who_took_an_address_for_one_of_the_prefix_around_a_new_one_is_waited_for() {
    let key = PrefixKey { bits: 120, address: Address::from_v4(0x0ac8_0000_u32.to_be()) };
    let peer = Peer { identity: FIRST_LOCAL_IDENTITY, class: Class::World as u32, node: 0, ifindex: 0 };
    let before = with_peers(&[]);
    let after = Tables { prefixes: [(key, peer)].into(), ..with_peers(&[(FIRST_LOCAL_IDENTITY, 2)]) };
    let steps = diff(&before, &after, Sweep::Remove);
    let place = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted);
    let prefix = place(&|step| matches!(step, Step::Prefix { .. }));
    let settled = place(&|step| *step == Step::Settle);
    let policy = place(&|step| matches!(step, Step::PeerRules { .. }));
    assert!(prefix.is_some() && prefix < settled && settled < policy, "{steps:#?}");
}
