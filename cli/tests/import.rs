//! `weft import`, the real binary over whole files: what becomes of each construct, and what is refused at which line.
//!
//! `import/carried` has policies as people write them beside the manifests that they become. `import/refused` says in a
//! comment at each line what is refused there. The first line of a file is the command that reads it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on says why")]

mod fake;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use fake::{Controller, Ran, Script, weft};
use serde_json::json;
use weft_cli::manifest::{Source, parse};
use weft_proto::v1::{self, object::Kind as K};
use weft_shared::policy::parse as model;

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import").join(directory);
    let files = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| !file.to_str().unwrap().ends_with(".weft.yaml")).collect();
    files.sort();
    files
}

/// Runs the command of the file's first line on it, where no controller is.
async fn import(file: &Path) -> Ran {
    let text = std::fs::read_to_string(file).unwrap();
    let flags = text.lines().next().unwrap().strip_prefix("# weft import").unwrap();
    let mut arguments = vec!["--server", "http://127.0.0.1:1", "import", "-f", file.to_str().unwrap()];
    arguments.extend(flags.split_whitespace());
    weft(&arguments).await
}

fn policies(yaml: &str) -> Vec<v1::Policy> {
    let source = Source { name: "imported.yaml".to_owned(), text: yaml.to_owned() };
    let objects = parse([source]).unwrap().objects;
    let policy = |object: v1::Object| match object.kind {
        Some(K::Policy(policy)) => policy,
        other => panic!("{other:?} is no policy"),
    };
    objects.into_iter().map(policy).collect()
}

#[tokio::test]
async fn what_can_be_carried_over_becomes_the_manifests_beside_it() {
    let files = files("carried");
    assert!(files.len() >= 25);
    for file in files {
        let ran = import(&file).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", file.display());
        let expected = std::fs::read_to_string(file.with_extension("weft.yaml")).unwrap();
        assert_eq!(ran.stdout, expected, "{}", file.display());
    }
}

#[tokio::test]
async fn what_is_printed_is_what_apply_takes() {
    let mut judged = 0;
    for file in files("carried") {
        for policy in policies(&std::fs::read_to_string(file.with_extension("weft.yaml")).unwrap()) {
            judged += 1;
            model::policy(&policy).unwrap_or_else(|errors| panic!("{}: {errors:?}", file.display()));
        }
    }
    assert!(judged >= 20, "{judged}");
}

#[tokio::test]
async fn what_cannot_be_carried_over_is_refused_at_its_line_and_nothing_is_printed() {
    for file in files("refused") {
        let text = std::fs::read_to_string(&file).unwrap();
        let expected: Vec<(usize, &str)> = text
            .lines()
            .enumerate()
            .filter_map(|(number, line)| Some((number + 1, line.split_once("# refused: ")?.1)))
            .flat_map(|(number, messages)| messages.split(" | ").map(move |message| (number, message.trim())))
            .collect();
        assert!(!expected.is_empty(), "{}", file.display());
        let ran = import(&file).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", file.display());
        let prefix = format!("error: {}:", file.display());
        let told: Vec<_> = ran.stderr.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let place = |told: &str| told.split(':').next().unwrap().parse::<usize>().unwrap();
        for (line, message) in &expected {
            let found = told.iter().any(|told| place(told) == *line && told.contains(message));
            assert!(found, "{}:{line}: {message}\n{}", file.display(), ran.stderr);
        }
        assert_eq!(told.len(), expected.len(), "{}\n{}", file.display(), ran.stderr);
        let problems =
            if told.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", told.len()) };
        assert!(ran.stderr.ends_with(&format!("{problems}: nothing was imported\n")), "{}", ran.stderr);
    }
}

/// Every word that the documents promise to refuse is refused by one of the files.
#[test]
fn every_refusal_that_is_documented_is_tested() {
    let documented = include_str!("../../docs/import.md");
    let table = documented.split("## What is refused").nth(1).unwrap().split("\n## ").next().unwrap();
    let refused: String =
        files("refused").iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let words: BTreeSet<_> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .collect();
    assert!(words.len() > 20, "{words:?}");
    for word in words {
        assert!(refused.contains(word), "no test refuses `{word}`");
    }
}

const BLOCK: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: x}
spec:
  podSelector: {}
  ingress:
    - from:
        - ipBlock: {cidr: 10.0.0.0/8}
";

fn fleet(pool: &str) -> v1::Object {
    let metadata = v1::Metadata { name: "fleet".to_owned(), ..v1::Metadata::default() };
    let pools = vec![v1::Pool { cidr: pool.to_owned(), node_prefix_length: 24 }];
    let config = v1::FleetConfig { metadata: Some(metadata), pools, ..v1::FleetConfig::default() };
    v1::Object { kind: Some(K::FleetConfig(config)) }
}

#[tokio::test]
async fn pools_are_asked_of_the_controller_when_a_block_needs_them() {
    let controller =
        Controller::start(Script { objects: vec![fleet("10.200.0.0/16")], ..Script::default() }).await;
    let ran = controller.weft_with_input(&["import", "-f", "-"], BLOCK).await;
    let policies = policies(&ran.assert_code(0).stdout);
    let peers = &policies[0].ingress.as_ref().unwrap().items[0].peers.as_ref().unwrap().items;
    let entities: Vec<_> = peers.iter().map(v1::Peer::entity).collect();
    assert_eq!(entities, [v1::Entity::Unspecified, v1::Entity::Fleet, v1::Entity::Unmanaged]);
    let asked = controller.asked(|asked| (asked.get[0].clone(), asked.list[0].clone()));
    assert_eq!((asked.0.kind(), asked.0.name.as_str()), (v1::Kind::FleetConfig, "fleet"));
    assert_eq!(asked.1.kind(), v1::Kind::Node);
}

#[tokio::test]
async fn without_pools_and_controller_a_block_is_refused_and_nothing_else_asks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("block.yaml");
    std::fs::write(&path, BLOCK).unwrap();
    let ran = weft(&["--server", "http://127.0.0.1:1", "import", "-f", path.to_str().unwrap()]).await;
    ran.assert_code(1);
    assert!(
        ran.stderr.contains("block.yaml:8:27: the fleet's pools must be known for this"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("name them with --pools"), "{}", ran.stderr);
}

#[tokio::test]
async fn json_is_one_document_and_a_directory_gets_a_file_each() {
    let carried = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/carried/cilium-specs.yaml");
    let carried = carried.to_str().unwrap();
    let ran = weft(&["import", "-f", carried, "--output", "json"]).await;
    let items = &ran.assert_code(0).json()["items"];
    assert_eq!(items[0]["name"], "ciliumnetworkpolicy-shop-several-1");
    assert_eq!(items[1]["defaultDeny"], json!({"egress": true}));

    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("new");
    let arguments = ["import", "-f", carried, "--output-dir", out.to_str().unwrap()];
    let ran = weft(&arguments).await;
    let paths: Vec<_> = ran.assert_code(0).stdout.lines().collect();
    assert_eq!(paths.len(), 2);
    let first = std::fs::read_to_string(paths[0]).unwrap();
    assert_eq!(policies(&first)[0].metadata.as_ref().unwrap().name, "ciliumnetworkpolicy-shop-several-1");
    // Nothing is written over what somebody may have changed.
    std::fs::remove_file(paths[0]).unwrap();
    let again = weft(&arguments).await;
    again.assert_code(1);
    assert!(again.stderr.contains("is there already: nothing was written"), "{}", again.stderr);
    assert!(!Path::new(paths[0]).exists());
}

#[tokio::test]
async fn more_policies_than_one_apply_takes_are_said_to_be_too_many() {
    let controller = Controller::start(Script::default()).await;
    let document = |number: usize| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p{number}}}, spec: {{}}}}\n"
        )
    };
    let many: Vec<_> = (0..51).map(document).collect();
    let ran = controller.weft_with_input(&["import", "-f", "-"], &many.join("---\n")).await;
    assert_eq!(policies(&ran.assert_code(0).stdout).len(), 51);
    assert!(ran.stderr.contains("51 policies: `weft apply` takes at most 50"), "{}", ran.stderr);
    let none = controller.weft_with_input(&["import", "-f", "-"], "").await;
    assert_eq!((none.assert_code(0).stdout.as_str(), none.stderr.contains("nothing to import")), ("", true));
}

#[tokio::test]
async fn bad_flags_are_bad_usage() {
    for flags in [
        ["--namespace-label", "not a key"],
        ["--namespace-label", "instance"],
        ["--default-namespace", "No"],
        ["--pools", "10.0.0.1/8"],
        ["--nodes", "192.0.2.0/24"],
    ] {
        weft(&[&["import", "-f", "-"][..], &flags].concat()).await.assert_code(64);
    }
}

/// The command, the policy and the result of `docs/import.md`.
#[tokio::test]
async fn the_documented_example_becomes_what_the_document_shows() {
    let document = include_str!("../../docs/import.md");
    let example = document.split("## An example").nth(1).unwrap();
    let blocks: Vec<_> = example.split("```").skip(1).step_by(2).take(3).collect();
    let [input, command, expected] = blocks.as_slice() else { panic!("{blocks:?}") };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.yaml");
    std::fs::write(&path, input.strip_prefix("yaml\n").unwrap()).unwrap();
    let arguments = command.trim().strip_prefix("weft ").unwrap().split_whitespace();
    let arguments: Vec<_> =
        arguments.map(|word| if word == "api.yaml" { path.to_str().unwrap() } else { word }).collect();
    let ran = weft(&arguments).await;
    assert_eq!(ran.assert_code(0).stdout, expected.strip_prefix("yaml\n").unwrap());
}
