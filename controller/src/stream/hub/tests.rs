//! What a hub keeps is bounded by what there is and who is connected, however much has happened and however slow nodes are.
use weft_shared::{
    digest::Digest,
    policy::model::{Mode, Peer, Policy, Requirement, Rule, RuleAction, Selector, Subject, Tier},
};

use super::*;
use crate::{
    fleet::{EndpointFacts, NodeFacts},
    fleet_config, limits,
};

const ENDPOINTS: u32 = 60;
const CHANGES: u64 = 100_000;
/// In one revision: a third of the endpoints is replaced.
const CHANGES_AT_ONCE: u32 = 20;

fn node(name: &str) -> Change {
    let facts = NodeFacts {
        addresses: vec!["192.0.2.1".to_owned()],
        endpoint_cidrs: Vec::new(),
        identity: 0,
        controller: String::new(),
        snat_ports: None,
    };
    Change::Node { name: name.to_owned(), facts: Some(facts) }
}

fn selector(app: &str) -> Selector {
    Selector::new([Requirement::In { key: "app".to_owned(), values: [app.to_owned()].into() }])
}

fn policy() -> Change {
    let peers = Some(vec![Peer::Endpoints(selector("web"))]);
    let rule = Rule { name: "0".to_owned(), action: RuleAction::Allow, peers, ports: None };
    let policy = Policy {
        name: "from-web".to_owned(),
        tier: Tier::Application { default_deny_ingress: true, default_deny_egress: false },
        mode: Mode::Enforce,
        subject: Subject::Endpoints(Selector::default()),
        ingress: Some(vec![rule]),
        egress: None,
    };
    Change::Policy { name: policy.name.clone(), policy: Some(policy) }
}

fn identity(number: u32) -> Change {
    let app = if number.is_multiple_of(2) { "web" } else { "api" };
    let labels = [("app".to_owned(), app.to_owned()), ("number".to_owned(), number.to_string())];
    Change::Identity { number, labels: Some(labels.into()) }
}

/// The endpoint at a place, in its nth life: a name that was never there before.
fn endpoint(place: u32, life: u64) -> (String, EndpointFacts) {
    let facts = EndpointFacts {
        node: NODES[place as usize % NODES.len()].to_owned(),
        identity: limits::IDENTITY_FIRST + (place + u32::try_from(life % 7).unwrap_or_default()) % 8,
        addresses: vec![format!("10.200.{place}.{}", life % 200).parse().unwrap()],
        uid: format!("{place}-{life}"),
        instance: String::new(),
        ready: life.is_multiple_of(3),
        report: Digest::default(),
    };
    (format!("endpoint-{place}-{life:06}"), facts)
}

const NODES: [&str; 4] = ["quick", "never-acknowledges", "never-reads", "away"];

/// Revisions after the first, with what the quick node does meanwhile and what the one that does not acknowledge is sent.
async fn churn(hub: &Hub, revisions: std::ops::Range<u64>, quick: &Session, stuck: &Session) -> usize {
    let mut sent = 0;
    for revision in revisions {
        let changes = (0..CHANGES_AT_ONCE).flat_map(|at| {
            let place = (u32::try_from(revision).unwrap() * CHANGES_AT_ONCE + at) % ENDPOINTS;
            let (gone, (name, facts)) = (endpoint(place, revision / 3), endpoint(place, revision / 3 + 1));
            [Change::Endpoint { name: gone.0, facts: None }, Change::Endpoint { name, facts: Some(facts) }]
        });
        hub.apply(revision, changes.collect());
        while let Some(delta) = quick.drain() {
            assert!(quick.acknowledge(delta.nonce, Duration::ZERO, Vec::new()));
        }
        sent += std::iter::from_fn(|| stuck.drain()).count();
        tokio::time::advance(Duration::from_millis(50)).await;
        hub.tick();
    }
    sent
}

/// All that it holds, as text: whatever grows in it makes this longer.
fn size(hub: &Hub) -> usize {
    format!("{hub:?}").len()
}

#[tokio::test(start_paused = true)]
async fn what_a_hub_holds_does_not_grow_with_what_happens_however_slow_nodes_are() {
    let hub = Arc::new(Hub::new("c1".to_owned()));
    let mut changes = vec![Change::Config(Some(fleet_config::default())), policy()];
    changes.extend(NODES.iter().map(|name| node(name)));
    changes.extend((0..8).map(|number| identity(limits::IDENTITY_FIRST + number)));
    changes.extend((0..ENDPOINTS).map(|place| {
        let (name, facts) = endpoint(place, 1);
        Change::Endpoint { name, facts: Some(facts) }
    }));
    hub.apply(2, changes);
    let [quick, stuck, _unread, away] = NODES.map(|name| hub.connect(name, None).0);
    away.drain().unwrap();
    drop(away);

    // Until all that is kept a number of is full.
    let warm = 3 + COMMITS_KEPT as u64;
    let sent = churn(&hub, 3..warm, &quick, &stuck).await;
    assert_eq!(sent, limits::UNACKNOWLEDGED_DELTAS_MAX);
    let before = size(&hub);
    let end = warm + CHANGES / u64::from(CHANGES_AT_ONCE);
    let sent = churn(&hub, warm..end, &quick, &stuck).await;

    assert_eq!(sent, 0, "nothing more is sent while so much is not acknowledged");
    let after = size(&hub);
    assert!(after < before + before / 4, "{before} characters of state have become {after}");
    // The slow node is told of what is and of what it holds and is gone, not of what happened.
    let nonces = 1..=limits::UNACKNOWLEDGED_DELTAS_MAX as u64;
    assert!(nonces.into_iter().all(|nonce| stuck.acknowledge(nonce, Duration::ZERO, Vec::new())));
    let delta = stuck.drain().unwrap();
    let resources = 3 * ENDPOINTS as usize;
    assert!(delta.upserts.len() <= resources && delta.removes.len() <= resources, "{delta:?}");
    assert!(stuck.acknowledge(delta.nonce, Duration::ZERO, Vec::new()));
    assert!(stuck.drain().is_none());
}
