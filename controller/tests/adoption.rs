//! A store that is not the one, or not the state of it, that a node knows: the node is told nothing and the store is not
//! written, until an operator adopts the node.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use support::{Fleet, Node, fleet, fleet_in, hello, policy, within};
use tonic::{Code, Status};
use weft_proto::v1;

const ADDRESS: &str = "192.0.2.1";

fn have(store_id: &str, revision: u64, identities_through: u32) -> v1::Have {
    let digests = vec![v1::TypeDigest { r#type: 1, digest: vec![7; 16], resources: 1 }];
    let endpoint_cidrs = vec!["10.200.77.0/24".to_owned()];
    v1::Have { store_id: store_id.to_owned(), revision, digests, identities_through, endpoint_cidrs }
}

async fn come(fleet: &Fleet, have: &v1::Have) -> Node {
    let hello = v1::Hello { have: Some(have.clone()), ..hello("node-1", ADDRESS) };
    fleet.try_node(hello).await.unwrap()
}

/// The node is told which store this is, and nothing else.
async fn refused(fleet: &Fleet, have: &v1::Have) -> Status {
    let mut node = come(fleet, have).await;
    assert_eq!(node.welcome.adoption, None);
    match within(node.inbound.message()).await {
        Err(status) => status,
        Ok(message) => panic!("expected the stream's end, found {message:?}"),
    }
}

async fn waiting(fleet: &mut Fleet) -> Vec<(String, String, u64)> {
    let status = fleet.operator.fleet_status(v1::FleetStatusRequest {}).await.unwrap().into_inner();
    let waiting = status.waiting_for_adoption.into_iter();
    waiting.map(|node| (node.name, node.store_id, node.revision)).collect()
}

async fn adopt(fleet: &mut Fleet, nodes: &[&str]) -> Result<Vec<String>, Status> {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let request = v1::FleetAdoptRequest { all: nodes.is_empty(), nodes };
    let adopted = within(fleet.operator.fleet_adopt(request)).await?.into_inner().adopted;
    Ok(adopted.into_iter().map(|node| node.name).collect())
}

async fn nodes_stored(fleet: &mut Fleet) -> Vec<v1::Object> {
    let request = v1::ListRequest { kind: v1::Kind::Node.into(), ..v1::ListRequest::default() };
    fleet.operator.list(request).await.unwrap().into_inner().objects
}

async fn highest_identity(fleet: &mut Fleet) -> u32 {
    let request = v1::ListRequest { kind: v1::Kind::Identity.into(), ..v1::ListRequest::default() };
    let identities = fleet.operator.list(request).await.unwrap().into_inner().objects;
    let number = |object: v1::Object| match object.kind {
        Some(v1::object::Kind::Identity(identity)) => identity.number,
        other => panic!("not an identity: {other:?}"),
    };
    identities.into_iter().map(number).max().unwrap()
}

#[tokio::test]
async fn a_node_of_another_fleets_store_waits_until_it_is_adopted() {
    let mut fleet = fleet().await;
    let held = have("another-store", 70, 300);

    let refusal = refused(&fleet, &held).await;

    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(
        refusal.message().contains("another-store") && refusal.message().contains("weft fleet adopt node-1")
    );
    assert_eq!(waiting(&mut fleet).await, [("node-1".to_owned(), "another-store".to_owned(), 70)]);
    assert_eq!(nodes_stored(&mut fleet).await, [], "the store is not written");
    let error = adopt(&mut fleet, &["node-2"]).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    refused(&fleet, &held).await;

    assert_eq!(adopt(&mut fleet, &["node-1"]).await.unwrap(), ["node-1"]);
    refused(&fleet, &have("another-store", 71, 300)).await;
    refused(&fleet, &have("a-third-store", 70, 300)).await;
    let node = come(&fleet, &held).await;
    assert_eq!(node.welcome.adoption.as_ref().unwrap().former_store_id, "another-store");
    let mut node = node.in_sync().await;

    assert!(node.deltas[0].full);
    assert!(node.address(5).starts_with("10.200.77."), "it keeps its prefix: {}", node.address(5));
    assert_eq!(waiting(&mut fleet).await, []);
    let address = node.address(5);
    assert!(node.attach("web-1", &[("app", "web")], &[&address]).await.accepted);
    assert!(highest_identity(&mut fleet).await > 300, "no number that means something there is given here");
}

#[tokio::test]
async fn a_store_restored_from_an_older_backup_is_told_to_nodes_only_after_adoption() {
    let mut fleet = fleet().await;
    let node = fleet.node("node-1", ADDRESS).await.in_sync().await;
    let store_id = node.welcome.store_id.clone();
    drop(node);
    let directory = fleet.stop().await;
    let file = directory.path().join("weft.redb");
    let backup = directory.path().join("backup");
    std::fs::copy(&file, &backup).unwrap();
    fleet = fleet_in(directory).await;
    let mut node = fleet.node("node-1", ADDRESS).await.in_sync().await;
    for round in 0..20 {
        fleet.apply(vec![policy(&format!("lost-{round}"), "api", "web")]).await.unwrap();
    }
    let address = node.address(5);
    assert!(node.attach("api-1", &[("app", "api")], &[&address]).await.accepted);
    node.until("it knows", |node| node.deltas.last().is_some_and(|delta| delta.identities_through > 256))
        .await;
    let held = have(&store_id, node.deltas.last().unwrap().revision, 300);
    drop(node);

    let directory = fleet.stop().await;
    std::fs::copy(&backup, &file).unwrap();
    let mut fleet = fleet_in(directory).await;

    let refusal = refused(&fleet, &held).await;
    assert!(refusal.message().contains(&format!("holds revision {}", held.revision)), "{refusal}");
    assert_eq!(waiting(&mut fleet).await, [("node-1".to_owned(), store_id, held.revision)]);

    assert_eq!(adopt(&mut fleet, &[]).await.unwrap(), ["node-1"]);
    let mut node = come(&fleet, &held).await.in_sync().await;
    assert!(node.deltas[0].full && node.deltas[0].revision < held.revision);
    // Taken once: the same word is not good for another time.
    let answer = node.attach("other", &[], &[&address]).await;
    assert!(answer.accepted, "{answer:?}");
    refused(&fleet, &held).await;
}

#[tokio::test]
async fn numbers_that_would_leave_none_are_refused() {
    let mut fleet = fleet().await;
    refused(&fleet, &have("another-store", 70, u32::MAX)).await;
    let error = adopt(&mut fleet, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
}
