//! It does not matter which controller a node is connected to, nor which one an operator asks; and a controller that was
//! restarted remembers what its nodes had realised.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::sync::Arc;

use prost::Message as _;
use support::{DEADLINE, Fleet, Node, fleet_beside, policy, within};
use weft_controller::store::{Memory, Store};
use weft_proto::v1::{self, ResourceType};

async fn pair() -> (Fleet, Fleet) {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    (fleet_beside("first", Arc::clone(&store)).await, fleet_beside("second", store).await)
}

/// A node with an endpoint of the subject `api`.
async fn api_node(fleet: &Fleet, name: &str, address: &str) -> Node {
    let mut node = fleet.node(name, address).await.in_sync().await;
    let endpoint = node.address(5);
    let own = format!("api-on-{name}");
    assert!(node.attach(&own, &[("app", "api")], &[&endpoint]).await.accepted);
    let open = |node: &Node| {
        let word = node.held.get(&(ResourceType::Endpoint, own.clone()));
        word.is_some_and(|word| v1::NodeEndpoint::decode(&**word).unwrap().open)
    };
    node.until("its endpoint is open", open).await;
    node
}

async fn summary(fleet: &mut Fleet, node: &str) -> v1::NodeSummary {
    let status = fleet.operator.fleet_status(v1::FleetStatusRequest {}).await.unwrap().into_inner();
    status.nodes.into_iter().find(|summary| summary.name == node).unwrap()
}

async fn takes_policy(node: &mut Node, policy: &str) {
    let name = (ResourceType::Policy, policy.to_owned());
    node.until("it has the policy", |node| node.held.contains_key(&name)).await;
}

#[tokio::test]
async fn a_revision_is_waited_for_on_the_nodes_of_every_controller() {
    let (mut first, mut second) = pair().await;
    let mut here = api_node(&first, "node-1", "192.0.2.1").await;
    let mut there = api_node(&second, "node-2", "192.0.2.2").await;
    let applied = first.apply(vec![policy("p", "api", "web")]).await.unwrap();

    takes_policy(&mut here, "p").await;
    let brief = std::time::Duration::from_millis(300);
    let error = first.wait_realised(applied.revision, brief).await.unwrap_err();
    assert!(error.message().contains("1 of 2") && error.message().contains("node-2"), "{error}");

    let taken = takes_policy(&mut there, "p");
    let waits = async {
        tokio::join!(
            first.wait_realised(applied.revision, DEADLINE),
            second.wait_realised(applied.revision, DEADLINE)
        )
    };
    let (waited, ()) = within(async { tokio::join!(waits, taken) }).await;
    assert_eq!((waited.0.unwrap().realised, waited.1.unwrap().realised), (2, 2));
    for fleet in [&mut first, &mut second] {
        for node in ["node-1", "node-2"] {
            assert!(summary(fleet, node).await.connected, "{node}");
        }
    }
}

#[tokio::test]
async fn a_rejection_on_another_controllers_node_ends_the_wait() {
    let (mut first, second) = pair().await;
    let mut there = api_node(&second, "node-2", "192.0.2.2").await;
    there.rejects.insert((ResourceType::Policy, "p".to_owned()), "the table overflows".to_owned());
    let applied = first.apply(vec![policy("p", "api", "web")]).await.unwrap();
    let taken = takes_policy(&mut there, "p");
    let waited = within(async { tokio::join!(first.wait_realised(applied.revision, DEADLINE), taken) }).await;
    let error = waited.0.unwrap_err();
    assert_eq!(error.message(), "node node-2 rejected policy p: the table overflows");
}

#[tokio::test]
async fn a_node_that_moves_is_known_where_it_is() {
    let (mut first, mut second) = pair().await;
    let node = api_node(&first, "node-1", "192.0.2.1").await;
    drop(node);
    let mut node = second.node("node-1", "192.0.2.1").await.in_sync().await;
    let applied = first.apply(vec![policy("p", "api", "web")]).await.unwrap();
    let taken = takes_policy(&mut node, "p");
    let waited = within(async { tokio::join!(first.wait_realised(applied.revision, DEADLINE), taken) }).await;
    assert!(waited.0.unwrap().done);
    let request = v1::GetRequest { kind: v1::Kind::Node.into(), name: "node-1".to_owned() };
    for fleet in [&mut first, &mut second] {
        let object = fleet.operator.get(request.clone()).await.unwrap().into_inner().object.unwrap();
        let Some(v1::object::Kind::Node(node)) = object.kind else { panic!("not a node: {object:?}") };
        let status = node.status.unwrap();
        assert_eq!(status.controller, "second");
        assert!(status.last_seen.is_some() && status.realised_revision >= applied.revision);
    }
}

#[tokio::test]
async fn after_a_restart_a_dead_node_is_waited_for_only_if_something_is_pending_for_it() {
    let mut fleet = support::fleet().await;
    let node = api_node(&fleet, "node-1", "192.0.2.1").await;
    let applied = fleet.apply(vec![policy("others", "db", "web")]).await.unwrap();
    // It is gone, and lacks nothing.
    drop(node);
    fleet.wait_realised(applied.revision, DEADLINE).await.unwrap();
    let last_seen = summary(&mut fleet, "node-1").await.last_seen;
    assert!(last_seen.is_some());

    let mut fleet = fleet.restart().await;

    let waited = fleet.wait_realised(applied.revision, DEADLINE).await.unwrap();
    assert_eq!((waited.nodes, waited.realised), (1, 1));
    let dead = summary(&mut fleet, "node-1").await;
    assert!(!dead.connected && dead.last_seen.is_some());
    let elsewhere = fleet.apply(vec![policy("others", "db", "api")]).await.unwrap();
    assert!(fleet.wait_realised(elsewhere.revision, DEADLINE).await.unwrap().done, "it is not concerned");

    let concerned = fleet.apply(vec![policy("its-own", "api", "web")]).await.unwrap();
    let brief = std::time::Duration::from_millis(100);
    let error = fleet.wait_realised(concerned.revision, brief).await.unwrap_err();
    assert!(error.message().contains("node-1"), "{error}");

    // What is pending stays pending over another restart.
    let mut fleet = fleet.restart().await;
    let error = fleet.wait_realised(concerned.revision, brief).await.unwrap_err();
    assert!(error.message().contains("node-1"), "{error}");
}
