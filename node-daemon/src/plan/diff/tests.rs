//! Any tables can become any others; what must hold on the way.

use proptest::{collection::btree_map, option, prelude::*};
use weft_shared::layout::{
    Address, Class, Direction, Endpoint, FIRST_LOCAL_IDENTITY, PolicyKey, PolicyRow, PrefixKey,
    endpoint_flags,
};

use super::*;
use crate::plan::tables::{NodeRow, PolicyTable};

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

fn row() -> impl Strategy<Value = PolicyRow> {
    (0_u32..3, 1_u32..3).prop_map(|(precedence, action)| PolicyRow { precedence, action, rule: 0 })
}

fn key() -> impl Strategy<Value = PolicyKey> {
    let identity =
        prop::sample::select(vec![3_u32, 5, 256, 257, 258, FIRST_LOCAL_IDENTITY, FIRST_LOCAL_IDENTITY + 1]);
    (prop::bool::ANY, identity, prop::sample::select(vec![8_u32, 40, 48, 64]), 0_u16..3).prop_map(
        |(ingress, identity, bits, port)| {
            let direction = if ingress { Direction::Ingress } else { Direction::Egress };
            let port = if bits == 64 { port } else { 0 };
            let (identity, protocol) =
                if bits == 8 { (0, 0) } else { (identity, if bits == 40 { 0 } else { 6 }) };
            PolicyKey { bits, ..PolicyKey::flow(direction, identity, protocol, port) }
        },
    )
}

fn policy_table() -> impl Strategy<Value = PolicyTable> {
    btree_map(key(), row(), 0..8)
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
        PrefixKey { bits, address: crate::plan::who::masked(whole, bits) }
    });
    btree_map(key, peer, 0..6)
}

prop_compose! {
    fn tables()(
        subjects in btree_map(1_u32..5, 256_u32..260, 0..4),
        policies in btree_map(1_u32..5, policy_table(), 4),
        endpoints in btree_map(IFINDEXES, (0_usize..4, prop::bool::ANY), 0..4),
        ipcache in btree_map(address(), peer(), 0..6),
        prefixes in prefixes(),
        nodes in btree_map(0_u32..4, (address(), 256_u32..260), 0..4),
        node_addresses in btree_map(address(), 0_u32..4, 0..4),
        identities_through in 250_u32..300,
    ) -> Tables {
        let policies: BTreeMap<u32, PolicyTable> =
            policies.into_iter().filter(|(slot, _)| subjects.contains_key(slot)).collect();
        let slots: Vec<u32> = policies.keys().copied().collect();
        let endpoints = endpoints.into_iter().map(|(ifindex, (choice, open))| {
            let subject = slots.get(choice).copied().unwrap_or(0);
            let flags = if open && subject != 0 { endpoint_flags::OPEN } else { 0 };
            let endpoint = Endpoint {
                address4: Address::from_v4(ifindex.to_be()),
                address6: Address::UNSPECIFIED,
                identity: subjects.get(&subject).copied().unwrap_or(0),
                subject,
                flags,
                mac: [0; 6],
                gateway_mac: [0; 6],
            };
            (ifindex, endpoint)
        }).collect();
        let nodes = nodes.into_iter().map(|(slot, (address, identity))| (slot, NodeRow { address, identity })).collect();
        Tables { endpoints, ipcache, prefixes, nodes, node_addresses, subjects, policies, identities_through }
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
        prop_assert!(contains(&now.policies, &desired.policies));
        prop_assert!(actual.endpoints.keys().all(|key| now.endpoints.contains_key(key)));
        prop_assert!(actual.ipcache.keys().all(|key| now.ipcache.contains_key(key)));
        prop_assert!(actual.prefixes.keys().all(|key| now.prefixes.contains_key(key)));
        prop_assert!(actual.nodes.keys().all(|key| now.nodes.contains_key(key)));
        prop_assert!(actual.node_addresses.keys().all(|key| now.node_addresses.contains_key(key)));
        prop_assert!(actual.subjects.keys().all(|key| now.subjects.contains_key(key)));
        prop_assert!(actual.policies.keys().all(|key| now.policies.contains_key(key)));
    }

    #[test]
    fn no_endpoint_is_opened_before_its_table_is_there(actual in tables(), desired in tables()) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        for (step, now) in walk(&actual, &steps) {
            let Step::Endpoint { endpoint: Some(endpoint), .. } = step else { continue };
            if endpoint.flags & endpoint_flags::OPEN != 0 {
                prop_assert_eq!(now.policies.get(&endpoint.subject), desired.policies.get(&endpoint.subject));
                prop_assert_eq!(now.subjects.get(&endpoint.subject), Some(&endpoint.identity));
            }
        }
    }

    #[test]
    fn a_changed_table_is_announced_after_it_was_written(actual in tables(), desired in tables()) {
        let steps = diff(&actual, &desired, Sweep::Remove);
        for (place, step) in steps.iter().enumerate() {
            if let Step::PolicyTable { slot, .. } | Step::PolicyRow { slot, .. } = step
                && actual.policies.get(slot) != desired.policies.get(slot)
            {
                prop_assert!(bumped_after(&steps, place, *slot), "{:#?}", steps);
            }
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
            let (was, is) = (before.is(*address), after.is(*address));
            if (was.identity, was.class) == (is.identity, is.class) {
                continue;
            }
            for (slot, table) in actual.policies.iter().chain(&desired.policies) {
                let about = rows::peers(table);
                if [was.identity, was.class, is.identity, is.class].iter().any(|peer| about.contains(peer)) {
                    prop_assert!(bumped_after(&steps, place, *slot), "{address:?} {was:?} {is:?} {steps:#?}");
                }
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

fn one_table(rows: &[(u32, u32, u16)]) -> PolicyTable {
    let entry = |&(identity, bits, port): &(u32, u32, u16)| {
        let protocol = if bits > 40 { 6 } else { 0 };
        let key = PolicyKey { bits, ..PolicyKey::flow(Direction::Ingress, identity, protocol, port) };
        (key, PolicyRow { precedence: 1, action: 1, rule: 0 })
    };
    rows.iter().map(entry).collect()
}

fn with_table(table: PolicyTable) -> Tables {
    Tables { subjects: [(1, 256)].into(), policies: [(1, table)].into(), ..Tables::default() }
}

#[test]
fn rows_of_an_identity_that_had_none_are_written_in_place_longest_first() {
    let before = with_table(one_table(&[(256, 40, 0)]));
    let after = with_table(one_table(&[(256, 40, 0), (300, 40, 0), (300, 64, 80)]));
    let steps = diff(&before, &after, Sweep::Remove);
    let bits: Vec<u32> = steps
        .iter()
        .filter_map(|step| if let Step::PolicyRow { key, .. } = step { Some(key.bits) } else { None })
        .collect();
    assert_eq!(bits, [64, 40], "{steps:#?}");
}

#[test]
fn rows_of_an_identity_that_keeps_none_go_broadest_first() {
    let before = with_table(one_table(&[(256, 40, 0), (300, 40, 0), (300, 64, 80)]));
    let after = with_table(one_table(&[(256, 40, 0)]));
    let steps = diff(&before, &after, Sweep::Remove);
    let bits: Vec<u32> = steps
        .iter()
        .filter_map(
            |step| if let Step::PolicyRow { key, row: None, .. } = step { Some(key.bits) } else { None },
        )
        .collect();
    assert_eq!(bits, [40, 64], "{steps:#?}");
}

#[test]
fn any_other_change_of_several_rows_is_a_swap() {
    let before = with_table(one_table(&[(300, 64, 80)]));
    let after = with_table(one_table(&[(300, 64, 81), (300, 40, 0)]));
    let steps = diff(&before, &after, Sweep::Remove);
    assert!(matches!(steps[0], Step::PolicyTable { slot: 1, table: Some(_) }), "{steps:#?}");
    assert_eq!(steps[1], Step::Bump { subjects: vec![1], nodes: Vec::new() });
    assert_eq!(steps.len(), 2);
}

#[test]
fn rows_of_an_identity_and_of_its_class_change_together() {
    let before = with_table(one_table(&[]));
    let after = with_table(one_table(&[(300, 40, 0), (3, 40, 0)]));
    let steps = diff(&before, &after, Sweep::Remove);
    assert!(matches!(steps[0], Step::PolicyTable { slot: 1, table: Some(_) }), "{steps:#?}");
}

#[test]
fn unknown_addresses_are_closed_before_the_tables_and_opened_after_them() {
    let pool = |class: u32| {
        let key = PrefixKey { bits: 112, address: Address::from_v4(0x0ac8_0000_u32.to_be()) };
        BTreeMap::from([(key, Peer { identity: class, class, node: 0, ifindex: 0 })])
    };
    let open = Tables { prefixes: pool(FLEET), ..with_table(one_table(&[])) };
    let closed = Tables { prefixes: pool(UNMANAGED), ..with_table(one_table(&[(300, 40, 0)])) };
    let place = |steps: &[Step]| {
        let prefix = steps.iter().position(|step| matches!(step, Step::Prefix { .. }));
        let table = steps.iter().position(|step| matches!(step, Step::PolicyRow { .. }));
        (prefix, table)
    };
    let (prefix, table) = place(&diff(&open, &closed, Sweep::Remove));
    assert!(prefix < table);
    let (prefix, table) = place(&diff(&closed, &open, Sweep::Remove));
    assert!(prefix > table);
}
