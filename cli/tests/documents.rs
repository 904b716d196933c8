//! Manifests in the documents are read by the same reader as everybody's.
use std::path::Path;

use weft_cli::manifest::{Source, load, parse};
use weft_shared::{
    layout::{Reason, maps},
    policy,
    service::shares,
};

#[test]
fn every_manifest_in_the_documents_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    for name in [
        "README.md",
        "docs/policy.md",
        "docs/services.md",
        "docs/shaping.md",
        "docs/import.md",
        "docs/architecture.md",
        "docs/operations.md",
        "docs/PROMISES.md",
    ] {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        // The blocks keep their line, so that a problem is told at the document's line.
        let ours = |block: &String| block.contains("\nkind: ") && !block.contains("\napiVersion: ");
        for block in yaml_blocks(&text).into_iter().filter(ours) {
            seen += 1;
            let source = Source { name: name.to_owned(), text: block };
            let manifests = parse([source]).unwrap_or_else(|problems| panic!("{problems:#?}"));
            for object in &manifests.objects {
                assert_eq!(policy::parse::object(object), Ok(Vec::new()), "{name}: {object:#?}");
            }
        }
    }
    assert!(seen > 0, "the documents show manifests");
}

#[test]
fn every_example_is_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    for directory in [examples.clone(), examples.join("later"), examples.join("services")] {
        let manifests = load(&[directory]).unwrap();
        assert!(!manifests.objects.is_empty());
        for object in &manifests.objects {
            assert_eq!(policy::parse::object(object), Ok(Vec::new()), "{object:#?}");
        }
    }
}

const OPERATIONS: &str = include_str!("../../docs/operations.md");

#[test]
fn every_reason_for_a_drop_is_explained() {
    for reason in Reason::ALL.iter().filter(|reason| reason.is_drop()) {
        assert!(OPERATIONS.contains(&format!("| `{}` |", reason.name())), "{}", reason.name());
    }
}

#[test]
fn limits_are_told_as_they_are() {
    let limits = [
        ("nodes of a fleet, as one node sees it", maps::NODES_MAX),
        ("endpoints of a node", maps::ENDPOINTS_MAX),
        ("identities with a policy on a node", maps::SUBJECTS_MAX),
        ("rows of one identity's policy (its peers, and its different rulebooks)", maps::POLICY_ROWS_MAX),
        ("addresses, prefixes on a node", maps::IPCACHE_MAX),
        ("flows remembered by a node (`--flows-max`)", maps::FLOWS_MAX),
        ("datagrams in fragments under way", maps::FRAGMENTS_MAX),
    ];
    for (what, limit) in limits {
        let line = format!("| {what} | {},{:03}", limit / 1000, limit % 1000);
        assert!(OPERATIONS.contains(&line), "{line}");
    }
}

#[test]
fn tables_of_services_are_told_as_they_are() {
    let text = include_str!("../../docs/services.md");
    let number = |number: u32| match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    };
    for (slots, ratio) in [(shares::SLOTS, shares::RATIO), (shares::SLOTS_LARGE, shares::RATIO_LARGE)] {
        let rows = text.lines().filter(|line| line.starts_with(&format!("| {} slots", number(slots))));
        let rows: Vec<_> = rows.collect();
        assert!(matches!(rows[..], [row] if row.contains(&format!("| {} |", number(ratio)))), "{rows:?}");
    }
    assert_eq!(shares::BACKENDS_MAX, shares::RATIO_LARGE as usize);
    assert!(text.contains(&format!("at most {} of each family", number(shares::RATIO_LARGE))));
}

fn yaml_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```yaml" => block = Some("\n".repeat(number + 1)),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(block.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}
