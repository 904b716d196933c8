//! `weft monitor`, the real binary against a fake daemon on a UNIX socket and a fake controller.
#![expect(clippy::unwrap_used, reason = "a test that can't go on says why")]

mod fake;

use fake::{Controller, Daemon, LocalScript, Script, weft};
use serde_json::{Value, json};
use weft_proto::v1::{self, monitor_party::Party, monitor_response::Item, object::Kind};

/// Where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:1";

fn party(address: &str, identity: u32, endpoint: &str) -> v1::FlowParty {
    v1::FlowParty {
        address: address.to_owned(),
        identity,
        endpoint: endpoint.to_owned(),
        ..v1::FlowParty::default()
    }
}

fn event(port: u32) -> v1::MonitorResponse {
    let event = v1::FlowEvent {
        at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        verdict: v1::FlowVerdict::Dropped.into(),
        reason: "policy_denied".to_owned(),
        point: "tc_to_endpoint".to_owned(),
        endpoint: "api".to_owned(),
        source: Some(party("10.200.2.2", 300, "")),
        destination: Some(party("10.200.1.3", 257, "api")),
        protocol_number: 17,
        source_port: 4000,
        destination_port: port,
        length_bytes: 100,
        packets: 1,
        audit: None,
        ..v1::FlowEvent::default()
    };
    v1::MonitorResponse { item: Some(Item::Event(event)) }
}

fn lost(in_kernel: u64, in_stream: u64) -> v1::MonitorResponse {
    v1::MonitorResponse { item: Some(Item::Lost(v1::MonitorLost { in_kernel, in_stream })) }
}

fn daemon(monitor: Vec<v1::MonitorResponse>, hangs: bool) -> (Daemon, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let monitor = monitor.into_iter().map(Ok).collect();
    let script = LocalScript { monitor, monitor_hangs: hangs, ..LocalScript::default() };
    (Daemon::start(script, directory.path()), directory)
}

/// A controller that knows identity 300.
async fn controller() -> (Controller, String) {
    let identity = v1::Identity {
        number: 300,
        security_labels: [("app".to_owned(), "db".to_owned())].into(),
        ..v1::Identity::default()
    };
    let objects = vec![v1::Object { kind: Some(Kind::Identity(identity)) }];
    let controller = Controller::start(Script { objects, ..Script::default() }).await;
    let server = format!("http://{}", controller.address);
    (controller, server)
}

#[tokio::test]
async fn events_are_lines_until_there_are_as_many_as_were_asked_for() {
    let (daemon, _directory) = daemon(vec![event(53), lost(7, 0), lost(0, 1), event(54)], true);
    let ran = daemon.weft_monitor(NOWHERE, &["--count", "2"]).await;
    ran.assert_code(0);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "22:13:20.000  dropped  udp     identity:300 10.200.2.2:4000 → api 10.200.1.3:53  policy_denied  at \
             tc_to_endpoint of api",
            "22:13:20.000  dropped  udp     identity:300 10.200.2.2:4000 → api 10.200.1.3:54  policy_denied  at \
             tc_to_endpoint of api",
        ]
    );
    assert_eq!(
        ran.stderr,
        "monitoring\nlost: 7 events, the kernel's buffer was full\nlost: 1 event, read too slowly\n"
    );
}

#[tokio::test]
async fn json_is_one_object_a_line_with_losses_among_them() {
    let (daemon, _directory) = daemon(vec![event(53), lost(7, 1), event(54)], true);
    let ran = daemon.weft_monitor(NOWHERE, &["--count", "2", "--output", "json"]).await;
    ran.assert_code(0);
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["destinationPort"], 53);
    assert_eq!(lines[0]["destination"]["endpoint"], "api");
    assert_eq!(lines[1], json!({"lost": {"inKernel": 7, "inStream": 1}}));
    assert_eq!(lines[2]["reason"], "policy_denied");
    assert_eq!(lines.len(), 3);
}

#[tokio::test]
async fn the_controller_knows_the_labels_of_other_nodes_endpoints() {
    let (_controller, server) = controller().await;
    let (daemon, _directory) = daemon(vec![event(53)], true);
    let ran = daemon.weft_monitor(&server, &["--count", "1", "--from", "app=db"]).await;
    ran.assert_code(0);
    assert!(ran.stdout.contains("(app=db) 10.200.2.2:4000"), "{}", ran.stdout);
    let from: Vec<_> = daemon.monitored()[0].from.iter().filter_map(|party| party.party.clone()).collect();
    assert!(matches!(from[..], [Party::Selector(_), Party::Identity(300)]), "{from:?}");
}

#[tokio::test]
async fn filters_are_sent_to_the_daemon_as_given() {
    let (daemon, _directory) = daemon(vec![event(53)], true);
    let arguments = [
        "--count",
        "1",
        "--verdicts",
        "--audit",
        "--drops",
        "--endpoint",
        "api",
        "--from",
        "world",
        "--from",
        "203.0.113.0/24",
        "--to",
        "identity:257",
        "--port",
        "udp/53",
        "--port",
        "tcp",
        "--reason",
        "spoofed",
        "--point",
        "tc_from_uplink",
        "--identity",
        "300",
        "--policy",
        "db",
    ];
    daemon.weft_monitor(NOWHERE, &arguments).await.assert_code(0);
    let party = |party| v1::MonitorParty { party: Some(party) };
    let expected = v1::MonitorRequest {
        endpoints: vec!["api".to_owned()],
        drops: true,
        verdicts: true,
        audits: true,
        from: vec![
            party(Party::Entity("world".to_owned())),
            party(Party::Prefix("203.0.113.0/24".to_owned())),
        ],
        to: vec![party(Party::Identity(257))],
        ports: vec![
            v1::MonitorPort { protocol_number: 17, port: Some(53) },
            v1::MonitorPort { protocol_number: 6, port: None },
        ],
        reasons: vec!["spoofed".to_owned()],
        points: vec!["tc_from_uplink".to_owned()],
        identities: vec![300],
        policies: vec!["db".to_owned()],
    };
    assert_eq!(daemon.monitored(), [expected]);
}

#[tokio::test]
async fn it_ends_with_its_time_and_says_if_that_was_too_short_for_the_number() {
    let (daemon, _directory) = daemon(vec![event(53)], true);
    daemon.weft_monitor(NOWHERE, &["--for", "500ms"]).await.assert_code(0);
    let ran = daemon.weft_monitor(NOWHERE, &["--for", "500ms", "--count", "2"]).await;
    assert!(ran.assert_code(3).stderr.contains("of 2 events"), "{}", ran.stderr);
}

#[tokio::test]
async fn what_goes_wrong_is_said() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("noded.sock");
    let ran = weft(&["monitor", "--socket", socket.to_str().unwrap()]).await;
    assert!(ran.assert_code(69).stderr.contains("is weft-noded running on this node"), "{}", ran.stderr);
    for wrong in [
        &["--reason", "bored"][..],
        &["--point", "xdp"],
        &["--port", "443"],
        &["--from", "a b"],
        &["--count", "0"],
        &["--for", "x"],
    ] {
        let ran = weft(&[&["monitor"], wrong].concat()).await;
        ran.assert_code(64);
    }
    let (daemon, _directory) = daemon(vec![event(53)], false);
    let ran = daemon.weft_monitor(NOWHERE, &[]).await;
    assert!(ran.assert_code(1).stderr.contains("the daemon ended the stream"), "{}", ran.stderr);
}
