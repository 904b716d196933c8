//! The whole path over a real socket: what an operator applies reaches the nodes it concerns, and is known to be realised
//! when they have acknowledged.
mod support;

use std::time::Duration;

use support::{fleet, policy};
use weft_proto::v1::ResourceType;

#[tokio::test]
async fn an_applied_policy_reaches_its_subjects_node_and_counts_as_realised_when_acknowledged() {
    let mut fleet = fleet().await;
    let mut first = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let mut second = fleet.node("node-2", "192.0.2.2").await.in_sync().await;
    let (api, web) = (first.address(5), second.address(5));
    assert!(first.attach("api-1", &[("app", "api")], &[&api]).await.accepted);
    let applied = fleet.apply(vec![policy("api-from-web", "api", "web")]).await.unwrap();

    // The peer comes after the policy: one member and one address more.
    assert!(second.attach("web-1", &[("app", "web")], &[&web]).await.accepted);
    first.until("it holds the peer's address", |node| node.names(ResourceType::Address).contains(&web)).await;
    assert_eq!(first.names(ResourceType::Policy), ["api-from-web"]);
    assert_eq!(first.names(ResourceType::IdentitySetMember).len(), 2);
    assert_eq!(second.names(ResourceType::Policy), Vec::<String>::new());

    let waited = fleet.wait_realised(applied.revision, Duration::from_secs(10)).await.unwrap();
    assert!(waited.done);
    assert_eq!((waited.nodes, waited.realised), (2, 2));
}
