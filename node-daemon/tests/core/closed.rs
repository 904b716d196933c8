//! Endpoints whose policy may not be used: closed, and said of each of them.

use weft_noded::daemon::EndpointState;
use weft_proto::v1::{self, ResourceType, node_report::Report};
use weft_shared::layout::maps::POLICY_ROWS_MAX;

use super::{answer, endpoint, fake::Stream, synced, upsert};

/// A policy of the set `web` that names as many prefixes.
fn policy(prefixes: usize) -> v1::Upsert {
    let cidr = |number: usize| {
        let [_, first, second, third] = u32::try_from(number).unwrap().to_be_bytes();
        let cidr = format!("100.{first}.{second}.{third}/32");
        v1::NodePeer { peer: Some(v1::node_peer::Peer::Cidr(v1::NodeCidr { cidr, except: Vec::new() })) }
    };
    let rule = v1::NodeRule {
        action: v1::Action::Allow.into(),
        peers: Some(v1::NodePeerList { items: (0..prefixes).map(cidr).collect() }),
        ..v1::NodeRule::default()
    };
    let policy = v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        subject_set: "web".to_owned(),
        ingress: Some(v1::NodeRuleList { items: vec![rule] }),
        default_deny_ingress: true,
        mode: v1::PolicyMode::Enforce.into(),
        ..v1::NodePolicy::default()
    };
    upsert(ResourceType::Policy, "partners", &policy)
}

async fn status(stream: &mut Stream, state: v1::EndpointState) -> v1::EndpointStatus {
    let reported = stream.report(|report| match report {
        Report::Endpoint(report) => report.endpoint?.status.filter(|status| status.state() == state),
        _ => None,
    });
    reported.await
}

fn delta(revision: u64, upserts: Vec<v1::Upsert>) -> v1::Delta {
    v1::Delta { nonce: revision, revision, identities_through: 300, upserts, ..v1::Delta::default() }
}

#[tokio::test]
async fn an_overflow_is_said_of_the_endpoint_until_it_is_gone() {
    let (_state, _kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    answer(&stream, "web", true, "", 6).await;
    let member = upsert(ResourceType::IdentitySetMember, "web/256", &());
    stream.delta(delta(6, vec![member, policy(POLICY_ROWS_MAX), endpoint("web", 256, true)])).await;

    let failed = status(&mut stream, v1::EndpointState::Failed).await;
    let told = node.status().await;
    assert_eq!(told.realised_revision, 5);
    assert!(told.problems.iter().any(|problem| problem.contains("\"partners\"")), "{:?}", told.problems);

    let here = node.endpoint("web", |state| matches!(state, EndpointState::Init(_))).await;
    let EndpointState::Init(here) = here else { panic!("ready") };
    assert_eq!(here.status.map(|status| status.reason).as_ref(), Some(&failed.reason));
    let expected = "the policy of identity 256 takes ";
    assert!(failed.reason.starts_with(expected) && failed.reason.ends_with("is closed"), "{}", failed.reason);

    stream.delta(delta(7, vec![policy(1)])).await;

    assert_eq!(status(&mut stream, v1::EndpointState::Ready).await.reason, "");
    assert_eq!(node.status().await.realised_revision, 7);
}
