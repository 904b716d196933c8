//! From one set of lists to another.

use proptest::{collection::vec, prelude::*};
use weft_shared::layout::Direction;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn list(prefixes: &[&str]) -> Arc<Prefilter> {
    Arc::new(Prefilter { prefixes: prefixes.iter().map(|text| net(text)).collect(), senders: Vec::new() })
}

fn lists(named: &[(&str, &[&str])]) -> Desired {
    named.iter().map(|(name, prefixes)| ((*name).to_owned(), list(prefixes))).collect()
}

fn entry(first: u16, last: u16, prefixes: &[&str]) -> Failsafe {
    let prefixes = prefixes.iter().map(|text| net(text)).collect();
    Failsafe { protocol: 6, first, last, direction: Direction::Ingress, prefixes }
}

fn after(actual: &Lists, plan: &Plan) -> Lists {
    let mut lists = actual.clone();
    plan.steps.iter().for_each(|step| lists.apply(step));
    lists
}

/// Without blocks, which are of a property.
fn but_blocks(plan: &Plan) -> Vec<Step> {
    plan.steps.iter().filter(|step| !matches!(step, Step::Block { .. })).cloned().collect()
}

const FEW: Limits = Limits { lists: 3, prefixes: 4, senders: 2 };

#[test]
fn what_comes_is_there_before_what_goes_is_taken_out() {
    let first = plan(&lists(&[("a", &["203.0.113.0/24"])]), &[], &Lists::default(), Sweep::Remove, LIMITS);
    let actual = after(&Lists::default(), &first);
    let next = lists(&[("b", &["203.0.113.0/25", "203.0.113.128/25"])]);
    let second = plan(&next, &[], &actual, Sweep::Remove, LIMITS);
    let slot = second.slots["b"];
    let expected = [
        Step::List { slot, name: Some(name_digest("b")) },
        Step::Prefix { net: net("203.0.113.0/25"), slot: Some(slot) },
        Step::Prefix { net: net("203.0.113.128/25"), slot: Some(slot) },
        Step::Prefix { net: net("203.0.113.0/24"), slot: None },
        Step::List { slot: first.slots["a"], name: None },
    ];
    assert_eq!(but_blocks(&second), expected);
    assert_ne!(slot, first.slots["a"], "counters are not mixed");
    let actual = after(&actual, &second);
    assert_eq!(plan(&next, &[], &actual, Sweep::Remove, LIMITS).steps, []);
}

#[test]
fn before_all_was_sent_nothing_goes() {
    let first = plan(&lists(&[("a", &["203.0.113.0/24"])]), &[], &Lists::default(), Sweep::Remove, LIMITS);
    let actual = after(&Lists::default(), &first);
    assert_eq!(plan(&Desired::new(), &[], &actual, Sweep::Keep, LIMITS).steps, []);
}

#[test]
fn a_prefix_in_two_lists_is_the_firsts_by_name_until_that_goes() {
    let both = lists(&[("a", &["203.0.113.0/24"]), ("b", &["203.0.113.0/24"])]);
    let first = plan(&both, &[], &Lists::default(), Sweep::Remove, LIMITS);
    let actual = after(&Lists::default(), &first);
    assert_eq!(actual.prefixes[&net("203.0.113.0/24")], first.slots["a"]);
    let second = plan(&lists(&[("b", &["203.0.113.0/24"])]), &[], &actual, Sweep::Remove, LIMITS);
    let moved = Step::Prefix { net: net("203.0.113.0/24"), slot: Some(second.slots["b"]) };
    assert_eq!(second.steps[0], moved);
}

#[test]
fn a_list_that_does_not_fit_is_rejected_whole_and_those_that_are_there_stay() {
    let old = lists(&[("m", &["203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"])]);
    let first = plan(&old, &[], &Lists::default(), Sweep::Remove, FEW);
    let actual = after(&Lists::default(), &first);
    // By name it is before the one that is there; a prefix that both have counts once.
    let new = lists(&[
        ("a", &["10.1.0.0/16", "10.2.0.0/16"]),
        ("m", &["203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"]),
        ("z", &["10.1.0.0/16", "203.0.113.0/24"]),
    ]);
    let second = plan(&new, &[], &actual, Sweep::Remove, FEW);
    let why = "with it there are 5 IPv4 prefixes on this node, at most 4 fit".to_owned();
    assert_eq!(second.unrealised, [("a".to_owned(), why)]);
    assert_eq!(second.slots.keys().collect::<Vec<_>>(), ["m", "z"]);
    assert!(!after(&actual, &second).prefixes.contains_key(&net("10.2.0.0/16")));
    let many = lists(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &[])]);
    let third = plan(&many, &[], &Lists::default(), Sweep::Remove, FEW);
    assert_eq!(third.unrealised, [("d".to_owned(), "a node has at most 3 prefilters".to_owned())]);
}

#[test]
fn a_list_over_a_failsafe_prefix_is_rejected_and_its_rows_go_at_once() {
    let desired = lists(&[("a", &["203.0.113.0/24"]), ("b", &["198.51.100.0/24"])]);
    let actual = after(&Lists::default(), &plan(&desired, &[], &Lists::default(), Sweep::Remove, LIMITS));
    let failsafe = [entry(22, 22, &["203.0.113.7/32"])];
    let second = plan(&desired, &failsafe, &actual, Sweep::Keep, LIMITS);
    let why = "203.0.113.0/24 meets 203.0.113.7/32, which is in a failsafe entry".to_owned();
    assert_eq!(second.unrealised, [("a".to_owned(), why)]);
    assert_eq!(but_blocks(&second), [Step::Prefix { net: net("203.0.113.0/24"), slot: None }]);
}

#[test]
fn what_is_held_open_for_everybody_is_there_before_any_prefix() {
    let failsafe = [entry(22, 23, &[]), entry(80, 80, &["192.0.2.0/24"])];
    let desired = lists(&[("a", &["203.0.113.0/24"])]);
    let first = plan(&desired, &failsafe, &Lists::default(), Sweep::Remove, LIMITS);
    assert_eq!(first.steps[0], Step::Open { word: 0, bits: 0b11 << 22 });
    let actual = after(&Lists::default(), &first);
    let second = plan(&desired, &[], &actual, Sweep::Remove, LIMITS);
    assert_eq!(second.steps, [Step::Open { word: 0, bits: 0 }]);
}

#[test]
fn bad_words_are_named() {
    let parse = |cidr: &str, sender: &str| {
        let sent = v1::NodePrefilter { cidrs: vec![cidr.to_owned()], arp_senders: vec![sender.to_owned()] };
        Prefilter::try_from(&sent).map_err(|error| (error.path, error.message))
    };
    assert!(parse("203.0.113.0/24", "192.0.2.1").is_ok());
    for wrong in ["203.0.113.1/24", "0.0.0.0/0", "::/0", "203.0.113.0", "x"] {
        let (path, message) = parse(wrong, "192.0.2.1").expect_err("it is wrong");
        assert_eq!(path, "cidrs[0]");
        assert!(message.contains(wrong) && message.contains("expected"), "{message}");
    }
    let (path, _) = parse("203.0.113.0/24", "2001:db8::1").expect_err("it is wrong");
    assert_eq!(path, "arpSenders[0]");
}

fn any_net() -> impl Strategy<Value = IpNet> {
    let v6 =
        (0_u16..4, 0_u16..4, 0_u16..2, prop::sample::select(vec![12_u8, 16, 20, 32, 40, 47, 48, 64, 128]))
            .prop_map(|(a, b, c, bits)| {
                IpNet::new([0x2000 | a, b, c, 1, 0, 0, 0, 1].into(), bits).expect("a length").trunc()
            });
    prop_oneof![v4_net(), v6]
}

fn v4_net() -> impl Strategy<Value = IpNet> {
    (0_u8..4, 0_u8..4, prop::sample::select(vec![14_u8, 15, 16, 24, 32]))
        .prop_map(|(b, c, bits)| IpNet::new([10, b, c, 1].into(), bits).expect("a length").trunc())
}

fn any_lists() -> impl Strategy<Value = Desired> {
    let list = (vec(any_net(), 0..4), vec(v4_net(), 0..2)).prop_map(|(prefixes, senders)| {
        let sender = |net: IpNet| match net.network() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        Arc::new(Prefilter { prefixes, senders: senders.into_iter().map(sender).collect() })
    });
    prop::collection::btree_map("[a-d]", list, 0..4)
}

fn any_failsafe() -> impl Strategy<Value = Vec<Failsafe>> {
    let entry =
        |prefixes| Failsafe { protocol: 6, first: 22, last: 22, direction: Direction::Egress, prefixes };
    vec(vec(any_net(), 0..2).prop_map(entry), 0..2)
}

proptest! {
    /// I10, and that there is never half a list: over any history, whatever the kernel held before.
    #[test]
    fn no_row_meets_a_failsafe_prefix_and_every_list_is_whole_or_not_there(
        history in vec((any_lists(), any_failsafe(), any::<bool>()), 1..6),
    ) {
        let mut actual = Lists::default();
        for (desired, failsafe, synced) in history {
            let sweep = if synced { Sweep::Remove } else { Sweep::Keep };
            let plan = plan(&desired, &failsafe, &actual, sweep, FEW);
            let before = actual.clone();
            for step in &plan.steps {
                actual.apply(step);
                let needed = blocks::words(actual.prefixes.keys());
                let met = |(word, bits): (&u32, &u64)| actual.blocks.get(word).is_some_and(|there| there & bits == *bits);
                prop_assert!(needed.iter().all(met), "a prefix whose block is not there, after {:?}", step);
            }
            prop_assert_eq!(&actual.blocks, &blocks::words(actual.prefixes.keys()), "no more blocks than needed");
            let kept: Vec<IpNet> = failsafe.iter().flat_map(|entry| entry.prefixes.clone()).collect();
            let rows = actual.prefixes.keys().copied();
            for row in rows.chain(actual.senders.keys().map(|sender| IpAddr::V4(*sender).into())) {
                prop_assert!(kept.iter().all(|entry| !overlap(&row, entry)), "{} is dropped", row);
            }
            for (name, list) in &desired {
                let failed = plan.unrealised.iter().any(|(unrealised, _)| unrealised == name);
                prop_assert_ne!(failed, plan.slots.contains_key(name));
                let whole = list.prefixes.iter().all(|net| actual.prefixes.contains_key(net))
                    && list.senders.iter().all(|sender| actual.senders.contains_key(sender));
                prop_assert!(failed || whole, "{} is there by half", name);
            }
            let noted: BTreeSet<u32> = actual.slots.keys().copied().collect();
            prop_assert!(actual.prefixes.values().chain(actual.senders.values()).all(|slot| noted.contains(slot)));
            if synced {
                let wanted: BTreeSet<IpNet> = plan.slots.keys().flat_map(|name| desired[name].prefixes.clone()).collect();
                prop_assert_eq!(actual.prefixes.keys().copied().collect::<BTreeSet<_>>(), wanted);
            } else {
                let lost = before.prefixes.keys().find(|net| {
                    !actual.prefixes.contains_key(*net) && kept.iter().all(|entry| !overlap(net, entry))
                });
                prop_assert_eq!(lost, None);
            }
        }
    }
}
