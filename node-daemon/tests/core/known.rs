//! What is reported of endpoints to a controller that says that it knows them.

use tempfile::TempDir;
use weft_noded::daemon::EndpointState;
use weft_proto::v1::{self, node_report::Report};

use crate::{
    answer, base, endpoint, endpoint_of,
    fake::{Fake, Stream},
    full,
    node::{Kernel, Node},
    synced,
};

/// Comes after everything that is reported at the beginning of a stream.
const MARKER: &str = "marker";

/// A node with two endpoints that a controller took in and opened, and one that was not answered. The stream is over.
async fn two_and_one_unanswered() -> (TempDir, Kernel, Fake, Node) {
    let (state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    for name in ["a", "b", "unanswered"] {
        node.attach(name, "web").await;
        stream.report(|report| is_of(&report, name).then_some(())).await;
    }
    for name in ["a", "b"] {
        answer(&stream, name, true, "", 6).await;
    }
    let words = [endpoint("a", 300, true), endpoint("b", 300, true)];
    stream.delta(full(7, base().into_iter().chain(words).collect())).await;
    stream.ack().await;
    for name in ["a", "b"] {
        node.endpoint(name, |state| matches!(state, EndpointState::Ready(_))).await;
    }
    (state, kernel, fake, node)
}

fn name_of(report: &Report) -> Option<String> {
    let Report::Endpoint(report) = report else { return None };
    Some(report.endpoint.as_ref()?.metadata.as_ref()?.name.clone())
}

fn is_of(report: &Report, name: &str) -> bool {
    name_of(report).is_some_and(|found| found == name)
}

/// What a new stream is told first: names of endpoints, and `inventory`, `gone`.
async fn told(node: &Node, stream: &mut Stream, endpoints_known: bool) -> Vec<String> {
    let (store_id, revision) = ("store-1".to_owned(), 8);
    let welcome = v1::Welcome { store_id, revision, endpoints_known, ..v1::Welcome::default() };
    stream.send(v1::controller_message::Message::Welcome(welcome)).await;
    node.status_until(|status| status.connected).await;
    node.attach(MARKER, "web").await;
    let mut told = Vec::new();
    loop {
        let report = stream.report(Some).await;
        let word = match &report {
            Report::Inventory(_) => "inventory".to_owned(),
            Report::HealthInventory(_) => continue,
            Report::EndpointGone(_) => "gone".to_owned(),
            report => name_of(report).unwrap_or_default(),
        };
        if word == MARKER {
            return told;
        }
        told.push(word);
    }
}

#[tokio::test]
async fn a_controller_that_knows_the_endpoints_is_told_only_of_one_that_waits_for_its_answer() {
    let (_state, _kernel, fake, node) = two_and_one_unanswered().await;
    let mut stream = fake.stream().await;
    assert_eq!(stream.hello.endpoint_reports.len(), 16);

    assert_eq!(told(&node, &mut stream, true).await, ["unanswered"]);
}

#[tokio::test]
async fn a_controller_that_does_not_know_the_endpoints_is_told_of_all() {
    let (_state, _kernel, fake, node) = two_and_one_unanswered().await;
    let mut stream = fake.stream().await;

    assert_eq!(told(&node, &mut stream, false).await, ["inventory", "a", "b", "unanswered"]);
}

#[tokio::test]
async fn what_changes_between_hello_and_its_answer_is_told_whatever_the_controller_knows() {
    let (_state, _kernel, fake, node) = two_and_one_unanswered().await;
    let mut stream = fake.stream().await;
    node.attach("late", "web").await;
    assert!(node.core.detach("b".to_owned()).await.unwrap().unwrap());

    let told = told(&node, &mut stream, true).await;
    assert_eq!(told[..5], ["gone", "inventory", "a", "late", "unanswered"]);
}

/// The report was stored, the answer was lost, and what was sent since was about others.
#[tokio::test]
async fn the_next_bearer_of_a_name_is_open_by_a_word_that_is_older_than_the_answer() {
    let (_state, _kernel, fake, node) = two_and_one_unanswered().await;
    assert!(node.core.detach("a".to_owned()).await.unwrap().unwrap());
    node.attach("a", "other").await;
    let mut stream = fake.stream().await;
    let welcome = v1::Welcome {
        store_id: "store-1".to_owned(),
        revision: 12,
        endpoints_known: true,
        ..v1::Welcome::default()
    };
    stream.send(v1::controller_message::Message::Welcome(welcome)).await;
    let report = |report: Report| if let Report::Endpoint(of) = report { of.endpoint } else { None };
    let reported = loop {
        let reported = stream.report(report).await;
        if reported.metadata.as_ref().is_some_and(|metadata| metadata.name == "a") {
            break reported;
        }
    };
    let instance = reported.attachment.unwrap().instance;
    let word = v1::Delta {
        nonce: 9,
        revision: 9,
        in_sync: true,
        upserts: vec![endpoint_of(&instance, "a", 301, true)],
        ..v1::Delta::default()
    };
    stream.delta(word).await;
    stream.ack().await;

    answer(&stream, "a", true, "", 12).await;

    node.endpoint("a", |state| matches!(state, EndpointState::Ready(_))).await;
}

#[tokio::test]
async fn hello_tells_apart_what_is_reported_of_endpoints() {
    let (_state, _kernel, fake, node) = two_and_one_unanswered().await;
    let before = fake.stream().await.hello.endpoint_reports;
    assert!(node.core.detach("b".to_owned()).await.unwrap().unwrap());
    let without = fake.stream().await.hello.endpoint_reports;
    // The same name and labels, but another workload.
    node.attach("b", "web").await;
    let another = fake.stream().await.hello.endpoint_reports;

    assert!(before != without && without != another && another != before);
}
