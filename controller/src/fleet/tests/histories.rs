//! Incremental equals from scratch, on random histories: split, squashed, in another order, with connections that come and
//! go and nodes that lag.
use proptest::{prelude::*, sample::select};
use weft_shared::{
    policy::model::{CidrSet, CidrSetSelector, Entity},
    service::model::{Prefilter, Shaped},
};

use super::{
    health::{check, said},
    services::{listed, listing, put_prefilter, put_service, ready, selecting},
    *,
};

const LATER: Duration = Duration::from_hours(1);

#[derive(Debug, Clone)]
enum Step {
    Changes(Vec<Change>),
    Connect(u8),
    Disconnect(u8),
    Drain(u8),
    Acknowledge(u8),
    Tick,
}

const NODES: [u8; 3] = [1, 2, 3];
const APPS: [&str; 4] = ["web", "api", "db", "web"];
const SETS: [&str; 3] = ["s0", "s1", "s2"];

/// A policy of endpoints, or of nodes.
fn any_policy() -> impl Strategy<Value = Policy> {
    let action = select(vec![RuleAction::Allow, RuleAction::Allow, RuleAction::Deny]);
    let draft = (0..4_u8, any_selector(), any::<bool>(), action, any_peer());
    draft.prop_map(|(number, selector, of_nodes, action, peer)| {
        let mut policy = policy(&format!("p{number}"), selector.clone(), action, peer);
        if of_nodes {
            policy.subject = Subject::Nodes(selector);
        }
        policy
    })
}

fn any_cidr_set() -> impl Strategy<Value = Change> {
    let set = (select(&SETS[..]), select(&APPS[..]), 0..3_u8).prop_map(|(name, app, number)| {
        let cidr = format!("198.51.{number}.0/24").parse().unwrap();
        CidrSet { name: name.to_owned(), labels: labels(app), cidrs: vec![cidr] }
    });
    let gone = select(&SETS[..]).prop_map(|name| Change::CidrSet { name: name.to_owned(), set: None });
    prop_oneof![
        2 => set.prop_map(|set| Change::CidrSet { name: set.name.clone(), set: Some(set) }),
        1 => gone,
    ]
}

/// Of listed addresses, some are endpoints' at times, and one is outside of the pools.
fn any_service() -> impl Strategy<Value = Change> {
    let addresses = (0..6_u8, 0..2_u8).prop_map(|(number, address)| format!("10.200.{number}.{address}"));
    let address = prop_oneof![4 => addresses, 1 => Just("203.0.113.5".to_owned())];
    let listed = prop::collection::btree_set(address, 0..3).prop_map(|addresses| {
        let backends = addresses.iter().map(|address| listed(address, 1)).collect();
        listing("", backends)
    });
    let service = prop_oneof![2 => any_selector().prop_map(|selector| selecting("", selector)), 1 => listed];
    (0..3_u8, service, any::<bool>(), any::<bool>()).prop_map(|(number, mut service, topology, checked)| {
        service.name = format!("v{number}");
        service.health_check = checked.then(check);
        service.topology_label = topology.then(|| "app".to_owned());
        put_service(service)
    })
}

/// Of backends as they may be, and of others.
fn any_words() -> impl Strategy<Value = Change> {
    let word = prop_oneof![
        2 => (0..6_u8, 0..2_u8).prop_map(|(number, address)| format!("10.200.{number}.{address}")),
        1 => Just("203.0.113.5".to_owned()),
    ];
    let words = prop::collection::btree_map(word, any::<bool>(), 0..4);
    (0..3_u8, select(&NODES[..]), prop::option::weighted(0.8, words)).prop_map(|(number, node, words)| {
        let words: Option<Vec<_>> = words.map(|words| words.into_iter().collect());
        let words = words.as_ref().map(|words| words.iter().map(|(text, healthy)| (&**text, *healthy)));
        said(node, &format!("v{number}"), words)
    })
}

fn any_prefilter() -> impl Strategy<Value = Change> {
    (0..2_u8, any_selector(), 0..2_u8).prop_map(|(number, nodes, cidr)| {
        let cidrs = vec![format!("198.51.{cidr}.0/24").parse().unwrap()];
        put_prefilter(Prefilter { name: format!("f{number}"), nodes, cidrs, arp_senders: Vec::new() })
    })
}

fn any_shaping() -> impl Strategy<Value = Change> {
    // Some selectors are about a label that makes no identity, too.
    let builds = (any_selector(), any::<bool>()).prop_map(|(selector, of_build)| {
        let build = Requirement::Exists { key: "build".to_owned() };
        Selector::new(selector.requirements().cloned().chain(of_build.then_some(build)))
    });
    (0..2_u8, builds, any::<bool>(), 1..3_u64).prop_map(|(number, selector, of_nodes, rate)| {
        let shaped = if of_nodes {
            Shaped::Nodes { nodes: selector, cgroup: String::new() }
        } else {
            Shaped::Endpoints(selector)
        };
        services::put_shaping(&format!("s{number}"), shaped, rate * 1_000_000)
    })
}

fn any_selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        3 => select(&APPS[..3]).prop_map(selector),
        1 => Just(Selector::default()),
        1 => Just(Selector::new([Requirement::NotIn { key: "app".to_owned(), values: BTreeSet::from(["web".to_owned()]) }])),
    ]
}

fn any_peer() -> impl Strategy<Value = Peer> {
    let classes = select(vec![Class::Fleet, Class::Unmanaged, Class::World]);
    let sets = prop_oneof![
        select(&SETS[..]).prop_map(|name| CidrSetSelector::Name(name.to_owned())),
        select(&APPS[..3]).prop_map(|app| CidrSetSelector::MatchLabels(labels(app))),
    ];
    prop_oneof![
        4 => any_selector().prop_map(Peer::Endpoints),
        2 => any_selector().prop_map(Peer::Nodes),
        2 => sets.prop_map(Peer::CidrSet),
        1 => classes.prop_map(|class| Peer::Entity(Entity::Class(class))),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => any_policy().prop_map(put_policy),
        2 => any_cidr_set(),
        3 => any_service(),
        1 => (0..3_u8).prop_map(|number| Change::Service { name: format!("v{number}"), service: None }),
        4 => any_words(),
        2 => (select(&NODES[..]), any::<bool>())
            .prop_map(|(number, away)| Change::Away { node: format!("n{number}"), away }),
        2 => any_prefilter(),
        2 => any_shaping(),
        1 => (0..2_u8).prop_map(|number| Change::Shaping { name: format!("s{number}"), shaping: None }),
        1 => (0..2_u8).prop_map(|number| Change::Prefilter { name: format!("f{number}"), prefilter: None }),
        1 => (0..4_u8).prop_map(|number| Change::Policy { name: format!("p{number}"), policy: None }),
        // An address belongs to one endpoint's name; identities may come after their endpoints.
        4 => (0..6_u8, select(&NODES[..]), 256..260_u32, 0..2_u8, any::<bool>()).prop_map(|(number, node, identity, address, is_ready)| {
            let change = put_endpoint(&format!("e{number}"), node, identity, &format!("10.200.{number}.{address}"));
            if is_ready { ready(change) } else { change }
        }),
        2 => (0..6_u8).prop_map(|number| remove_endpoint(&format!("e{number}"))),
        2 => (256..260_u32, select(&APPS[..])).prop_map(|(number, app)| put_identity(number, app)),
        1 => (256..260_u32).prop_map(|number| Change::Identity { number, labels: None }),
        1 => (260..263_u32, select(&APPS[..])).prop_map(|(number, app)| {
            Change::Identity { number, labels: Some(crate::identity::of_node(&labels(app))) }
        }),
        1 => (260..263_u32).prop_map(|number| Change::Identity { number, labels: None }),
        2 => (select(&NODES[..]), select(vec![0, 260, 261, 262]))
            .prop_map(|(number, identity)| put_node_as(number, identity)),
        1 => select(&NODES[..]).prop_map(|number| Change::Node { name: format!("n{number}"), facts: None }),
        1 => Just(config()),
        1 => Just(services::config_of_pool("10.200.0.0/22")),
        1 => Just(Change::Config(None)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let node = || select(&NODES[..]);
    prop_oneof![
        6 => prop::collection::vec(any_change(), 0..4).prop_map(Step::Changes),
        2 => node().prop_map(Step::Connect),
        1 => node().prop_map(Step::Disconnect),
        3 => node().prop_map(Step::Drain),
        2 => node().prop_map(Step::Acknowledge),
        1 => Just(Step::Tick),
    ]
}

/// Which object a change is about.
fn subject(change: &Change) -> (u8, String) {
    match change {
        Change::Node { name, .. } => (0, name.clone()),
        Change::Endpoint { name, .. } => (1, name.clone()),
        Change::Identity { number, .. } => (2, number.to_string()),
        Change::Policy { name, .. } => (3, name.clone()),
        Change::CidrSet { name, .. } => (5, name.clone()),
        Change::Service { name, .. } => (6, name.clone()),
        Change::Prefilter { name, .. } => (7, name.clone()),
        Change::Health { node, service, .. } => (8, format!("{node}/{service}")),
        Change::Away { node, .. } => (9, node.clone()),
        Change::Shaping { name, .. } => (10, name.clone()),
        Change::Config(_) => (4, String::new()),
    }
}

/// The last change of each object.
type Contents = BTreeMap<(u8, String), Change>;

/// The changes as they can be in one revision: each object once, the last change of it.
fn squash(changes: Vec<Change>) -> Contents {
    changes.into_iter().map(|change| (subject(&change), change)).collect()
}

/// What each node holds once everything has come to rest.
fn at_rest(fleet: &mut Fleet, holders: &mut BTreeMap<String, Holder>) -> BTreeMap<String, Held> {
    fleet.tick(LATER);
    let nodes: Vec<String> = fleet.nodes().map(|(name, _)| name.to_owned()).collect();
    for node in &nodes {
        if !fleet.is_connected(node) {
            fleet.connect(node, None);
        }
        let holder = holders.entry(node.clone()).or_default();
        settle(fleet, node, holder);
        assert_eq!(fleet.realised(node), fleet.revision());
    }
    nodes
        .into_iter()
        .map(|node| (node.clone(), std::mem::take(&mut holders.entry(node).or_default().held)))
        .collect()
}

fn walk(steps: &[Step]) -> (Fleet, BTreeMap<String, Holder>, Contents) {
    let (mut fleet, mut holders, mut contents) =
        (Fleet::default(), BTreeMap::<String, Holder>::new(), BTreeMap::new());
    for step in steps {
        match step {
            Step::Changes(changes) => {
                let changes = squash(changes.clone());
                for (subject, change) in &changes {
                    contents.insert(subject.clone(), change.clone());
                    if let Change::Node { name, facts: None } = change {
                        fleet.disconnect(name);
                        holders.remove(name);
                    }
                }
                fleet.apply(fleet.revision() + 1, Duration::ZERO, changes.into_values().collect());
            }
            Step::Connect(number) => {
                let node = format!("n{number}");
                if fleet.node(&node).is_some() {
                    fleet.connect(&node, None);
                    holders.entry(node).or_default().unacknowledged.clear();
                }
            }
            Step::Disconnect(number) => fleet.disconnect(&format!("n{number}")),
            Step::Drain(number) => {
                let node = format!("n{number}");
                if let Some(delta) = fleet.drain(&node) {
                    holders.entry(node).or_default().take(&delta);
                }
            }
            Step::Acknowledge(number) => {
                let node = format!("n{number}");
                let holder = holders.entry(node.clone()).or_default();
                if !holder.unacknowledged.is_empty() {
                    fleet.acknowledge(&node, holder.unacknowledged.remove(0), Vec::new());
                }
            }
            Step::Tick => fleet.tick(LATER),
        }
    }
    contents.retain(|_, change| !change.is_deletion());
    (fleet, holders, contents)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn after_any_events_nodes_hold_what_the_final_contents_say(steps in prop::collection::vec(any_step(), 0..40)) {
        let (mut fleet, mut holders, contents) = walk(&steps);
        let found = at_rest(&mut fleet, &mut holders);

        let mut fresh = Fleet::default();
        fresh.apply(1, Duration::ZERO, contents.into_values().collect());
        let expected = at_rest(&mut fresh, &mut BTreeMap::new());
        prop_assert_eq!(found, expected);
        prop_assert_eq!(fleet.index.resources.keys(), fresh.index.resources.keys(), "resources are left over");
    }

    #[test]
    fn the_order_in_which_contents_arrive_does_not_matter(
        steps in prop::collection::vec(any_step(), 0..30),
        order in any::<prop::sample::Index>(),
        together in 1..4_usize,
    ) {
        let (_, _, contents) = walk(&steps);
        let mut changes: Vec<Change> = contents.into_values().collect();
        let mut forwards = Fleet::default();
        forwards.apply(1, Duration::ZERO, changes.clone());
        let expected = at_rest(&mut forwards, &mut BTreeMap::new());

        changes.reverse();
        if !changes.is_empty() {
            let middle = order.index(changes.len());
            changes.rotate_left(middle);
        }
        let mut otherwise = Fleet::default();
        for part in changes.chunks(together) {
            otherwise.apply(otherwise.revision() + 1, Duration::ZERO, part.to_vec());
            otherwise.apply(otherwise.revision() + 1, Duration::ZERO, Vec::new());
        }
        prop_assert_eq!(at_rest(&mut otherwise, &mut BTreeMap::new()), expected);
    }
}
