//! The node-local service over its socket.

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, transport::Channel};
use weft_noded::{
    daemon::Core,
    kernel::KernelError,
    limits::MONITOR_QUEUED_MAX,
    local::{self, LocalError},
    observe::events::{Asking, Events},
};
use weft_proto::v1::{
    self, attach_request::Target, monitor_response::Item, node_local_service_client::NodeLocalServiceClient,
};
use weft_shared::layout::{Address, Event, Reason};

use crate::{answer, endpoint, fake::SOON, synced};

struct Served {
    client: NodeLocalServiceClient<Channel>,
    events: Events,
    /// What the kernel was asked.
    asked: Arc<Mutex<Vec<bool>>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    fn asked(&self) -> Vec<bool> {
        self.asked.lock().unwrap().clone()
    }
}

struct Asks(Arc<Mutex<Vec<bool>>>);

impl Asking for Asks {
    fn set_allowed(&mut self, wanted: bool) -> Result<(), KernelError> {
        self.0.lock().unwrap().push(wanted);
        Ok(())
    }
}

async fn serve(core: Core) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run/noded.sock");
    let listener = local::listen(&socket).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let events = Events::new(Asks(Arc::clone(&asked)));
    tokio::spawn(local::serve(core, events.clone(), None, listener, CancellationToken::new()));
    let client = NodeLocalServiceClient::connect(format!("unix://{}", socket.display())).await.unwrap();
    Served { client, events, asked, socket, _directory: directory }
}

fn request(name: &str, wait: bool) -> v1::AttachRequest {
    v1::AttachRequest {
        name: name.to_owned(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        target: Some(Target::Netns("/proc/self/ns/net".to_owned())),
        wait,
        ..v1::AttachRequest::default()
    }
}

#[tokio::test]
async fn the_socket_is_for_root_alone_and_for_one_daemon() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let served = serve(node.core.clone()).await;

    let mode = std::fs::metadata(&served.socket).unwrap().permissions().mode();

    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(local::listen(&served.socket), Err(LocalError::InUse { .. })));
}

#[tokio::test]
async fn an_attachment_answers_when_it_is_ready() {
    let (_state, _kernel, _fake, node, mut stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let opening = async {
        answer(&stream, "web", true, "", 6).await;
        let upserts = vec![endpoint("web", 256, true)];
        stream.delta(v1::Delta { nonce: 6, revision: 6, upserts, ..v1::Delta::default() }).await;
        stream.ack().await;
    };
    let attached = served.client.attach(request("web", true));
    // The controller's answer comes once the endpoint was reported: it is ignored for one that is not there yet.
    let reported = node.endpoint("web", |state| !matches!(state, weft_noded::daemon::EndpointState::Gone));

    let (attached, ()) = tokio::join!(attached, async {
        reported.await;
        opening.await;
    });

    let endpoint = attached.unwrap().into_inner().endpoint.unwrap();
    assert_eq!(endpoint.status.unwrap().state(), v1::EndpointState::Ready);
    let listed =
        served.client.list_endpoints(v1::ListEndpointsRequest {}).await.unwrap().into_inner().endpoints;
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn at_the_callers_deadline_the_reason_is_said_and_the_endpoint_stays_closed() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let mut waiting = Request::new(request("web", true));
    waiting.set_timeout(Duration::from_millis(700));

    let status = served.client.attach(waiting).await.unwrap_err();

    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("the controller has not answered yet"), "{status}");
    let again = served.client.attach(request("web", false)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let code = |request: v1::AttachRequest| {
        let mut client = served.client.clone();
        async move { client.attach(request).await.unwrap_err().code() }
    };
    assert_eq!(code(request("Not-A-Name", false)).await, Code::InvalidArgument);
    let outside = v1::AttachRequest { addresses: vec!["10.9.9.9".to_owned()], ..request("web", false) };
    assert_eq!(code(outside).await, Code::InvalidArgument);
    let nowhere = v1::AttachRequest {
        target: Some(Target::Netns("/no/such/place".to_owned())),
        ..request("web", false)
    };
    assert_eq!(code(nowhere).await, Code::InvalidArgument);
    let mac = v1::AttachRequest { mac: "02:00".to_owned(), ..request("web", false) };
    assert_eq!(code(mac).await, Code::InvalidArgument);
    let missing = served.client.detach(v1::DetachRequest { name: "web".to_owned() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn maps_are_dumped_in_words_and_an_unknown_one_names_those_there_are() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let rows =
        served.client.dump_map(v1::DumpMapRequest { map: "nodes".to_owned() }).await.unwrap().into_inner();
    let rows: Vec<v1::DumpMapResponse> = rows.map(Result::unwrap).collect().await;
    assert!(rows.iter().any(|row| row.value.contains("192.0.2.12")), "{rows:?}");

    let unknown =
        served.client.dump_map(v1::DumpMapRequest { map: "nonsense".to_owned() }).await.unwrap_err();

    assert!(unknown.message().contains("ipcache"), "{unknown}");
}

fn dropped(source_port: u16) -> Event {
    Event {
        reason: Reason::Spoofed as u32,
        protocol: 6,
        source: Address::from(std::net::IpAddr::from([10, 200, 1, 7])),
        source_port,
        packets: 3,
        ..bytemuck::Zeroable::zeroed()
    }
}

fn event(item: Option<Result<v1::MonitorResponse, tonic::Status>>) -> v1::FlowEvent {
    match item.unwrap().unwrap().item {
        Some(Item::Event(event)) => event,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_monitor_sees_drops_in_words() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let mut events = served.client.monitor(v1::MonitorRequest::default()).await.unwrap().into_inner();

    served.events.publish(dropped(4000));

    let drop = event(tokio::time::timeout(SOON, events.next()).await.unwrap());
    assert_eq!((drop.reason.as_str(), drop.point.as_str()), ("spoofed", "tc_from_endpoint"));
    assert_eq!((drop.verdict(), drop.packets), (v1::FlowVerdict::Dropped, 3));
    let source = drop.source.unwrap();
    assert_eq!((source.address.as_str(), drop.source_port, drop.protocol_number), ("10.200.1.7", 4000, 6));
    assert_eq!(drop.destination.unwrap().address, "");
}

#[tokio::test]
async fn the_kernel_is_asked_for_new_flows_only_while_somebody_monitors_verdicts() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let drops = served.client.monitor(v1::MonitorRequest::default()).await.unwrap();
    assert!(served.asked().is_empty());
    let wanted = v1::MonitorRequest { verdicts: true, ..v1::MonitorRequest::default() };

    let first = served.client.monitor(wanted.clone()).await.unwrap();
    let second = served.client.monitor(wanted.clone()).await.unwrap();

    assert_eq!(served.asked(), [true]);
    drop((first, drops));
    drop(second);
    tokio::time::timeout(SOON, async {
        while served.asked() != [true, false] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let allowed = served.client.monitor(wanted).await.unwrap();
    assert_eq!(served.asked(), [true, false, true]);
    let mut events = allowed.into_inner();
    served.events.publish(Event { allowed: 1, judged: 0b110, ..dropped(4000) });
    let new = event(tokio::time::timeout(SOON, events.next()).await.unwrap());
    assert_eq!((new.verdict(), new.reason.as_str(), new.rules.len()), (v1::FlowVerdict::Allowed, "", 2));
}

#[tokio::test]
async fn a_monitor_that_does_not_read_loses_events_and_is_told_how_many() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let mut events = served.client.monitor(v1::MonitorRequest::default()).await.unwrap().into_inner();
    let published = u64::try_from(MONITOR_QUEUED_MAX).unwrap() * 4;
    for _ in 0..published {
        served.events.publish(dropped(4000));
    }
    let (mut read, mut lost) = (0, 0);
    while read + lost < published {
        match tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap().unwrap().item {
            Some(Item::Event(_)) => read += 1,
            Some(Item::Lost(told)) => lost += told.in_stream,
            None => panic!("an empty message"),
        }
    }
    assert_eq!(read + lost, published);
    assert!(lost > 0);
}

#[tokio::test]
async fn a_filter_that_makes_no_sense_is_refused_with_its_field() {
    let (_state, _kernel, _fake, node, _stream) = synced(Vec::new()).await;
    let mut served = serve(node.core.clone()).await;
    let request = v1::MonitorRequest { reasons: vec!["bored".to_owned()], ..v1::MonitorRequest::default() };
    let status = served.client.monitor(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("reasons: ") && status.message().contains("spoofed"), "{status}");
}
