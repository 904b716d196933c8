//! The operator API: what is wrong is refused with its place and changes nothing; what is right is one revision.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use support::{Fleet, fleet, name, policy, within};
use tonic::{Code, Status};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;
use weft_proto::v1::{self, Change, Kind, object::Kind as Of};

fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|details| details.field_violations);
    violations.unwrap_or_default().into_iter().map(|violation| violation.field).collect()
}

fn policy_of(object: &mut v1::Object) -> &mut v1::Policy {
    match object.kind.as_mut() {
        Some(Of::Policy(policy)) => policy,
        other => panic!("not a policy: {other:?}"),
    }
}

fn ports(object: &mut v1::Object) -> &mut Vec<v1::Port> {
    let rule = &mut policy_of(object).ingress.as_mut().unwrap().items[0];
    &mut rule.ports.as_mut().unwrap().items
}

async fn list(fleet: &mut Fleet, request: v1::ListRequest) -> Result<v1::ListResponse, Status> {
    let request = v1::ListRequest { kind: Kind::Policy.into(), ..request };
    fleet.operator.list(request).await.map(tonic::Response::into_inner)
}

async fn policies(fleet: &mut Fleet) -> Vec<String> {
    let listed = list(fleet, v1::ListRequest::default()).await.unwrap();
    listed.objects.iter().map(name).collect()
}

async fn get(fleet: &mut Fleet, name: &str) -> v1::Object {
    let request = v1::GetRequest { kind: Kind::Policy.into(), name: name.to_owned() };
    fleet.operator.get(request).await.unwrap().into_inner().object.unwrap()
}

fn changes(response: &v1::ApplyResponse) -> Vec<(String, Change)> {
    response.objects.iter().map(|object| (object.name.clone(), object.change())).collect()
}

#[tokio::test]
async fn one_bad_object_among_good_ones_and_nothing_is_applied() {
    let mut fleet = fleet().await;
    let mut bad = policy("bad", "api", "web");
    ports(&mut bad)[0].port = Some(70_000);
    let objects = vec![policy("a", "api", "web"), bad, policy("c", "api", "web")];
    let refused = fleet.apply(objects).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(fields(&refused), ["objects[1].policy.ingress[0].ports[0].port"]);
    assert!(refused.message().contains("objects[1].policy.ingress[0].ports[0].port"), "{refused:?}");
    assert_eq!(policies(&mut fleet).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_wrong_is_named_by_its_field() {
    let mut fleet = fleet().await;
    let cidr = |cidr: &str| {
        let mut object = policy("p", "api", "web");
        let peer = v1::Peer { cidr: Some(cidr.to_owned()), ..v1::Peer::default() };
        policy_of(&mut object).ingress.as_mut().unwrap().items[0].peers =
            Some(v1::PeerList { items: vec![peer] });
        object
    };
    let with = |change: fn(&mut v1::Object)| {
        let mut object = policy("p", "api", "web");
        change(&mut object);
        object
    };
    let cases = [
        (with(|object| ports(object)[0].port = Some(0)), "objects[0].policy.ingress[0].ports[0].port"),
        (
            with(|object| ports(object)[0].end_port = Some(80)),
            "objects[0].policy.ingress[0].ports[0].endPort",
        ),
        (cidr("198.51.100.7/24"), "objects[0].policy.ingress[0].peers[0].cidr"),
        (
            with(|object| policy_of(object).metadata.as_mut().unwrap().name = "A".to_owned()),
            "objects[0].policy.name",
        ),
        (with(|object| policy_of(object).tier = 9), "objects[0].policy.tier"),
        (with(|object| policy_of(object).order = Some(1)), "objects[0].policy.order"),
        (with(|object| policy_of(object).mode = 9), "objects[0].policy.mode"),
        (
            with(|object| policy_of(object).metadata.as_mut().unwrap().uid = "mine".to_owned()),
            "objects[0].policy.uid",
        ),
    ];
    for (object, field) in cases {
        let refused = fleet.apply(vec![object]).await.unwrap_err();
        assert_eq!(
            (refused.code(), fields(&refused)),
            (Code::InvalidArgument, vec![field.to_owned()]),
            "{refused:?}"
        );
    }
    let label = with(|object| {
        let labels = &mut policy_of(object).metadata.as_mut().unwrap().labels;
        labels.insert("-bad".to_owned(), String::new());
    });
    let refused = fleet.apply(vec![label]).await.unwrap_err();
    assert!(fields(&refused)[0].starts_with("objects[0].policy.labels"), "{refused:?}");
    assert_eq!(policies(&mut fleet).await, Vec::<String>::new());
}

#[tokio::test]
async fn kinds_that_operators_do_not_write_and_kinds_to_come_are_refused() {
    let mut fleet = fleet().await;
    let metadata = Some(v1::Metadata { name: "x".to_owned(), ..v1::Metadata::default() });
    let kinds = [
        Of::Node(v1::Node { metadata: metadata.clone(), ..v1::Node::default() }),
        Of::Endpoint(v1::Endpoint { metadata: metadata.clone(), ..v1::Endpoint::default() }),
        Of::Identity(v1::Identity { metadata: metadata.clone(), ..v1::Identity::default() }),
        Of::Service(v1::Service { metadata, ..v1::Service::default() }),
    ];
    for kind in kinds {
        let refused = fleet.apply(vec![v1::Object { kind: Some(kind.clone()) }]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{kind:?}");
    }
    let refused = fleet.apply(vec![v1::Object::default()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_apply_that_is_too_large_names_size_and_limit() {
    let mut fleet = fleet().await;
    let many = (0..51).map(|number| policy(&format!("p{number}"), "api", "web")).collect();
    let refused = fleet.apply(many).await.unwrap_err();
    assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, vec!["objects".to_owned()]));
    assert!(refused.message().contains("51 objects, expected 1 to 50"), "{refused:?}");

    let mut large = policy("large", "api", "web");
    let rule = policy_of(&mut large).ingress.as_ref().unwrap().items[0].clone();
    policy_of(&mut large).ingress.as_mut().unwrap().items = vec![rule; 40_000];
    let refused = fleet.apply(vec![large.clone()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("bytes, the limit is 1048576"), "{refused:?}");

    // Above 4 MiB it is not even read.
    let rule = policy_of(&mut large).ingress.as_ref().unwrap().items[0].clone();
    policy_of(&mut large).ingress.as_mut().unwrap().items = vec![rule; 200_000];
    let refused = fleet.apply(vec![large]).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert_eq!(policies(&mut fleet).await, Vec::<String>::new());
}

#[tokio::test]
async fn the_same_object_twice_in_one_request_is_refused() {
    let mut fleet = fleet().await;
    let refused = fleet.apply(vec![policy("a", "api", "web"), policy("a", "api", "db")]).await.unwrap_err();
    assert_eq!(fields(&refused), ["objects[1].policy.name"]);
}

#[tokio::test]
async fn an_object_that_is_as_it_was_is_not_written() {
    let mut fleet = fleet().await;
    let created = fleet.apply(vec![policy("a", "api", "web")]).await.unwrap();
    assert_eq!(changes(&created), [("a".to_owned(), Change::Created)]);
    let again = fleet.apply(vec![policy("a", "api", "web")]).await.unwrap();
    assert_eq!(changes(&again), [("a".to_owned(), Change::Unchanged)]);
    assert_eq!(again.revision, created.revision);
    let read = get(&mut fleet, "a").await;
    let back = fleet.apply(vec![read]).await.unwrap();
    assert_eq!(
        (changes(&back), back.revision),
        (vec![("a".to_owned(), Change::Unchanged)], created.revision)
    );

    let both = fleet.apply(vec![policy("a", "api", "db"), policy("b", "api", "db")]).await.unwrap();
    assert_eq!(changes(&both), [("a".to_owned(), Change::Configured), ("b".to_owned(), Change::Created)]);
    assert_eq!(both.objects[0].uid, created.objects[0].uid, "it is still the same object");
    let mut read = get(&mut fleet, "a").await;
    assert_eq!(policy_of(&mut read).metadata.as_ref().unwrap().revision, both.revision);
}

#[tokio::test]
async fn selectors_that_select_nothing_are_applied_and_warned_of() {
    let mut fleet = fleet().await;
    let mut object = policy("p", "api", "web");
    let subject = policy_of(&mut object).subject.as_mut().unwrap().endpoints.as_mut().unwrap();
    subject.match_labels.insert("commit".to_owned(), "c0ffee".to_owned());
    let rules = policy_of(&mut object).ingress.as_mut().unwrap();
    let never = v1::LabelRequirement {
        key: "app".to_owned(),
        operator: v1::LabelOperator::DoesNotExist.into(),
        values: Vec::new(),
    };
    let peer = rules.items[0].peers.as_mut().unwrap().items[0].endpoints.as_mut().unwrap();
    peer.match_expressions.push(never);
    let applied = fleet.apply(vec![object]).await.unwrap();
    assert_eq!(changes(&applied), [("p".to_owned(), Change::Created)]);
    let warned: Vec<(&str, bool)> = applied
        .warnings
        .iter()
        .map(|warning| (warning.field.as_str(), warning.message.contains("selects nothing")))
        .collect();
    assert_eq!(
        warned,
        [
            ("objects[0].policy.ingress[0].peers[0].endpoints", true),
            ("objects[0].policy.subject.endpoints", true),
        ]
    );
}

#[tokio::test]
async fn a_dry_run_checks_everything_and_changes_nothing() {
    let mut fleet = fleet().await;
    let request = v1::ApplyRequest {
        objects: vec![policy("a", "api", "web")],
        dry_run: true,
        ..v1::ApplyRequest::default()
    };
    let tried = fleet.operator.apply(request.clone()).await.unwrap().into_inner();
    assert_eq!(changes(&tried), [("a".to_owned(), Change::Created)]);
    assert_eq!(policies(&mut fleet).await, Vec::<String>::new());
    let mut bad = request;
    policy_of(&mut bad.objects[0]).subject = None;
    assert_eq!(fleet.operator.apply(bad).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stale_if_revision_is_refused_and_says_the_current_one() {
    let mut fleet = fleet().await;
    let first = fleet.apply(vec![policy("a", "api", "web")]).await.unwrap().revision;
    let second = fleet.apply(vec![policy("b", "api", "web")]).await.unwrap().revision;
    let request = |if_revision, dry_run| v1::ApplyRequest {
        objects: vec![policy("c", "api", "web")],
        if_revision: Some(if_revision),
        dry_run,
    };
    for dry_run in [true, false] {
        let stale = fleet.operator.apply(request(first, dry_run)).await.unwrap_err();
        assert_eq!(stale.code(), Code::FailedPrecondition);
        assert!(stale.message().contains(&format!("changed at revision {second}")), "{stale:?}");
    }
    let delete = |if_revision| v1::DeleteRequest {
        kind: Kind::Policy.into(),
        name: "a".to_owned(),
        if_revision: Some(if_revision),
    };
    assert_eq!(fleet.operator.delete(delete(first)).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(policies(&mut fleet).await, ["a", "b"]);

    // What nodes write in between is no reason to refuse.
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let address = node.address(5);
    assert!(node.attach("e", &[], &[&address]).await.accepted);
    fleet.operator.apply(request(second, false)).await.unwrap();
    assert_eq!(policies(&mut fleet).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn pages_show_one_revision_and_a_compacted_or_foreign_token_is_refused() {
    let mut fleet = fleet().await;
    let objects = (0..7).map(|number| {
        let mut object = policy(&format!("p{number}"), "api", "web");
        let labels = &mut policy_of(&mut object).metadata.as_mut().unwrap().labels;
        labels.insert("half".to_owned(), (number % 2).to_string());
        object
    });
    fleet.apply(objects.collect()).await.unwrap();
    let mut request = v1::ListRequest { page_size: 3, ..v1::ListRequest::default() };
    let mut found = Vec::new();
    loop {
        let page = list(&mut fleet, request.clone()).await.unwrap();
        found.extend(page.objects.iter().map(name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        fleet.apply(vec![policy("p3a", "api", "db")]).await.unwrap();
    }
    assert_eq!(found, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);

    let odd =
        v1::ListRequest { selector: Some(support::selector("half", "1")), ..v1::ListRequest::default() };
    let odd = list(&mut fleet, odd).await.unwrap();
    assert_eq!(odd.objects.iter().map(name).collect::<Vec<_>>(), ["p1", "p3", "p5"]);

    let foreign = v1::ListRequest { page_token: "x".to_owned(), ..v1::ListRequest::default() };
    assert_eq!(fields(&list(&mut fleet, foreign).await.unwrap_err()), ["page_token"]);
    let large = v1::ListRequest { page_size: 1_001, ..v1::ListRequest::default() };
    assert_eq!(fields(&list(&mut fleet, large).await.unwrap_err()), ["page_size"]);
}

#[tokio::test]
async fn a_watch_tells_all_changes_of_a_revision_in_one_message() {
    let mut fleet = fleet().await;
    let before = fleet.apply(vec![policy("old", "api", "web")]).await.unwrap().revision;
    let request = v1::WatchRequest { kinds: vec![Kind::Policy.into()], from_revision: before };
    let mut watch = fleet.operator.watch(request).await.unwrap().into_inner();
    let both =
        fleet.apply(vec![policy("old", "api", "db"), policy("new", "api", "db")]).await.unwrap().revision;
    let request = v1::DeleteRequest { kind: Kind::Policy.into(), name: "old".to_owned(), if_revision: None };
    let deleted = fleet.operator.delete(request).await.unwrap().into_inner().revision;

    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = within(watch.message()).await.unwrap().unwrap();
        let mut events: Vec<(String, Change)> = message
            .events
            .iter()
            .map(|event| (name(event.object.as_ref().unwrap()), event.change()))
            .collect();
        events.sort();
        seen.push((message.revision, events));
    }
    let named = |name: &str, change| (name.to_owned(), change);
    let expected = [
        (before, vec![]),
        (both, vec![named("new", Change::Created), named("old", Change::Configured)]),
        (deleted, vec![named("old", Change::Deleted)]),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let mut fleet = fleet().await;
    let get = v1::GetRequest { kind: Kind::Policy.into(), name: "x".to_owned() };
    let missing = fleet.operator.get(get).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "no policy \"x\""));
    for kind in [Kind::Policy, Kind::Node] {
        let delete = v1::DeleteRequest { kind: kind.into(), name: "x".to_owned(), if_revision: None };
        assert_eq!(fleet.operator.delete(delete).await.unwrap_err().code(), Code::NotFound);
    }
    let get = v1::GetRequest::default();
    assert_eq!(fleet.operator.get(get).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_node_is_removed_with_its_endpoints_once_it_is_not_connected() {
    let mut fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let address = node.address(5);
    assert!(node.attach("e", &[], &[&address]).await.accepted);
    let delete = v1::DeleteRequest { kind: Kind::Node.into(), name: "node-1".to_owned(), if_revision: None };
    let refused = fleet.operator.delete(delete.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is connected"), "{refused:?}");

    drop(node);
    within(async {
        while fleet.operator.delete(delete.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let status = fleet.operator.fleet_status(v1::FleetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.nodes.len(), status.endpoints), (0, 0));
    // What it had is free again.
    let mut other = fleet.node("node-2", "192.0.2.1").await.in_sync().await;
    assert_eq!(other.address(5), address);
    assert!(other.attach("e", &[], &[&address]).await.accepted);
}

#[tokio::test]
async fn a_configuration_that_takes_a_nodes_ground_away_is_refused() {
    let mut fleet = fleet().await;
    let _node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let refused = fleet.apply(vec![support::config(&[("10.77.0.0/16", 24)])]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("node node-1 has 10.200.0.0/24"), "{refused:?}");
    let delete =
        v1::DeleteRequest { kind: Kind::FleetConfig.into(), name: "fleet".to_owned(), if_revision: None };
    assert_eq!(fleet.operator.delete(delete).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_connected_node_gets_a_prefix_of_a_pool_that_is_added() {
    let mut fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let pools = [("10.200.0.0/16", 24), ("fd00:77::/48", 64), ("10.201.0.0/16", 26)];
    fleet.apply(vec![support::config(&pools)]).await.unwrap();
    node.until("a prefix of the new pool", |node| {
        let route = &node.held[&(v1::ResourceType::Node, "node-1".to_owned())];
        let route: v1::NodeRoute = prost::Message::decode(&**route).unwrap();
        route.endpoint_cidrs.contains(&"10.201.0.0/26".to_owned())
    })
    .await;
    assert!(node.attach("e", &[], &["10.201.0.5"]).await.accepted, "usable at once");
}

#[tokio::test]
async fn endpoints_are_listed_by_their_node() {
    let mut fleet = fleet().await;
    for (number, name) in [(1, "node-1"), (2, "node-2")] {
        let mut node = fleet.node(name, &format!("192.0.2.{number}")).await.in_sync().await;
        let address = node.address(5);
        assert!(node.attach(&format!("on-{name}"), &[], &[&address]).await.accepted);
    }
    let request = v1::ListRequest {
        kind: Kind::Endpoint.into(),
        node: "node-2".to_owned(),
        ..v1::ListRequest::default()
    };
    let listed = fleet.operator.list(request).await.unwrap().into_inner().objects;
    assert_eq!(listed.iter().map(name).collect::<Vec<_>>(), ["on-node-2"]);
    let request = v1::ListRequest { node: "node-2".to_owned(), ..v1::ListRequest::default() };
    assert_eq!(list(&mut fleet, request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn explain_tells_the_verdict_of_the_evaluator_and_the_rule() {
    let mut fleet = fleet().await;
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let (api, web) = (node.address(5), node.address(6));
    assert!(node.attach("api-1", &[("app", "api")], &[&api]).await.accepted);
    assert!(node.attach("web-1", &[("app", "web")], &[&web]).await.accepted);
    fleet.apply(vec![policy("api-from-web", "api", "web")]).await.unwrap();

    let cases = [
        ("web-1", "api-1", 8080, v1::Verdict::Allow),
        ("web-1", "api-1", 8081, v1::Verdict::Deny),
        (web.as_str(), api.as_str(), 8080, v1::Verdict::Allow),
        ("198.51.100.1", "api-1", 8080, v1::Verdict::Deny),
        ("api-1", "web-1", 22, v1::Verdict::Allow),
        ("node-1", "api-1", 22, v1::Verdict::Allow),
        ("10.200.9.9", "api-1", 8080, v1::Verdict::Deny),
    ];
    for (from, to, port, expected) in cases {
        let party = |name: &str| Some(v1::Party { party: Some(v1::party::Party::Name(name.to_owned())) });
        let request = v1::ExplainRequest {
            from: party(from),
            to: party(to),
            port: Some(v1::FlowPort { protocol_number: 6, port }),
            family: 4,
        };
        let explained = fleet.operator.explain(request).await.unwrap().into_inner();
        assert_eq!(explained.verdict(), expected, "{from} → {to}:{port} {explained:#?}");
        let decided =
            |direction: &v1::DirectionVerdict| direction.steps.last().is_some_and(|step| step.decided);
        assert!(explained.directions.iter().all(decided), "{explained:#?}");
    }
}

#[tokio::test]
async fn explain_names_what_it_does_not_know() {
    let mut fleet = fleet().await;
    let request = v1::ExplainRequest {
        from: Some(v1::Party { party: Some(v1::party::Party::Name("nobody".to_owned())) }),
        port: Some(v1::FlowPort { protocol_number: 6, port: 80 }),
        ..v1::ExplainRequest::default()
    };
    let refused = fleet.operator.explain(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("nobody"), "{refused:?}");
}

#[tokio::test]
async fn health_and_reflection_are_on() {
    let fleet = fleet().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(fleet.channel.clone());
    for service in ["", "weft.v1.OperatorService", "weft.v1.NodeStreamService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving, "{service}");
    }

    let ask = MessageRequest::FileContainingSymbol("weft.v1.OperatorService".to_owned());
    let request =
        ServerReflectionRequest { message_request: Some(ask), ..ServerReflectionRequest::default() };
    let mut client = ServerReflectionClient::new(fleet.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = within(answers.message()).await.unwrap().unwrap().message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
}
