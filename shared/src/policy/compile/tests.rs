//! Compiled = oracle, by a plain model of the kernel's lookup. (The same is proven through the real programs where the
//! kernel is at hand.)

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::policy::{
    arbitrary,
    model::{FleetConfig, FlowPort, Labels, Mode, Party, Policy, PortRange, Subject, Tier},
    oracle, prefix, wire,
};

/// Label sets are numbered by their place.
fn identity_of(labels: &Labels) -> u32 {
    let place =
        arbitrary::label_sets().iter().position(|set| set == labels).expect("a random fleet's label set");
    256 + u32::try_from(place).expect("a few")
}

fn sets(policies: &[Policy]) -> IdentitySets {
    let peers = policies.iter().flat_map(Policy::peers);
    let selectors = peers.filter_map(|peer| match peer {
        Peer::Endpoints(selector) => Some(selector),
        Peer::Nodes(_) | Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => None,
    });
    let members = |selector: &crate::policy::selector::Selector| -> BTreeSet<u32> {
        arbitrary::label_sets().iter().filter(|labels| selector.matches(labels)).map(identity_of).collect()
    };
    selectors.map(|selector| (selector.set_name(), members(selector))).collect()
}

/// What the kernel does: longest prefix, by exact identity and by class.
fn look_up(table: &Table, direction: Direction, identity: u32, class: Class, port: FlowPort) -> u32 {
    let longest = |identity: u32| {
        let key = PolicyKey::flow(direction, identity, port.protocol, port.port);
        let bits = |key: &PolicyKey| {
            u64::from_be_bytes(bytemuck::bytes_of(key)[4..].try_into().expect("eight bytes"))
        };
        let matches = |(row, _): &(&PolicyKey, &PolicyRow)| {
            row.bits == 0 || (bits(row) ^ bits(&key)) >> (64 - row.bits) == 0
        };
        table.iter().filter(matches).max_by_key(|(row, _)| row.bits).map(|(_, row)| *row)
    };
    let (exact, class) = (longest(identity), longest(class as u32));
    let rows = [exact, class].into_iter().flatten();
    rows.max_by_key(|row| (row.precedence, row.action)).expect("each table has default rows").action
}

fn peer_identity(peer: &Party, prefixes: &PrefixIdentities) -> u32 {
    match (peer.class, peer.address) {
        (Class::Fleet, _) => identity_of(&peer.labels),
        (Class::World, Some(address)) => prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map_or(Class::World as u32, |(_, number)| number),
        (class, _) => class as u32,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_compiled_table_gives_the_oracles_verdict(
        policies in arbitrary::application_policies(),
        subject in proptest::sample::select(arbitrary::label_sets()),
        flows in proptest::collection::vec((arbitrary::peer(), arbitrary::flow_port(), any::<bool>()), 20),
        default_allow: bool,
    ) {
        let default_action = if default_allow { Action::Allow } else { Action::Deny };
        let party = Party { class: Class::Fleet, labels: subject.clone(), address: None, local: true };
        let config = FleetConfig { default_action, ..FleetConfig::of_pools(Vec::new()) };
        let context = oracle::Context { policies: &policies, cidr_sets: &[], config: &config };
        let nodes: Vec<NodePolicy> = policies
            .iter()
            .map(|policy| wire::from_node(&policy.name, &wire::to_node(policy, |_| Vec::new())).expect("what was written can be read"))
            .collect();
        let selecting: Vec<&NodePolicy> =
            nodes.iter().zip(&policies).filter(|(_, policy)| policy.selects(&party)).map(|(node, _)| node).collect();
        let wanted = nodes.iter().flat_map(Policy::peers).flat_map(prefix::named);
        let prefixes = PrefixIdentities::assign([], wanted, &arbitrary::pools());
        let table = table(Identity(identity_of(&subject)), &selecting, &sets(&policies), &prefixes, default_action)
            .expect("few rows");

        for (peer, port, ingress) in flows {
            let direction = if ingress { Direction::Ingress } else { Direction::Egress };
            let expected = oracle::judge(context, &party, &peer, direction, port);
            // The programs let a node reach its own endpoints without a lookup.
            let found = if ingress && peer.class == Class::Host {
                Action::Allow as u32
            } else {
                look_up(&table, direction, peer_identity(&peer, &prefixes), peer.class, port)
            };
            prop_assert_eq!(found, expected.action as u32, "{:?} {:?} {:?}: {:?}", peer, direction, port, expected);
        }
    }

    #[test]
    fn prefixes_keep_their_numbers_when_others_come_and_go(
        first in arbitrary::application_policies(),
        second in arbitrary::application_policies(),
    ) {
        let named = |policies: &[Policy]| policies.iter().flat_map(Policy::peers).flat_map(prefix::named).collect::<Vec<_>>();
        let before = PrefixIdentities::assign([], named(&first), &arbitrary::pools());
        let after = PrefixIdentities::assign(before.iter(), named(&second), &arbitrary::pools());
        for (prefix, number) in before.iter() {
            for (other, same) in after.iter() {
                prop_assert_eq!(prefix == other, number == same, "{} {} and {} {}", prefix, number, other, same);
            }
        }
    }
}

#[test]
fn one_row_more_than_a_table_holds_is_an_overflow() {
    let members = |count: u32| IdentitySets::from([("all".to_owned(), (256..256 + count).collect())]);
    let policy = NodePolicy {
        name: "wide".to_owned(),
        tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
        mode: Mode::Enforce,
        subject: Subject::Endpoints("all".to_owned()),
        ingress: Some(vec![NodeRule {
            name: "0".to_owned(),
            action: RuleAction::Allow,
            peers: Some(vec![Peer::Endpoints("all".to_owned())]),
            ports: Some(vec![PortRange { protocol: 6, first: 443, last: 443 }]),
        }]),
        egress: None,
    };
    let compile = |count| {
        table(Identity(256), &[&policy], &members(count), &PrefixIdentities::default(), Action::Allow)
    };
    // Two of the rows are the defaults.
    let most = u32::try_from(POLICY_ROWS_MAX).expect("fits") - 2;
    assert_eq!(compile(most).map(|table| table.len()), Ok(POLICY_ROWS_MAX));
    assert_eq!(compile(most + 1), Err(Overflow { subject: Identity(256), rows: POLICY_ROWS_MAX + 1 }));
}

#[test]
fn rule_numbers_are_frozen() {
    assert_eq!(rule_number("api-from-web", Direction::Ingress, "web"), 2_435_672_946);
    assert_ne!(rule_number("a", Direction::Ingress, "0"), rule_number("a", Direction::Egress, "0"));
}
