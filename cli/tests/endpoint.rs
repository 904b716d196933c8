//! `weft endpoint`, the real binary against a fake daemon on a UNIX socket.
mod fake;

use fake::{Daemon, LocalScript, weft};
use serde_json::json;
use tonic::Status;
use weft_proto::v1;

fn endpoint(name: &str, state: v1::EndpointState, reason: &str) -> v1::Endpoint {
    let labels = [("app".to_owned(), name.to_owned())].into();
    v1::Endpoint {
        metadata: Some(v1::Metadata { name: name.to_owned(), labels, ..Default::default() }),
        node: "n1".to_owned(),
        attachment: Some(v1::Attachment { interface: "weft01234567".to_owned(), ..Default::default() }),
        addresses: vec!["10.200.1.5".to_owned(), "fd00:77:0:1::5".to_owned()],
        mac: "02:00:00:00:00:01".to_owned(),
        limits: None,
        status: Some(v1::EndpointStatus { identity: 256, state: state.into(), reason: reason.to_owned() }),
    }
}

#[tokio::test]
async fn add_sends_what_was_given_and_prints_the_endpoint() {
    let directory = tempfile::tempdir().unwrap();
    let took = Some(prost_types::Duration { seconds: 0, nanos: 8_000_000 });
    let answer = v1::AttachResponse { endpoint: Some(endpoint("web", v1::EndpointState::Ready, "")), took };
    let daemon =
        Daemon::start(LocalScript { attach: Some(Ok(answer)), ..LocalScript::default() }, directory.path());
    let ran = daemon
        .weft_endpoint(&[
            "add",
            "web",
            "--label",
            "app=web",
            "--label",
            "env=prod",
            "--netns",
            "web",
            "--address",
            "10.200.1.5",
        ])
        .await;
    ran.assert_code(0);
    let expected = "\
NAME  NODE  ADDRESSES                  IDENTITY  STATE  INTERFACE     LABELS
web   n1    10.200.1.5,fd00:77:0:1::5  256       ready  weft01234567  app=web

attached in 8.0 ms
";
    assert_eq!(ran.stdout, expected);
    let ran = daemon
        .weft_endpoint(&[
            "add",
            "--name",
            "vm",
            "--interface",
            "tap0",
            "--mac",
            "02:00:00:00:00:09",
            "--no-wait",
            "-o",
            "json",
        ])
        .await;
    let value = ran.assert_code(0).json();
    assert_eq!((&value["endpoint"]["kind"], &value["tookMilliseconds"]), (&json!("Endpoint"), &json!(8.0)));
    assert_eq!(value["endpoint"]["addresses"][0], "10.200.1.5");
    let asked = daemon.attached();
    let expected = v1::AttachRequest {
        name: "web".to_owned(),
        labels: [("app".to_owned(), "web".to_owned()), ("env".to_owned(), "prod".to_owned())].into(),
        target: Some(v1::attach_request::Target::Netns("web".to_owned())),
        addresses: vec!["10.200.1.5".to_owned()],
        wait: true,
        ..Default::default()
    };
    assert_eq!(asked[0], expected);
    assert_eq!(
        (asked[1].name.as_str(), asked[1].wait, asked[1].mac.as_str()),
        ("vm", false, "02:00:00:00:00:09")
    );
}

#[tokio::test]
async fn a_refused_address_is_said_as_the_daemon_says_it() {
    let directory = tempfile::tempdir().unwrap();
    let refused = Status::invalid_argument("10.9.9.9 is not in this node's prefixes (10.200.1.0/24)");
    let daemon =
        Daemon::start(LocalScript { attach: Some(Err(refused)), ..LocalScript::default() }, directory.path());
    let ran = daemon.weft_endpoint(&["add", "web", "--netns", "web", "--address", "10.9.9.9"]).await;
    ran.assert_code(1);
    assert_eq!(ran.stderr, "error: 10.9.9.9 is not in this node's prefixes (10.200.1.0/24)\n");
}

#[tokio::test]
async fn an_endpoint_that_does_not_get_ready_exits_3_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let waiting =
        endpoint("web", v1::EndpointState::Init, "no controller is connected and the labels are new");
    let script = LocalScript { attach_hangs: true, endpoints: vec![waiting], ..LocalScript::default() };
    let daemon = Daemon::start(script, directory.path());
    let ran = daemon.weft_endpoint(&["add", "web", "--netns", "web", "--timeout", "50ms"]).await;
    ran.assert_code(3);
    let expected =
        "error: endpoint web is not ready after 50ms: no controller is connected and the labels are new\n";
    assert_eq!(ran.stderr, expected);
    let directory = tempfile::tempdir().unwrap();
    let said = Status::deadline_exceeded("still in init: waiting for n2");
    let daemon =
        Daemon::start(LocalScript { attach: Some(Err(said)), ..LocalScript::default() }, directory.path());
    let ran = daemon.weft_endpoint(&["add", "web", "--netns", "web"]).await;
    assert_eq!(
        ran.assert_code(3).stderr,
        "error: endpoint web is not ready after 60s: still in init: waiting for n2\n"
    );
}

#[tokio::test]
async fn list_show_and_rm_work_on_this_nodes_endpoints() {
    let directory = tempfile::tempdir().unwrap();
    let endpoints = vec![
        endpoint("web", v1::EndpointState::Ready, ""),
        endpoint("api", v1::EndpointState::Init, "new labels"),
    ];
    let daemon = Daemon::start(LocalScript { endpoints, ..LocalScript::default() }, directory.path());
    let ran = daemon.weft_endpoint(&["list"]).await;
    let names: Vec<_> =
        ran.assert_code(0).stdout.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["NAME", "api", "web"]);
    assert!(ran.stdout.contains("init: new labels"), "{}", ran.stdout);
    let items = daemon.weft_endpoint(&["list", "-o", "json"]).await.json();
    assert_eq!(
        items["items"][0]["status"],
        json!({"identity": 256, "state": "init", "reason": "new labels"})
    );
    let ran = daemon.weft_endpoint(&["show", "web"]).await;
    assert!(ran.assert_code(0).stdout.starts_with("kind: Endpoint\nname: web\n"), "{}", ran.stdout);
    daemon.weft_endpoint(&["show", "nobody"]).await.assert_code(1);
    let ran = daemon.weft_endpoint(&["rm", "web"]).await;
    assert_eq!(ran.assert_code(0).stdout, "endpoint web detached\n");
    let ran = daemon.weft_endpoint(&["rm", "web"]).await;
    assert_eq!(ran.assert_code(1).stderr, "error: no endpoint \"web\" on this node\n");
    daemon.weft_endpoint(&["rm", "api"]).await.assert_code(0);
    let ran = daemon.weft_endpoint(&["list"]).await;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", "no endpoints on this node\n"));
}

#[tokio::test]
async fn a_node_without_a_daemon_exits_69() {
    let ran = weft(&["endpoint", "list", "--socket", "/nowhere/noded.sock"]).await;
    ran.assert_code(69);
    let expected = "error: cannot reach /nowhere/noded.sock: No such file or directory (os error 2)\n  is weft-noded running on this node";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
}
