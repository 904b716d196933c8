//! Explain and plan: what the rules make of flows, and what a change of them does.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use support::{Fleet, config, fleet, policy, within};
use weft_proto::v1::{self, Change, object::Kind as Of};

fn policy_of(object: &mut v1::Object) -> &mut v1::Policy {
    match object.kind.as_mut() {
        Some(Of::Policy(policy)) => policy,
        other => panic!("not a policy: {other:?}"),
    }
}

/// Every node denies what comes in, but from nodes.
fn host_policy() -> v1::Object {
    let mut object = policy("hosts", "api", "web");
    let policy = policy_of(&mut object);
    policy.tier = v1::Tier::Admin.into();
    policy.subject = Some(v1::Subject { endpoints: None, nodes: Some(v1::Selector::default()) });
    let from_nodes = v1::Peer { nodes: Some(v1::Selector::default()), ..v1::Peer::default() };
    let rule = |name: &str, action: v1::Action, peers: Option<v1::Peer>| v1::Rule {
        name: name.to_owned(),
        action: action.into(),
        peers: peers.map(|peer| v1::PeerList { items: vec![peer] }),
        ports: None,
    };
    let rules = vec![rule("nodes", v1::Action::Allow, Some(from_nodes)), rule("all", v1::Action::Deny, None)];
    policy.ingress = Some(v1::RuleList { items: rules });
    object
}

fn party(name: &str) -> v1::Party {
    v1::Party { party: Some(v1::party::Party::Name(name.to_owned())) }
}

async fn explain(fleet: &mut Fleet, from: &str, to: &str, port: u32) -> v1::ExplainResponse {
    let request = v1::ExplainRequest {
        from: Some(party(from)),
        to: Some(party(to)),
        port: Some(v1::FlowPort { protocol_number: 6, port }),
        family: 4,
    };
    within(fleet.operator.explain(request)).await.unwrap().into_inner()
}

async fn plan(fleet: &mut Fleet, objects: Vec<v1::Object>) -> v1::PlanResponse {
    within(fleet.operator.plan(v1::PlanRequest { objects })).await.unwrap().into_inner()
}

/// Two nodes; api and db on the first, web on the second.
async fn two_nodes() -> (Fleet, support::Node, support::Node) {
    let fleet = fleet().await;
    let mut one = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut two = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let (api, db, web) = (one.address(5), one.address(6), two.address(5));
    assert!(one.attach("api-1", &[("app", "api")], &[&api]).await.accepted);
    assert!(one.attach("db-1", &[("app", "db")], &[&db]).await.accepted);
    assert!(two.attach("web-1", &[("app", "web")], &[&web]).await.accepted);
    (fleet, one, two)
}

#[tokio::test]
async fn explain_judges_nodes_from_everybody_and_shows_what_no_policy_closes() {
    let (mut fleet, _one, _two) = two_nodes().await;
    fleet.apply(vec![host_policy()]).await.unwrap();
    let cases = [
        ("web-1", "node-1", 443, v1::Verdict::Deny, "all"),
        ("api-1", "node-1", 443, v1::Verdict::Deny, "all"),
        ("198.51.100.1", "node-1", 443, v1::Verdict::Deny, "all"),
        ("198.51.100.1", "node-1", 22, v1::Verdict::Allow, ""),
        ("192.0.2.2", "node-1", 443, v1::Verdict::Allow, "nodes"),
        ("node-1", "api-1", 443, v1::Verdict::Allow, ""),
    ];
    for (from, to, port, expected, rule) in cases {
        let explained = explain(&mut fleet, from, to, port).await;
        assert_eq!(explained.verdict(), expected, "{from} → {to}:{port} {explained:#?}");
        let ingress = explained.directions.last().unwrap();
        assert_eq!(ingress.steps.last().unwrap().rule, rule, "{from} → {to}:{port} {explained:#?}");
        assert!(explained.failsafe.is_some_and(|entries| !entries.items.is_empty()));
    }
    let by_labels = v1::LabelSet { labels: [("role".to_owned(), "new".to_owned())].into(), node: true };
    let request = v1::ExplainRequest {
        from: Some(party("web-1")),
        to: Some(v1::Party { party: Some(v1::party::Party::Labels(by_labels)) }),
        port: Some(v1::FlowPort { protocol_number: 6, port: 443 }),
        family: 4,
    };
    let explained = fleet.operator.explain(request).await.unwrap().into_inner();
    assert_eq!((explained.verdict(), explained.to.as_str()), (v1::Verdict::Deny, "a node with role=new"));
    let between = explain(&mut fleet, "web-1", "api-1", 443).await;
    assert_eq!(between.failsafe, None, "no node is judged");
}

#[tokio::test]
async fn explain_walks_every_tier_and_says_what_audit_policies_would_do() {
    let (mut fleet, _one, _two) = two_nodes().await;
    let mut pass = policy("first", "api", "web");
    policy_of(&mut pass).tier = v1::Tier::Admin.into();
    policy_of(&mut pass).ingress.as_mut().unwrap().items[0].action = v1::Action::Pass.into();
    let mut base = policy("last", "api", "web");
    policy_of(&mut base).tier = v1::Tier::Baseline.into();
    policy_of(&mut base).ingress.as_mut().unwrap().items[0].action = v1::Action::Deny.into();
    let mut watched = policy("watched", "api", "db");
    policy_of(&mut watched).mode = v1::PolicyMode::Audit.into();
    fleet.apply(vec![pass, base, watched]).await.unwrap();
    let explained = explain(&mut fleet, "web-1", "api-1", 8080).await;
    assert_eq!(explained.verdict(), v1::Verdict::Deny, "{explained:#?}");
    let ingress = &explained.directions[1];
    let walked: Vec<(v1::Tier, &str)> =
        ingress.steps.iter().map(|step| (step.tier(), step.policy.as_str())).collect();
    assert_eq!(walked, [(v1::Tier::Admin, "first"), (v1::Tier::Baseline, "last")]);
    let allowed = explain(&mut fleet, "web-1", "api-1", 22).await;
    let audit = allowed.directions[1].audit.clone().unwrap();
    assert_eq!((allowed.verdict(), audit.verdict()), (v1::Verdict::Allow, v1::Verdict::Deny));
    assert_eq!(audit.step.unwrap().policy, "watched");
}

#[tokio::test]
async fn a_connected_node_follows_a_change_of_what_makes_identities() {
    let mut fleet = fleet().await;
    let mut hello = support::hello("node-1", "192.0.2.1");
    hello.labels = [("role".to_owned(), "gateway".to_owned()), ("rack".to_owned(), "7".to_owned())].into();
    let mut node = fleet.try_node(hello).await.unwrap().in_sync().await;
    let identity = |node: &support::Node| {
        let route = &node.held[&(v1::ResourceType::Node, "node-1".to_owned())];
        <v1::NodeRoute as prost::Message>::decode(&**route).unwrap().identity
    };
    let before = identity(&node);
    let mut object = config(&[("10.200.0.0/16", 24), ("fd00:77::/48", 64)]);
    if let Some(Of::FleetConfig(config)) = object.kind.as_mut() {
        config.identity_labels =
            Some(v1::IdentityLabels { include: Vec::new(), exclude: vec!["rack".to_owned()] });
    }
    fleet.apply(vec![object]).await.unwrap();
    node.until("another identity", |node| identity(node) != before).await;
    let explained = explain(&mut fleet, "node-1", "198.51.100.1", 443).await;
    assert_eq!(explained.from, "node node-1 (role=gateway)");
}

#[tokio::test]
async fn an_endpoint_always_reaches_itself() {
    let (mut fleet, _one, _two) = two_nodes().await;
    let mut closed = policy("closed", "api", "web");
    policy_of(&mut closed).ingress = Some(v1::RuleList::default());
    fleet.apply(vec![closed]).await.unwrap();
    let explained = explain(&mut fleet, "api-1", "api-1", 443).await;
    assert_eq!((explained.verdict(), explained.directions.len()), (v1::Verdict::Allow, 0));
    assert_eq!(explain(&mut fleet, "web-1", "api-1", 443).await.verdict(), v1::Verdict::Deny);
}

#[tokio::test]
async fn a_plan_says_which_pairs_change_by_which_rule_and_changes_nothing() {
    let (mut fleet, _one, _two) = two_nodes().await;
    fleet.apply(vec![policy("api", "api", "web")]).await.unwrap();
    let planned = plan(&mut fleet, vec![policy("api", "api", "db"), policy("other", "none", "web")]).await;
    let changes: Vec<Change> = planned.objects.iter().map(v1::PlannedObject::change).collect();
    assert_eq!(changes, [Change::Configured, Change::Created]);
    assert!(planned.objects[0].before.is_some() && planned.objects[1].before.is_none());
    let verdicts = planned.verdicts.unwrap();
    assert_eq!((verdicts.newly_allowed, verdicts.newly_denied, verdicts.subjects), (1, 1, 1));
    let told = |pair: &v1::VerdictPair| {
        let rule = pair.decided_after.as_ref().map(|step| (step.policy.clone(), step.rule.clone())).unwrap();
        (pair.peer.clone(), pair.ports.clone(), pair.after(), rule.1)
    };
    let pairs: Vec<_> = verdicts.pairs.iter().map(told).collect();
    let named =
        |peer: &str, verdict, rule: &str| (peer.to_owned(), "tcp/8080".to_owned(), verdict, rule.to_owned());
    let rule = verdicts.pairs[0].decided_after.as_ref().unwrap().rule.clone();
    assert_eq!(
        pairs,
        [
            named("endpoints app=db", v1::Verdict::Allow, &rule),
            named("endpoints app=web", v1::Verdict::Deny, ""),
        ]
    );
    assert_eq!((planned.failsafe, verdicts.cut_off), (None, Vec::<String>::new()));
    let before = explain(&mut fleet, "web-1", "api-1", 8080).await;
    assert_eq!(before.verdict(), v1::Verdict::Allow, "nothing was changed");

    let again = plan(&mut fleet, vec![policy("api", "api", "web")]).await;
    assert_eq!(again.objects[0].change(), Change::Unchanged);
    assert_eq!(again.verdicts, Some(v1::VerdictDiff::default()));
}

#[tokio::test]
async fn a_plan_of_host_policies_and_of_the_configuration_names_nodes_and_failsafe_entries() {
    let (mut fleet, _one, _two) = two_nodes().await;
    let planned = plan(&mut fleet, vec![host_policy()]).await;
    let verdicts = planned.verdicts.unwrap();
    assert!(verdicts.newly_denied > 0 && verdicts.newly_allowed == 0, "{verdicts:#?}");
    assert!(verdicts.pairs.iter().all(|pair| pair.subject.starts_with("nodes")));
    let ports: Vec<&str> = verdicts.pairs.iter().map(|pair| pair.ports.as_str()).collect();
    assert!(!ports.contains(&"tcp/22") && ports.contains(&"tcp/1-21"), "{ports:?}");
    assert!(planned.failsafe.is_some_and(|entries| !entries.items.is_empty()));

    let mut denying = config(&[("10.200.0.0/16", 24), ("fd00:77::/48", 64)]);
    if let Some(Of::FleetConfig(config)) = denying.kind.as_mut() {
        config.default_action = v1::DefaultAction::Deny.into();
    }
    let verdicts = plan(&mut fleet, vec![denying]).await.verdicts.unwrap();
    assert_eq!(verdicts.subjects, 4, "all that can be judged: three of endpoints, one of nodes");
    assert!(verdicts.pairs.iter().all(|pair| pair.subject.starts_with("endpoints")), "nodes stay unjudged");
}

#[tokio::test]
async fn a_plan_of_what_is_wrong_is_refused_like_an_apply() {
    let mut fleet = fleet().await;
    let mut wrong = policy("p", "api", "web");
    policy_of(&mut wrong).order = Some(1);
    let refused = fleet.operator.plan(v1::PlanRequest { objects: vec![wrong] }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("objects[0].policy.order"), "{refused:?}");
}

fn service(name: &str, address: &str, change: impl FnOnce(&mut v1::Service)) -> v1::Object {
    let kind = if address.is_empty() { v1::FrontendType::NodePort } else { v1::FrontendType::Cluster };
    let mut service = v1::Service {
        metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
        frontends: vec![v1::Frontend {
            address: address.to_owned(),
            port: if address.is_empty() { 30_080 } else { 80 },
            protocol: v1::Protocol::Tcp.into(),
            r#type: kind.into(),
        }],
        selector: Some(support::selector("tier", "back")),
        target_port: Some(8080),
        ..v1::Service::default()
    };
    change(&mut service);
    v1::Object { kind: Some(Of::Service(service)) }
}

/// Who answers, with the verdict on each.
fn answering(explained: &v1::ExplainResponse) -> Vec<(&str, u32, v1::Verdict)> {
    let service = explained.service.as_ref().unwrap();
    service
        .backends
        .iter()
        .map(|one| (one.text.split(' ').nth(1).unwrap(), one.port, one.verdict()))
        .collect()
}

/// Attaches a backend, which is ready.
async fn ready(node: &mut support::Node, number: u8, name: &str, app: &str) {
    let (labels, address) = ([("app", app), ("tier", "back")], node.address(number));
    assert!(node.attach(name, &labels, &[&address]).await.accepted);
    let mut endpoint = support::endpoint(name, &labels, &[&address]);
    endpoint.status.as_mut().unwrap().set_state(v1::EndpointState::Ready);
    node.answers.remove(name);
    let report = v1::EndpointReport { endpoint: Some(endpoint) };
    node.report(v1::node_report::Report::Endpoint(report)).await;
    node.until("an answer", |node| node.answers.contains_key(name)).await;
}

/// `back-api` and `back-db` on the first node and `back-web` on the second answer.
async fn with_backends() -> (Fleet, support::Node, support::Node) {
    let (fleet, mut one, mut two) = two_nodes().await;
    ready(&mut one, 7, "back-api", "api").await;
    ready(&mut one, 8, "back-db", "db").await;
    ready(&mut two, 7, "back-web", "web").await;
    (fleet, one, two)
}

#[tokio::test]
async fn explain_of_a_call_to_a_service_judges_each_backend_at_its_own_port() {
    let (mut fleet, _one, _two) = with_backends().await;
    // Lets web in to 8080, and nobody else.
    fleet.apply(vec![policy("api", "api", "web"), policy("db", "db", "none")]).await.unwrap();
    fleet.apply(vec![service("back", "10.96.0.10", |_| {})]).await.unwrap();

    let explained = explain(&mut fleet, "web-1", "10.96.0.10", 80).await;

    let (allow, deny) = (v1::Verdict::Allow, v1::Verdict::Deny);
    let due = [("back-api", 8080, allow), ("back-db", 8080, deny), ("back-web", 8080, allow)];
    assert_eq!(answering(&explained), due, "{explained:#?}");
    assert_eq!((explained.verdict(), explained.directions.len()), (v1::Verdict::Varies, 0));
    let service = explained.service.unwrap();
    assert_eq!((service.name.as_str(), service.node.as_str()), ("back", "node-2"));
    let shares: Vec<u32> = service.backends.iter().map(|one| one.share_basis_points).collect();
    assert_eq!(shares, [3_333; 3]);
    let steps = &service.backends[1].directions[1].steps;
    assert_eq!(steps.last().unwrap().policy, "db");

    assert_eq!(explain(&mut fleet, "web-1", "10.96.0.10", 81).await.service, None, "it has another port");
    let outside = explain(&mut fleet, "198.51.100.1", "10.96.0.10", 80).await;
    assert_eq!(outside.verdict(), deny);
    assert_eq!(outside.service.unwrap().refusal(), v1::ServiceRefusal::Outside);
}

#[tokio::test]
async fn explain_of_a_call_leaves_out_backends_that_this_client_does_not_get() {
    let (mut fleet, _one, _two) = with_backends().await;
    let local = v1::TrafficPolicy::Local.into();
    let cidrs = vec!["203.0.113.0/24".to_owned()];
    let ranges = v1::SourceRanges { action: v1::source_ranges::Action::Deny.into(), cidrs };
    let near = service("near", "10.96.0.11", |service| service.internal_traffic_policy = local);
    let port = service("port", "", |service| {
        service.external_traffic_policy = local;
        service.source_ranges = Some(ranges);
    });
    let none =
        service("none", "10.96.0.12", |service| service.selector = Some(support::selector("tier", "no")));
    fleet.apply(vec![near, port.clone(), none]).await.unwrap();

    let names = |explained: &v1::ExplainResponse| -> Vec<String> {
        answering(explained).into_iter().map(|(name, ..)| name.to_owned()).collect()
    };
    assert_eq!(names(&explain(&mut fleet, "web-1", "10.96.0.11", 80).await), ["back-web"]);
    assert_eq!(names(&explain(&mut fleet, "api-1", "10.96.0.11", 80).await), ["back-api", "back-db"]);
    // A port of another node is called from outside, also by endpoints.
    assert_eq!(names(&explain(&mut fleet, "web-1", "node-1", 30_080).await), ["back-api", "back-db"]);
    assert_eq!(names(&explain(&mut fleet, "198.51.100.1", "192.0.2.2", 30_080).await), ["back-web"]);
    assert_eq!(names(&explain(&mut fleet, "web-1", "node-2", 30_080).await).len(), 3, "inside, any node's");

    // With all of them: the node that is called stands in for the client where another one has the backend.
    let all = service("port", "", |_| {});
    fleet.apply(vec![all, policy("api", "api", "web"), host_policy()]).await.unwrap();
    let relayed = explain(&mut fleet, "198.51.100.1", "192.0.2.2", 30_080).await;
    let backends = &relayed.service.as_ref().unwrap().backends;
    let subjects: Vec<Vec<&str>> = backends
        .iter()
        .map(|one| one.directions.iter().map(|direction| direction.subject.as_str()).collect())
        .collect();
    let called = "node node-2 (no labels)";
    assert_eq!(subjects, [vec![called, ""], vec![called, ""], vec![""]], "{relayed:#?}");
    let verdicts: Vec<v1::Verdict> = backends.iter().map(v1::ExplainedBackend::verdict).collect();
    let (allow, deny) = (v1::Verdict::Allow, v1::Verdict::Deny);
    assert_eq!(verdicts, [deny, deny, allow], "the node's policy lets nobody in but nodes");
    fleet.apply(vec![port]).await.unwrap();

    let refused = explain(&mut fleet, "203.0.113.9", "node-2", 30_080).await;
    let rejected = explain(&mut fleet, "web-1", "10.96.0.12", 80).await;
    for (explained, refusal) in
        [(refused, v1::ServiceRefusal::Source), (rejected, v1::ServiceRefusal::NoBackends)]
    {
        assert_eq!(explained.verdict(), v1::Verdict::Deny);
        assert_eq!(explained.service.unwrap().refusal(), refusal);
    }
}

#[tokio::test]
async fn explain_of_a_nodes_own_call_asks_whether_its_addresses_are_let_in() {
    let (mut fleet, _one, _two) = with_backends().await;
    let cidrs = vec!["192.0.2.1/32".to_owned()];
    for (action, let_in, refused) in [
        (v1::source_ranges::Action::Allow, "node-1", "node-2"),
        (v1::source_ranges::Action::Deny, "node-2", "node-1"),
    ] {
        let ranges = v1::SourceRanges { action: action.into(), cidrs: cidrs.clone() };
        fleet
            .apply(vec![service("back", "10.96.0.10", |service| service.source_ranges = Some(ranges))])
            .await
            .unwrap();
        assert_eq!(answering(&explain(&mut fleet, let_in, "10.96.0.10", 80).await).len(), 3);
        let explained = explain(&mut fleet, refused, "10.96.0.10", 80).await;
        assert_eq!(explained.service.unwrap().refusal(), v1::ServiceRefusal::Source);
    }
}
