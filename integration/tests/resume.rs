//! A node that returns: whatever it holds and whatever the store holds by now, it ends with what a fresh node has, and
//! little is sent. The controller's compiler and the node's desired state, without a stream between them.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{prelude::*, sample::Index};
use prost::Message as _;
use weft_controller::{
    fleet::{Change, EndpointFacts, Fleet, Have, NodeFacts},
    stream::Chunks,
};
use weft_noded::{
    desired::Desired,
    stream::handler::{Event, Session},
};
use weft_proto::v1::{self, controller_message::Message};
use weft_shared::{
    digest::Digest,
    policy::model::{Labels, Mode, Peer, Policy, Requirement, Rule, RuleAction, Selector, Subject, Tier},
};

const NODE: &str = "n1";
const STORE: &str = "the-store";

// ---- Contents of a store ----

fn labels(app: u8) -> Labels {
    Labels::from([("app".to_owned(), format!("a{app}"))])
}

fn selector(apps: &[u8]) -> Selector {
    let values = apps.iter().map(|app| format!("a{app}")).collect();
    Selector::new([Requirement::In { key: "app".to_owned(), values }])
}

fn put_policy(number: u8, peers: &[u8]) -> Change {
    let name = format!("p{number}");
    let rule = Rule {
        name: "0".to_owned(),
        action: RuleAction::Allow,
        peers: Some(vec![Peer::Endpoints(selector(peers))]),
        ports: None,
    };
    let policy = Policy {
        name: name.clone(),
        tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(selector(&[0])),
        ingress: Some(vec![rule]),
        egress: None,
    };
    Change::Policy { name, policy: Some(policy) }
}

fn put_endpoint(number: usize, app: u8, node: &str) -> Change {
    let facts = EndpointFacts {
        node: node.to_owned(),
        identity: 256 + u32::from(app),
        addresses: vec![
            format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255).parse().unwrap(),
        ],
        uid: format!("uid of {number}"),
        instance: String::new(),
        ready: false,
        report: Digest::default(),
    };
    Change::Endpoint { name: format!("e{number}"), facts: Some(facts) }
}

/// Endpoints by number, each with an app; policies by number, each with the apps it lets in.
#[derive(Clone, Debug, Default)]
struct Contents {
    endpoints: BTreeMap<usize, u8>,
    policies: BTreeMap<u8, Vec<u8>>,
}

const APPS: u8 = 6;

impl Contents {
    fn changes(&self) -> Vec<Change> {
        let node = |number: u8| Change::Node {
            name: format!("n{number}"),
            facts: Some(NodeFacts {
                addresses: vec![format!("192.0.2.{number}")],
                endpoint_cidrs: vec![],
                identity: 0,
                controller: String::new(),
                snat_ports: None,
            }),
        };
        let mut changes = vec![Change::Config(Some(config())), node(1), node(2)];
        changes.extend(
            (0..APPS).map(|app| Change::Identity { number: 256 + u32::from(app), labels: Some(labels(app)) }),
        );
        changes.push(put_endpoint(65_000, 0, NODE));
        changes.extend(self.endpoints.iter().map(|(number, app)| put_endpoint(*number, *app, "n2")));
        changes.extend(self.policies.iter().map(|(number, peers)| put_policy(*number, peers)));
        changes
    }

    /// What leads from here to `other`.
    fn changes_to(&self, other: &Self) -> Vec<Change> {
        let mut changes = other.changes();
        let gone = self.endpoints.keys().filter(|number| !other.endpoints.contains_key(number));
        changes.extend(gone.map(|number| Change::Endpoint { name: format!("e{number}"), facts: None }));
        let gone = self.policies.keys().filter(|number| !other.policies.contains_key(number));
        changes.extend(gone.map(|number| Change::Policy { name: format!("p{number}"), policy: None }));
        changes
    }
}

fn config() -> v1::FleetConfig {
    v1::FleetConfig {
        pools: vec![v1::Pool { cidr: "10.0.0.0/8".to_owned(), node_prefix_length: 24 }],
        ..v1::FleetConfig::default()
    }
}

fn fleet(contents: &Contents) -> Fleet {
    let mut fleet = Fleet::default();
    fleet.apply(10, Duration::ZERO, contents.changes());
    fleet
}

// ---- A node and its connections ----

/// What a connection came to.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    bytes: usize,
    /// The node did not end where the controller said.
    refused: bool,
    full: bool,
}

/// Connects the node and exchanges messages until it is in sync. `meddle` sees the fleet before each message of the node,
/// and the message.
fn connect(
    fleet: &mut Fleet,
    desired: &mut Desired,
    with_digests: bool,
    mut meddle: impl FnMut(&mut Fleet, &mut v1::node_report::Report),
) -> Sent {
    let mut have = v1::Have {
        store_id: desired.store_id.clone(),
        revision: desired.revision,
        digests: desired.digests(),
        ..v1::Have::default()
    };
    if !with_digests {
        have.digests.clear();
    }
    let mut sent = Sent { bytes: have.encoded_len(), ..Sent::default() };
    let mut session = Session::new(&have);
    let want_buckets = fleet.connect(NODE, Have::parse(&have).as_ref());
    let welcome = v1::Welcome {
        store_id: STORE.to_owned(),
        revision: fleet.revision(),
        want_buckets,
        ..v1::Welcome::default()
    };
    let mut messages = vec![v1::ControllerMessage { message: Some(Message::Welcome(welcome)) }];
    for _ in 0..10 {
        if messages.is_empty() {
            let delta = fleet.drain(NODE).unwrap_or_else(|| panic!("nothing is sent to {desired:?}"));
            sent.full |= delta.full;
            messages.extend(Chunks::new(delta, None));
        }
        for message in std::mem::take(&mut messages) {
            sent.bytes += message.encoded_len();
            let mut report = match session.handle(message).unwrap() {
                None => continue,
                Some(Event::Welcomed { store_id, want_buckets, .. }) => {
                    desired.store_id = store_id;
                    if want_buckets.is_empty() {
                        continue;
                    }
                    v1::node_report::Report::Buckets(desired.digest_buckets(&want_buckets).unwrap())
                }
                Some(Event::WantItems(wanted)) => {
                    let (items, listing) = desired.digest_items(&wanted).unwrap();
                    session.listed_items(listing);
                    v1::node_report::Report::Items(items)
                }
                Some(Event::Batch(batch)) => {
                    sent.refused = !desired.agrees(&batch);
                    if !sent.refused {
                        let nonce = batch.nonce;
                        desired.apply(batch);
                        fleet.acknowledge(NODE, nonce, Vec::new());
                    }
                    return sent;
                }
                Some(Event::Answer(_)) => panic!("nothing was reported"),
            };
            meddle(fleet, &mut report);
            let of_node = v1::NodeMessage {
                message: Some(v1::node_message::Message::Report(v1::NodeReport {
                    report: Some(report.clone()),
                })),
            };
            sent.bytes += of_node.encoded_len();
            match report {
                v1::node_report::Report::Buckets(buckets) => {
                    let question = fleet.take_buckets(NODE, &buckets);
                    messages.extend(question.map(|question| v1::ControllerMessage {
                        message: Some(Message::WantItems(question)),
                    }));
                }
                v1::node_report::Report::Items(items) => fleet.take_items(NODE, &items),
                _ => panic!("no such answer"),
            }
        }
    }
    panic!("no end: {desired:?}")
}

fn quietly(_: &mut Fleet, _: &mut v1::node_report::Report) {}

/// Takes deltas until there are none.
fn settle(fleet: &mut Fleet, desired: &mut Desired) {
    let mut session = Session::new(&v1::Have::default());
    let welcome = v1::Welcome { store_id: STORE.to_owned(), revision: u64::MAX, ..v1::Welcome::default() };
    session.handle(v1::ControllerMessage { message: Some(Message::Welcome(welcome)) }).unwrap();
    while let Some(delta) = fleet.drain(NODE) {
        for message in Chunks::new(delta, None) {
            if let Some(Event::Batch(batch)) = session.handle(message).unwrap() {
                let nonce = batch.nonce;
                desired.apply(batch);
                fleet.acknowledge(NODE, nonce, Vec::new());
            }
        }
    }
}

fn synced(contents: &Contents) -> (Fleet, Desired) {
    let (mut fleet, mut desired) = (fleet(contents), Desired::default());
    let sent = connect(&mut fleet, &mut desired, true, quietly);
    assert!(sent.full && !sent.refused);
    settle(&mut fleet, &mut desired);
    (fleet, desired)
}

/// What is held, without when it came.
fn held(desired: &Desired) -> impl PartialEq + std::fmt::Debug + use<> {
    let endpoints: BTreeMap<String, (u32, bool, String)> = desired
        .endpoints()
        .iter()
        .map(|(name, word)| (name.clone(), (word.identity, word.open, word.uid.clone())))
        .collect();
    let views = (desired.addresses().clone(), desired.sets().clone(), desired.nodes().clone());
    (desired.digests(), views, desired.policies().clone(), endpoints)
}

// ---- Whatever two states ----

fn any_contents() -> impl Strategy<Value = Contents> {
    let endpoints = prop::collection::btree_map(0..400_usize, 0..APPS, 0..120);
    let policies = prop::collection::btree_map(0..4_u8, prop::collection::vec(0..APPS, 1..4), 0..4);
    (endpoints, policies).prop_map(|(endpoints, policies)| Contents { endpoints, policies })
}

/// Some of the endpoints become another app's, come, or go.
fn any_step() -> impl Strategy<Value = Vec<(usize, Option<u8>)>> {
    prop::collection::vec((0..400_usize, prop::option::of(0..APPS)), 0..6)
}

fn step(contents: &mut Contents, step: &[(usize, Option<u8>)]) {
    for (number, app) in step {
        match app {
            Some(app) => drop(contents.endpoints.insert(*number, *app)),
            None => drop(contents.endpoints.remove(number)),
        }
    }
}

/// What a node that is broken, or lies, may answer.
#[derive(Clone, Debug)]
enum Garble {
    Flip(Index, u8),
    Truncate(Index),
    Grow,
    DropType,
    RepeatType,
    Counts(Index, u32),
    Empty,
}

fn any_garble() -> impl Strategy<Value = Garble> {
    prop_oneof![
        (any::<Index>(), 1..=255_u8).prop_map(|(place, bits)| Garble::Flip(place, bits)),
        any::<Index>().prop_map(Garble::Truncate),
        Just(Garble::Grow),
        Just(Garble::DropType),
        Just(Garble::RepeatType),
        (any::<Index>(), any::<u32>()).prop_map(|(place, count)| Garble::Counts(place, count)),
        Just(Garble::Empty),
    ]
}

fn garble_bytes(bytes: &mut Vec<u8>, garble: &Garble) {
    match garble {
        Garble::Flip(place, bits) if !bytes.is_empty() => {
            let place = place.index(bytes.len());
            bytes[place] ^= bits;
        }
        Garble::Truncate(place) => bytes.truncate(place.index(bytes.len() + 1)),
        Garble::Grow => bytes.extend([0; 4]),
        _ => {}
    }
}

fn garble_types<T: Clone>(types: &mut Vec<T>, garble: &Garble) {
    match garble {
        Garble::DropType => drop(types.pop()),
        Garble::RepeatType => types.extend(types.last().cloned()),
        Garble::Empty => types.clear(),
        _ => {}
    }
}

fn garble(report: &mut v1::node_report::Report, garble: &Garble) {
    match report {
        v1::node_report::Report::Buckets(buckets) => {
            buckets.types.first_mut().into_iter().for_each(|first| garble_bytes(&mut first.digests, garble));
            garble_types(&mut buckets.types, garble);
        }
        v1::node_report::Report::Items(items) => {
            if let Some(first) = items.types.first_mut() {
                garble_bytes(&mut first.digests, garble);
                if let Garble::Counts(place, count) = garble
                    && !first.counts.is_empty()
                {
                    let place = place.index(first.counts.len());
                    first.counts[place] = *count;
                }
            }
            garble_types(&mut items.types, garble);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn after_a_resume_the_node_holds_what_a_fresh_one_does(
        before in any_contents(),
        after in prop::option::of(any_contents()),
        away in any_step(),
        meanwhile in prop::collection::vec(any_step(), 2),
        other_controller in any::<bool>(),
    ) {
        let (mut at_home, mut desired) = synced(&before);
        let mut contents = after.unwrap_or_else(|| before.clone());
        step(&mut contents, &away);
        let mut at_work = if other_controller {
            let mut fleet = fleet(&contents);
            fleet.apply(at_home.revision() + 1, Duration::ZERO, Vec::new());
            fleet
        } else {
            at_home.disconnect(NODE);
            at_home.apply(at_home.revision() + 1, Duration::ZERO, before.changes_to(&contents));
            at_home
        };

        let mut steps = meanwhile.into_iter();
        let sent = connect(&mut at_work, &mut desired, true, |fleet, _| {
            let former = contents.clone();
            step(&mut contents, &steps.next().unwrap_or_default());
            fleet.apply(fleet.revision() + 1, Duration::ZERO, former.changes_to(&contents));
        });

        prop_assert!(!sent.refused);
        settle(&mut at_work, &mut desired);
        prop_assert_eq!(at_work.realised(NODE), at_work.revision());
        prop_assert_eq!(held(&desired), held(&synced(&contents).1));
    }

    #[test]
    fn whatever_a_node_answers_costs_a_full_sync_at_most(
        before in any_contents(),
        after in any_contents(),
        garbles in prop::collection::vec(prop::option::of(any_garble()), 2),
    ) {
        let (_, mut desired) = synced(&before);
        let mut fleet = fleet(&after);
        let full = {
            let mut fresh = Desired::default();
            connect(&mut fleet, &mut fresh, true, quietly).bytes
        };
        fleet.disconnect(NODE);

        let mut garbles = garbles.into_iter();
        let sent = connect(&mut fleet, &mut desired, true, |_, report| {
            if let Some(Some(choice)) = garbles.next() {
                garble(report, &choice);
            }
        });

        // What was asked and answered in vain is less than what a full sync sends, and a small state's questions.
        prop_assert!(sent.bytes < 2 * full + 2048, "{sent:?} beside {full}");
        if sent.refused {
            fleet.disconnect(NODE);
            let again = connect(&mut fleet, &mut desired, false, quietly);
            prop_assert!(again.full && !again.refused);
        }
        prop_assert_eq!(held(&desired), held(&synced(&after).1));
    }
}

// ---- What it costs ----

fn many(endpoints: usize) -> Contents {
    Contents {
        endpoints: (0..endpoints).map(|number| (number, 1)).collect(),
        policies: BTreeMap::from([(0, vec![1, 2])]),
    }
}

/// Bytes, both ways, of a full sync and of a resume.
fn cost(before: &Contents, after: &Contents) -> (usize, usize) {
    let full = connect(&mut fleet(after), &mut Desired::default(), true, quietly);
    let (_, mut desired) = synced(before);
    let resume = connect(&mut fleet(after), &mut desired, true, quietly);
    assert!(!resume.refused);
    (full.bytes, resume.bytes)
}

#[test]
fn a_node_to_which_nothing_changed_is_sent_less_than_4_kib() {
    for endpoints in [10, 1_000, 10_000] {
        let (full, resume) = cost(&many(endpoints), &many(endpoints));
        assert!(resume < 1024, "{resume} bytes for {endpoints} endpoints, of {full}");
    }
}

#[test]
fn one_percent_changed_costs_less_than_a_tenth_of_all() {
    for endpoints in [1_000, 10_000, 30_000] {
        let before = many(endpoints);
        let mut after = before.clone();
        let third = endpoints / 300;
        // As many that go, that come, and that change.
        for number in 0..third {
            after.endpoints.remove(&(number * 97));
            after.endpoints.insert(endpoints + number, 1);
            after.endpoints.insert(number * 97 + 1, 2);
        }
        let (full, resume) = cost(&before, &after);
        assert!(resume * 10 < full, "{resume} of {full} bytes for {endpoints} endpoints");
    }
}

#[test]
fn everything_changed_costs_little_more_than_everything() {
    let before = many(10_000);
    let after = Contents {
        endpoints: before.endpoints.keys().map(|number| (*number, 2)).collect(),
        ..before.clone()
    };
    let (full, resume) = cost(&before, &after);
    assert!(resume * 20 < full * 21, "{resume} of {full} bytes");
}

#[test]
fn names_of_a_store_that_lost_them_all_go() {
    let (_, mut desired) = synced(&many(100));
    let mut empty = fleet(&Contents::default());
    let sent = connect(&mut empty, &mut desired, true, quietly);
    assert!(!sent.refused);
    let names: BTreeSet<_> = desired.addresses().keys().collect();
    assert!(names.is_empty(), "{names:?}");
}
