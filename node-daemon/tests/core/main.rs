//! The daemon's core against a controller that says what the test wants, with the kernel's twin.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod balance;
mod fake;
mod health;
mod known;
mod local;
mod node;
mod overflow;
mod prefilter;
mod shaping;

use fake::{Fake, SOON, Stream};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use node::{Kernel, Node};
use prost::Message;
use tempfile::TempDir;
use weft_noded::{
    daemon::{EndpointState, StartError},
    desired::{attachments::Attachments, disk::Disk},
    kernel::{Hook, links::Link},
    plan::tables::Step,
};
use weft_proto::v1::{self, ResourceType, node_report::Report};
use weft_shared::layout::endpoint_flags;

fn upsert(kind: ResourceType, name: &str, message: &impl Message) -> v1::Upsert {
    v1::Upsert {
        r#type: kind.into(),
        name: name.to_owned(),
        requires: Vec::new(),
        bytes: message.encode_to_vec().into(),
    }
}

fn fleet() -> v1::NodeFleet {
    v1::NodeFleet {
        pools: vec!["10.200.0.0/16".to_owned()],
        unknown_pool_address: v1::Entity::Fleet.into(),
        ..v1::NodeFleet::default()
    }
}

/// What every node is sent first.
fn base() -> Vec<v1::Upsert> {
    let own = v1::NodeRoute {
        addresses: vec!["192.0.2.11".to_owned()],
        endpoint_cidrs: vec!["10.200.1.0/24".to_owned()],
        identity: 0,
    };
    let other = v1::NodeRoute {
        addresses: vec!["192.0.2.12".to_owned()],
        endpoint_cidrs: vec!["10.200.2.0/24".to_owned()],
        identity: 0,
    };
    vec![
        upsert(ResourceType::Fleet, "fleet", &fleet()),
        upsert(ResourceType::Node, "n1", &own),
        upsert(ResourceType::Node, "n2", &other),
    ]
}

fn address(text: &str, identity: u32) -> v1::Upsert {
    upsert(ResourceType::Address, text, &v1::NodeAddress { identity, node: "n2".to_owned() })
}

fn full(revision: u64, upserts: Vec<v1::Upsert>) -> v1::Delta {
    v1::Delta {
        nonce: revision,
        revision,
        identities_through: 300,
        upserts,
        in_sync: true,
        full: true,
        ..v1::Delta::default()
    }
}

fn endpoint(name: &str, identity: u32, open: bool) -> v1::Upsert {
    endpoint_of("", name, identity, open)
}

/// What is said of one attachment.
fn endpoint_of(instance: &str, name: &str, identity: u32, open: bool) -> v1::Upsert {
    let (uid, instance) = ("u1".to_owned(), instance.to_owned());
    upsert(ResourceType::Endpoint, name, &v1::NodeEndpoint { identity, open, uid, instance })
}

async fn answer(stream: &Stream, name: &str, accepted: bool, reason: &str, revision: u64) {
    let (name, reason) = (name.to_owned(), reason.to_owned());
    let answer = v1::EndpointAnswer { name, accepted, reason, revision, ..v1::EndpointAnswer::default() };
    stream.send(v1::controller_message::Message::EndpointAnswer(answer)).await;
}

/// A node with a stream that is in sync at revision 5.
async fn synced(extra: Vec<v1::Upsert>) -> (TempDir, Kernel, Fake, Node, Stream) {
    let (state, kernel, fake) = (tempfile::tempdir().unwrap(), Kernel::default(), Fake::start().await);
    let node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 5).await;
    stream.delta(full(5, base().into_iter().chain(extra).collect())).await;
    stream.ack().await;
    (state, kernel, fake, node, stream)
}

fn ipcache_len(kernel: &Kernel) -> usize {
    kernel.maps.with(|state| state.tables.ipcache.len())
}

fn is_open(kernel: &Kernel) -> bool {
    kernel.maps.with(|state| state.tables.endpoints.values().any(|row| row.flags & endpoint_flags::OPEN != 0))
}

#[tokio::test]
async fn an_acknowledgement_comes_after_the_kernel_and_the_disk_were_written() {
    let (state, kernel, fake) = (tempfile::tempdir().unwrap(), Kernel::default(), Fake::start().await);
    let _node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    let mut stream = fake.stream().await;
    assert_eq!(stream.hello.node, "n1");
    assert_eq!(stream.hello.snat_ports, Some(v1::SnatPorts { first: 61_000, last: 65_535 }));
    assert_eq!(stream.hello.have.as_ref().map(|have| have.revision), Some(0));
    stream.welcome("store-1", 5).await;
    stream.delta(full(5, base())).await;

    let ack = stream.ack().await;

    assert_eq!((ack.nonce, ack.revision, ack.rejected.len()), (5, 5, 0));
    assert_eq!(kernel.maps.with(|state| state.tables.nodes.len()), 2);
    assert!(state.path().join("desired").exists());
}

#[tokio::test]
async fn what_the_kernel_refuses_is_never_acknowledged_and_comes_again() {
    let (_state, kernel, fake, node, stream) = synced(Vec::new()).await;
    kernel.maps.with(|state| state.broken = Some("the map is full".to_owned()));

    let delta = v1::Delta {
        nonce: 6,
        revision: 6,
        upserts: vec![address("10.200.2.9", 300)],
        ..v1::Delta::default()
    };
    stream.delta(delta).await;

    // The stream ends without an acknowledgement, and the node comes back.
    let mut stream = stream;
    while let Some(message) = stream.next().await {
        assert!(!matches!(message, v1::node_message::Message::Ack(_)), "acknowledged what was not written");
    }
    let status = node.status().await;
    assert!(
        status.problems.iter().any(|problem| problem.contains("the map is full")),
        "{:?}",
        status.problems
    );
    kernel.maps.with(|state| state.broken = None);
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 6).await;
    stream.delta(full(6, base().into_iter().chain([address("10.200.2.9", 300)]).collect())).await;
    assert_eq!(stream.ack().await.revision, 6);
    assert_eq!(ipcache_len(&kernel), 3);
}

#[tokio::test]
async fn after_a_restart_nothing_is_removed_before_all_was_sent() {
    let (state, kernel, fake, node, stream) =
        synced(vec![address("10.200.2.9", 300), address("10.200.2.10", 301)]).await;
    drop(stream);
    node.kill();
    let before = ipcache_len(&kernel);
    let steps = kernel.maps.with(|state| state.steps.len());

    let node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    assert_eq!(kernel.maps.with(|state| state.steps.len()), steps, "equal tables are not written again");
    let mut stream = fake.stream().await;
    let have = stream.hello.have.clone().unwrap();
    assert_eq!((have.store_id.as_str(), have.revision), ("store-1", 5));
    stream.welcome("store-1", 7).await;
    let first = v1::Delta { nonce: 6, revision: 6, upserts: base(), ..v1::Delta::default() };
    let removes = vec![v1::Remove { r#type: ResourceType::Address.into(), name: "10.200.2.9".to_owned() }];
    stream.delta(v1::Delta { removes, ..first }).await;
    stream.ack().await;
    assert_eq!(ipcache_len(&kernel), before, "nothing is removed before the node is in sync");

    let last = v1::Delta { nonce: 7, revision: 7, in_sync: true, full: true, ..v1::Delta::default() };
    stream.delta(last).await;
    stream.ack().await;

    assert_eq!(ipcache_len(&kernel), before - 2, "what was not sent is gone");
    assert_eq!(node.status().await.realised_revision, 7);
}

#[tokio::test]
async fn another_store_changes_nothing_and_operators_are_told() {
    let (_state, kernel, fake, node, stream) = synced(vec![address("10.200.2.9", 300)]).await;
    drop(stream);
    let steps = kernel.maps.with(|state| state.steps.len());

    let mut stream = fake.stream().await;
    stream.welcome("store-2", 50).await;
    stream.delta(full(50, Vec::new())).await;
    while let Some(message) = stream.next().await {
        assert!(!matches!(message, v1::node_message::Message::Ack(_)), "acknowledged another store");
    }

    assert_eq!(kernel.maps.with(|state| state.steps.len()), steps);
    // It comes back to ask again; by then the problem is known.
    let _again = fake.stream().await;
    let problems = node.status().await.problems;
    assert!(problems.iter().any(|problem| problem.contains("store-2")), "{problems:?}");
}

#[tokio::test]
async fn an_adopted_node_enforces_what_it_has_until_all_of_the_other_stores_state_is_there() {
    let (_state, kernel, fake, node, stream) = synced(vec![address("10.200.2.9", 300)]).await;
    drop(stream);
    let before = ipcache_len(&kernel);
    let mut stream = fake.stream().await;
    let have = stream.hello.have.clone().unwrap();
    let welcome = v1::Welcome {
        store_id: "store-2".to_owned(),
        revision: 3,
        adoption: Some(v1::Adoption {
            former_store_id: "store-1".to_owned(),
            former_revision: have.revision,
            former_digest: weft_shared::digest::total(have.digests.iter().map(|digest| &*digest.digest))
                .unwrap()
                .to_bytes()
                .to_vec(),
        }),
        ..v1::Welcome::default()
    };
    assert_eq!((have.identities_through, have.endpoint_cidrs), (300, vec!["10.200.1.0/24".to_owned()]));
    stream.send(v1::controller_message::Message::Welcome(welcome.clone())).await;
    stream.report(|report| matches!(report, Report::Inventory(_)).then_some(())).await;
    drop(stream);

    // Broken off, it is as it was.
    let mut stream = fake.stream().await;
    assert_eq!(stream.hello.have.as_ref().unwrap().store_id, "store-1");
    assert_eq!(ipcache_len(&kernel), before);

    stream.send(v1::controller_message::Message::Welcome(welcome)).await;
    let delta = v1::Delta { identities_through: 256, ..full(3, base()) };
    stream.delta(delta).await;
    assert_eq!(stream.ack().await.revision, 3);

    assert_eq!(ipcache_len(&kernel), before - 1);
    assert_eq!(kernel.maps.with(|state| state.tables.identities_through), 256);
    let status = node.status().await;
    assert_eq!((status.realised_revision, status.identities_through), (3, 256));
    drop(stream);
    let have = fake.stream().await.hello.have.unwrap();
    assert_eq!((have.store_id.as_str(), have.revision), ("store-2", 3));
}

#[tokio::test]
async fn without_a_controller_the_last_known_state_is_enforced() {
    let (state, kernel, fake, node, stream) = synced(vec![address("10.200.2.9", 300)]).await;
    drop((stream, fake));
    node.kill();
    // The node was booted: the kernel holds nothing.
    let kernel = Kernel { maps: weft_noded::kernel::twin::Twin::default(), ..kernel };

    let node = Node::start(&kernel, state.path(), &["http://127.0.0.1:9"]).await;

    assert_eq!(ipcache_len(&kernel), 3);
    assert!(!node.status().await.connected);
}

#[tokio::test]
async fn a_broken_state_file_stops_the_start_and_the_kernel_is_not_touched() {
    let (state, kernel, fake, node, stream) = synced(Vec::new()).await;
    drop((stream, fake));
    node.kill();
    let path = state.path().join("desired");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let steps = kernel.maps.with(|state| state.steps.len());

    let error = Node::try_start(&kernel, state.path(), &[]).await.err().expect("a broken file");

    assert!(matches!(error, StartError::Disk(_)), "{error}");
    assert!(error.to_string().contains("--forget-desired"), "{error}");
    assert_eq!(kernel.maps.with(|state| state.steps.len()), steps);
}

#[tokio::test]
async fn an_endpoint_is_closed_until_it_is_taken_in_classified_and_opened() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;

    let attached = node.attach("web", "web").await;
    assert_eq!(attached.status.unwrap().state(), v1::EndpointState::Init);
    let reported =
        stream.report(|report| if let Report::Endpoint(report) = report { report.endpoint } else { None });
    assert_eq!(reported.await.metadata.unwrap().name, "web");
    assert!(!is_open(&kernel));

    answer(&stream, "web", true, "", 6).await;
    let delta = |nonce, open| v1::Delta {
        nonce,
        revision: nonce,
        identities_through: 300,
        upserts: vec![endpoint("web", 256, open)],
        ..v1::Delta::default()
    };
    stream.delta(delta(6, false)).await;
    stream.ack().await;
    assert!(!is_open(&kernel), "classified, but not to be opened yet");

    stream.delta(delta(7, true)).await;
    stream.ack().await;

    assert!(is_open(&kernel));
    node.endpoint("web", |state| matches!(state, EndpointState::Ready(_))).await;
    // The table was there before the endpoint was opened.
    kernel.maps.with(|state| {
        let opened = state.steps.iter().position(|step| {
            matches!(step, Step::Endpoint { endpoint: Some(row), .. } if row.flags & endpoint_flags::OPEN != 0)
        });
        let table = state.steps.iter().position(|step| matches!(step, Step::Rulebook { rows: Some(_), .. }));
        assert!(table.is_some() && table < opened, "{:#?}", state.steps);
    });
}

#[tokio::test]
async fn without_a_controller_labels_that_are_known_here_open_and_others_wait_for_their_reason() {
    let (_state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    answer(&stream, "web", true, "", 6).await;
    let opened = v1::Delta {
        nonce: 7,
        revision: 7,
        upserts: vec![endpoint("web", 256, true)],
        ..v1::Delta::default()
    };
    stream.delta(opened).await;
    stream.ack().await;
    drop(stream);
    // The node's next stream is there before the controller says anything on it.
    let stream = fake.stream().await;

    node.attach("web-2", "web").await;
    node.attach("stranger", "other").await;

    node.endpoint("web-2", |state| matches!(state, EndpointState::Ready(_))).await;
    let state = node.endpoint("stranger", |_| true).await;
    let EndpointState::Init(stranger) = state else { panic!("{state:?}") };
    assert!(stranger.status.unwrap().reason.contains("no controller"), "the reason is said");

    // Classified, but not to be opened yet: what runs on credit is not closed for that.
    stream.welcome("store-1", 9).await;
    let mut stream = stream;
    answer(&stream, "web-2", true, "", 9).await;
    let words = [endpoint("web", 256, true), endpoint("web-2", 256, false)];
    stream.delta(full(9, base().into_iter().chain(words).collect())).await;
    stream.ack().await;
    node.endpoint("web-2", |state| matches!(state, EndpointState::Ready(_))).await;
    assert!(is_open(&kernel));
}

#[tokio::test]
async fn interfaces_of_ours_that_nobody_desires_go_after_the_first_sync() {
    let (state, kernel, fake) = (tempfile::tempdir().unwrap(), Kernel::default(), Fake::start().await);
    let leftover = Link {
        ifindex: 900,
        name: "weft01234567".to_owned(),
        mac: None,
        mtu_bytes: 1500,
        up: true,
        peer_elsewhere: true,
    };
    kernel.links.with(|state| state.links.insert(leftover.name.clone(), leftover.clone()));
    kernel.maps.with(|state| state.attached.insert(900, Hook::Endpoint));
    let node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 5).await;
    assert!(kernel.links.with(|state| state.links.contains_key("weft01234567")));

    stream.delta(full(5, base())).await;
    stream.ack().await;
    // Swept right after the acknowledgement; the core's next answer comes after that.
    node.status().await;

    assert!(!kernel.links.with(|state| state.links.contains_key("weft01234567")));
    assert!(!kernel.maps.with(|state| state.attached.contains_key(&900)));
    assert_eq!(kernel.maps.with(|state| state.attached.len()), 2, "overlay and uplink keep theirs");
}

#[tokio::test]
async fn a_refused_endpoint_is_torn_down_and_the_reason_kept_for_its_caller() {
    let (_state, kernel, _fake, node, stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    answer(&stream, "web", false, "the name web is taken by an endpoint of node n2", 0).await;

    let state = node.endpoint("web", |state| !matches!(state, EndpointState::Init(_))).await;

    let EndpointState::Refused(refusal) = state else { panic!("{state:?}") };
    assert!(refusal.taken && refusal.reason.contains("n2"), "{refusal:?}");
    assert!(kernel.maps.with(|state| state.tables.endpoints.is_empty()));
    assert!(kernel.links.with(|state| state.routes.is_empty()));
}

#[tokio::test]
async fn a_word_about_a_former_bearer_of_a_name_opens_nobody() {
    let (_state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    answer(&stream, "web", true, "", 6).await;
    let opened = v1::Delta {
        nonce: 7,
        revision: 7,
        upserts: vec![endpoint("web", 256, true)],
        ..v1::Delta::default()
    };
    stream.delta(opened).await;
    stream.ack().await;
    assert!(is_open(&kernel));
    // The stream is gone, the name goes to another workload.
    drop(stream);
    assert_eq!(node.core.detach("web".to_owned()).await, Ok(Ok(true)));
    node.attach("web", "intruder").await;

    let mut stream = fake.stream().await;
    stream.welcome("store-1", 7).await;
    let gone =
        stream.report(|report| if let Report::EndpointGone(gone) = report { Some(gone.name) } else { None });
    assert_eq!(gone.await, "web");
    stream.delta(full(7, base().into_iter().chain([endpoint("web", 256, true)]).collect())).await;
    stream.ack().await;
    assert!(!is_open(&kernel), "the controller's word is about the one that was detached");

    answer(&stream, "web", true, "", 9).await;
    let classified = v1::Delta {
        nonce: 9,
        revision: 9,
        upserts: vec![endpoint("web", 257, true)],
        ..v1::Delta::default()
    };
    stream.delta(classified).await;
    stream.ack().await;
    node.endpoint("web", |state| matches!(state, EndpointState::Ready(_))).await;
    assert!(kernel.maps.with(|state| state.tables.endpoints.values().all(|row| row.identity == 257)));
}

#[tokio::test]
async fn a_bearer_that_was_never_classified_is_ended_before_the_next_is_told_of() {
    let (_state, _kernel, fake, node, stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    drop(stream);
    // The node's next stream is there: it knows that the former one is gone.
    let mut stream = fake.stream().await;
    assert_eq!(node.core.detach("web".to_owned()).await, Ok(Ok(true)));
    node.attach("web", "intruder").await;

    stream.welcome("store-1", 7).await;

    let first = stream.report(|report| match report {
        Report::EndpointGone(gone) => Some(("gone", gone.name)),
        Report::Endpoint(report) => Some(("attached", report.endpoint?.metadata?.name)),
        _ => None,
    });
    assert_eq!(first.await, ("gone", "web".to_owned()));
}

/// Of the next endpoint that the node reports.
async fn reported_instance(stream: &mut Stream) -> String {
    let report = stream.report(|report| match report {
        Report::Endpoint(report) => Some(report.endpoint?.attachment?.instance),
        _ => None,
    });
    report.await
}

#[tokio::test]
async fn what_is_said_of_an_attachment_is_never_taken_for_the_next_of_its_name() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    let former = reported_instance(&mut stream).await;
    assert_eq!(node.core.detach("web".to_owned()).await, Ok(Ok(true)));
    node.attach("web", "intruder").await;
    let current = reported_instance(&mut stream).await;
    assert_ne!(former, current);

    // Both were under way when the name changed hands.
    let late = v1::EndpointAnswer {
        name: "web".to_owned(),
        accepted: true,
        revision: 6,
        instance: former.clone(),
        ..v1::EndpointAnswer::default()
    };
    stream.send(v1::controller_message::Message::EndpointAnswer(late)).await;
    let opened = |revision, upserts| v1::Delta { nonce: revision, revision, upserts, ..v1::Delta::default() };
    stream.delta(opened(7, vec![endpoint_of(&former, "web", 256, true)])).await;
    stream.ack().await;
    assert!(!is_open(&kernel));

    let now = v1::EndpointAnswer {
        name: "web".to_owned(),
        accepted: true,
        revision: 9,
        instance: current.clone(),
        ..v1::EndpointAnswer::default()
    };
    stream.send(v1::controller_message::Message::EndpointAnswer(now)).await;
    // The former one's transaction was late, and came after this one's.
    stream.delta(opened(10, vec![endpoint_of(&former, "web", 256, true)])).await;
    stream.ack().await;
    assert!(!is_open(&kernel));

    stream.delta(opened(11, vec![endpoint_of(&current, "web", 257, true)])).await;
    stream.ack().await;
    assert!(is_open(&kernel));
    assert!(kernel.maps.with(|state| state.tables.endpoints.values().all(|row| row.identity == 257)));
}

#[tokio::test]
async fn a_controller_that_says_what_is_not_so_is_told_again() {
    let (_state, _kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    let current = reported_instance(&mut stream).await;
    let said = |revision, upserts| v1::Delta { nonce: revision, revision, upserts, ..v1::Delta::default() };

    // Transactions of earlier streams, which came late: one over this attachment, one of a name that nobody has.
    let late = vec![endpoint_of("former", "web", 256, true), endpoint_of("ended", "db", 257, false)];
    stream.delta(said(7, late)).await;

    let gone =
        stream.report(|report| if let Report::EndpointGone(gone) = report { Some(gone) } else { None });
    let gone = gone.await;
    assert_eq!((gone.name.as_str(), gone.instance.as_str()), ("db", "ended"));
    assert_eq!(reported_instance(&mut stream).await, current);
}

#[tokio::test]
async fn an_endpoint_whose_rows_cannot_be_taken_away_yet_is_over_all_the_same() {
    let (_state, kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    kernel.maps.with(|state| state.broken = Some("busy".to_owned()));

    assert_eq!(node.core.detach("web".to_owned()).await, Ok(Ok(true)));

    let gone =
        stream.report(|report| if let Report::EndpointGone(gone) = report { Some(gone.name) } else { None });
    assert_eq!(gone.await, "web", "on the stream that is there: another may be long in coming");
    assert_eq!(kernel.maps.with(|state| state.tables.endpoints.len()), 1);
    kernel.maps.with(|state| state.broken = None);
    let mut changed = node.core.changed();
    let taken_away = async {
        while kernel.maps.with(|state| !state.tables.endpoints.is_empty()) {
            changed.changed().await.expect("the core lives");
        }
    };
    tokio::time::timeout(SOON, taken_away).await.expect("the rows stay");
}

#[tokio::test]
async fn endpoints_survive_the_daemon_and_end_with_their_interface() {
    let (state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    answer(&stream, "web", true, "", 6).await;
    let opened = v1::Delta {
        nonce: 7,
        revision: 7,
        upserts: vec![endpoint("web", 256, true)],
        ..v1::Delta::default()
    };
    stream.delta(opened).await;
    stream.ack().await;
    drop(stream);
    node.kill();

    let node = Node::start(&kernel, state.path(), &[]).await;
    node.endpoint("web", |state| matches!(state, EndpointState::Ready(_))).await;
    node.kill();
    kernel
        .links
        .with(|state| state.links.retain(|name, _| !name.starts_with("weft") || name == "weft-vxlan"));
    let node = Node::start(&kernel, state.path(), &[&fake.url]).await;

    assert_eq!(node.core.endpoint("web".to_owned()).await, Ok(EndpointState::Gone));
    assert!(kernel.maps.with(|state| state.tables.endpoints.is_empty()));
    // Streams of the daemons before may still be waiting.
    let inventory = tokio::time::timeout(SOON, async {
        loop {
            let mut stream = fake.stream().await;
            if stream.hello.have.as_ref().is_some_and(|have| have.revision == 7) {
                stream.welcome("store-1", 7).await;
                return stream
                    .report(|report| {
                        if let Report::Inventory(inventory) = report { Some(inventory.names) } else { None }
                    })
                    .await;
            }
        }
    });
    assert_eq!(inventory.await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_resource_from_a_later_version_is_named_in_the_acknowledgement() {
    let (_state, _kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    let mut policy = upsert(ResourceType::Policy, "p", &v1::NodePolicy::default());
    policy.requires.push("layer-7".to_owned());
    stream.delta(v1::Delta { nonce: 6, revision: 6, upserts: vec![policy], ..v1::Delta::default() }).await;

    let ack = stream.ack().await;

    assert_eq!(
        (ack.revision, ack.rejected[0].name.as_str()),
        (5, "p"),
        "realised stops below the rejected resource"
    );
    assert!(ack.rejected[0].reason.contains("layer-7"), "{:?}", ack.rejected);
    let problems = node.status().await.problems;
    assert!(problems.iter().any(|problem| problem.contains("layer-7")), "{problems:?}");
}

#[tokio::test]
async fn flows_are_counted() {
    let (state, kernel) = (tempfile::tempdir().unwrap(), Kernel::default());
    kernel.maps.with(|twin| twin.flows_alive = 5);
    let node = Node::start(&kernel, state.path(), &[]).await;

    node.status_until(|status| status.flows.is_some_and(|flows| flows.entries == 5)).await;
}

#[tokio::test]
async fn endpoints_end_with_the_boot_of_their_node() {
    let (state, kernel, _fake, node, stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    drop(stream);
    node.kill();
    let disk = Disk::open(state.path()).unwrap();
    let mut attachments = Attachments::load(&disk).unwrap();
    assert_eq!(attachments.boot_id, "boot-1");
    attachments.boot_id = "boot-0".to_owned();
    attachments.store(&disk).unwrap();

    // An interface of the same name and index is there, but it is not the same.
    let node = Node::start(&kernel, state.path(), &[]).await;

    assert_eq!(node.core.endpoint("web".to_owned()).await, Ok(EndpointState::Gone));
    assert!(kernel.maps.with(|state| state.tables.endpoints.is_empty()));
    assert_eq!(Attachments::load(&disk).unwrap().boot_id, "boot-1");
}

#[tokio::test]
async fn an_endpoint_whose_programs_cannot_be_put_back_is_down_until_they_can() {
    let (_state, kernel, _fake, node, _stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    let ifindex = kernel.maps.with(|twin| *twin.tables.endpoints.keys().next().unwrap());
    let is_up = || kernel.links.with(|links| links.up.contains(&ifindex));
    assert!(is_up());
    kernel.maps.with(|twin| {
        twin.attached.remove(&ifindex);
        twin.refuses_programs = Some("no memory".to_owned());
    });

    node.core.check().await.unwrap();
    assert!(!is_up(), "an interface without programs is an open door");
    kernel.maps.with(|twin| twin.refuses_programs = None);
    node.core.check().await.unwrap();

    assert!(is_up());
    assert_eq!(kernel.maps.with(|twin| twin.attached.get(&ifindex).copied()), Some(Hook::Endpoint));
    let repairs = node.status().await.repairs;
    assert!(repairs.iter().any(|repair| repair.what == "programs" && repair.last.is_some()), "{repairs:?}");
}

/// A file system of 256 KiB, with a file that leaves no room once it is filled.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = Some("size=256k");
        let mounted = mount(Some("weft"), directory.path(), Some("tmpfs"), MsFlags::empty(), size);
        mounted.expect("a tmpfs (tests need root)");
        Self { directory }
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.directory.path().join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.directory.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.directory.path(), MntFlags::MNT_DETACH).ok();
    }
}

#[tokio::test]
async fn with_a_full_disk_nothing_is_acknowledged_or_written_and_all_of_it_once_there_is_room() {
    let (disk, kernel, fake) = (SmallDisk::new(), Kernel::default(), Fake::start().await);
    let state = disk.directory.path().join("state");
    let node = Node::start(&kernel, &state, &[&fake.url]).await;
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 5).await;
    stream.delta(full(5, base())).await;
    stream.ack().await;
    let before = std::fs::read(state.join("desired")).unwrap();
    let steps = kernel.maps.with(|twin| twin.steps.len());
    disk.fill();

    let upserts = vec![address("10.200.2.9", 300)];
    stream.delta(v1::Delta { nonce: 6, revision: 6, upserts, ..v1::Delta::default() }).await;

    while let Some(message) = stream.next().await {
        assert!(!matches!(message, v1::node_message::Message::Ack(_)), "acknowledged what is not on disk");
    }
    // Tried again meanwhile: that must not get past the disk either.
    node.core.check().await.unwrap();
    let problems = node.status().await.problems;
    let named = |problem: &String| {
        problem.starts_with("not written") && problem.contains("state/desired: No space left")
    };
    assert!(problems.iter().any(named), "{problems:?}");
    assert_eq!(node.status().await.realised_revision, 5);
    assert_eq!(kernel.maps.with(|twin| twin.steps.len()), steps, "the kernel is as it was");
    assert_eq!(std::fs::read(state.join("desired")).unwrap(), before, "nothing is lost");
    assert!(!state.join("desired.new").exists());

    disk.make_room();
    let status = node.status_until(|status| !status.problems.iter().any(named)).await;
    assert_eq!(status.realised_revision, 6, "it heals by itself");
    assert_eq!(ipcache_len(&kernel), 3);
    assert_ne!(std::fs::read(state.join("desired")).unwrap(), before);
}

#[tokio::test]
async fn an_endpoint_goes_though_the_disk_is_full_and_one_that_comes_is_refused_by_name() {
    let (disk, kernel, fake) = (SmallDisk::new(), Kernel::default(), Fake::start().await);
    let state = disk.directory.path().join("state");
    let node = Node::start(&kernel, &state, &[&fake.url]).await;
    let mut stream = fake.stream().await;
    stream.welcome("store-1", 5).await;
    stream.delta(full(5, base())).await;
    stream.ack().await;
    node.attach("web", "web").await;
    disk.fill();

    let refused = node.try_attach("next", "web").await.unwrap_err();

    assert!(refused.to_string().contains("No space left"), "{refused}");
    assert_eq!(node.core.endpoint("next".to_owned()).await, Ok(EndpointState::Gone));
    assert_eq!(node.core.detach("web".to_owned()).await, Ok(Ok(true)));
    assert!(kernel.maps.with(|twin| twin.tables.endpoints.is_empty()));
    assert!(kernel.links.with(|links| links.routes.is_empty()));
    disk.make_room();
    node.status_until(|status| !status.problems.iter().any(|problem| problem.starts_with("not written")))
        .await;
    assert!(Attachments::load(&Disk::open(&state).unwrap()).unwrap().endpoints.is_empty());
}

#[tokio::test]
async fn on_credit_of_one_that_is_gone_an_endpoint_is_open_only_while_its_policy_is_held() {
    let (_state, kernel, fake, node, mut stream) = synced(Vec::new()).await;
    node.attach("web", "web").await;
    answer(&stream, "web", true, "", 6).await;
    let upserts = vec![endpoint("web", 256, true)];
    stream.delta(v1::Delta { nonce: 7, revision: 7, upserts, ..v1::Delta::default() }).await;
    stream.ack().await;
    drop(stream);
    let mut stream = fake.stream().await;
    assert_eq!(node.core.detach("web".to_owned()).await, Ok(Ok(true)));
    assert!(!is_open(&kernel));

    // Its successor, as a scheduler starts it while no controller can be reached.
    node.attach("web-2", "web").await;
    node.endpoint("web-2", |state| matches!(state, EndpointState::Ready(_))).await;
    assert!(is_open(&kernel));

    // The controller is back and takes the policies of the one that is gone away, before it takes in the other.
    stream.welcome("store-1", 9).await;
    stream.delta(full(9, base())).await;
    stream.ack().await;
    assert!(!is_open(&kernel), "without its policy it would be open to all");
    answer(&stream, "web-2", true, "", 10).await;
    let upserts = vec![endpoint("web-2", 256, true)];
    stream.delta(v1::Delta { nonce: 10, revision: 10, upserts, ..v1::Delta::default() }).await;
    stream.ack().await;
    assert!(is_open(&kernel));
}
