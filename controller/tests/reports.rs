//! Which nodes need not report their endpoints again: those whose endpoints the store has just so.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::sync::Arc;

use support::{Fleet, Node, endpoint, fleet, fleet_beside, hello};
use weft_controller::{
    keys,
    plan::Plan,
    store::{Memory, Store},
};
use weft_proto::v1::{self, Kind};
use weft_shared::digest::Digest;

const NODE: (&str, &str) = ("node-1", "192.0.2.1");

/// What the node says of the endpoints that it has: all of these, with the label `app`.
fn digest(endpoints: &[(&str, &str, &str)]) -> Vec<u8> {
    let mut sum = Digest::default();
    for (name, app, address) in endpoints {
        sum += Digest::of_report(&reported(name, app, address));
    }
    sum.to_bytes().to_vec()
}

fn reported(name: &str, app: &str, address: &str) -> v1::Endpoint {
    v1::Endpoint { node: NODE.0.to_owned(), ..endpoint(name, &[("app", app)], &[address]) }
}

/// Whether the node, saying that, is told that its endpoints are known.
async fn is_known(fleet: &Fleet, endpoint_reports: Vec<u8>) -> bool {
    let hello = v1::Hello { endpoint_reports, ..hello(NODE.0, NODE.1) };
    fleet.try_node(hello).await.unwrap().welcome.endpoints_known
}

/// A node with two endpoints, and their addresses.
async fn node_with_two(fleet: &Fleet) -> (Node, [String; 2]) {
    let mut node = fleet.node(NODE.0, NODE.1).await.in_sync().await;
    let addresses = [node.address(5), node.address(6)];
    assert!(node.attach("a", &[("app", "api")], &[&addresses[0]]).await.accepted);
    assert!(node.attach("b", &[("app", "web")], &[&addresses[1]]).await.accepted);
    node.until("it holds both", |node| node.names(v1::ResourceType::Endpoint).len() == 2).await;
    (node, addresses)
}

#[tokio::test]
async fn endpoints_are_known_if_all_of_them_are_stored_as_reported_and_no_others() {
    let fleet = fleet().await;
    let (_node, [first, second]) = node_with_two(&fleet).await;
    let (a, b) = (("a", "api", first.as_str()), ("b", "web", second.as_str()));

    assert!(is_known(&fleet, digest(&[a, b])).await);
    assert!(is_known(&fleet, digest(&[b, a])).await);

    assert!(!is_known(&fleet, digest(&[a])).await, "the store has one that the node has not");
    assert!(!is_known(&fleet, digest(&[a, b, ("c", "web", "10.200.0.9")])).await, "one is not stored");
    assert!(!is_known(&fleet, digest(&[a, ("b", "api", &second)])).await, "one is another by now");
    assert!(!is_known(&fleet, Vec::new()).await, "an earlier release says nothing of them");
    assert!(!is_known(&fleet, vec![0; 16]).await, "it has none, the store has two");
    assert!(!is_known(&fleet, vec![0; 15]).await, "no digest");
}

#[tokio::test]
async fn a_node_without_endpoints_is_known_to_have_none() {
    let fleet = fleet().await;
    assert!(is_known(&fleet, vec![0; 16]).await);
}

#[tokio::test]
async fn every_controller_of_the_store_knows_them_and_none_knows_what_was_removed() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let (first, second) =
        (fleet_beside("first", Arc::clone(&store)).await, fleet_beside("second", Arc::clone(&store)).await);
    let (node, [here, there]) = node_with_two(&first).await;
    let both = digest(&[("a", "api", &here), ("b", "web", &there)]);
    assert!(is_known(&second, both.clone()).await);
    drop(node);

    let mut plan = Plan::default();
    plan.delete(keys::object(Kind::Endpoint, "b"));
    plan.delete(keys::address(there.parse().unwrap()));
    plan.commit(store.as_ref()).await.unwrap().unwrap();

    assert!(!is_known(&first, both.clone()).await);
    assert!(!is_known(&second, both).await);
}

#[tokio::test]
async fn another_store_knows_none_of_them() {
    let (first, other) = (fleet().await, fleet().await);
    let (_node, [here, there]) = node_with_two(&first).await;
    let both = digest(&[("a", "api", &here), ("b", "web", &there)]);
    assert!(is_known(&first, both.clone()).await);
    assert!(!is_known(&other, both).await);
}

#[tokio::test]
async fn what_is_outside_of_the_nodes_prefixes_by_now_is_reported_again_to_be_refused() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let fleet = fleet_beside("first", Arc::clone(&store)).await;
    let (_node, [here, there]) = node_with_two(&fleet).await;
    let both = digest(&[("a", "api", &here), ("b", "web", &there)]);
    let key = keys::object(Kind::Node, NODE.0);
    let (stored, _) = store.get(&key).await.unwrap();
    let mut node = weft_controller::resource::decode_node(&stored.unwrap()).unwrap();
    for cidr in &mut node.endpoint_cidrs {
        if cidr.contains('.') {
            *cidr = "10.200.250.0/24".to_owned();
        }
    }
    let object = weft_controller::resource::object(v1::object::Kind::Node(node));
    let mut plan = Plan::default();
    plan.put(key, weft_controller::resource::encode(object));
    plan.commit(store.as_ref()).await.unwrap().unwrap();

    assert!(!is_known(&fleet, both).await);
}
