//! Manifests in the documents are read by the same reader as everybody's.
use std::path::Path;

use weft_cli::manifest::{Source, load, parse};

#[test]
fn every_manifest_in_the_documents_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    for name in ["README.md", "docs/policy.md", "docs/architecture.md"] {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        // The blocks keep their line, so that a problem is told at the document's line.
        for block in yaml_blocks(&text).into_iter().filter(|block| block.contains("\nkind: ")) {
            seen += 1;
            let source = Source { name: name.to_owned(), text: block };
            if let Err(problems) = parse([source]) {
                panic!("{problems:#?}");
            }
        }
    }
    assert!(seen > 0, "the documents show manifests");
}

#[test]
fn every_example_is_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let manifests = load(&[examples]).unwrap();
    assert!(!manifests.objects.is_empty());
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
