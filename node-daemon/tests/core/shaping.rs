//! Shapings, from the controller's word to the kernel.

use std::{collections::BTreeMap, path::PathBuf};

use weft_proto::v1::{self, ResourceType, node_shaping::Meant};
use weft_shared::layout::{Endpoint, endpoint_flags};

use crate::{
    node::{Kernel, Node},
    synced, upsert,
};

fn shaping(name: &str, sent: &v1::NodeShaping) -> v1::Upsert {
    v1::Upsert { requires: vec!["shaping".to_owned()], ..upsert(ResourceType::Shaping, name, sent) }
}

/// Of endpoints of an application, in bits a second.
fn of_app(app: &str, connection: u64, egress: u64) -> v1::NodeShaping {
    let match_labels = [("app".to_owned(), app.to_owned())].into();
    let meant = Meant::Endpoints(v1::Selector { match_labels, ..v1::Selector::default() });
    v1::NodeShaping {
        meant: Some(meant),
        connection_rate: connection,
        egress_rate: egress,
        ..v1::NodeShaping::default()
    }
}

fn of_cgroup(path: &str, connection: u64) -> v1::NodeShaping {
    let meant = Some(Meant::Cgroup(path.to_owned()));
    v1::NodeShaping { meant, connection_rate: connection, ..v1::NodeShaping::default() }
}

fn delta(revision: u64, upserts: Vec<v1::Upsert>) -> v1::Delta {
    v1::Delta { nonce: revision, revision, upserts, ..v1::Delta::default() }
}

fn without(revision: u64, name: &str) -> v1::Delta {
    let removes = vec![v1::Remove { r#type: ResourceType::Shaping.into(), name: name.to_owned() }];
    v1::Delta { removes, ..delta(revision, Vec::new()) }
}

fn endpoint(kernel: &Kernel) -> Endpoint {
    kernel.maps.with(|state| *state.tables.endpoints.values().next().expect("an endpoint"))
}

fn pacing(kernel: &Kernel) -> (Option<PathBuf>, BTreeMap<PathBuf, u32>) {
    kernel.maps.with(|state| (state.pacing.clone(), state.paced_cgroups.clone()))
}

#[tokio::test]
async fn endpoints_have_the_least_rate_that_selects_them_when_it_is_acknowledged() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    assert!(stream.hello.features.contains(&"shaping".to_owned()));
    node.try_attach("web", "web").await.expect("it is attached");
    assert_eq!((endpoint(&kernel).egress_rate, endpoint(&kernel).connection_rate), (0, 0));
    let upserts = vec![
        shaping("slow", &of_app("web", 0, 8_000_000)),
        shaping("fast", &of_app("web", 800_000, 80_000_000)),
        shaping("other", &of_app("api", 64_000, 64_000)),
    ];
    stream.delta(delta(6, upserts)).await;
    assert_eq!(stream.ack().await.rejected, []);
    let row = endpoint(&kernel);
    assert_eq!((row.egress_rate, row.ingress_rate, row.connection_rate), (1_000_000, 0, 100_000));
    assert_eq!(row.flags & endpoint_flags::DEPARTURES, 0, "the queues don't wait");

    kernel.links.with(|state| state.keeps_departures = true);
    node.core.check().await.expect("the core lives");
    assert_ne!(endpoint(&kernel).flags & endpoint_flags::DEPARTURES, 0);
    stream.delta(without(7, "slow")).await;
    stream.ack().await;
    assert_eq!(endpoint(&kernel).egress_rate, 10_000_000);
}

#[tokio::test]
async fn the_first_rate_of_connections_brings_the_programs_and_a_restart_keeps_them() {
    let (state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    stream.delta(delta(6, vec![shaping("web", &of_app("web", 0, 8_000_000))])).await;
    stream.ack().await;
    assert_eq!(pacing(&kernel), (None, BTreeMap::new()), "what is off costs nothing");
    stream.delta(delta(7, vec![shaping("backup", &of_cgroup("system.slice", 8_000_000))])).await;
    stream.ack().await;
    let rates = BTreeMap::from([("/the/cgroup/system.slice".into(), 1_000_000)]);
    assert_eq!(pacing(&kernel), (Some("/the/cgroup".into()), rates));
    stream.delta(without(8, "backup")).await;
    stream.ack().await;
    assert_eq!(pacing(&kernel), (Some("/the/cgroup".into()), BTreeMap::new()));

    drop((stream, fake));
    node.kill();
    kernel.maps.with(|state| state.pacing = Some("/another".into()));
    let _node = Node::start(&kernel, state.path(), &[]).await;
    assert_eq!(pacing(&kernel).0, Some("/the/cgroup".into()), "an earlier daemon's are taken over");
}

#[tokio::test]
async fn a_shaping_that_is_wrong_is_rejected_by_name_and_keeps_its_last_good_form() {
    let (_state, kernel, _fake, _node, mut stream) =
        synced(vec![shaping("backup", &of_cgroup("system.slice", 8_000_000))]).await;
    let before = pacing(&kernel);
    stream.delta(delta(6, vec![shaping("backup", &of_cgroup("../elsewhere", 8_000_000))])).await;
    let ack = stream.ack().await;
    let rejected = &ack.rejected[0];
    assert_eq!((rejected.r#type(), rejected.name.as_str()), (ResourceType::Shaping, "backup"));
    assert!(rejected.reason.contains("below the root"), "{rejected:?}");
    assert_eq!(pacing(&kernel), before);
}

#[tokio::test]
async fn where_the_kernel_refuses_programs_that_pace_those_who_want_them_are_told_and_the_others_have_their_rates()
 {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    node.try_attach("web", "web").await.expect("it is attached");
    kernel.maps.with(|state| state.refuses_sockets = Some("load sock_paced: too complex".to_owned()));
    let upserts = vec![
        shaping("all", &of_app("web", 0, 8_000_000)),
        shaping("connections", &of_cgroup("backups", 8_000_000)),
    ];
    stream.delta(delta(6, upserts)).await;
    let ack = stream.ack().await;
    assert_eq!(ack.rejected.len(), 1, "{:?}", ack.rejected);
    assert_eq!(ack.rejected[0].name, "connections");
    assert!(ack.rejected[0].reason.contains("too complex"), "{:?}", ack.rejected);
    assert_eq!(endpoint(&kernel).egress_rate, 1_000_000);

    kernel.maps.with(|state| state.refuses_sockets = None);
    node.core.check().await.expect("the core lives");
    let (attached, rates) = pacing(&kernel);
    assert_eq!((attached, rates.len()), (Some("/the/cgroup".into()), 1));
    let problems = node.status().await.problems;
    assert!(problems.iter().all(|problem| !problem.contains("paced")), "{problems:?}");
}
