use std::cell::Cell;

use proptest::{collection::vec, sample::select};

use super::*;
use crate::policy::{
    arbitrary,
    model::{
        CidrSet, CidrSetSelector, Class, Entity, FleetConfig, Mode, Peer, PortRange, Requirement, Rule,
        RuleAction, Selector, Subject, Tier,
    },
    oracle,
};

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

fn endpoint(app: &str, address: &str) -> Party {
    Party { class: Class::Fleet, labels: labels("app", app), address: address.parse().ok(), local: true }
}

#[test]
fn a_case_is_manifests_and_then_the_flow_with_what_was_expected_and_seen() {
    let selector = Selector::new([
        Requirement::In { key: "app".to_owned(), values: ["web".to_owned()].into() },
        Requirement::NotIn { key: "env".to_owned(), values: ["dev".to_owned(), "prod".to_owned()].into() },
    ]);
    let rule = Rule {
        name: "0".to_owned(),
        action: RuleAction::Deny,
        peers: Some(vec![
            Peer::Endpoints(selector),
            Peer::Cidr {
                cidr: "2001:db8::/32".parse().expect("a prefix"),
                except: vec!["2001:db8:1::/48".parse().expect("a prefix")],
            },
            Peer::CidrSet(CidrSetSelector::MatchLabels(labels("kind", "bad"))),
            Peer::Entity(Entity::Class(Class::RemoteNode)),
        ]),
        ports: Some(vec![
            PortRange { protocol: 6, first: 80, last: 443 },
            PortRange { protocol: 58, first: 0x8000, last: 0x80ff },
            PortRange { protocol: 47, first: 0, last: u16::MAX },
        ]),
    };
    let policy = Policy {
        name: "policy-0".to_owned(),
        tier: Tier::Admin { order: 10 },
        mode: Mode::Audit,
        subject: Subject::Endpoints(Selector::default()),
        ingress: Some(vec![rule]),
        egress: Some(Vec::new()),
    };
    let set = CidrSet {
        name: "scanners".to_owned(),
        labels: labels("kind", "bad"),
        cidrs: vec!["203.0.113.0/24".parse().expect("a prefix")],
    };
    let fleet =
        Fleet { policies: vec![policy], cidr_sets: vec![set], config: FleetConfig::of_pools(Vec::new()) };
    let flow = Flow {
        node: labels("role", "db"),
        source: endpoint("web", "10.200.1.10"),
        destination: endpoint("api", "10.200.1.11"),
        port: FlowPort { protocol: 6, port: 443 },
    };
    let wrong = Wrong {
        expected: verdict(&fleet, Action::Allow, 0),
        seen: verdict(&fleet, Action::Deny, rule_number("policy-0", Direction::Ingress, "0")),
    };
    let case = Case { fleet: &fleet, flow: &flow, wrong };
    let expected = r#"kind: FleetConfig
name: fleet
pools: []
defaultAction: allow
hostToEndpoint: allow
---
kind: CidrSet
name: scanners
labels: {"kind": "bad"}
cidrs: ["203.0.113.0/24"]
---
kind: Policy
name: policy-0
tier: admin
order: 10
mode: audit
subject: {endpoints: {}}
ingress:
  - name: "0"
    action: deny
    peers: [{endpoints: {matchLabels: {"app": "web"}, matchExpressions: [{key: "env", operator: NotIn, values: ["dev", "prod"]}]}}, {cidr: "2001:db8::/32", except: ["2001:db8:1::/48"]}, {cidrSet: {matchLabels: {"kind": "bad"}}}, {entity: remote-node}]
    ports: [{protocol: TCP, port: 80, endPort: 443}, {protocol: ICMPv6, type: 128}, {protocolNumber: 47}]
egress: []
---
node: {labels: {"role": "db"}}
flow:
  from: {class: fleet, node: this, labels: {"app": "web"}, address: "10.200.1.10"}
  to: {class: fleet, node: this, labels: {"app": "api"}, address: "10.200.1.11"}
  port: {protocol: TCP, port: 443}
  expected: "allow, by no rule"
  seen: "deny, ingress of policy-0, rule 0"
"#;
    assert_eq!(case.to_string(), expected);
}

#[test]
fn what_is_left_of_a_random_fleet_is_what_is_wrong_with_it() {
    let values =
        (arbitrary::fleet(), select(arbitrary::label_sets()), arbitrary::peer(), arbitrary::flow_port());
    let shrunk = Cell::new(0);
    hold(2_000, &values, |(fleet, labels, peer, port)| {
        let subject = Party { class: Class::Fleet, labels, address: None, local: true };
        let is_denied = |fleet: &Fleet| {
            let verdict = oracle::judge(fleet.context(), &subject, &peer, Direction::Ingress, port);
            verdict.action == Action::Deny
        };
        // What denies by default needs no policy.
        if fleet.config.default_action == Action::Deny || !is_denied(&fleet) {
            return Ok(());
        }
        shrunk.set(shrunk.get() + 1);
        let least = smallest(fleet, is_denied);
        let [policy] = &least.policies[..] else { return Err(manifests(&least)) };
        let words = policy.rules(Direction::Ingress).iter().map(|rule| {
            1 + rule.peers.as_ref().map_or(0, Vec::len) + rule.ports.as_ref().map_or(0, Vec::len)
        });
        let by_default = usize::from(policy.default_deny(Direction::Ingress));
        // One rule without peers or ports, the default, or (of addresses of which nothing is known) a rule that denies
        // endpoints, without saying which.
        let is_least = policy.egress.is_none()
            && policy.subject.named().requirements().count() == 0
            && words.sum::<usize>() + by_default <= 2
            && least.cidr_sets.iter().all(|set| set.cidrs.is_empty());
        if is_least { Ok(()) } else { Err(manifests(&least)) }
    });
    assert!(shrunk.get() > 50, "{}", shrunk.get());
}

#[test]
fn what_is_wrong_is_printed_of_the_smallest_fleet_and_what_is_wrong_only_once_of_the_whole() {
    let policy = Policy {
        name: "policy-0".to_owned(),
        tier: Tier::Application { default_deny_ingress: true, default_deny_egress: true },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(Selector::default()),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
    };
    let fleet =
        Fleet { policies: vec![policy], cidr_sets: Vec::new(), config: FleetConfig::of_pools(Vec::new()) };
    let flow = Flow {
        node: Labels::new(),
        source: endpoint("web", "10.200.1.10"),
        destination: endpoint("api", "10.200.1.11"),
        port: FlowPort { protocol: 6, port: 443 },
    };
    let wrong = |times: usize| {
        let mut left = times;
        move |fleet: &Fleet| {
            left = left.saturating_sub(1);
            let said = || Wrong { expected: "allow".to_owned(), seen: "deny".to_owned() };
            if left > 0 && !fleet.policies.is_empty() { Err(said()) } else { Ok(()) }
        }
    };
    assert_eq!(check(&fleet, &flow, wrong(0)), Ok(()));
    let always = check(&fleet, &flow, wrong(usize::MAX)).expect_err("it is wrong");
    assert!(always.contains("policy-0") && !always.contains("gress: []"), "{always}");
    let once = check(&fleet, &flow, wrong(2)).expect_err("it was wrong");
    assert!(once.starts_with("# Seen once, and not again.\n") && once.contains("egress: []"), "{once}");
}

#[test]
fn a_property_that_does_not_hold_says_of_the_first_value_what_it_has_to_say() {
    let asked = Cell::new(0);
    let run = std::panic::AssertUnwindSafe(|| {
        hold(100, &vec(0..10_u8, 3), |values| {
            asked.set(asked.get() + 1);
            Err(format!("of {} values", values.len()))
        });
    });
    let said = std::panic::catch_unwind(run).expect_err("it does not hold");
    assert_eq!(said.downcast_ref::<String>().map(String::as_str), Some("\nof 3 values"));
    assert_eq!(asked.get(), 1);
}
