//! Compiled = oracle, by a plain model of the kernel's lookup. (The same is proven through the real programs where the
//! kernel is at hand.)

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::policy::{
    arbitrary::{self, Fleet},
    case::{self, Wrong},
    model::{
        Entity, FleetConfig, FlowPort, Labels, Mode, NodeRule, Party, Peer, Policy, PortRange, RuleAction,
        Subject, Tier, is_listener_discovery, needed_by_the_link,
    },
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
    for peer in fleet.policies.iter().flat_map(Policy::peers) {
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

/// Those of the world, and of its links.
fn addresses() -> Vec<&'static str> {
    [&arbitrary::ADDRESSES[..], &arbitrary::LINK_ADDRESSES].concat()
}

fn peer() -> impl Strategy<Value = Party> {
    let on_a_link = select(arbitrary::LINK_ADDRESSES.to_vec()).prop_map(|text| Party {
        class: Class::World,
        labels: Labels::new(),
        address: text.parse().ok(),
        local: false,
    });
    prop_oneof![6 => arbitrary::peer(), 1 => on_a_link]
}

/// Ports that rules name, and those that the link needs.
fn flow_port() -> impl Strategy<Value = FlowPort> {
    prop_oneof![3 => arbitrary::flow_port(), 1 => arbitrary::needed_port()]
}

fn direction() -> impl Strategy<Value = Direction> {
    select(Direction::ALL.to_vec())
}

/// What the kernel does before it asks a node's table: the longest prefix that the address is in says everything.
fn is_failsafe(books: &FailsafeBooks, direction: Direction, peer: &Party, port: FlowPort) -> bool {
    let address = peer.address.expect("every packet has one");
    let around = books.iter().filter(|((of, prefix), _)| *of == direction && prefix.contains(&address));
    let longest = around.max_by_key(|((_, prefix), _)| prefix.prefix_len());
    longest.is_some_and(|(_, book)| look_up(book, port).action == Action::Allow as u32)
}

/// The node's own endpoints, which the kernel knows by their interface.
fn is_free(fleet: &Fleet, direction: Direction, peer: &Party) -> bool {
    let own_endpoint = peer.class == Class::Fleet && peer.local;
    let free = fleet.config.host_to_endpoint == HostToEndpoint::Allow;
    direction == Direction::Egress && own_endpoint && free
}

/// What the subject's policies are compiled with: whose they are, and those policies.
fn with_surroundings<R>(
    fleet: &Fleet,
    subject: &Party,
    own: &Labels,
    compile: impl FnOnce(Kind, &[&NodePolicy], Surroundings<'_>) -> R,
) -> R {
    let nodes: Vec<NodePolicy> = fleet
        .policies
        .iter()
        .map(|policy| wire::node_form(policy, |meant| fleet.cidr_set_names(meant)))
        .collect();
    let selecting = nodes.iter().zip(&fleet.policies).filter(|(_, policy)| policy.selects(subject));
    let selecting: Vec<&NodePolicy> = selecting.map(|(node, _)| node).collect();
    let cidr_sets = fleet.cidr_sets.iter().map(|set| (set.name.clone(), set.cidrs.clone())).collect();
    let named = nodes.iter().flat_map(Policy::peers).flat_map(|peer| prefix::named(peer, &cidr_sets));
    let prefixes = PrefixIdentities::assign([], named, &arbitrary::pools());
    let surroundings = Surroundings {
        sets: &sets(fleet),
        cidr_sets: &cidr_sets,
        prefixes: &prefixes,
        default_action: fleet.config.default_action,
        host_to_endpoint: fleet.config.host_to_endpoint,
        own_node: Some(identity_of(own, true)),
    };
    let kind = if subject.class == Class::Fleet { Kind::Endpoint } else { Kind::Node };
    compile(kind, &selecting, surroundings)
}

fn compile(fleet: &Fleet, subject: &Party, own: &Labels) -> (Table, PrefixIdentities) {
    with_surroundings(fleet, subject, own, |kind, policies, surroundings| {
        let identity = Identity(identity_of(&subject.labels, kind == Kind::Node));
        (table(identity, kind, policies, surroundings).expect("few rows"), surroundings.prefixes.clone())
    })
}

fn compile_one(
    fleet: &Fleet,
    subject: &Party,
    own: &Labels,
    direction: Direction,
    identity: u32,
) -> Option<Arc<Rulebook>> {
    with_surroundings(fleet, subject, own, |kind, policies, surroundings| {
        PeerCompiler::new(kind, policies, surroundings).rulebook(direction, identity)
    })
}

/// What the kernel would say of a flow by the table, and what is wrong with that.
fn check(
    fleet: &Fleet,
    (table, prefixes): &(Table, PrefixIdentities),
    (subject, peer): (&Party, &Party),
    direction: Direction,
    port: FlowPort,
) -> Result<(), Wrong> {
    let failsafe = failsafe_books(&fleet.config.failsafe);
    let free = subject.class == Class::Host
        && (is_failsafe(&failsafe, direction, peer, port) || is_free(fleet, direction, peer));
    let book = table.rulebook(direction, peer_identity(peer, prefixes), peer.class);
    let row = if free { PolicyRow::of(Action::Allow, 0) } else { look_up(book, port) };
    let (seen, expected) = (found(row), expected(fleet, subject, peer, direction, port));
    let text = |((action, rule), (audit, audit_rule)): Judged| {
        let verdict = case::verdict(fleet, action, rule);
        let audit = case::verdict(fleet, audit, audit_rule);
        format!("{verdict}; with audited policies {audit}")
    };
    if seen == expected { Ok(()) } else { Err(Wrong { expected: text(expected), seen: text(seen) }) }
}

#[test]
fn the_compiled_table_gives_the_oracles_verdict_and_rule() {
    let flow = (peer(), select(addresses()), flow_port(), direction());
    let own = select(arbitrary::node_label_sets());
    let values = (arbitrary::fleet(), arbitrary::judged(), own, vec(flow, 20));
    case::hold(2_000, &values, |(fleet, subject, own, flows)| {
        let own = if subject.class == Class::Host { subject.labels.clone() } else { own };
        let compiled = compile(&fleet, &subject, &own);
        for (mut peer, address, port, direction) in flows {
            if peer.class == Class::Host {
                peer.labels.clone_from(&own);
            }
            peer.address.get_or_insert(address.parse().expect("an address"));
            if matches!(peer.class, Class::Fleet | Class::RemoteNode) {
                let identity = peer_identity(&peer, &compiled.1);
                let one = compile_one(&fleet, &subject, &own, direction, identity);
                let whole = compiled.0.peers.get(&(direction, identity));
                assert_eq!(
                    one.as_deref(),
                    whole.map(|book| &**book),
                    "compiled for the one peer, and for all"
                );
            }
            if check(&fleet, &compiled, (&subject, &peer), direction, port).is_ok() {
                continue;
            }
            let (node, subject, peer) = (own.clone(), subject.clone(), peer.clone());
            let ends = (&subject, &peer);
            let judge = |fleet: &Fleet| check(fleet, &compile(fleet, &subject, &own), ends, direction, port);
            case::check(&fleet, &case::Flow::of(node, ends, direction, port), judge)?;
        }
        Ok(())
    });
}

/// Asks whether an empty fleet with these failsafe entries opens a node's flow, and should.
fn hold_of_nodes(opens: impl Fn(&Fleet, &Party, Direction, FlowPort) -> [Action; 2]) {
    let address = select(addresses());
    let values = (vec(arbitrary::failsafe(), 0..6), peer(), address, flow_port(), direction());
    case::hold(2_000, &values, |(failsafe, peer, address, port, direction)| {
        let peer = Party { address: Some(address.parse().expect("an address")), ..peer };
        let node = Party { class: Class::Host, labels: Labels::new(), address: None, local: true };
        let config = FleetConfig { failsafe, ..FleetConfig::of_pools(Vec::new()) };
        let fleet = Fleet { policies: Vec::new(), cidr_sets: Vec::new(), config };
        let flow = case::Flow::of(Labels::new(), (&node, &peer), direction, port);
        case::check(&fleet, &flow, |fleet| {
            let [expected, seen] = opens(fleet, &peer, direction, port);
            let text = |action: Action| format!("{action:?}");
            if seen == expected { Ok(()) } else { Err(Wrong { expected: text(expected), seen: text(seen) }) }
        })
    });
}

fn action(allows: bool) -> Action {
    if allows { Action::Allow } else { Action::Deny }
}

/// I10: what an entry holds is open, whatever else is said.
#[test]
fn failsafe_entries_hold_against_every_compiled_host_policy_and_open_no_more() {
    hold_of_nodes(|fleet, peer, direction, port| {
        let entries = &fleet.config.failsafe;
        let holds = entries.iter().any(|entry| entry.holds(direction, peer.address, port))
            || is_listener_discovery(direction, peer.address, port);
        [holds, is_failsafe(&failsafe_books(entries), direction, peer, port)].map(action)
    });
}

/// Also where its policies don't fit, a node keeps what its link needs, and nothing else.
#[test]
fn a_closed_node_lets_through_what_its_link_needs() {
    hold_of_nodes(|_, peer, direction, port| {
        let on_a_link = matches!(peer.class, Class::RemoteNode | Class::World);
        let open = peer.class == Class::Host || (on_a_link && needed_by_the_link(direction, port));
        let table = closed_table(Kind::Node);
        [action(open), found(look_up(table.rulebook(direction, 300, peer.class), port)).0.0]
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

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
        table(Identity(256), Kind::Endpoint, &[&wide()], surroundings(&sets, &cidr_sets, &prefixes))
    };
    let rows = |count| compile(count).map(|table| table.rows());
    // Beside the peers, five rows of four rulebooks: what is denied by default, what is allowed, the host's, and egress's
    // (which the host's is, too).
    let most = u32::try_from(POLICY_ROWS_MAX).expect("fits") - 4;
    assert_eq!(rows(most), Ok(POLICY_ROWS_MAX));
    assert_eq!(rows(most + 1), Err(Unfit::Overflow { subject: Identity(256), rows: POLICY_ROWS_MAX + 1 }));
}

#[test]
fn peers_about_whom_the_same_is_said_share_a_rulebook_and_others_have_none() {
    let sets = IdentitySets::from([("all".to_owned(), [256, 257, 258].into())]);
    let (cidr_sets, prefixes) = (CidrSets::new(), PrefixIdentities::default());
    let surroundings = surroundings(&sets, &cidr_sets, &prefixes);
    let table = table(Identity(256), Kind::Endpoint, &[&wide()], surroundings).expect("fits");
    let books: Vec<_> = table.peers.values().collect();
    assert_eq!(table.peers.keys().map(|(_, peer)| *peer).collect::<Vec<_>>(), [256, 257, 258]);
    assert!(books.iter().all(|book| Arc::ptr_eq(book, books[0])));
    assert_eq!(books[0].len(), 2, "{:?}", books[0]);
}

#[test]
fn a_policy_that_names_a_set_which_is_not_there_is_not_used() {
    let mut policy = wide();
    let rules = policy.ingress.as_mut().expect("the policy has rules");
    rules[0].peers = Some(vec![Peer::CidrSet(vec!["partners".to_owned()])]);
    let (sets, prefixes) = (IdentitySets::new(), PrefixIdentities::default());
    let compile = |cidr_sets: &CidrSets| {
        table(Identity(256), Kind::Endpoint, &[&policy], surroundings(&sets, cidr_sets, &prefixes)).map(drop)
    };
    let (policy, set) = ("wide".to_owned(), "partners".to_owned());
    let error = Unfit::NoSuchCidrSet { subject: Identity(256), policy, set };
    assert_eq!(compile(&CidrSets::new()), Err(error));
    assert_eq!(compile(&CidrSets::from([("partners".to_owned(), Vec::new())])), Ok(()));
}

#[test]
fn what_an_audited_policy_would_open_to_unknown_addresses_is_told_with_its_rule() {
    let rule = |action, peer| NodeRule { name: "0".to_owned(), action, peers: Some(vec![peer]), ports: None };
    let policy = |name: &str, mode, rules| NodePolicy {
        name: name.to_owned(),
        mode,
        tier: Tier::Admin { order: 0 },
        ingress: Some(rules),
        ..wide()
    };
    let unmanaged = Peer::Entity(Entity::Class(Class::Unmanaged));
    let closing =
        policy("closing", Mode::Enforce, vec![rule(RuleAction::Deny, Peer::Endpoints("all".to_owned()))]);
    let opening = policy("opening", Mode::Audit, vec![rule(RuleAction::Allow, unmanaged)]);
    let (sets, cidr_sets, prefixes) = (IdentitySets::new(), CidrSets::new(), PrefixIdentities::default());
    let around = surroundings(&sets, &cidr_sets, &prefixes);
    let table = table(Identity(256), Kind::Endpoint, &[&closing, &opening], around).expect("few rows");
    let row = look_up(
        table.rulebook(Direction::Ingress, Class::Unmanaged as u32, Class::Unmanaged),
        FlowPort { protocol: 6, port: 80 },
    );
    let number = rule_number("opening", Direction::Ingress, "0");
    assert_eq!(found(row), ((Action::Deny, 0), (Action::Allow, number)));
}

#[test]
fn rule_numbers_are_frozen() {
    assert_eq!(rule_number("api-from-web", Direction::Ingress, "web"), 2_435_672_946);
    assert_ne!(rule_number("a", Direction::Ingress, "0"), rule_number("a", Direction::Egress, "0"));
}
