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

/// A member, an address or a policy that comes, goes or changes.
fn change() -> impl Strategy<Value = (i32, String, Option<v1::Upsert>)> {
    let member = prop_oneof![
        4 => (prop::sample::select(&SETS[..]), 256_u32..272),
        // This node's own identity among them.
        2 => (Just(NODES), 300_u32..303),
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
    let policy = (0..4_u8, prop::option::weighted(0.8, policy())).prop_map(|(number, policy)| {
        let name = format!("p{number}");
        let upsert = policy.map(|policy| upsert(ResourceType::Policy, name.clone(), &policy));
        (ResourceType::Policy.into(), name, upsert)
    });
    prop_oneof![3 => member, 2 => address, 2 => policy]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_comes_goes_and_changes_takes_the_steps_of_the_whole(
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

/// Subjects in `b` take from some peer on a port.
fn policy_of(peer: v1::node_peer::Peer, port: u32) -> v1::NodePolicy {
    let rule = v1::NodeRule {
        name: "0".to_owned(),
        action: v1::Action::Allow.into(),
        peers: Some(v1::NodePeerList { items: vec![v1::NodePeer { peer: Some(peer) }] }),
        ports: Some(v1::NodePortList {
            items: vec![v1::NodePortRange { protocol: 6, first: port, last: port }],
        }),
    };
    v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        subject_set: "b".to_owned(),
        default_deny_ingress: true,
        ingress: Some(v1::NodeRuleList { items: vec![rule] }),
        mode: v1::PolicyMode::Enforce.into(),
        ..v1::NodePolicy::default()
    }
}

fn from_a(port: u32) -> v1::NodePolicy {
    policy_of(v1::node_peer::Peer::EndpointSet("a".to_owned()), port)
}

/// A node whose endpoints take from the set `a` on port 80.
fn node() -> Node {
    // Own endpoints are of 258, in `b` alone; the others of 257, in `a` alone.
    let identities = vec![258, 258, 257, 257, 257];
    let model = Model { identities, policies: vec![from_a(80)], unmanaged: false, deny_by_default: false };
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

#[test]
fn a_policy_that_comes_changes_or_goes_touches_its_subjects_alone() {
    let mut node = node();
    let put = |name: &str, policy: &v1::NodePolicy| {
        let upserts = vec![upsert(ResourceType::Policy, name.to_owned(), policy)];
        Batch { upserts, ..Batch::default() }
    };
    let allowed = |node: &Node| {
        [80, 85, 443].map(|port| judge(&node.tables(), 10, OTHERS[0], port) == Action::Allow as u32)
    };
    assert_eq!(allowed(&node), [true, false, false]);

    node.take(put("p0", &from_a(85)));
    assert_eq!(allowed(&node), [false, true, false]);
    node.take(put("p1", &from_a(443)));
    assert_eq!(allowed(&node), [false, true, true]);
    let gone = v1::Remove { r#type: ResourceType::Policy.into(), name: "p0".to_owned() };
    node.take(Batch { removes: vec![gone], ..Batch::default() });
    assert_eq!(allowed(&node), [false, false, true]);
    assert_eq!(node.narrow, 3);

    // And whoever joins then meets the policies that are there.
    node.take(Batch { upserts: vec![member("a/261"), address("10.200.2.20", 261)], ..Batch::default() });
    assert_eq!(judge(&node.tables(), 10, "10.200.2.20", 443), Action::Allow as u32);
    assert_eq!(node.narrow, 4);
}

#[test]
fn a_policy_of_prefixes_or_of_nodes_is_a_matter_of_the_whole() {
    let cidr = v1::NodeCidr { cidr: "198.51.100.0/24".to_owned(), except: Vec::new() };
    let cidr = policy_of(v1::node_peer::Peer::Cidr(cidr), 80);
    let set = v1::NodeCidrSets { names: vec![CIDR_SETS[0].0.to_owned()] };
    let set = policy_of(v1::node_peer::Peer::CidrSets(set), 80);
    let of_nodes = v1::NodePolicy { subject_is_nodes: true, ..from_a(80) };
    for policy in [cidr, set, of_nodes] {
        let mut node = node();
        node.take(Batch {
            upserts: vec![upsert(ResourceType::Policy, "p0".to_owned(), &policy)],
            ..Batch::default()
        });
        // Nor is one that was.
        node.take(Batch {
            upserts: vec![upsert(ResourceType::Policy, "p0".to_owned(), &from_a(443))],
            ..Batch::default()
        });
        assert_eq!(node.narrow, 0);
        assert_eq!(judge(&node.tables(), 10, OTHERS[0], 443), Action::Allow as u32);
    }
}
