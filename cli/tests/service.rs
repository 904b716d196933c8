//! `weft service` and services among other resources, the real binary against a fake controller.
mod fake;

use fake::{Controller, Script};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use weft_cli::manifest::{self, Source};
use weft_proto::v1::{self, object::Kind as K};
use weft_shared::policy::parse;

fn frontend(address: &str, port: u32, kind: v1::FrontendType) -> v1::Frontend {
    let protocol = v1::Protocol::Tcp.into();
    v1::Frontend { address: address.to_owned(), port, protocol, r#type: kind.into() }
}

fn backend(address: &str, node: &str, weight: u32, share_basis_points: u32) -> v1::ServiceBackend {
    v1::ServiceBackend {
        address: address.to_owned(),
        node: node.to_owned(),
        endpoint: if node.is_empty() { String::new() } else { format!("on-{node}") },
        weight,
        state: v1::BackendState::Active.into(),
        share_basis_points,
        ..Default::default()
    }
}

/// Three of four backends get connections.
fn api() -> v1::ServiceState {
    v1::ServiceState {
        name: "api".to_owned(),
        frontends: vec![
            frontend("10.96.0.1", 80, v1::FrontendType::Cluster),
            frontend("2001:db8::1", 80, v1::FrontendType::External),
            frontend("", 30_080, v1::FrontendType::NodePort),
        ],
        condition: v1::ServiceCondition::Serving.into(),
        reason: "rejecting IPv6: no backends".to_owned(),
        backends_total: 4,
        backends_active: 2,
        backends: vec![
            backend("10.200.0.5", "n1", 2, 6_667),
            v1::ServiceBackend { port: 8080, ..backend("203.0.113.5", "", 1, 3_333) },
            v1::ServiceBackend {
                state: v1::BackendState::Maintenance.into(),
                ..backend("203.0.113.6", "", 1, 0)
            },
            v1::ServiceBackend { absent: true, ..backend("10.200.9.9", "", 1, 0) },
        ],
        nodes_rejecting: 12,
        rejections: vec![v1::ServiceRejection {
            node: "n1".to_owned(),
            reason: "this node lacks services".to_owned(),
        }],
        ..Default::default()
    }
}

fn named(name: &str) -> v1::ServiceState {
    v1::ServiceState {
        name: name.to_owned(),
        frontends: vec![frontend("10.96.0.2", 53, v1::FrontendType::Cluster)],
        condition: v1::ServiceCondition::Rejecting.into(),
        reason: "no backends: no ready endpoint is selected".to_owned(),
        ..Default::default()
    }
}

async fn controller() -> Controller {
    let services = vec![api(), named("dns"), named("empty")];
    Controller::start(Script { services, ..Script::default() }).await
}

#[tokio::test]
async fn list_walks_all_pages_and_says_who_rejects() {
    let controller = controller().await;
    let ran = controller.weft(&["service", "list"]).await;
    ran.assert_code(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("NAME   FRONTENDS"), "{}", ran.stdout);
    assert!(
        lines[1].contains("10.96.0.1:80/TCP, [2001:db8::1]:80/TCP, node port 30080/TCP"),
        "{}",
        ran.stdout
    );
    assert!(
        lines[1].contains("2/4") && lines[1].contains("serving: rejecting IPv6: no backends"),
        "{}",
        ran.stdout
    );
    assert!(lines[1].ends_with("12"), "{}", ran.stdout);
    assert!(lines[2].contains("rejecting: no backends: no ready endpoint is selected"), "{}", ran.stdout);
    assert_eq!(lines.len(), 4);
    let tokens = controller
        .asked(|asked| asked.services.iter().map(|request| request.page_token.clone()).collect::<Vec<_>>());
    assert_eq!(tokens, ["", "dns"]);

    let ran = controller.weft(&["service", "list", "-o", "json"]).await;
    let value = ran.assert_code(0).json();
    assert_eq!(value["revision"], json!(7));
    assert_eq!(value["items"][1]["name"], json!("dns"));
    assert_eq!(value["items"][1]["condition"], json!("rejecting"));
    assert_eq!(
        value["items"][0]["frontends"][2],
        json!({"address": "", "port": 30_080, "protocol": "TCP", "type": "node-port"})
    );
}

#[tokio::test]
async fn show_tells_backends_with_nodes_states_and_shares() {
    let controller = controller().await;
    let ran = controller.weft(&["service", "show", "api"]).await;
    ran.assert_code(0);
    let expected = "\
name            api
frontends       10.96.0.1:80/TCP, [2001:db8::1]:80/TCP, node port 30080/TCP
algorithm       maglev
forwarding      snat
backends        2 of 4 active
state           serving: rejecting IPv6: no backends

BACKEND           ENDPOINT  NODE       STATE                                      WEIGHT  SHARE
10.200.0.5        on-n1     n1         active                                     2       66.67%
203.0.113.5:8080  -         (outside)  active                                     1       33.33%
203.0.113.6       -         (outside)  maintenance                                1       0.00%
10.200.9.9        -         -          absent: no ready endpoint has the address  1       0.00%

n1 rejected it: this node lacks services

11 nodes more rejected it
";
    assert_eq!(ran.stdout, expected);
    let ran = controller.weft(&["service", "show", "api", "-o", "yaml"]).await;
    ran.assert_code(0);
    assert!(ran.stdout.contains("shareBasisPoints: 6667"), "{}", ran.stdout);

    let ran = controller.weft(&["service", "show", "nobody"]).await;
    ran.assert_code(1);
    assert!(ran.stderr.contains("no service \"nobody\""), "{}", ran.stderr);
}

#[tokio::test]
async fn show_tells_of_a_probed_service_what_each_probe_found_that_is_not_well() {
    let probe = |node: &str, health: v1::Health, error: &str| v1::BackendProbe {
        node: node.to_owned(),
        health: health.into(),
        since: (health != v1::Health::Unspecified)
            .then_some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 }),
        error: error.to_owned(),
    };
    let refused = probe("n1", v1::Health::Unhealthy, "Connection refused (os error 111)");
    let mut service = api();
    service.health_check = Some(v1::HealthCheck {
        interval_milliseconds: 2000,
        timeout_milliseconds: 1000,
        unhealthy_after: 3,
        healthy_after: 2,
        http: Some(v1::HttpCheck { path: "/up".to_owned(), expected_status: 200 }),
    });
    service.backends_unhealthy = 1;
    let [first, second, ..] = &mut service.backends[..] else { panic!("four") };
    (first.health, first.state) = (v1::Health::Unhealthy.into(), v1::BackendState::Quarantined.into());
    first.probes = vec![refused.clone()];
    second.health = v1::Health::Healthy.into();
    second.probes =
        vec![refused, probe("n2", v1::Health::Healthy, ""), probe("n3", v1::Health::Unspecified, "")];
    service.nodes_rejecting = 0;
    service.rejections.clear();
    let controller = Controller::start(Script { services: vec![service], ..Script::default() }).await;
    let ran = controller.weft(&["service", "show", "api"]).await;
    ran.assert_code(0);
    let expected = "\
state           serving: rejecting IPv6: no backends
health check    HTTP /up, status 200, every 2000 ms, within 1000 ms; unhealthy after 3, healthy after 2

BACKEND           ENDPOINT  NODE       STATE                                      HEALTH     WEIGHT  SHARE
10.200.0.5        on-n1     n1         quarantined                                unhealthy  2       66.67%
203.0.113.5:8080  -         (outside)  active                                     healthy    1       33.33%
203.0.113.6       -         (outside)  maintenance                                unknown    1       0.00%
10.200.9.9        -         -          absent: no ready endpoint has the address  -          1       0.00%

PROBED            BY  FOUND      SINCE                 WHY
10.200.0.5        n1  unhealthy  2023-11-14T22:13:20Z  Connection refused (os error 111)
203.0.113.5:8080  n1  unhealthy  2023-11-14T22:13:20Z  Connection refused (os error 111)
203.0.113.5:8080  n3  unknown    -                     -
";
    assert!(ran.stdout.ends_with(expected), "{}", ran.stdout);

    let json = controller.weft(&["service", "show", "api", "-o", "json"]).await.assert_code(0).json();
    let backend = &json["service"]["backends"][0];
    assert_eq!(backend["health"], json!("unhealthy"));
    assert_eq!(backend["probes"][0]["error"], json!("Connection refused (os error 111)"));
    assert_eq!(json["service"]["healthCheck"]["http"]["path"], json!("/up"));

    let ran = controller.weft(&["service", "list"]).await;
    ran.assert_code(0);
    let columns: Vec<&str> = ran.stdout.lines().nth(1).unwrap_or_default().split("  ").collect();
    let columns: Vec<&str> = columns.into_iter().map(str::trim).filter(|text| !text.is_empty()).collect();
    assert_eq!(columns[2..4], ["2/4", "1"], "{}", ran.stdout);
}

#[tokio::test]
async fn get_has_columns_for_services_and_prefilters() {
    let metadata =
        |name: &str| Some(v1::Metadata { name: name.to_owned(), revision: 7, ..v1::Metadata::default() });
    let service = v1::Service {
        metadata: metadata("api"),
        frontends: vec![frontend("10.96.0.1", 80, v1::FrontendType::Cluster)],
        backends: Some(v1::BackendList { items: vec![v1::Backend::default(); 2] }),
        ..v1::Service::default()
    };
    let objects = vec![v1::Object { kind: Some(K::Service(service)) }];
    let controller = Controller::start(Script { objects, ..Script::default() }).await;
    let ran = controller.weft(&["get", "services"]).await;
    let expected = "\
NAME  FRONTENDS         BACKENDS     FORWARDING  REVISION
api   10.96.0.1:80/TCP  2 addresses  snat        7
";
    assert_eq!(ran.assert_code(0).stdout, expected);
    assert_eq!(controller.asked(|asked| asked.list[0].kind()), v1::Kind::Service);

    let prefilter = v1::Prefilter {
        metadata: metadata("scanners"),
        cidrs: vec!["203.0.113.0/24".to_owned()],
        ..v1::Prefilter::default()
    };
    let objects = vec![v1::Object { kind: Some(K::Prefilter(prefilter)) }];
    let controller = Controller::start(Script { objects, ..Script::default() }).await;
    let ran = controller.weft(&["get", "prefilter", "scanners"]).await;
    let expected = "\
NAME      NODES  PREFIXES  ARP SENDERS  REVISION
scanners  all    1 prefix  0 senders    7
";
    assert_eq!(ran.assert_code(0).stdout, expected);
}

const MANIFEST: &str = "\
kind: Service
name: api
frontends:
  - {address: 10.96.0.1, port: 80, protocol: TCP}
  - {address: 10.96.0.1, port: 0, protocol: TCP}
backends:
  - {address: 203.0.113.5, weight: 257}
targetPort: 8080
healthCheck: {http: {path: up}}
";

#[tokio::test]
async fn what_is_wrong_with_a_service_is_told_at_its_line() {
    let source = Source { name: "service.yaml".to_owned(), text: MANIFEST.to_owned() };
    let wrong = parse::object(&manifest::parse([source]).unwrap().objects[0]).unwrap_err();
    let mut details = ErrorDetails::new();
    for error in wrong {
        details.add_bad_request_violation(format!("objects[0].service.{}", error.path), error.message);
    }
    let refused = Status::with_error_details(Code::InvalidArgument, "one object is wrong", details);
    let controller = Controller::start(Script { apply: Some(Err(refused)), ..Script::default() }).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-"], MANIFEST).await;
    ran.assert_code(1);
    let places: Vec<_> = ran.stderr.lines().filter_map(|line| line.strip_prefix("error: <stdin>:")).collect();
    let expected = [
        "5:32: frontends[1].port: 0 is out of range: expected 1 to 65535",
        "7:36: backends[0].weight: 257 is out of range: expected 1 to 256",
        "8:13: targetPort: goes with selector: each of `backends` has a port of its own",
        "9:28: healthCheck.http.path: \"up\" is not a path: expected '/' and then letters, digits and -._~!$&'()*+,;=:@/?%, at most 1024 bytes",
    ];
    assert_eq!(places, expected, "{}", ran.stderr);
}
