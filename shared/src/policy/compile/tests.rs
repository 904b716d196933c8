//! Compiled = oracle, by a plain model of the kernel's lookup. (The same is proven through the real programs where the
//! kernel is at hand.)

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::policy::{
    arbitrary::{self, Fleet},
    model::{FlowPort, Labels, Mode, NodeRule, Party, Peer, PortRange, RuleAction, Subject, Tier},
    oracle, prefix, wire,
};

/// Label sets are numbered by their place, those of nodes after those of endpoints.
fn identity_of(labels: &Labels, is_node: bool) -> u32 {
    let sets = if is_node { arbitrary::node_label_sets() } else { arbitrary::label_sets() };
    let place = sets.iter().position(|set| set == labels).expect("a random fleet's label set");
    (if is_node { 300 } else { 256 }) + u32::try_from(place).expect("a few")
}

fn sets(fleet: &Fleet) -> IdentitySets {
    let mut found = IdentitySets::new();
    for peer in fleet.policies.iter().flat_map(|policy| policy.peers()) {
        let (selector, name, is_node) = match peer {
            Peer::Endpoints(selector) => (selector, wire::endpoint_set(selector), false),
            Peer::Nodes(selector) => (selector, wire::node_set(selector), true),
            Peer::Cidr { .. } | Peer::CidrSet(_) | Peer::Entity(_) => continue,
        };
        let all = if is_node { arbitrary::node_label_sets() } else { arbitrary::label_sets() };
        let members = all.iter().filter(|labels| selector.matches(labels));
        found.insert(name, members.map(|labels| identity_of(labels, is_node)).collect());
    }
    found
}

/// What the kernel does: the row with most bits of those that match.
fn look_up(book: &Rulebook, port: FlowPort) -> PolicyRow {
    let flow = PortKey::exact(port.protocol, port.port);
    let rows = (0..=PortKey::FULL_BITS).rev().find_map(|bits| book.get(&flow.cut(bits)));
    *rows.expect("each rulebook has a row for everything")
}

fn peer_identity(peer: &Party, prefixes: &PrefixIdentities) -> u32 {
    match (peer.class, peer.address) {
        (Class::Fleet, _) => identity_of(&peer.labels, false),
        (Class::RemoteNode, _) => identity_of(&peer.labels, true),
        (Class::World, Some(address)) => prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map_or(Class::World as u32, |(_, number)| number),
        (class, _) => class as u32,
    }
}

/// The verdict, and the would-be one, with the rules that decided.
type Judged = ((Action, u32), (Action, u32));

fn expected(fleet: &Fleet, subject: &Party, peer: &Party, direction: Direction, port: FlowPort) -> Judged {
    let number = |step: &oracle::Step| {
        if step.policy.is_empty() { 0 } else { rule_number(&step.policy, direction, &step.rule) }
    };
    let verdict = oracle::judge(fleet.context(), subject, peer, direction, port);
    let enforced = (verdict.action, verdict.decision().map_or(0, number));
    let audited = verdict.audit.as_ref().map_or(enforced, |audit| (audit.action, number(&audit.step)));
    (enforced, audited)
}

fn found(row: PolicyRow) -> Judged {
    let action = |number| if number == Action::Allow as u32 { Action::Allow } else { Action::Deny };
    ((action(row.action), row.rule), (action(row.audit_action), row.audit_rule))
}

/// What the subject's policies are compiled with, and those policies.
fn with_surroundings<R>(
    fleet: &Fleet,
    subject: &Party,
    own: &Labels,
    compile: impl FnOnce(&[&NodePolicy], Surroundings<'_>) -> R,
) -> R {
    let nodes: Vec<NodePolicy> = fleet
        .policies
        .iter()
        .map(|policy| wire::node_form(policy, |meant| fleet.cidr_set_names(meant)))
        .collect();
    let selecting = nodes.iter().zip(&fleet.policies).filter(|(_, policy)| policy.selects(subject));
    let selecting: Vec<&NodePolicy> = selecting.map(|(node, _)| node).collect();
    let cidr_sets = fleet.cidr_sets.iter().map(|set| (set.name.clone(), set.cidrs.clone())).collect();
    let named =
        nodes.iter().flat_map(|policy| policy.peers()).flat_map(|peer| prefix::named(peer, &cidr_sets));
    let prefixes = PrefixIdentities::assign([], named, &arbitrary::pools());
    let surroundings = Surroundings {
        sets: &sets(fleet),
        cidr_sets: &cidr_sets,
        prefixes: &prefixes,
        default_action: fleet.config.default_action,
        host_to_endpoint: fleet.config.host_to_endpoint,
        own_node: Some(identity_of(own, true)),
    };
    compile(&selecting, surroundings)
}

fn compile(fleet: &Fleet, subject: &Party, own: &Labels) -> (Table, PrefixIdentities) {
    with_surroundings(fleet, subject, own, |policies, surroundings| {
        let identity = Identity(identity_of(&subject.labels, false));
        (table(identity, policies, surroundings).expect("few rows"), surroundings.prefixes.clone())
    })
}

fn compile_one(
    fleet: &Fleet,
    subject: &Party,
    own: &Labels,
    direction: Direction,
    identity: u32,
) -> Option<Arc<Rulebook>> {
    with_surroundings(fleet, subject, own, |policies, surroundings| {
        PeerCompiler::new(policies, surroundings).rulebook(direction, identity)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_compiled_table_gives_the_oracles_verdict_and_rule(
        fleet in arbitrary::fleet(),
        labels in select(arbitrary::label_sets()),
        own in select(arbitrary::node_label_sets()),
        flows in vec((arbitrary::peer(), arbitrary::flow_port(), any::<bool>()), 20),
    ) {
        let subject = Party { class: Class::Fleet, labels, address: None, local: true };
        let (table, prefixes) = compile(&fleet, &subject, &own);
        for (mut peer, port, ingress) in flows {
            if peer.class == Class::Host {
                peer.labels = own.clone();
            }
            let direction = if ingress { Direction::Ingress } else { Direction::Egress };
            let identity = peer_identity(&peer, &prefixes);
            let book = table.rulebook(direction, identity, peer.class);
            if matches!(peer.class, Class::Fleet | Class::RemoteNode) {
                let one = compile_one(&fleet, &subject, &own, direction, identity);
                prop_assert_eq!(one.as_deref(), table.peers.get(&(direction, identity)).map(|book| &**book));
            }
            prop_assert_eq!(
                found(look_up(book, port)),
                expected(&fleet, &subject, &peer, direction, port),
                "{:?} {:?} {:?}", peer, direction, port
            );
        }
    }

    #[test]
    fn prefixes_keep_their_numbers_when_others_come_and_go(
        first in vec(select(arbitrary::POOLS.to_vec()), 0..2),
        before in arbitrary::cidr_sets(),
        after in arbitrary::cidr_sets(),
    ) {
        let pools: Vec<IpNet> = first.iter().map(|pool| pool.parse().expect("a prefix")).collect();
        let named = |sets: &[crate::policy::model::CidrSet]| -> Vec<IpNet> {
            sets.iter().flat_map(|set| set.cidrs.clone()).collect()
        };
        let before = PrefixIdentities::assign([], named(&before), &pools);
        let after = PrefixIdentities::assign(before.iter(), named(&after), &pools);
        for (prefix, number) in before.iter() {
            for (other, same) in after.iter() {
                prop_assert_eq!(prefix == other, number == same, "{} {} and {} {}", prefix, number, other, same);
            }
        }
    }
}

fn surroundings<'a>(
    sets: &'a IdentitySets,
    cidr_sets: &'a CidrSets,
    prefixes: &'a PrefixIdentities,
) -> Surroundings<'a> {
    Surroundings {
        sets,
        cidr_sets,
        prefixes,
        default_action: Action::Allow,
        host_to_endpoint: HostToEndpoint::Allow,
        own_node: None,
    }
}

/// Ingress from the set `all` to one port.
fn wide() -> NodePolicy {
    NodePolicy {
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
    }
}

#[test]
fn one_row_more_than_a_policy_may_have_is_an_overflow() {
    let (cidr_sets, prefixes) = (CidrSets::new(), PrefixIdentities::default());
    let compile = |count: u32| {
        let sets = IdentitySets::from([("all".to_owned(), (256..256 + count).collect())]);
        table(Identity(256), &[&wide()], surroundings(&sets, &cidr_sets, &prefixes))
    };
    let rows = |count| compile(count).map(|table| table.rows());
    // Beside the peers, five rows of four rulebooks: what is denied by default, what is allowed, the host's, and egress's
    // (which the host's is, too).
    let most = u32::try_from(POLICY_ROWS_MAX).expect("fits") - 4;
    assert_eq!(rows(most), Ok(POLICY_ROWS_MAX));
    assert_eq!(rows(most + 1), Err(Overflow { subject: Identity(256), rows: POLICY_ROWS_MAX + 1 }));
}

#[test]
fn peers_about_whom_the_same_is_said_share_a_rulebook_and_others_have_none() {
    let sets = IdentitySets::from([("all".to_owned(), [256, 257, 258].into())]);
    let (cidr_sets, prefixes) = (CidrSets::new(), PrefixIdentities::default());
    let table = table(Identity(256), &[&wide()], surroundings(&sets, &cidr_sets, &prefixes)).expect("fits");
    let books: Vec<_> = table.peers.values().collect();
    assert_eq!(table.peers.keys().map(|(_, peer)| *peer).collect::<Vec<_>>(), [256, 257, 258]);
    assert!(books.iter().all(|book| Arc::ptr_eq(book, books[0])));
    assert_eq!(books[0].len(), 2, "{:?}", books[0]);
}

#[test]
fn rule_numbers_are_frozen() {
    assert_eq!(rule_number("api-from-web", Direction::Ingress, "web"), 2_435_672_946);
    assert_ne!(rule_number("a", Direction::Ingress, "0"), rule_number("a", Direction::Egress, "0"));
}
