//! The narrow way goes the very steps of the whole (`Node::take` compares them), and it is taken where it is meant to be.

use super::{
    batches::{Changes, Node, batch, contents, everything},
    *,
};

const ADDRESSES: [&str; 7] = [
    OTHERS[0],
    OTHERS[1],
    "10.200.2.20",
    "10.200.3.20",
    // In no pool; in a prefix that policies may name.
    "198.51.100.9",
    // An own endpoint's, a node's.
    OWN[0],
    "192.0.2.2",
];

/// A member or an address that comes, goes or changes.
fn change() -> impl Strategy<Value = (i32, String, Option<v1::Upsert>)> {
    let member = prop_oneof![
        4 => (prop::sample::select(&SETS[..]), 256_u32..272),
        // This node's own identity among them.
        1 => (Just(NODES), 299_u32..304),
    ];
    let member = (member, prop::bool::weighted(0.7));
    let member = member.prop_map(|((set, identity), joins)| {
        let kind = ResourceType::IdentitySetMember.into();
        let name = format!("{set}/{identity}");
        let upsert = v1::Upsert { r#type: kind, name: name.clone(), ..v1::Upsert::default() };
        (kind, name, joins.then_some(upsert))
    });
    let address = (
        prop::sample::select(&ADDRESSES[..]),
        256_u32..272,
        prop::sample::select(&["n2", "n2", "n2", "n1", "n9"][..]),
        prop::bool::weighted(0.7),
    );
    let address = address.prop_map(|(address, identity, node, comes)| {
        let message = v1::NodeAddress { identity, node: node.to_owned() };
        let upsert = upsert(ResourceType::Address, address.to_owned(), &message);
        (ResourceType::Address.into(), address.to_owned(), comes.then_some(upsert))
    });
    prop_oneof![3 => member, 2 => address]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn members_and_addresses_that_come_and_go_take_the_steps_of_the_whole(
        contents in contents(),
        history in vec(vec(change(), 1..5), 1..12),
    ) {
        let mut node = Node::default();
        node.take(everything(&contents));
        let mut held = contents;
        for changes in history {
            let mut kept = Changes::new();
            for (kind, name, upsert) in changes {
                kept.insert((kind, name), upsert);
            }
            // Nobody is told that something goes which he does not have.
            kept.retain(|key, upsert| upsert.is_some() || held.contains_key(key));
            for (key, upsert) in &kept {
                match upsert {
                    Some(upsert) => drop(held.insert(key.clone(), upsert.clone())),
                    None => drop(held.remove(key)),
                }
            }
            node.take(batch(kept));
        }
        let mut fresh = Node::default();
        fresh.take(everything(&held));
        let (found, expected) = (node.tables(), fresh.tables());
        for ifindex in [10, 11] {
            for from in OWN.iter().chain(&ADDRESSES).chain(&WORLD) {
                for port in [80, 85, 443] {
                    prop_assert_eq!(judge(&found, ifindex, from, port), judge(&expected, ifindex, from, port));
                }
            }
        }
    }
}

/// A node whose endpoints take from the set `a` on port 80.
fn node() -> Node {
    let rule = v1::NodeRule {
        name: "0".to_owned(),
        action: v1::Action::Allow.into(),
        peers: Some(v1::NodePeerList {
            items: vec![v1::NodePeer { peer: Some(v1::node_peer::Peer::EndpointSet("a".to_owned())) }],
        }),
        ports: Some(v1::NodePortList { items: vec![v1::NodePortRange { protocol: 6, first: 80, last: 80 }] }),
    };
    let policy = v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        subject_set: "b".to_owned(),
        default_deny_ingress: true,
        ingress: Some(v1::NodeRuleList { items: vec![rule] }),
        mode: v1::PolicyMode::Enforce.into(),
        ..v1::NodePolicy::default()
    };
    // Own endpoints are of 258, in `b` alone; the others of 257, in `a` alone.
    let identities = vec![258, 258, 257, 257, 257];
    let model = Model { identities, policies: vec![policy], unmanaged: false, deny_by_default: false };
    let mut node = Node::default();
    node.take(Batch { upserts: model.upserts(), ..Batch::default() });
    node
}

fn member(name: &str) -> v1::Upsert {
    v1::Upsert {
        r#type: ResourceType::IdentitySetMember.into(),
        name: name.to_owned(),
        ..v1::Upsert::default()
    }
}

fn address(text: &str, identity: u32) -> v1::Upsert {
    let message = v1::NodeAddress { identity, node: "n2".to_owned() };
    upsert(ResourceType::Address, text.to_owned(), &message)
}

#[test]
fn what_happens_all_the_time_goes_the_narrow_way() {
    let mut node = node();
    let open = |node: &Node| judge(&node.tables(), 10, "10.200.2.20", 80) == Action::Allow as u32;
    let arrival = vec![member("a/261"), address("10.200.2.20", 261)];
    let gone = |kind: ResourceType, name: &str| v1::Remove { r#type: kind.into(), name: name.to_owned() };

    assert!(!open(&node));
    node.take(Batch { upserts: arrival, ..Batch::default() });
    assert!(open(&node), "a new identity with its endpoint");
    assert_eq!(node.narrow, 1);

    node.take(Batch { upserts: vec![address("10.200.2.21", 261)], ..Batch::default() });
    let leaving =
        vec![gone(ResourceType::Address, "10.200.2.20"), gone(ResourceType::Address, "10.200.2.21")];
    node.take(Batch { removes: leaving, ..Batch::default() });
    assert!(!open(&node));
    let collected = vec![gone(ResourceType::IdentitySetMember, "a/261")];
    node.take(Batch { removes: collected, ..Batch::default() });
    assert_eq!(node.narrow, 4, "one more of the identity; all of them gone; the identity collected");
}

#[test]
fn a_subject_that_is_touched_is_looked_at_whole() {
    let mut node = node();
    node.take(Batch { upserts: vec![member("a/258")], ..Batch::default() });
    assert_eq!(node.narrow, 0);
    assert_eq!(judge(&node.tables(), 10, OWN[1], 80), Action::Allow as u32);
}
