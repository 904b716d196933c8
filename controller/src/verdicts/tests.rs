//! What is compared, counted and cut.
use weft_shared::policy::{
    model::{
        CidrSetSelector, Failsafe, Mode, Peer, Pool, PortRange, Requirement, Rule, RuleAction, Selector,
        Subject, Tier,
    },
    oracle::TierName,
};

use super::*;

const BOUNDS: Bounds = Bounds { compared: 100_000, listed: 100 };

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

fn selector(key: &str, value: &str) -> Selector {
    Selector::new([Requirement::In { key: key.to_owned(), values: [value.to_owned()].into() }])
}

fn bearers() -> Bearers {
    let endpoints = ["api", "db", "web"].map(|app| labels("app", app));
    Bearers { endpoints: endpoints.to_vec(), nodes: vec![labels("role", "gateway")] }
}

/// Allows api's TCP 8080 to these peers, and nothing else in.
fn api_from(peers: Vec<Peer>) -> Policy {
    Policy {
        name: "api".to_owned(),
        tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(selector("app", "api")),
        ingress: Some(vec![Rule {
            name: "in".to_owned(),
            action: RuleAction::Allow,
            peers: Some(peers),
            ports: Some(vec![PortRange { protocol: 6, first: 8080, last: 8080 }]),
        }]),
        egress: None,
    }
}

fn state(policies: Vec<Policy>) -> State {
    let pool = Pool { cidr: "10.200.0.0/16".parse().unwrap(), node_prefix_length: 24 };
    State { policies, cidr_sets: Vec::new(), config: FleetConfig::of_pools(vec![pool]) }
}

fn lines(diff: &Diff) -> Vec<String> {
    let line = |pair: &Pair| {
        let rule = |judged: &Judged| judged.step.as_ref().map_or(String::new(), |step| step.rule.clone());
        let action = if pair.after.action == Action::Allow { "+" } else { "-" };
        format!("{action} {} | {} | {} | {}", pair.subject, pair.peer, pair.ports, rule(&pair.after))
    };
    diff.pairs.iter().map(line).collect()
}

#[test]
fn a_peer_more_in_a_rule_is_one_pair_newly_allowed() {
    let web = Peer::Endpoints(selector("app", "web"));
    let db = Peer::Endpoints(selector("app", "db"));
    let (before, after) = (state(vec![api_from(vec![web.clone()])]), state(vec![api_from(vec![web, db])]));
    let found = diff(&before, &after, &bearers(), BOUNDS);
    assert_eq!(lines(&found), ["+ endpoints app=api | endpoints app=db | tcp/8080 | in"]);
    assert_eq!((found.newly_allowed, found.newly_denied, found.subjects), (1, 0, 1));
    let back = diff(&after, &before, &bearers(), BOUNDS);
    assert_eq!(lines(&back), ["- endpoints app=api | endpoints app=db | tcp/8080 | "]);
    let step = back.pairs[0].after.step.clone().unwrap();
    assert_eq!((step.tier, step.policy.as_str()), (Some(TierName::Application), "api"));
}

#[test]
fn nothing_changed_is_nothing_compared_and_an_audit_policy_changes_no_verdict() {
    let policies = vec![api_from(Vec::new())];
    let same = diff(&state(policies.clone()), &state(policies.clone()), &bearers(), BOUNDS);
    assert_eq!(same, Diff::default());
    let mut watched = policies[0].clone();
    watched.mode = Mode::Audit;
    let audit = diff(&state(Vec::new()), &state(vec![watched]), &bearers(), BOUNDS);
    assert_eq!((audit.newly_allowed, audit.newly_denied, audit.subjects), (0, 0, 1));
    assert!(audit.compared > 0);
}

#[test]
fn a_new_default_deny_denies_everybody_but_whom_a_rule_allows_by_class_of_ports() {
    let web = Peer::Endpoints(selector("app", "web"));
    let found = diff(&state(Vec::new()), &state(vec![api_from(vec![web])]), &bearers(), BOUNDS);
    let of_web: Vec<String> = lines(&found).into_iter().filter(|line| line.contains("app=web")).collect();
    assert_eq!(
        of_web,
        [
            "- endpoints app=api | endpoints app=web | tcp/1-8079 | ",
            "- endpoints app=api | endpoints app=web | tcp/8081-65535 | ",
            "- endpoints app=api | endpoints app=web | other protocols | ",
        ]
    );
    let own = lines(&found).into_iter().filter(|line| line.contains("own node")).count();
    assert_eq!(own, 0, "a node reaches its own endpoints");
    assert!(lines(&found).iter().any(|line| line.contains("world (IPv6) | tcp")), "{found:?}");
    assert_eq!(found.newly_allowed, 0);
}

#[test]
fn a_cidr_set_that_shrinks_denies_what_it_no_longer_holds() {
    let partners = |cidrs: &[&str]| CidrSet {
        name: "partners".to_owned(),
        labels: labels("kind", "good"),
        cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    let meant = Peer::CidrSet(CidrSetSelector::MatchLabels(labels("kind", "good")));
    let with = |cidrs: &[&str]| State {
        cidr_sets: vec![partners(cidrs)],
        ..state(vec![api_from(vec![meant.clone()])])
    };
    let (before, after) = (with(&["198.51.100.0/24", "10.200.1.0/24"]), with(&["198.51.100.0/25"]));
    let found = diff(&before, &after, &bearers(), BOUNDS);
    assert_eq!(
        lines(&found),
        ["- endpoints app=api | 198.51.100.0/24 | tcp/8080 | "],
        "what is in the pools was never matched, and the half that stays is as it was"
    );
}

#[test]
fn a_host_policy_leaves_what_failsafe_entries_hold() {
    let deny = Policy {
        name: "closed".to_owned(),
        tier: Tier::Admin { order: 1 },
        subject: Subject::Nodes(Selector::default()),
        ingress: Some(vec![Rule {
            name: "all".to_owned(),
            action: RuleAction::Deny,
            peers: None,
            ports: None,
        }]),
        ..api_from(Vec::new())
    };
    let found = diff(&state(Vec::new()), &state(vec![deny.clone()]), &bearers(), BOUNDS);
    let of_world: Vec<String> =
        lines(&found).into_iter().filter(|line| line.contains("world (IPv4) | tcp")).collect();
    assert_eq!(
        of_world,
        ["1-21", "23-2378", "2381-7442", "7444-65535"]
            .map(|ports| format!("- nodes role=gateway | world (IPv4) | tcp/{ports} | all"))
    );
    let mut open = state(vec![deny.clone()]);
    open.config.failsafe.push(Failsafe {
        protocol: 6,
        first: 80,
        last: 80,
        direction: Direction::Ingress,
        prefixes: vec!["192.0.2.0/24".parse().unwrap()],
    });
    let found = diff(&state(vec![deny]), &open, &bearers(), BOUNDS);
    assert_eq!(lines(&found), ["+ nodes role=gateway | 192.0.2.0/24 | tcp/80 | "]);
}

#[test]
fn what_is_cut_off_is_said() {
    let after = state(vec![api_from(Vec::new())]);
    let few = Bounds { compared: 5, listed: 2 };
    let found = diff(&state(Vec::new()), &after, &bearers(), few);
    assert_eq!((found.compared, found.subjects, found.subjects_cut), (5, 1, 1));
    let listed = diff(&state(Vec::new()), &after, &bearers(), Bounds { listed: 2, ..BOUNDS });
    assert_eq!((listed.pairs.len(), listed.subjects_cut), (2, 0));
    assert!(listed.newly_denied > 2);
}
