//! Whatever is read, the import ends: with policies that have names, or with problems.
use proptest::{prelude::*, sample::Index};

use super::{Namespaces, Network, Options, import};
use crate::manifest::Source;

fn options() -> Options {
    Options {
        namespace_label: "namespace".to_owned(),
        default_namespace: "default".to_owned(),
        namespaces: None,
        network: Some(Network { pools: vec!["10.200.0.0/16".parse().unwrap()], nodes: None }),
    }
}

fn check(text: &str) {
    let source = || Source { name: "any.yaml".to_owned(), text: text.to_owned() };
    let imported = import([source()], &options());
    for problem in &imported.problems {
        let (line, _) = problem.place.position();
        assert!(line <= text.lines().count() + 1, "{problem}");
    }
    for policy in imported.policies.iter().filter(|_| imported.problems.is_empty()) {
        let name = &policy.metadata.as_ref().unwrap().name;
        weft_shared::policy::parse::name(name, "name").unwrap();
    }
    // What is no namespace is a problem, too.
    let _ = Namespaces::read([source()]);
}

/// The files that show what is carried over, all in one.
fn carried() -> Vec<String> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import/carried");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut texts: Vec<_> = files.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    texts.sort();
    texts
}

#[test]
fn without_any_one_of_its_lines_a_file_is_still_read_to_the_end() {
    for text in carried() {
        let lines: Vec<_> = text.lines().collect();
        for left_out in 0..lines.len() {
            let rest: Vec<_> =
                lines.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, line)| *line).collect();
            check(&rest.join("\n"));
        }
    }
}

proptest! {
    #[test]
    fn with_any_word_in_place_of_another_a_file_is_still_read_to_the_end(
        file: Index,
        at: Index,
        word in r#"(null|\{\}|\[\]|\[\{\}\]|-1|0x1|99999999999|"ü{0,300}"|\[null\]|\{a: b\}|~|true|[a-z:./]{0,8})"#,
    ) {
        let texts = carried();
        let text = file.get(&texts);
        let words: Vec<_> = text.split_inclusive([' ', '\n']).collect();
        let at = at.index(words.len());
        let end = if words[at].ends_with('\n') { "\n" } else { " " };
        let changed = format!("{word}{end}");
        let mut mixed: Vec<_> = words.clone();
        mixed[at] = &changed;
        check(&mixed.concat());
    }

    #[test]
    fn no_text_at_all_makes_the_import_panic(text in any::<String>()) {
        check(&text);
    }
}
