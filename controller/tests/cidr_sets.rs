//! CIDR sets: what policies name is there, and stays.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use support::{Fleet, fleet, name, policy, within};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use weft_proto::v1::{self, Kind, object::Kind as Of};

fn cidr_set(name: &str, kind: &str, cidrs: &[&str]) -> v1::Object {
    let metadata = v1::Metadata {
        name: name.to_owned(),
        labels: [("kind".to_owned(), kind.to_owned())].into(),
        ..v1::Metadata::default()
    };
    let cidrs = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
    v1::Object { kind: Some(Of::CidrSet(v1::CidrSet { metadata: Some(metadata), cidrs })) }
}

/// Allows api what comes from a set.
fn naming(policy_name: &str, set: v1::CidrSetReference) -> v1::Object {
    let mut object = policy(policy_name, "api", "web");
    if let Some(Of::Policy(policy)) = object.kind.as_mut() {
        let peer = v1::Peer { cidr_set: Some(set), ..v1::Peer::default() };
        policy.ingress.as_mut().unwrap().items[0].peers = Some(v1::PeerList { items: vec![peer] });
    }
    object
}

fn by_name(set: &str) -> v1::CidrSetReference {
    v1::CidrSetReference { name: Some(set.to_owned()), ..v1::CidrSetReference::default() }
}

async fn delete(fleet: &mut Fleet, kind: Kind, name: &str) -> Result<u64, Status> {
    let request = v1::DeleteRequest { kind: kind.into(), name: name.to_owned(), if_revision: None };
    within(fleet.operator.delete(request)).await.map(|answer| answer.into_inner().revision)
}

async fn names(fleet: &mut Fleet, kind: Kind) -> Vec<String> {
    let request = v1::ListRequest { kind: kind.into(), ..v1::ListRequest::default() };
    fleet.operator.list(request).await.unwrap().into_inner().objects.iter().map(name).collect()
}

#[tokio::test]
async fn a_policy_that_names_a_set_that_is_not_there_is_refused_at_its_field() {
    let mut fleet = fleet().await;
    let refused = fleet.apply(vec![naming("p", by_name("partners"))]).await.unwrap_err();
    let details = refused.get_details_bad_request().unwrap();
    assert_eq!(details.field_violations[0].field, "objects[0].policy.ingress[0].peers[0].cidrSet");
    assert!(refused.message().contains("no CIDR set \"partners\""), "{refused:?}");
    assert_eq!(names(&mut fleet, Kind::Policy).await, Vec::<String>::new());

    // In one request with it, in whatever order, it is there.
    let both = vec![naming("p", by_name("partners")), cidr_set("partners", "good", &["198.51.100.0/24"])];
    fleet.apply(both).await.unwrap();
    fleet.apply(vec![naming("other", by_name("partners"))]).await.unwrap();
    assert_eq!(names(&mut fleet, Kind::CidrSet).await, ["partners"]);
}

#[tokio::test]
async fn a_set_is_not_deleted_while_a_policy_names_it() {
    let mut fleet = fleet().await;
    let both = vec![naming("p", by_name("partners")), cidr_set("partners", "good", &[])];
    fleet.apply(both).await.unwrap();
    let refused = delete(&mut fleet, Kind::CidrSet, "partners").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("policies name it (p)"), "{refused:?}");
    delete(&mut fleet, Kind::Policy, "p").await.unwrap();
    delete(&mut fleet, Kind::CidrSet, "partners").await.unwrap();
}

#[tokio::test]
async fn a_set_that_is_meant_by_its_labels_may_come_and_go() {
    let mut fleet = fleet().await;
    let by_labels = v1::CidrSetReference {
        match_labels: [("kind".to_owned(), "good".to_owned())].into(),
        ..v1::CidrSetReference::default()
    };
    fleet.apply(vec![naming("p", by_labels)]).await.unwrap();
    fleet.apply(vec![cidr_set("partners", "good", &["2001:db8::/32"])]).await.unwrap();
    delete(&mut fleet, Kind::CidrSet, "partners").await.unwrap();
}

#[tokio::test]
async fn a_policy_and_the_deletion_of_its_set_at_once_never_both_succeed() {
    let mut fleet = fleet().await;
    for round in 0..20 {
        let (set, policy) = (format!("s{round}"), format!("p{round}"));
        fleet.apply(vec![cidr_set(&set, "good", &[])]).await.unwrap();
        let (mut one, mut other) = (fleet.operator.clone(), fleet.operator.clone());
        let apply =
            v1::ApplyRequest { objects: vec![naming(&policy, by_name(&set))], ..v1::ApplyRequest::default() };
        let delete = v1::DeleteRequest { kind: Kind::CidrSet.into(), name: set.clone(), if_revision: None };
        let (applied, deleted) = tokio::join!(one.apply(apply), other.delete(delete));
        assert!(applied.is_ok() != deleted.is_ok(), "{applied:?} {deleted:?}");
    }
}
