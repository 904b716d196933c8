//! Each rule of the walk, seen alone.

use proptest::prelude::*;

use super::*;
use crate::policy::{
    arbitrary::{self, Fleet},
    case,
    model::{Entity, Failsafe, Labels, Mode, PortRange, Requirement, RuleAction, Selector},
};

const HTTPS: FlowPort = FlowPort { protocol: 6, port: 443 };
const SSH: FlowPort = FlowPort { protocol: 6, port: 22 };

const ADMIN: Tier = Tier::Admin { order: 1000 };
const APPLICATION: Tier = Tier::Application { default_deny_ingress: false, default_deny_egress: false };
const BASELINE: Tier = Tier::Baseline { order: 1000 };

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

fn selector(key: &str, value: &str) -> Selector {
    let requirement = Requirement::In { key: key.to_owned(), values: [value.to_owned()].into() };
    Selector::new([requirement])
}

fn endpoint(app: &str) -> Party {
    Party { class: Class::Fleet, labels: labels("app", app), address: None, local: false }
}

fn host() -> Party {
    Party { class: Class::Host, labels: labels("role", "db"), address: None, local: true }
}

fn address(class: Class, text: &str) -> Party {
    Party { class, labels: Labels::new(), address: text.parse().ok(), local: false }
}

fn web() -> Peer {
    Peer::Endpoints(selector("app", "web"))
}

/// One ingress rule for every endpoint.
fn policy(name: &str, tier: Tier, action: RuleAction, peers: Option<Vec<Peer>>) -> Policy {
    let rule = Rule { name: "rule".to_owned(), action, peers, ports: None };
    Policy {
        name: name.to_owned(),
        tier,
        mode: Mode::Enforce,
        subject: Subject::Endpoints(Selector::default()),
        ingress: Some(vec![rule]),
        egress: None,
    }
}

/// The same for every node.
fn host_policy(name: &str, tier: Tier, action: RuleAction, peers: Option<Vec<Peer>>) -> Policy {
    Policy { subject: Subject::Nodes(Selector::default()), ..policy(name, tier, action, peers) }
}

fn config() -> FleetConfig {
    FleetConfig::of_pools(Vec::new())
}

fn ingress(policies: &[Policy], subject: &Party, peer: &Party, port: FlowPort) -> Verdict {
    let config = config();
    let context = Context { policies, cidr_sets: &[], config: &config };
    judge(context, subject, peer, Direction::Ingress, port)
}

fn decided_by(verdict: &Verdict) -> (Action, &str) {
    (verdict.action, verdict.decision().map_or("", |step| &step.policy))
}

#[test]
fn admin_policies_go_by_order_then_by_name_and_the_first_match_decides() {
    let policies = [
        policy("b", Tier::Admin { order: 5 }, RuleAction::Allow, None),
        policy("a", Tier::Admin { order: 10 }, RuleAction::Deny, None),
        policy("a-first", Tier::Admin { order: 5 }, RuleAction::Deny, Some(vec![web()])),
    ];
    let verdict = ingress(&policies, &endpoint("api"), &endpoint("web"), HTTPS);
    assert_eq!(decided_by(&verdict), (Action::Deny, "a-first"));
    let verdict = ingress(&policies, &endpoint("api"), &endpoint("db"), HTTPS);
    assert_eq!(decided_by(&verdict), (Action::Allow, "b"));
    assert_eq!(verdict.steps.len(), 2, "the one that did not match is shown: {verdict:?}");
}

#[test]
fn pass_leaves_the_admin_tier_and_what_follows_in_it_is_not_asked() {
    let policies = [
        policy("a", ADMIN, RuleAction::Pass, Some(vec![web()])),
        policy("b", ADMIN, RuleAction::Deny, None),
        policy("c", APPLICATION, RuleAction::Allow, Some(vec![web()])),
    ];
    let verdict = ingress(&policies, &endpoint("api"), &endpoint("web"), HTTPS);
    assert_eq!(decided_by(&verdict), (Action::Allow, "c"));
    let tiers: Vec<_> = verdict.steps.iter().map(|step| step.tier).collect();
    assert_eq!(tiers, [Some(TierName::Admin), Some(TierName::Application)]);
}

#[test]
fn the_application_tier_denies_before_it_allows_and_baseline_comes_after_its_default() {
    let closing = Tier::Application { default_deny_ingress: true, default_deny_egress: false };
    let mut policies = vec![
        policy("allow", APPLICATION, RuleAction::Allow, None),
        policy("deny", APPLICATION, RuleAction::Deny, Some(vec![web()])),
        policy("base", BASELINE, RuleAction::Deny, None),
    ];
    let from_web = ingress(&policies, &endpoint("api"), &endpoint("web"), HTTPS);
    assert_eq!(decided_by(&from_web), (Action::Deny, "deny"));
    assert_eq!(
        decided_by(&ingress(&policies, &endpoint("api"), &endpoint("db"), HTTPS)),
        (Action::Allow, "allow")
    );
    policies.remove(0);
    assert_eq!(
        decided_by(&ingress(&policies, &endpoint("api"), &endpoint("db"), HTTPS)),
        (Action::Deny, "base")
    );
    policies.push(policy("close", closing, RuleAction::Allow, Some(Vec::new())));
    assert_eq!(
        decided_by(&ingress(&policies, &endpoint("api"), &endpoint("db"), HTTPS)),
        (Action::Deny, "close")
    );
    assert_eq!(decided_by(&ingress(&[], &endpoint("api"), &endpoint("db"), HTTPS)), (Action::Allow, ""));
}

#[test]
fn an_audit_policy_changes_no_verdict_and_what_it_would_change_is_told() {
    let closing = Tier::Application { default_deny_ingress: true, default_deny_egress: false };
    let mut audited = policy("watch", closing, RuleAction::Allow, Some(vec![web()]));
    audited.mode = Mode::Audit;
    let policies = [audited];
    let same = ingress(&policies, &endpoint("api"), &endpoint("web"), HTTPS);
    assert_eq!((same.action, same.audit), (Action::Allow, None));
    let other = ingress(&policies, &endpoint("api"), &endpoint("db"), HTTPS);
    assert_eq!(other.action, Action::Allow);
    let audit = other.audit.expect("its default deny would deny");
    assert_eq!(
        (audit.action, audit.step.policy.as_str(), audit.step.rule.as_str()),
        (Action::Deny, "watch", "")
    );
}

#[test]
fn prefixes_and_sets_of_them_match_only_the_world() {
    let sets = [CidrSet {
        name: "partners".to_owned(),
        labels: labels("kind", "good"),
        cidrs: vec!["198.51.100.0/24".parse().expect("a prefix")],
    }];
    let by = [
        Peer::Cidr { cidr: "0.0.0.0/0".parse().expect("a prefix"), except: Vec::new() },
        Peer::CidrSet(CidrSetSelector::Name("partners".to_owned())),
        Peer::CidrSet(CidrSetSelector::MatchLabels(labels("kind", "good"))),
    ];
    for peer in by {
        for class in Class::ALL {
            let found = peer.matches(&sets, &address(class, "198.51.100.9"));
            assert_eq!(found, class == Class::World, "{peer:?} {class:?}");
        }
    }
    let other = Peer::CidrSet(CidrSetSelector::MatchLabels(labels("kind", "bad")));
    assert!(!other.matches(&sets, &address(Class::World, "198.51.100.9")));
}

#[test]
fn peers_by_labels_match_endpoints_and_nodes_apart() {
    let everyone = Selector::default();
    for class in Class::ALL {
        let party = address(class, "192.0.2.1");
        assert_eq!(Peer::Endpoints(everyone.clone()).matches(&[], &party), class == Class::Fleet);
        let is_node = matches!(class, Class::Host | Class::RemoteNode);
        assert_eq!(Peer::Nodes(everyone.clone()).matches(&[], &party), is_node, "{class:?}");
    }
}

#[test]
fn a_node_is_judged_only_in_directions_that_a_host_policy_is_about() {
    let policies = [
        host_policy("in", APPLICATION, RuleAction::Deny, None),
        policy("endpoints", APPLICATION, RuleAction::Deny, None),
    ];
    let config = FleetConfig { default_action: Action::Deny, ..config() };
    let context = Context { policies: &policies, cidr_sets: &[], config: &config };
    let world = address(Class::World, "192.0.2.1");
    let into = judge(context, &host(), &world, Direction::Ingress, HTTPS);
    assert_eq!(decided_by(&into), (Action::Deny, "in"));
    let out = judge(context, &host(), &world, Direction::Egress, HTTPS);
    assert_eq!(out.action, Action::Allow);
    let context = Context { policies: &policies[1..], ..context };
    assert_eq!(judge(context, &host(), &world, Direction::Ingress, HTTPS).action, Action::Allow);
}

#[test]
fn a_node_reaches_its_own_endpoints_unless_that_is_judged() {
    let mut from_host = host_policy("out", ADMIN, RuleAction::Deny, None);
    from_host.egress = from_host.ingress.take();
    let policies = [from_host, policy("in", ADMIN, RuleAction::Deny, None)];
    let own = Party { local: true, ..endpoint("api") };
    for (setting, expected) in
        [(HostToEndpoint::Allow, Action::Allow), (HostToEndpoint::Policy, Action::Deny)]
    {
        let config = FleetConfig { host_to_endpoint: setting, ..config() };
        let context = Context { policies: &policies, cidr_sets: &[], config: &config };
        assert_eq!(judge(context, &host(), &own, Direction::Egress, HTTPS).action, expected);
        assert_eq!(judge(context, &own, &host(), Direction::Ingress, HTTPS).action, expected);
        let elsewhere = judge(context, &host(), &endpoint("api"), Direction::Egress, HTTPS);
        assert_eq!(elsewhere.action, Action::Deny, "another node's endpoint is judged");
    }
}

#[test]
fn the_defaults_hold_ssh_dns_controllers_etcd_and_the_overlay_open() {
    let deny = Policy {
        egress: Some(vec![Rule { name: "0".to_owned(), action: RuleAction::Deny, peers: None, ports: None }]),
        ..host_policy("deny", ADMIN, RuleAction::Deny, None)
    };
    let (policies, config) = ([deny], config());
    let context = Context { policies: &policies, cidr_sets: &[], config: &config };
    let (into, out) = (Direction::Ingress, Direction::Egress);
    let open = [
        (into, 6, 22),
        (out, 17, 53),
        (out, 6, 53),
        (out, 6, 7443),
        (out, 6, 2379),
        (into, 6, 2380),
        (into, 17, 8472),
        (out, 17, 8472),
        (into, 50, 0),
        (out, 50, 0),
        (into, 58, 135 << 8),
        (out, 17, 67),
        (into, 17, 546),
    ];
    let closed =
        [(out, 6, 22), (into, 17, 53), (into, 6, 443), (out, 47, 0), (into, 17, 67), (into, 58, 128 << 8)];
    for text in ["192.0.2.1", "2001:db8::1"] {
        let peer = address(Class::World, text);
        let verdict = |(direction, protocol, port)| {
            judge(context, &host(), &peer, direction, FlowPort { protocol, port }).action
        };
        for flow in open {
            assert_eq!(verdict(flow), Action::Allow, "{text} {flow:?}");
        }
        for flow in closed {
            assert_eq!(verdict(flow), Action::Deny, "{text} {flow:?}");
        }
    }
}

#[test]
fn what_may_keep_endpoints_out_closes_to_addresses_nobody_knows_in_every_tier() {
    let unknown = address(Class::Unmanaged, "10.200.1.1");
    let not_web =
        Selector::new([Requirement::NotIn { key: "app".to_owned(), values: ["web".to_owned()].into() }]);
    let no_app = Selector::new([Requirement::DoesNotExist { key: "app".to_owned() }]);
    let fleet = Peer::Entity(Entity::Class(Class::Fleet));
    let allow_all = policy("z-allow", ADMIN, RuleAction::Allow, None);
    for peer in [web(), Peer::Endpoints(not_web), Peer::Endpoints(no_app), fleet] {
        for (tier, action) in [
            (ADMIN, RuleAction::Deny),
            (ADMIN, RuleAction::Pass),
            (APPLICATION, RuleAction::Deny),
            (BASELINE, RuleAction::Deny),
        ] {
            let keeping_out = policy("deny", tier, action, Some(vec![peer.clone()]));
            let policies = [keeping_out, allow_all.clone()];
            let verdict = ingress(&policies, &endpoint("api"), &unknown, HTTPS);
            assert_eq!(verdict.action, Action::Deny, "{peer:?} {tier:?} {action:?}");
            let unmanaged = Peer::Entity(Entity::Class(Class::Unmanaged));
            let named = policy("y-names", ADMIN, RuleAction::Allow, Some(vec![unmanaged]));
            let policies = [policies[0].clone(), policies[1].clone(), named];
            let verdict = ingress(&policies, &endpoint("api"), &unknown, HTTPS);
            assert_eq!(verdict.action, Action::Allow, "a rule names unmanaged");
        }
        let allowing = [policy("allow", APPLICATION, RuleAction::Allow, Some(vec![peer.clone()]))];
        let verdict = ingress(&allowing, &endpoint("api"), &unknown, HTTPS);
        let default = verdict.decision().is_some_and(|step| step.policy.is_empty());
        assert!(default, "a selector matches no address alone: {verdict:?}");
    }
}

fn failsafe_of(port: FlowPort, direction: Direction) -> Failsafe {
    Failsafe { protocol: port.protocol, first: port.port, last: port.port, direction, prefixes: Vec::new() }
}

/// Asks of random flows through random fleets. What is said in the place of the other: expected, seen.
fn hold_of_flows(
    subjects: impl Strategy<Value = Party>,
    property: impl Fn(&Fleet, &Asked) -> Result<(), (String, String)>,
) {
    let values =
        (arbitrary::fleet(), subjects, arbitrary::peer(), arbitrary::flow_port(), proptest::bool::ANY);
    case::hold(2_000, &values, |(fleet, subject, peer, port, ingress)| {
        let direction = if ingress { Direction::Ingress } else { Direction::Egress };
        let asked = Asked { subject, peer, direction, port };
        let flow = case::Flow::of(Labels::new(), (&asked.subject, &asked.peer), direction, port);
        let wrong = |(expected, seen)| case::Wrong { expected, seen };
        case::check(&fleet, &flow, |fleet| property(fleet, &asked).map_err(wrong))
    });
}

/// Of whom a property is asked.
struct Asked {
    subject: Party,
    peer: Party,
    direction: Direction,
    port: FlowPort,
}

impl Asked {
    fn judge(&self, fleet: &Fleet) -> Verdict {
        judge(fleet.context(), &self.subject, &self.peer, self.direction, self.port)
    }
}

fn same<T: PartialEq + fmt::Debug>(seen: &T, expected: &T) -> Result<(), (String, String)> {
    if seen == expected { Ok(()) } else { Err((format!("{expected:?}"), format!("{seen:?}"))) }
}

fn nodes() -> impl Strategy<Value = Party> {
    let node = |labels| Party { class: Class::Host, labels, address: None, local: true };
    proptest::sample::select(arbitrary::node_label_sets()).prop_map(node)
}

#[test]
fn failsafe_entries_hold_against_every_host_policy() {
    hold_of_flows(nodes(), |fleet, asked| {
        let mut fleet = fleet.clone();
        fleet.config.failsafe.push(failsafe_of(asked.port, asked.direction));
        same(&asked.judge(&fleet).action, &Action::Allow)
    });
}

#[test]
fn the_last_step_alone_decides_and_audit_policies_change_nothing() {
    hold_of_flows(arbitrary::judged(), |fleet, asked| {
        let verdict = asked.judge(fleet);
        let (last, before) = verdict.steps.split_last().expect("there is a step");
        same(&(last.decided, before.iter().any(|step| step.decided)), &(true, false))?;

        let mut enforced = fleet.clone();
        enforced.policies.retain(Policy::is_enforced);
        let alone = asked.judge(&enforced);
        same(&(&alone.steps, &alone.audit), &(&verdict.steps, &None))?;

        let mut switched_on = fleet.clone();
        for policy in &mut switched_on.policies {
            policy.mode = Mode::Enforce;
        }
        let would_be = asked.judge(&switched_on).action;
        same(&verdict.audit.as_ref().map_or(verdict.action, |audit| audit.action), &would_be)
    });
}

#[test]
fn an_unknown_address_is_never_more_open_than_every_endpoint_it_might_be() {
    hold_of_flows(arbitrary::judged(), |fleet, asked| {
        let verdict = |class, labels| {
            let peer = Party { class, labels, address: None, local: false };
            judge(fleet.context(), &asked.subject, &peer, asked.direction, asked.port).action
        };
        let names_unmanaged = fleet.policies.iter().any(|policy| {
            policy.rules(asked.direction).iter().any(|rule| rule.names_class(Class::Unmanaged))
        });
        if !names_unmanaged && verdict(Class::Unmanaged, Labels::new()) == Action::Allow {
            for labels in arbitrary::label_sets() {
                same(&verdict(Class::Fleet, labels), &Action::Allow)?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_order_in_which_policies_are_held_changes_nothing() {
    hold_of_flows(arbitrary::judged(), |fleet, asked| {
        let mut reversed = fleet.clone();
        reversed.policies.reverse();
        same(&asked.judge(&reversed), &asked.judge(fleet))
    });
}

#[test]
fn ports_decide_as_peers_do() {
    let mut ssh = policy("ssh", ADMIN, RuleAction::Deny, None);
    ssh.ingress.iter_mut().flatten().for_each(|rule| {
        rule.ports = Some(vec![PortRange { protocol: 6, first: 22, last: 22 }]);
    });
    let policies = [ssh];
    assert_eq!(ingress(&policies, &endpoint("api"), &endpoint("web"), SSH).action, Action::Deny);
    assert_eq!(ingress(&policies, &endpoint("api"), &endpoint("web"), HTTPS).action, Action::Allow);
}
