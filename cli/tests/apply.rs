//! `weft apply`, the real binary against a fake controller: what it sends, prints, and exits with.
mod fake;

use fake::{Controller, Script, weft};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use weft_proto::v1;

const POLICY: &str = "\
kind: Policy
name: api-from-web
subject: {endpoints: {matchLabels: {app: api}}}
ingress:
  - action: allow
    ports:
      - {protocol: TCP, port: 70000}
";

fn applied() -> v1::ApplyResponse {
    let object = v1::AppliedObject {
        kind: v1::Kind::Policy.into(),
        name: "api-from-web".to_owned(),
        change: v1::Change::Created.into(),
        uid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427".to_owned(),
    };
    v1::ApplyResponse { revision: 42, objects: vec![object], warnings: Vec::new() }
}

fn realised(nodes: u32, of: u32, waiting_for: &[&str]) -> v1::WaitRealisedResponse {
    let took = (nodes == of).then_some(prost_types::Duration { seconds: 0, nanos: 12_500_000 });
    let waiting_for = waiting_for.iter().map(|&name| name.to_owned()).collect();
    v1::WaitRealisedResponse { nodes: of, realised: nodes, waiting_for, done: nodes == of, took }
}

#[expect(clippy::unwrap_used, reason = "a helper of tests alone: a panic fails the test")]
fn file(directory: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn objects_of_standard_input_are_applied_and_the_changes_shown() {
    let controller = Controller::start(Script { apply: Some(Ok(applied())), ..Script::default() }).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--if-revision", "41"], POLICY).await;
    ran.assert_code(0);
    assert_eq!(ran.stdout, "KIND    NAME          CHANGE\nPolicy  api-from-web  created\n\nrevision 42\n");
    assert_eq!(ran.stderr, "");
    let asked = controller.asked(|asked| asked.apply.clone());
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].if_revision, asked[0].dry_run, asked[0].objects.len()), (Some(41), false, 1));
}

#[tokio::test]
async fn what_is_warned_of_is_shown_at_its_line_and_applied() {
    let warning = v1::Warning {
        field: "objects[0].policy.subject.endpoints".to_owned(),
        message: "the selector selects nothing".to_owned(),
    };
    let answer = v1::ApplyResponse { warnings: vec![warning], ..applied() };
    let controller = Controller::start(Script { apply: Some(Ok(answer)), ..Script::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "policy.yaml", POLICY);
    let ran = controller.weft(&["apply", "-f", &path]).await;
    ran.assert_code(0);
    let expected = format!("warning: {path}:3:11: subject.endpoints: the selector selects nothing\n");
    assert_eq!(ran.stderr, expected);
    let ran = controller.weft(&["apply", "-f", &path, "-o", "json"]).await;
    assert_eq!(ran.json()["warnings"][0]["message"], "the selector selects nothing");
}

#[tokio::test]
async fn files_and_directories_make_one_request_in_order() {
    let directory = tempfile::tempdir().unwrap();
    file(&directory, "b.yaml", "kind: CidrSet\nname: b\n");
    file(&directory, "a.yml", "kind: CidrSet\nname: a1\n---\nkind: CidrSet\nname: a2\n");
    file(&directory, "notes.txt", "not a manifest");
    let other = tempfile::tempdir().unwrap();
    let other = file(&other, "c.conf", "kind: CidrSet\nname: c\n");
    let controller = Controller::start(Script { apply: Some(Ok(applied())), ..Script::default() }).await;
    let ran = controller.weft(&["apply", "-f", &other, "-f", directory.path().to_str().unwrap()]).await;
    ran.assert_code(0);
    let names: Vec<_> = controller.asked(|asked| {
        let name = |object: &v1::Object| match &object.kind {
            Some(v1::object::Kind::CidrSet(set)) => set.metadata.as_ref().unwrap().name.clone(),
            other => panic!("{other:?}"),
        };
        asked.apply[0].objects.iter().map(name).collect()
    });
    assert_eq!(names, ["c", "a1", "a2", "b"]);
}

#[tokio::test]
async fn a_dry_run_says_that_nothing_was_changed() {
    let controller = Controller::start(Script { apply: Some(Ok(applied())), ..Script::default() }).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--dry-run", "-o", "json"], POLICY).await;
    let object = json!({"kind": "Policy", "name": "api-from-web", "change": "created", "uid": "1b4e28ba-2fa1-11d2-883f-0016d3cca427"});
    assert_eq!(
        ran.assert_code(0).json(),
        json!({"revision": 42, "objects": [object], "warnings": [], "dryRun": true})
    );
    assert!(controller.asked(|asked| asked.apply[0].dry_run));
}

#[tokio::test]
async fn a_field_that_the_controller_refuses_is_shown_at_its_line() {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation(
        "objects[1].policy.ingress[0].ports[0].port",
        "70000 is out of range: expected 1 to 65535",
    );
    let refused = Status::with_error_details(Code::InvalidArgument, "one object is wrong", details);
    let controller = Controller::start(Script { apply: Some(Err(refused)), ..Script::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let good = file(&directory, "good.yaml", "kind: CidrSet\nname: partners\n");
    let bad = file(&directory, "bad.yaml", POLICY);
    let ran = controller.weft(&["apply", "-f", &good, "-f", &bad]).await;
    ran.assert_code(1);
    let place = format!("{bad}:7:31");
    assert!(
        ran.stderr.contains(&format!("error: {place}: ingress[0].ports[0].port: 70000 is out of range")),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("{protocol: TCP, port: 70000}")
            && ran.stderr.contains("refused by the controller"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stdout, "");
}

#[tokio::test]
async fn what_the_controller_refuses_is_shown_in_the_order_of_the_files() {
    let fields = [
        "objects[1].policy.metadata.name",
        "objects[0].policy.ingress.items[0].ports.items[0].end_port",
        "objects[0].policy.metadata.labels",
        "objects[0].policy.subject.endpoints.matchLabels.app",
    ];
    let mut details = ErrorDetails::new();
    for field in fields {
        details.add_bad_request_violation(field, "is wrong");
    }
    let refused = Status::with_error_details(Code::InvalidArgument, "objects are wrong", details);
    let controller = Controller::start(Script { apply: Some(Err(refused)), ..Script::default() }).await;
    let ran = controller
        .weft_with_input(&["apply", "-f", "-"], &format!("{POLICY}---\nkind: Policy\nname: b\n"))
        .await;
    ran.assert_code(1);
    let places: Vec<_> = ran.stderr.lines().filter_map(|line| line.strip_prefix("error: <stdin>:")).collect();
    let expected = [
        // The labels were not written: it is the policy that lacks them.
        "1:1: metadata.labels: is wrong",
        "3:42: subject.endpoints.matchLabels.app: is wrong",
        // Nor was endPort.
        "7:10: ingress.items[0].ports.items[0].end_port: is wrong",
        "10:7: metadata.name: is wrong",
    ];
    assert_eq!(places, expected);
}

#[tokio::test]
async fn what_the_controller_refuses_as_a_whole_is_said_as_it_says_it() {
    let stale = Status::failed_precondition("if_revision 3 is stale: policy \"other\" changed at revision 5");
    let controller = Controller::start(Script { apply: Some(Err(stale)), ..Script::default() }).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--if-revision", "3"], POLICY).await;
    ran.assert_code(1);
    assert_eq!(ran.stderr, "error: if_revision 3 is stale: policy \"other\" changed at revision 5\n");
}

#[tokio::test]
async fn a_bad_manifest_is_never_sent() {
    let controller = Controller::start(Script { apply: Some(Ok(applied())), ..Script::default() }).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-"], "kind: Policy\nname: p\ningres: []\n").await;
    ran.assert_code(1);
    assert!(ran.stderr.starts_with("error: <stdin>:3:1: unknown field `ingres`\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("did you mean `ingress`?"), "{}", ran.stderr);
    assert!(controller.asked(|asked| asked.apply.is_empty()));
}

#[tokio::test]
async fn more_than_one_apply_can_take_is_refused_at_the_object() {
    let controller = Controller::start(Script { apply: Some(Ok(applied())), ..Script::default() }).await;
    let many: Vec<_> = (0..51).map(|n| format!("kind: CidrSet\nname: set-{n}\n")).collect();
    let many = many.join("---\n");
    let ran = controller.weft_with_input(&["apply", "-f", "-"], &many).await;
    ran.assert_code(1);
    assert!(
        ran.stderr.starts_with("error: <stdin>:151:1: 51 objects are too many for one apply"),
        "{}",
        ran.stderr
    );
    let large = format!(
        "kind: CidrSet\nname: a\n---\nkind: CidrSet\nname: b\ncidrs:\n{}",
        "  - 198.51.100.0/24\n".repeat(70_000)
    );
    let ran = controller.weft_with_input(&["apply", "-f", "-"], &large).await;
    ran.assert_code(1);
    assert!(
        ran.stderr.starts_with("error: <stdin>:4:1: ")
            && ran.stderr.contains("bytes are too much for one apply"),
        "{}",
        ran.stderr
    );
    assert!(controller.asked(|asked| asked.apply.is_empty()));
}

#[tokio::test]
async fn a_problem_of_endless_text_is_still_told_in_a_few_lines() {
    let long = "x".repeat(100_000);
    let lines = "y\n".repeat(100_000);
    for manifest in
        [lines, format!("kind: {long}\n"), format!("kind: Policy\nname: p\n{long}: 1\n{long}: 2\n")]
    {
        let ran = Controller::start(Script::default())
            .await
            .weft_with_input(&["apply", "-f", "-"], &manifest)
            .await;
        ran.assert_code(1);
        assert!(ran.stderr.starts_with("error: <stdin>:"), "{}", &ran.stderr[..200]);
        assert!(ran.stderr.len() < 1_500, "{} bytes: {}…", ran.stderr.len(), &ran.stderr[..1_000]);
    }
}

#[tokio::test]
async fn manifests_that_hold_nothing_are_nothing_to_do() {
    let ran = weft(&["apply", "-f", "/dev/null"]).await;
    ran.assert_code(0);
    assert!(ran.stderr.contains("nothing to apply"), "{}", ran.stderr);
}

#[tokio::test]
async fn paths_that_cannot_be_read_are_named() {
    let ran = weft(&["apply", "-f", "/nowhere/policy.yaml"]).await;
    ran.assert_code(1);
    assert_eq!(
        ran.stderr,
        "error: cannot read /nowhere/policy.yaml: No such file or directory (os error 2)\n"
    );
    let directory = tempfile::tempdir().unwrap();
    let ran = weft(&["apply", "-f", directory.path().to_str().unwrap()]).await;
    ran.assert_code(1);
    assert!(ran.stderr.contains("no manifests"), "{}", ran.stderr);
    let binary = directory.path().join("x.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    let ran = weft(&["apply", "-f", binary.to_str().unwrap()]).await;
    ran.assert_code(1);
    assert!(ran.stderr.contains("is not UTF-8 text"), "{}", ran.stderr);
}

#[tokio::test]
async fn wait_reports_how_long_the_fleet_took() {
    let wait = vec![Ok(realised(1, 3, &["n2", "n3"])), Ok(realised(3, 3, &[]))];
    let script = || Script { apply: Some(Ok(applied())), wait: wait.clone(), ..Script::default() };
    let controller = Controller::start(script()).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--wait", "--timeout", "7s"], POLICY).await;
    ran.assert_code(0);
    assert!(ran.stdout.ends_with("\nrevision 42\nrealised on 3 nodes in 12.5 ms\n"), "{}", ran.stdout);
    let asked = controller.asked(|asked| asked.wait[0]);
    assert_eq!((asked.revision, asked.timeout.unwrap().seconds), (42, 7));
    let controller = Controller::start(script()).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--wait", "-o", "json"], POLICY).await;
    let expected =
        json!({"nodes": 3, "realised": 3, "waitingFor": [], "done": true, "tookMilliseconds": 12.5});
    assert_eq!(ran.assert_code(0).json()["realised"], expected);
}

#[tokio::test]
async fn a_rejection_exits_1_and_names_the_node_and_the_resource() {
    let wait =
        vec![Ok(realised(0, 1, &["n2"])), Err(Status::failed_precondition("revision 42 was rejected by n2"))];
    let rejection = v1::Rejection {
        r#type: "policy".to_owned(),
        name: "api-from-web".to_owned(),
        reason: "the subject's table is full".to_owned(),
    };
    let node = v1::NodeSummary { name: "n2".to_owned(), rejections: vec![rejection], ..Default::default() };
    let fleet = v1::FleetStatusResponse { nodes: vec![node], ..Default::default() };
    let controller =
        Controller::start(Script { apply: Some(Ok(applied())), wait, fleet, ..Script::default() }).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--wait"], POLICY).await;
    ran.assert_code(1);
    assert!(ran.stdout.ends_with("revision 42\n"), "{}", ran.stdout);
    let expected = "error: revision 42 was rejected by n2\n  node n2 rejected policy api-from-web: the subject's table is full\n";
    assert_eq!(ran.stderr, expected);
}

#[tokio::test]
async fn a_fleet_that_takes_too_long_exits_3_and_names_who_is_waited_for() {
    let wait = vec![Ok(realised(1, 3, &["n2", "n3"])), Err(Status::deadline_exceeded("still waiting"))];
    let node =
        |name: &str, connected| v1::NodeSummary { name: name.to_owned(), connected, ..Default::default() };
    let nodes = vec![node("n1", true), node("n2", true), node("n3", false)];
    let fleet = v1::FleetStatusResponse { nodes, ..Default::default() };
    let controller =
        Controller::start(Script { apply: Some(Ok(applied())), wait, fleet, ..Script::default() }).await;
    let ran = controller
        .weft_with_input(&["apply", "-f", "-", "--wait", "--timeout", "2s", "-o", "json"], POLICY)
        .await;
    ran.assert_code(3);
    assert_eq!(ran.json()["realised"]["done"], false);
    let expected = "error: revision 42 was applied but not realised everywhere within 2s: 1 of 3 nodes, waiting for n2, n3 (not connected)\n";
    assert_eq!(ran.stderr, expected);
}

#[tokio::test]
async fn a_controller_that_hangs_is_not_waited_for_longer_than_asked() {
    let wait = vec![Ok(realised(1, 3, &["n2", "n3"]))];
    let script = Script { apply: Some(Ok(applied())), wait, wait_hangs: true, ..Script::default() };
    let controller = Controller::start(script).await;
    let ran = controller.weft_with_input(&["apply", "-f", "-", "--wait", "--timeout", "10ms"], POLICY).await;
    ran.assert_code(3);
    assert!(ran.stderr.contains("waiting for n2, n3"), "{}", ran.stderr);
}
