//! The whole path over a real socket: what an operator applies reaches the nodes it concerns, and is known to be realised
//! when they have acknowledged.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::time::Duration;

use prost::Message as _;
use support::{DEADLINE, Fleet, Node, fleet, hello, policy, within};
use tonic::Code;
use weft_proto::v1::{self, ResourceType, node_report::Report};

const BRIEF: Duration = Duration::from_millis(200);

/// Two nodes; api-1 on the first, web-1 on the second, and the policy between them, all realised.
async fn web_and_api() -> (Fleet, Node, Node) {
    let mut fleet = fleet().await;
    let mut first = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut second = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let (api, web) = (first.address(5), second.address(5));
    assert!(first.attach("api-1", &[("app", "api")], &[&api]).await.accepted);
    assert!(second.attach("web-1", &[("app", "web")], &[&web]).await.accepted);
    fleet.apply(vec![policy("api-from-web", "api", "web")]).await.unwrap();
    first.until("it holds the peer's address", |node| node.names(ResourceType::Address).contains(&web)).await;
    second.until("web-1 is open", |node| is_open(node, "web-1")).await;
    first.until("api-1 is open", |node| is_open(node, "api-1")).await;
    (fleet, first, second)
}

fn is_open(node: &Node, endpoint: &str) -> bool {
    let resource = node.held.get(&(ResourceType::Endpoint, endpoint.to_owned()));
    resource.is_some_and(|bytes| v1::NodeEndpoint::decode(&**bytes).unwrap().open)
}

/// Labels, as `attach` takes them.
type Pairs<'a> = &'a [(&'a str, &'a str)];

type Waited = Result<v1::WaitRealisedResponse, tonic::Status>;

/// Waits in the background, while the nodes acknowledge.
async fn wait_while(fleet: &mut Fleet, revision: u64, nodes: impl Future<Output = ()>) -> Waited {
    within(async { tokio::join!(fleet.wait_realised(revision, DEADLINE), nodes) }).await.0
}

#[tokio::test]
async fn an_applied_policy_reaches_its_subjects_node_and_counts_as_realised_when_acknowledged() {
    let (mut fleet, mut first, mut second) = web_and_api().await;
    assert_eq!(first.names(ResourceType::Policy), ["api-from-web"]);
    assert_eq!(first.names(ResourceType::IdentitySetMember).len(), 2);
    assert_eq!(second.names(ResourceType::Policy), Vec::<String>::new());
    assert_eq!(second.names(ResourceType::Address), Vec::<String>::new());

    let applied = fleet.apply(vec![policy("api-from-db", "api", "db")]).await.unwrap();
    let answer = fleet.wait_realised(applied.revision, BRIEF).await.unwrap_err();
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    assert!(answer.message().contains("1 of 2 nodes") && answer.message().contains("node-1"), "{answer:?}");

    let holds = first.until("it holds the new policy", |node| node.names(ResourceType::Policy).len() == 2);
    let waited = wait_while(&mut fleet, applied.revision, holds).await;
    let waited = waited.unwrap();
    assert_eq!((waited.done, waited.nodes, waited.realised), (true, 2, 2));
    assert!(waited.took.is_some());
    let delta = first.deltas.last().unwrap();
    assert!(delta.committed_at.is_some() && delta.identities_through >= 256);
    second.until("nothing", |_| true).await;
}

#[tokio::test]
async fn an_endpoints_address_is_gone_from_its_peers_when_it_is() {
    let (_fleet, mut first, second) = web_and_api().await;
    second
        .report(Report::EndpointGone(v1::EndpointGone { name: "web-1".to_owned(), ..Default::default() }))
        .await;
    first.until("the address is gone", |node| node.names(ResourceType::Address).is_empty()).await;
}

#[tokio::test]
async fn an_inventory_removes_what_the_node_does_not_have_and_no_other_nodes_endpoints() {
    let (mut fleet, mut first, second) = web_and_api().await;
    second.report(Report::Inventory(v1::EndpointInventory::default())).await;
    first.until("the address is gone", |node| node.names(ResourceType::Address).is_empty()).await;
    let request = v1::ListRequest { kind: v1::Kind::Endpoint.into(), ..v1::ListRequest::default() };
    let listed = fleet.operator.list(request).await.unwrap().into_inner();
    let names: Vec<_> = listed.objects.into_iter().map(|object| support::name(&object)).collect();
    assert_eq!(names, ["api-1"]);
}

#[tokio::test]
async fn a_rejected_resource_ends_the_wait_naming_node_resource_and_reason() {
    let (mut fleet, mut first, _second) = web_and_api().await;
    let name = (ResourceType::Policy, "too-much".to_owned());
    first.rejects.insert(name.clone(), "the table overflows".to_owned());
    let applied = fleet.apply(vec![policy("too-much", "api", "db")]).await.unwrap();
    let taken = first.until("it was sent the policy", |node| node.held.contains_key(&name));
    let waited = wait_while(&mut fleet, applied.revision, taken).await;
    let error = waited.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.message(), "node node-1 rejected policy too-much: the table overflows");

    let status = fleet.operator.fleet_status(v1::FleetStatusRequest {}).await.unwrap().into_inner();
    let node = &status.nodes[0];
    assert_eq!((node.rejections.len(), node.realised_revision < applied.revision), (1, true));

    // Taken back, it stands in nobody's way.
    let request =
        v1::DeleteRequest { kind: v1::Kind::Policy.into(), name: "too-much".to_owned(), if_revision: None };
    let deleted = fleet.operator.delete(request).await.unwrap().into_inner();
    let gone = first.until("the policy is gone", |node| !node.held.contains_key(&name));
    assert!(wait_while(&mut fleet, deleted.revision, gone).await.unwrap().done);
}

#[tokio::test]
async fn a_node_that_takes_nothing_is_sent_little_and_the_rest_at_once_when_it_takes_again() {
    let (mut fleet, mut first, _second) = web_and_api().await;
    let before = first.deltas.len();
    let mut applied = None;
    for round in 0..200 {
        let peer = if round % 2 == 0 { "db" } else { "cache" };
        applied = Some(fleet.apply(vec![policy("churn", "api", peer)]).await.unwrap());
    }
    let revision = applied.unwrap().revision;
    first.until("it has caught up", |node| node.deltas.iter().any(|delta| delta.revision >= revision)).await;
    let taken = first.deltas.len() - before;
    // What is unacknowledged, what two messages of buffer hold, and what collapsed behind them.
    assert!(
        taken <= 2 * weft_controller::limits::UNACKNOWLEDGED_DELTAS_MAX,
        "{taken} deltas for 200 changes"
    );
}

#[tokio::test]
async fn a_newer_stream_of_the_same_node_takes_over() {
    let fleet = fleet().await;
    let mut old = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let new = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let ended = loop {
        match within(old.inbound.message()).await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::AlreadyExists);
    assert!(new.deltas[0].full);
}

#[tokio::test]
async fn a_controller_that_was_restarted_sends_the_same_and_keeps_prefixes_and_identities() {
    let (fleet, first, second) = web_and_api().await;
    let held = first.held.clone();
    let store_id = first.welcome.store_id.clone();
    drop((first, second));
    let fleet = fleet.restart().await;
    let again = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    assert_eq!(again.welcome.store_id, store_id);
    assert_eq!(again.held, held);
}

#[tokio::test]
async fn nodes_that_come_at_once_get_different_prefixes() {
    let fleet = fleet().await;
    let arrivals =
        (1..=12_u8).map(|number| {
            let fleet = &fleet;
            async move {
                fleet.node(&format!("node-{number}"), &format!("192.0.2.{number}")).await.in_sync().await
            }
        });
    let nodes = futures(arrivals).await;
    let mut prefixes: Vec<String> = nodes.iter().map(|node| node.address(0)).collect();
    prefixes.sort();
    prefixes.dedup();
    assert_eq!(prefixes.len(), 12);
}

async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in pending.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_fleet_without_a_free_prefix_refuses_the_node_with_the_reason() {
    let mut fleet = fleet().await;
    fleet.apply(vec![support::config(&[("10.201.0.0/29", 30)])]).await.unwrap();
    let _one = fleet.node("node-1", "192.0.2.1").await;
    let _two = fleet.node("node-2", "192.0.2.2").await;
    let refused = fleet.try_node(hello("node-3", "192.0.2.3")).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "no IPv4 prefix of length 30 is left in pool 10.201.0.0/29");
}

#[tokio::test]
async fn a_wrong_hello_is_refused_naming_the_field() {
    let fleet = fleet().await;
    let _taken = fleet.node("node-1", "192.0.2.1").await;
    let with = |change: fn(&mut v1::Hello)| {
        let mut hello = hello("node-2", "192.0.2.2");
        change(&mut hello);
        hello
    };
    let cases = [
        (with(|hello| hello.node = "Node_2".to_owned()), Code::InvalidArgument, "hello.node"),
        (with(|hello| hello.addresses.clear()), Code::InvalidArgument, "hello.addresses: expected 1 to 16"),
        (
            with(|hello| hello.addresses = vec!["192.0.2".to_owned()]),
            Code::InvalidArgument,
            "hello.addresses[0]",
        ),
        (
            with(|hello| hello.addresses = vec!["10.200.0.9".to_owned()]),
            Code::InvalidArgument,
            "inside the pools",
        ),
        (
            with(|hello| hello.addresses = vec!["192.0.2.1".to_owned()]),
            Code::AlreadyExists,
            "address 192.0.2.1 is taken by node node-1",
        ),
        (
            with(|hello| drop(hello.labels.insert("a b".to_owned(), String::new()))),
            Code::InvalidArgument,
            "hello.labels",
        ),
    ];
    for (hello, code, text) in cases {
        let refused = fleet.try_node(hello).await.err().unwrap();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?} does not say {text}");
    }
}

#[tokio::test]
async fn a_wrong_endpoint_is_refused_with_the_reason_and_nothing_is_stored() {
    let fleet = fleet().await;
    let mut first = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut second = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let (free, taken, elsewhere) = (first.address(7), first.address(5), second.address(5));
    assert!(first.attach("first", &[], &[&taken]).await.accepted);
    assert!(second.attach("second", &[], &[&elsewhere]).await.accepted);
    let cases: [(&str, Pairs<'_>, &[&str], &str); 8] = [
        ("new", &[], &[&taken], "is taken by endpoint first"),
        ("new", &[], &[&elsewhere], "is outside this node's endpoint prefixes"),
        ("new", &[], &["192.0.2.1"], "is outside this node's endpoint prefixes"),
        ("new", &[], &["10.200.0"], "addresses[0]: \"10.200.0\" is not an IP address"),
        ("new", &[], &[], "addresses: expected at least one"),
        ("new", &[("weft/node", "")], &[&free], "weft/node is reserved"),
        ("new", &[("a", "not a value")], &[&free], "labels"),
        ("second", &[], &[&free], "the name second is taken by an endpoint of node node-2"),
    ];
    for (name, labels, addresses, reason) in cases {
        let answer = first.attach(name, labels, addresses).await;
        assert!(
            !answer.accepted && answer.reason.contains(reason),
            "{} does not say {reason}",
            answer.reason
        );
    }
    let answer = first.attach("Bad_Name", &[], &[&free]).await;
    assert!(!answer.accepted && answer.reason.contains("name"), "{}", answer.reason);
    assert_eq!(first.names(ResourceType::Endpoint), ["first"]);
    assert!(first.attach("new", &[], &[&free]).await.accepted, "the refused ones left no claim");
}

#[tokio::test]
async fn endpoints_with_equal_labels_share_an_identity_whoever_is_first() {
    let mut fleet = fleet().await;
    let mut first = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut second = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let before = identities(&mut fleet).await.len();
    let (mine, other) = (first.address(9), second.address(9));
    let (mine, other) = ([mine.as_str()], [other.as_str()]);
    let labels = [("app", "same"), ("build", "volatile")];
    let answers = tokio::join!(first.attach("a", &labels, &mine), second.attach("b", &labels[..1], &other));
    assert!(answers.0.accepted && answers.1.accepted);
    let identities = identities(&mut fleet).await;
    assert_eq!(identities.len(), before + 1);
    assert!(identities.iter().all(|identity| identity.number >= 256));
}

async fn identities(fleet: &mut Fleet) -> Vec<v1::Identity> {
    let request = v1::ListRequest { kind: v1::Kind::Identity.into(), ..v1::ListRequest::default() };
    let listed = fleet.operator.list(request).await.unwrap().into_inner();
    let identity = |object: v1::Object| match object.kind {
        Some(v1::object::Kind::Identity(identity)) => identity,
        other => panic!("not an identity: {other:?}"),
    };
    listed.objects.into_iter().map(identity).collect()
}

#[tokio::test]
async fn a_node_that_was_behind_with_its_acknowledgements_learns_of_new_identities_once_it_is_not() {
    let mut fleet = fleet().await;
    let mut first = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut second = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let (api, web) = (first.address(5), second.address(5));
    assert!(first.attach("api-1", &[("app", "api")], &[&api]).await.accepted);
    first.until("api-1 is open", |node| is_open(node, "api-1")).await;
    let (mut unacknowledged, mut revision) = (Vec::new(), 0);
    for number in 0..weft_controller::limits::UNACKNOWLEDGED_DELTAS_MAX {
        let applied = fleet.apply(vec![policy(&format!("p{number}"), "api", "web")]).await.unwrap();
        revision = applied.revision;
        let message = within(first.inbound.message()).await.unwrap().unwrap();
        unacknowledged.push(message.message.unwrap());
    }

    assert!(second.attach("web-1", &[("app", "new")], &[&web]).await.accepted);
    let newest = identities(&mut fleet).await.iter().map(|identity| identity.number).max().unwrap();
    let answer = fleet.wait_realised(revision, BRIEF).await.unwrap_err();
    assert_eq!(answer.code(), Code::DeadlineExceeded);
    for message in unacknowledged {
        first.take(message).await;
    }

    let knows = |node: &Node| node.deltas.last().is_some_and(|delta| delta.identities_through >= newest);
    first.until("it knows the identity", knows).await;
}

#[tokio::test]
async fn a_node_without_other_news_is_told_of_identities_at_most_ten_times_a_second() {
    let mut fleet = fleet().await;
    let mut bystander = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut busy = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let other = (ResourceType::Node, "node-2".to_owned());
    bystander.until("it knows the other node", |node| node.held.contains_key(&other)).await;
    let (before, began) = (bystander.deltas.len(), tokio::time::Instant::now());
    for number in 0..30 {
        let (name, address) = (format!("e-{number}"), busy.address(5 + number));
        let app = format!("app-{number}");
        assert!(busy.attach(&name, &[("app", &app)], &[&address]).await.accepted);
    }
    let newest = identities(&mut fleet).await.iter().map(|identity| identity.number).max().unwrap();
    let knows = |node: &Node| node.deltas.last().is_some_and(|delta| delta.identities_through >= newest);
    bystander.until("it knows the last identity", knows).await;

    let told = &bystander.deltas[before..];
    assert!(told.iter().all(|delta| delta.upserts.is_empty() && delta.removes.is_empty()), "{told:?}");
    // Each after the interval since the one before; the first at once.
    let intervals =
        began.elapsed().as_millis() / weft_controller::limits::IDENTITIES_THROUGH_INTERVAL.as_millis();
    assert!(told.len() as u128 <= intervals + 1, "{} in {intervals} tenths of a second", told.len());
}
