//! A policy that says more of one identity than a node can hold.

use weft_noded::daemon::EndpointState;
use weft_proto::v1::{self, ResourceType, node_report::Report};
use weft_shared::layout::{Action, Class, Direction, maps::POLICY_ROWS_MAX};

use crate::{answer, endpoint, fake::Stream, node::Kernel, synced, upsert};

const IDENTITY: u32 = 256;

/// As many addresses, each a row of whoever is judged by them.
fn addresses(count: usize) -> v1::Upsert {
    let address = |number: usize| {
        let [_, _, high, low] = u32::try_from(number % 0x1_0000).unwrap().to_be_bytes();
        format!("198.{}.{high}.{low}/32", 18 + number / 0x1_0000)
    };
    let cidrs = (0..count).map(address).collect();
    upsert(ResourceType::CidrSet, "many", &v1::NodeCidrSet { cidrs })
}

/// Allows them in, and nobody else.
fn policy() -> v1::Upsert {
    let many = v1::NodeCidrSets { names: vec!["many".to_owned()] };
    let rule = v1::NodeRule {
        name: "many".to_owned(),
        action: v1::Action::Allow.into(),
        peers: Some(v1::NodePeerList {
            items: vec![v1::NodePeer { peer: Some(v1::node_peer::Peer::CidrSets(many)) }],
        }),
        ports: None,
    };
    let policy = v1::NodePolicy {
        tier: v1::Tier::Application.into(),
        mode: v1::PolicyMode::Enforce.into(),
        subject_set: "web".to_owned(),
        ingress: Some(v1::NodeRuleList { items: vec![rule] }),
        default_deny_ingress: true,
        ..v1::NodePolicy::default()
    };
    upsert(ResourceType::Policy, "too-much", &policy)
}

async fn change(stream: &mut Stream, revision: u64, upserts: Vec<v1::Upsert>) -> v1::Ack {
    stream.delta(v1::Delta { nonce: revision, revision, upserts, ..v1::Delta::default() }).await;
    stream.ack().await
}

/// Why the controller is told that the endpoint is in this state.
async fn told(stream: &mut Stream, state: v1::EndpointState) -> String {
    let reason = stream.report(|report| match report {
        Report::Endpoint(report) => report.endpoint?.status.filter(|status| status.state() == state),
        _ => None,
    });
    reason.await.reason
}

/// Peers that are spoken of by themselves, and whether the endpoint may still send to the world.
fn held(kernel: &Kernel) -> (usize, bool) {
    kernel.maps.with(|state| {
        let tables = &state.tables;
        let found = tables.subjects.iter().find(|(_, subject)| subject.identity == IDENTITY);
        let (slot, _) = found.expect("the endpoint is judged");
        let world = (Class::World as u32, Class::World);
        let row = tables.row(*slot, Direction::Egress, world, (6, 443)).expect("a row for everything");
        (tables.peer_rules.len(), row.action == Action::Allow as u32)
    })
}

#[tokio::test]
async fn one_row_too_many_closes_the_identity_and_the_policy_is_rejected_by_name_until_it_is_smaller() {
    let member = upsert(ResourceType::IdentitySetMember, &format!("web/{IDENTITY}"), &());
    let (_state, kernel, _fake, node, mut stream) = synced(vec![member]).await;
    node.attach("web", "web").await;
    answer(&stream, "web", true, "", 6).await;
    // Beside the peers' there are the rows of what is denied, of what is allowed, and of the host's and egress's rulebook.
    let most = POLICY_ROWS_MAX - 3;
    let fits = vec![addresses(most), policy(), endpoint("web", IDENTITY, true)];
    let ack = change(&mut stream, 6, fits).await;
    assert_eq!((ack.revision, ack.rejected), (6, Vec::new()));
    assert_eq!(held(&kernel), (most, true));

    let ack = change(&mut stream, 7, vec![addresses(most + 1)]).await;

    let [rejected] = &ack.rejected[..] else { panic!("{:?}", ack.rejected) };
    assert_eq!((rejected.r#type(), rejected.name.as_str()), (ResourceType::Policy, "too-much"));
    let expected =
        format!("the policy of identity {IDENTITY} takes 65537 rows, at most {POLICY_ROWS_MAX} are possible");
    assert_eq!(rejected.reason, expected);
    assert_eq!(ack.revision, 6, "realised stops below it");
    assert_eq!(held(&kernel), (0, false), "closed, both ways");
    let problems = node.status().await.problems;
    assert!(problems.iter().any(|problem| problem.starts_with(&expected)), "{problems:?}");
    let closed = format!("{expected}: whoever has it is closed");
    assert_eq!(told(&mut stream, v1::EndpointState::Failed).await, closed, "said of the endpoint");
    let EndpointState::Init(here) = node.endpoint("web", |_| true).await else { panic!("ready") };
    assert_eq!(here.status.map(|status| status.reason), Some(closed));

    let ack = change(&mut stream, 8, vec![addresses(1)]).await;
    assert_eq!((ack.revision, ack.rejected), (8, Vec::new()));
    assert_eq!(held(&kernel), (1, true));
    assert_eq!(told(&mut stream, v1::EndpointState::Ready).await, "");
}
