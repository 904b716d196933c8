//! Prefilters, from the controller's word to the kernel.

use weft_noded::{
    kernel::Mode,
    prefilter::lists::{Lists, Step},
};
use weft_proto::v1::{self, ResourceType};

use crate::{
    base,
    node::{Kernel, Node},
    synced, upsert,
};

fn prefilter(name: &str, cidrs: &[&str]) -> v1::Upsert {
    let cidrs = cidrs.iter().map(|text| (*text).to_owned()).collect();
    let sent = v1::NodePrefilter { cidrs, arp_senders: vec!["192.0.2.66".to_owned()] };
    v1::Upsert { requires: vec!["prefilter".to_owned()], ..upsert(ResourceType::Prefilter, name, &sent) }
}

fn lists(kernel: &Kernel) -> Lists {
    kernel.maps.with(|state| state.prefilters.clone())
}

fn modes(kernel: &Kernel) -> Vec<Mode> {
    kernel.maps.with(|state| state.prefiltering.values().copied().collect())
}

fn delta(revision: u64, upserts: Vec<v1::Upsert>) -> v1::Delta {
    v1::Delta { nonce: revision, revision, upserts, ..v1::Delta::default() }
}

fn without(revision: u64, name: &str) -> v1::Delta {
    let removes = vec![v1::Remove { r#type: ResourceType::Prefilter.into(), name: name.to_owned() }];
    v1::Delta { removes, ..delta(revision, Vec::new()) }
}

#[tokio::test]
async fn uplinks_have_the_program_while_there_is_a_list_and_its_rows_when_it_is_acknowledged() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    assert!(stream.hello.features.contains(&"prefilter".to_owned()));
    assert_eq!(modes(&kernel), [], "what is off costs nothing");
    stream.delta(delta(6, vec![prefilter("scanners", &["203.0.113.0/24", "2001:db8:bad::/48"])])).await;
    assert_eq!(stream.ack().await.revision, 6);
    assert_eq!((lists(&kernel).prefixes.len(), lists(&kernel).senders.len()), (2, 1));
    assert_eq!(modes(&kernel), [Mode::Native]);
    let status = node.status().await;
    assert_eq!(status.capabilities.expect("capabilities").devices[0].xdp(), v1::XdpMode::Native);
    assert_eq!((status.prefilters[0].name.as_str(), status.prefilters[0].prefixes), ("scanners", 2));
    stream.delta(without(7, "scanners")).await;
    stream.ack().await;
    assert_eq!((lists(&kernel), modes(&kernel)), (Lists::default(), Vec::new()));
}

#[tokio::test]
async fn a_list_that_is_wrong_is_rejected_by_name_and_keeps_its_last_good_form() {
    let (_state, kernel, _fake, _node, mut stream) =
        synced(vec![prefilter("scanners", &["203.0.113.0/24"])]).await;
    let before = lists(&kernel);
    stream.delta(delta(6, vec![prefilter("scanners", &["203.0.113.0/24", "0.0.0.0/0"])])).await;
    let ack = stream.ack().await;
    assert_eq!((ack.revision, ack.rejected.len()), (5, 1));
    let rejected = &ack.rejected[0];
    assert_eq!((rejected.r#type(), rejected.name.as_str()), (ResourceType::Prefilter, "scanners"));
    assert!(rejected.reason.contains("cidrs[1]"), "{rejected:?}");
    assert_eq!(lists(&kernel), before);
}

#[tokio::test]
async fn where_the_program_cant_be_attached_every_list_is_told_as_rejected_until_it_can() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    kernel.maps.with(|state| {
        state.only_generic = true;
        state.refuses_programs = Some("the device has one already".to_owned());
    });
    stream.delta(delta(6, vec![prefilter("scanners", &["203.0.113.0/24"])])).await;
    let ack = stream.ack().await;
    assert_eq!(ack.rejected.len(), 1, "{:?}", ack.rejected);
    assert!(ack.rejected[0].reason.contains("has one already"), "{:?}", ack.rejected);
    let problems = node.status().await.problems;
    assert!(problems.iter().any(|problem| problem.contains("no program on eth0")), "{problems:?}");
    kernel.maps.with(|state| state.refuses_programs = None);
    node.core.check().await.expect("the core lives");
    assert_eq!(modes(&kernel), [Mode::Generic]);
    let problems = node.status().await.problems;
    assert!(problems.iter().all(|problem| !problem.contains("eth0")), "{problems:?}");
}

#[tokio::test]
async fn a_restart_writes_nothing_and_removes_nothing_before_all_was_sent() {
    let (state, kernel, fake, node, stream) =
        synced(vec![prefilter("a", &["203.0.113.0/24"]), prefilter("b", &["198.51.100.0/24"])]).await;
    drop(stream);
    node.kill();
    let (before, steps) = kernel.maps.with(|state| (state.prefilters.clone(), state.prefilter_steps.len()));
    let _node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    assert_eq!(kernel.maps.with(|state| state.prefilter_steps.len()), steps);
    assert_eq!(modes(&kernel), [Mode::Native]);
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 6).await;
    let first = base().into_iter().chain([prefilter("b", &["198.51.100.0/24"])]).collect();
    stream.delta(delta(6, first)).await;
    stream.ack().await;
    assert_eq!(lists(&kernel), before);
    stream.delta(v1::Delta { in_sync: true, full: true, ..delta(7, Vec::new()) }).await;
    stream.ack().await;
    assert_eq!(lists(&kernel).prefixes.len(), 1, "what was not sent is gone");
}

#[tokio::test]
async fn rows_and_programs_that_somebody_else_took_away_are_back_and_counted() {
    let (_state, kernel, _fake, node, _stream) =
        synced(vec![prefilter("scanners", &["203.0.113.0/24"])]).await;
    let before = lists(&kernel);
    kernel.maps.with(|state| {
        state.prefilters.prefixes.clear();
        state.prefilters.apply(&Step::Sender { sender: [192, 0, 2, 1].into(), slot: Some(9) });
        state.prefiltering.clear();
    });
    node.core.check().await.expect("the core lives");
    assert_eq!((lists(&kernel), modes(&kernel)), (before, vec![Mode::Native]));
    let repairs = node.status().await.repairs;
    for what in ["rows", "programs"] {
        assert!(repairs.iter().any(|repair| repair.what == what), "{what}: {repairs:?}");
    }
}

#[tokio::test]
async fn a_failsafe_entry_over_a_list_takes_the_list_out_by_name() {
    let (_state, kernel, _fake, _node, mut stream) =
        synced(vec![prefilter("scanners", &["203.0.113.0/24"])]).await;
    let failsafe = v1::NodeFailsafe {
        protocol: 6,
        first: 22,
        last: 22,
        direction: v1::Direction::Ingress.into(),
        cidrs: vec!["203.0.113.7/32".to_owned()],
    };
    let fleet = v1::NodeFleet { failsafe: vec![failsafe], ..crate::fleet() };
    stream.delta(delta(6, vec![upsert(ResourceType::Fleet, "fleet", &fleet)])).await;
    let ack = stream.ack().await;
    assert!(ack.rejected.iter().any(|rejected| rejected.name == "scanners"), "{:?}", ack.rejected);
    assert!(lists(&kernel).prefixes.is_empty());
}
