//! The other commands, the real binary against a fake controller: what they ask, print, and exit with.
mod fake;

use fake::{Controller, Script, weft};
use serde_json::json;
use tonic::Status;
use weft_proto::v1::{self, object::Kind as K};

fn policy(name: &str) -> v1::Object {
    let labels = [("team".to_owned(), "edge".to_owned())].into();
    let metadata = v1::Metadata { name: name.to_owned(), labels, uid: format!("uid-of-{name}"), revision: 7 };
    let selector =
        v1::Selector { match_labels: [("app".to_owned(), "api".to_owned())].into(), ..Default::default() };
    let subject = v1::Subject { endpoints: Some(selector), nodes: None };
    let rule = v1::Rule { action: v1::Action::Allow.into(), ..Default::default() };
    let ingress = v1::RuleList { items: vec![rule] };
    let policy = v1::Policy {
        metadata: Some(metadata),
        subject: Some(subject),
        ingress: Some(ingress),
        ..Default::default()
    };
    v1::Object { kind: Some(K::Policy(policy)) }
}

async fn controller_with(objects: &[&str]) -> Controller {
    let objects = objects.iter().map(|name| policy(name)).collect();
    Controller::start(Script { objects, ..Script::default() }).await
}

#[tokio::test]
async fn get_walks_all_pages_and_prints_a_table() {
    let controller = controller_with(&["a", "b", "c"]).await;
    let ran = controller.weft(&["get", "policies", "-l", "team=edge,!legacy"]).await;
    ran.assert_code(0);
    let expected = "\
NAME  TIER         SUBJECT  INGRESS  EGRESS  MODE     REVISION
a     application  app=api  1 rule   -       enforce  7
b     application  app=api  1 rule   -       enforce  7
c     application  app=api  1 rule   -       enforce  7
";
    assert_eq!(ran.stdout, expected);
    let asked = controller.asked(|asked| asked.list.clone());
    let tokens: Vec<_> = asked.iter().map(|request| request.page_token.as_str()).collect();
    assert_eq!(tokens, ["", "2"]);
    assert_eq!(asked[0].kind(), v1::Kind::Policy);
    let requirements = asked[1].selector.clone().unwrap().match_expressions;
    let keys: Vec<_> = requirements.iter().map(|one| (one.key.as_str(), one.operator())).collect();
    assert_eq!(keys, [("team", v1::LabelOperator::In), ("legacy", v1::LabelOperator::DoesNotExist)]);
}

#[tokio::test]
async fn get_prints_json_for_machines_and_yaml_that_apply_reads() {
    let controller = controller_with(&["a", "b"]).await;
    let resource = |name: &str| {
        json!({
            "kind": "Policy", "name": name, "labels": {"team": "edge"}, "uid": format!("uid-of-{name}"), "revision": 7,
            "subject": {"endpoints": {"matchLabels": {"app": "api"}}}, "ingress": [{"action": "allow"}]
        })
    };
    let ran = controller.weft(&["get", "policy", "-o", "json"]).await;
    assert_eq!(ran.assert_code(0).json(), json!({"revision": 7, "items": [resource("a"), resource("b")]}));
    let ran = controller.weft(&["get", "policy", "a", "--output", "json"]).await;
    assert_eq!(ran.assert_code(0).json(), resource("a"));
    let ran = controller.weft(&["get", "policy", "-o", "yaml"]).await;
    let one = |name: &str| {
        format!(
            "kind: Policy\nname: {name}\nlabels:\n  team: edge\nuid: uid-of-{name}\nrevision: 7\nsubject:\n  endpoints:\n    matchLabels:\n      app: api\ningress:\n  - action: allow\n"
        )
    };
    assert_eq!(ran.stdout, format!("{}---\n{}", one("a"), one("b")));
}

#[tokio::test]
async fn get_says_on_stderr_that_there_is_nothing() {
    let controller = controller_with(&[]).await;
    let ran = controller.weft(&["get", "policies"]).await;
    ran.assert_code(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", "no policies found\n"));
    let ran = controller.weft(&["get", "policies", "-o", "json"]).await;
    assert_eq!(ran.json(), json!({"revision": 7, "items": []}));
    let ran = controller.weft(&["get", "policy", "nobody"]).await;
    ran.assert_code(1);
    assert_eq!(ran.stderr, "error: no policy \"nobody\"\n");
}

#[tokio::test]
async fn delete_names_what_it_deleted() {
    let delete = Some(Ok(v1::DeleteResponse { revision: 9 }));
    let controller = Controller::start(Script { delete, ..Script::default() }).await;
    let ran = controller.weft(&["delete", "policy", "api", "--if-revision", "8"]).await;
    ran.assert_code(0);
    assert_eq!(ran.stdout, "Policy api deleted\n\nrevision 9\n");
    let asked = controller.asked(|asked| asked.delete[0].clone());
    assert_eq!((asked.kind(), asked.name.as_str(), asked.if_revision), (v1::Kind::Policy, "api", Some(8)));
}

#[tokio::test]
async fn watch_prints_a_line_for_each_change_and_says_where_to_go_on() {
    let event =
        |change: v1::Change, name: &str| v1::WatchEvent { change: change.into(), object: Some(policy(name)) };
    let watch = vec![
        Ok(v1::WatchResponse {
            revision: 5,
            events: vec![event(v1::Change::Created, "a"), event(v1::Change::Deleted, "b")],
        }),
        Ok(v1::WatchResponse { revision: 6, events: vec![] }),
        Err(Status::unavailable("going away")),
    ];
    let controller = Controller::start(Script { watch, ..Script::default() }).await;
    let ran = controller.weft(&["watch", "policies", "--from-revision", "4", "-o", "json"]).await;
    ran.assert_code(69);
    let lines: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["revision"], &lines[0]["change"], &lines[0]["object"]["name"]),
        (&json!(5), &json!("created"), &json!("a"))
    );
    assert_eq!(lines[1]["change"], "deleted");
    assert!(ran.stderr.contains("go on with --from-revision 6"), "{}", ran.stderr);
    let asked = controller.asked(|asked| asked.watch[0].clone());
    assert_eq!((asked.kinds, asked.from_revision), (vec![v1::Kind::Policy.into()], 4));
    let ran = controller.weft(&["watch"]).await;
    assert_eq!(
        ran.stdout,
        "5         created     Policy         a\n5         deleted     Policy         b\n"
    );
}

#[tokio::test]
async fn explain_shows_each_step_and_the_one_that_decided() {
    let step = |policy: &str, rule: &str, text: &str, decided| v1::VerdictStep {
        tier: v1::Tier::Application.into(),
        policy: policy.to_owned(),
        rule: rule.to_owned(),
        text: text.to_owned(),
        decided,
    };
    let ingress = v1::DirectionVerdict {
        direction: v1::Direction::Ingress.into(),
        verdict: v1::Verdict::Allow.into(),
        steps: vec![
            step("no-batch", "batch", "does not match the peer", false),
            step("api-from-web", "web", "allows", true),
        ],
        audit: Some(v1::AuditVerdict {
            verdict: v1::Verdict::Deny.into(),
            step: Some(step("watched", "web", "a matching deny wins", true)),
        }),
        subject: String::new(),
    };
    let egress = v1::DirectionVerdict {
        direction: v1::Direction::Egress.into(),
        verdict: v1::Verdict::Allow.into(),
        steps: vec![v1::VerdictStep {
            text: "the fleet's default action".to_owned(),
            decided: true,
            ..Default::default()
        }],
        audit: None,
        subject: String::new(),
    };
    let answer = v1::ExplainResponse {
        verdict: v1::Verdict::Allow.into(),
        directions: vec![egress, ingress],
        from: "endpoint web".to_owned(),
        to: "app=api".to_owned(),
        revision: 12,
        failsafe: Some(v1::FailsafeList {
            items: vec![v1::Failsafe {
                protocol: v1::Protocol::Tcp.into(),
                port: Some(22),
                direction: v1::Direction::Ingress.into(),
                ..Default::default()
            }],
        }),
        from_address: "10.200.1.2".to_owned(),
        to_address: String::new(),
        service: None,
    };
    let controller = Controller::start(Script { explain: Some(Ok(answer)), ..Script::default() }).await;
    let flow =
        ["explain", "--from", "web", "--to", "app=api,env=prod", "--port", "icmpv6/128", "--family", "6"];
    let ran = controller.weft(&flow).await;
    ran.assert_code(0);
    let expected = "\
endpoint web → app=api: allow

egress of endpoint web: allow
  → default      the fleet's default action

ingress of app=api: allow
    application  no-batch / batch: does not match the peer
  → application  api-from-web / web: allows
  if audit policies were enforced: deny
  → application  watched / web: a matching deny wins

held open on every node, whatever host policies say:
DIRECTION  PROTOCOL  PORTS  ADDRESSES
in         tcp       22     any

revision 12
";
    assert_eq!(ran.stdout, expected);
    let asked = controller.asked(|asked| asked.explain[0].clone());
    assert_eq!(asked.port, Some(v1::FlowPort { protocol_number: 58, port: 128 * 256 }));
    assert_eq!(asked.family, 6);
    assert_eq!(asked.from.unwrap().party, Some(v1::party::Party::Name("web".to_owned())));
    let Some(v1::party::Party::Labels(labels)) = asked.to.unwrap().party else { panic!("labels") };
    assert_eq!(labels.labels["env"], "prod");
    let ran = controller.weft(&[&flow[..], &["-o", "json"]].concat()).await;
    let value = ran.json();
    assert_eq!(
        (&value["verdict"], &value["directions"][1]["steps"][1]["rule"]),
        (&json!("allow"), &json!("web"))
    );
}

#[tokio::test]
async fn explain_says_of_a_service_who_may_answer_and_walks_what_differs() {
    let direction = |direction: v1::Direction, verdict: v1::Verdict| v1::DirectionVerdict {
        direction: direction.into(),
        verdict: verdict.into(),
        steps: vec![v1::VerdictStep {
            text: "the fleet's default action".to_owned(),
            decided: true,
            ..v1::VerdictStep::default()
        }],
        audit: None,
        subject: String::new(),
    };
    let backend = |address: &str, verdict: v1::Verdict| v1::ExplainedBackend {
        address: address.to_owned(),
        port: 8080,
        text: format!("address {address}"),
        share_basis_points: 3_333,
        verdict: verdict.into(),
        directions: vec![direction(v1::Direction::Egress, verdict)],
    };
    let service = v1::ExplainedService {
        name: "api".to_owned(),
        frontend: Some(v1::Frontend {
            address: "10.96.0.1".to_owned(),
            port: 80,
            protocol: v1::Protocol::Tcp.into(),
            r#type: v1::FrontendType::Cluster.into(),
        }),
        refusal: 0,
        node: "node-1".to_owned(),
        backends: vec![
            backend("192.0.2.1", v1::Verdict::Allow),
            backend("192.0.2.2", v1::Verdict::Deny),
            backend("192.0.2.3", v1::Verdict::Allow),
        ],
    };
    let answer = v1::ExplainResponse {
        verdict: v1::Verdict::Varies.into(),
        from: "endpoint web".to_owned(),
        to: "address 10.96.0.1".to_owned(),
        revision: 12,
        service: Some(service),
        ..v1::ExplainResponse::default()
    };
    let controller =
        Controller::start(Script { explain: Some(Ok(answer.clone())), ..Script::default() }).await;
    let flow = ["explain", "--from", "web", "--to", "10.96.0.1", "--port", "tcp/80"];
    let expected = "\
endpoint web → address 10.96.0.1: varies

service api, frontend 10.96.0.1:80/TCP: allowed to 2 of 3 backends
balanced by node-1

BACKEND         WHO                SHARE   VERDICT
192.0.2.1:8080  address 192.0.2.1  33.33%  allow
192.0.2.2:8080  address 192.0.2.2  33.33%  deny
192.0.2.3:8080  address 192.0.2.3  33.33%  allow

egress of endpoint web: allow
  → default      the fleet's default action

egress of endpoint web: deny
  → default      the fleet's default action

revision 12
";
    assert_eq!(controller.weft(&flow).await.assert_code(0).stdout, expected);
    let value = controller.weft(&[&flow[..], &["-o", "json"]].concat()).await.json();
    assert_eq!(
        (&value["verdict"], &value["service"]["backends"][1]["verdict"]),
        (&json!("varies"), &json!("deny"))
    );

    let refused = v1::ExplainedService {
        refusal: v1::ServiceRefusal::NoBackends.into(),
        backends: Vec::new(),
        ..answer.service.clone().unwrap()
    };
    let answer = v1::ExplainResponse { service: Some(refused), ..answer };
    let controller = Controller::start(Script { explain: Some(Ok(answer)), ..Script::default() }).await;
    let told = controller.weft(&flow).await.stdout;
    assert!(told.contains("frontend 10.96.0.1:80/TCP: rejected, no backend takes new connections"), "{told}");
}

#[tokio::test]
async fn fleet_status_shows_how_far_each_node_has_come() {
    let node = |name: &str, connected| v1::NodeSummary {
        name: name.to_owned(),
        connected,
        realised_revision: 41,
        endpoints: 2,
        endpoints_ready: 1,
        last_seen: connected.then_some(prost_types::Timestamp { seconds: 1_795_391_114, nanos: 825_000_000 }),
        last_apply: connected.then_some(prost_types::Duration { seconds: 0, nanos: 1_500_000 }),
        ..Default::default()
    };
    let fleet = v1::FleetStatusResponse {
        store_id: "3f0c".to_owned(),
        revision: 42,
        nodes: vec![node("n1", true), node("n2", false)],
        endpoints: 4,
        identities: 3,
        policies: 1,
        version: "0.1.0".to_owned(),
        store: "embedded".to_owned(),
        waiting_for_adoption: Vec::new(),
    };
    let controller = Controller::start(Script { fleet, ..Script::default() }).await;
    let ran = controller.weft(&["fleet", "status"]).await;
    let expected = "\
controller  0.1.0, embedded store 3f0c
revision    42
holds       1 policy, 4 endpoints, 3 identities, 2 nodes

NODE  CONNECTED  REALISED  ENDPOINTS READY  LAST APPLY  REJECTED  LAST SEEN
n1    yes        41        1/2              1.5 ms      -         2026-11-22T23:45:14Z
n2    no         41        1/2              -           -         -
";
    assert_eq!(ran.assert_code(0).stdout, expected);
    let value = controller.weft(&["fleet", "status", "-o", "json"]).await.json();
    assert_eq!((&value["revision"], &value["nodes"][0]["lastApplyMilliseconds"]), (&json!(42), &json!(1.5)));
    assert_eq!(value["nodes"][1]["connected"], json!(false));
}

#[tokio::test]
async fn nodes_of_another_store_are_listed_and_adopted() {
    let waiting = |name: &str| v1::WaitingNode {
        name: name.to_owned(),
        store_id: "3f0c".to_owned(),
        revision: 70,
        ..v1::WaitingNode::default()
    };
    let fleet = v1::FleetStatusResponse {
        waiting_for_adoption: vec![waiting("n1"), waiting("n2")],
        ..v1::FleetStatusResponse::default()
    };
    let controller = Controller::start(Script { fleet, ..Script::default() }).await;
    let status = controller.weft(&["fleet", "status"]).await;
    let table = "NODE  HOLDS STORE  REVISION\nn1    3f0c         70\nn2    3f0c         70\n";
    assert!(status.assert_code(0).stdout.contains(table), "{}", status.stdout);
    assert_eq!(controller.weft(&["fleet", "adopt", "--all"]).await.assert_code(0).stdout, table);
    let one = controller.weft(&["fleet", "adopt", "n2", "-o", "json"]).await.json();
    assert_eq!((one["adopted"].as_array().unwrap().len(), &one["adopted"][0]["name"]), (1, &json!("n2")));
    controller.weft(&["fleet", "adopt"]).await.assert_code(64);
    controller.weft(&["fleet", "adopt", "n1", "--all"]).await.assert_code(64);
}

fn node(name: &str, controller: &str) -> v1::Object {
    let labels = [("rack".to_owned(), "r1".to_owned())].into();
    let capabilities = v1::NodeCapabilities {
        kernel: "6.18.1".to_owned(),
        btf: true,
        tcx: true,
        ..v1::NodeCapabilities::default()
    };
    let node = v1::Node {
        metadata: Some(v1::Metadata { name: name.to_owned(), labels, ..v1::Metadata::default() }),
        addresses: vec!["192.0.2.11".to_owned()],
        endpoint_cidrs: vec!["10.200.0.0/24".to_owned(), "fd00:77::/64".to_owned()],
        status: Some(v1::NodeStatus {
            identity: 256,
            controller: controller.to_owned(),
            version: "0.1.0".to_owned(),
            features: vec!["audit".to_owned()],
            boot_id: "b7".to_owned(),
            capabilities: Some(capabilities),
            ..v1::NodeStatus::default()
        }),
    };
    v1::Object { kind: Some(K::Node(node)) }
}

fn summary(name: &str, connected: bool) -> v1::NodeSummary {
    let rejection =
        v1::Rejection { r#type: "policy".to_owned(), name: "p".to_owned(), reason: "too big".to_owned() };
    v1::NodeSummary {
        name: name.to_owned(),
        connected,
        realised_revision: if connected { 42 } else { 40 },
        endpoints: 2,
        endpoints_ready: 1,
        last_seen: Some(prost_types::Timestamp { seconds: 1_795_391_114, nanos: 0 }),
        rejections: if connected { vec![rejection] } else { vec![] },
        ..Default::default()
    }
}

async fn controller_with_nodes() -> Controller {
    let fleet = v1::FleetStatusResponse {
        revision: 42,
        version: "0.0.9".to_owned(),
        nodes: vec![summary("n1", true), summary("n2", false)],
        ..Default::default()
    };
    let objects = vec![node("n1", "c1"), node("n2", "")];
    let delete = Some(Ok(v1::DeleteResponse { revision: 43 }));
    Controller::start(Script { objects, delete, fleet, ..Script::default() }).await
}

#[tokio::test]
async fn node_list_shows_where_each_node_is_and_how_far_behind() {
    let controller = controller_with_nodes().await;
    let ran = controller.weft(&["node", "list"]).await;
    let expected = "\
NODE  CONNECTED  CONTROLLER  VERSION  KERNEL  ADDRESSES   ENDPOINTS READY  REALISED  BEHIND  REJECTED  LAST SEEN
n1    yes        c1          0.1.0    6.18.1  192.0.2.11  1/2              42        -       1         2026-11-22T23:45:14Z
n2    no         -           0.1.0    6.18.1  192.0.2.11  1/2              40        2       -         2026-11-22T23:45:14Z
";
    assert_eq!(ran.assert_code(0).stdout, expected);
    let value = controller.weft(&["node", "list", "-o", "json"]).await.json();
    assert_eq!((&value["revision"], &value["items"][1]["behind"]), (&json!(42), &json!(2)));
    let first = &value["items"][0];
    assert_eq!((&first["controller"], &first["features"][0]), (&json!("c1"), &json!("audit")));
    assert_eq!(first["capabilities"]["kernel"], json!("6.18.1"));
    assert_eq!(first["endpointCidrs"], json!(["10.200.0.0/24", "fd00:77::/64"]));
}

#[tokio::test]
async fn node_show_tells_all_of_one_node() {
    let controller = controller_with_nodes().await;
    let ran = controller.weft(&["node", "show", "n1"]).await;
    let expected = "\
name            n1
connected       yes, to c1
last seen       2026-11-22T23:45:14Z
version         0.1.0, newer than the controller: upgrade controllers first
features        audit
kernel          6.18.1 (BTF, TCX, no ESP)
boot id         b7
addresses       192.0.2.11
endpoint CIDRs  10.200.0.0/24, fd00:77::/64
identity        256
labels          rack=r1
realised        revision 42
last apply      -
endpoints ready 1/2
";
    assert!(ran.assert_code(0).stdout.starts_with(expected), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("\nrejected policy p: too big\n"), "{}", ran.stdout);
    let asked = controller.asked(|asked| asked.list[0].clone());
    assert_eq!((asked.kind(), asked.node.as_str()), (v1::Kind::Endpoint, "n1"));
    let value = controller.weft(&["node", "show", "n1", "-o", "json"]).await.json();
    assert_eq!(value["node"]["rejections"][0]["name"], json!("p"));
    assert!(value["endpoints"].is_array());
}

#[tokio::test]
async fn node_rm_removes_without_asking_where_nobody_can_answer() {
    let controller = controller_with_nodes().await;
    let ran = controller.weft(&["node", "rm", "n2", "--if-revision", "42"]).await;
    assert_eq!(ran.assert_code(0).stdout, "node n2 removed, with 2 endpoints\n\nrevision 43\n");
    let asked = controller.asked(|asked| asked.delete[0].clone());
    assert_eq!((asked.kind(), asked.name.as_str(), asked.if_revision), (v1::Kind::Node, "n2", Some(42)));
}

#[tokio::test]
async fn an_unreachable_server_exits_69_and_says_what_to_look_at() {
    // A port that was free a moment ago, and that nobody listens on.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = address.to_string();
    for arguments in
        [vec!["get", "nodes"], vec!["fleet", "status"], vec!["delete", "policy", "p"], vec!["watch"]]
    {
        let ran = weft(&[&["--server", &server], &arguments[..]].concat()).await;
        ran.assert_code(69);
        let expected = format!(
            "error: cannot reach http://{address}: Connection refused (os error 111)\n  is weft-controller running there?"
        );
        assert!(ran.stderr.starts_with(&expected), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn bad_usage_exits_64() {
    let wrong: [&[&str]; 12] = [
        &[],
        &["frobnicate"],
        &["apply"],
        &["apply", "-f", "x", "--if-revision", "minus"],
        &["apply", "-f", "x", "--dry-run", "--wait"],
        &["get", "polices"],
        &["get", "policies", "-l", "a in (b"],
        &["get", "policies", "--server", "https://127.0.0.1:1"],
        &["explain", "--from", "a", "--to", "b", "--port", "443"],
        &["explain", "--from", "a", "--to", "b", "--port", "tcp/1", "--family", "5"],
        &["endpoint", "add", "web"],
        &["get", "policies", "--output", "xml"],
    ];
    for arguments in wrong {
        let ran = weft(arguments).await;
        assert_eq!(ran.code, 64, "{arguments:?}\n{}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn help_documents_the_exit_codes_and_completion_knows_the_commands() {
    let help = weft(&["--help"]).await;
    help.assert_code(0);
    for code in ["0   done", "3   timed out", "64  bad usage", "69  the server"] {
        assert!(help.stdout.contains(code), "{code}\n{}", help.stdout);
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = weft(&["completion", shell]).await;
        assert!(script.assert_code(0).stdout.contains("explain"), "{shell}");
    }
}

#[tokio::test]
async fn schema_needs_no_server_and_knows_one_kind_or_all() {
    let all = weft(&["--server", "http://127.0.0.1:1", "schema"]).await;
    let all = all.assert_code(0).json();
    assert_eq!(all["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(all["oneOf"].as_array().map(Vec::len), Some(12));
    let policy = weft(&["schema", "policies"]).await;
    let policy = policy.assert_code(0).json();
    assert_eq!((&policy["$ref"], &policy["oneOf"]), (&json!("#/$defs/Policy"), &json!(null)));
    let fields = &policy["$defs"]["Policy"];
    assert_eq!(
        (&fields["additionalProperties"], &fields["required"]),
        (&json!(false), &json!(["kind", "name"]))
    );
    weft(&["schema", "pod"]).await.assert_code(64);
}
