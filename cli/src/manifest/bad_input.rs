//! What is wrong with a manifest is said at its exact line and column.
use super::*;

/// The one problem of a manifest as `line:column message | label | help`.
fn problem(text: &str) -> String {
    let problems = parse([Source { name: "bad.yaml".to_owned(), text: text.to_owned() }])
        .expect_err("the manifest is wrong");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let Problem { place, message, label, help, .. } = &problems[0];
    refused_by_the_schema_too(text, message, label);
    let (line, column) = place.position();
    format!("{line}:{column} {message} | {label} | {}", help.as_deref().unwrap_or("-"))
}

/// What an editor marks by the schema. What is no manifest's YAML at all, it never sees.
#[track_caller]
fn refused_by_the_schema_too(text: &str, message: &str, label: &str) {
    // One document says nothing of another, and 080 is a number like 80 there.
    let beyond = message.ends_with("is defined twice")
        || (label.starts_with("expected decimal digits alone") && !text.contains('.'));
    if !beyond {
        let refusals = json_schema::tests::refusals(text);
        assert!(refusals.is_none_or(|refusals| !refusals.is_empty()), "the schema takes this:\n{text}");
    }
}

#[track_caller]
fn assert_problem(text: &str, expected: &str) {
    assert_eq!(problem(text), expected, "\n{text}");
}

const POLICY: &str = "kind: Policy\nname: p\n";

#[test]
fn an_unknown_field_is_named_with_the_nearest_one() {
    let known = "Policy has the fields name, labels, uid, revision, tier, order, subject, ingress, egress, defaultDeny, mode";
    assert_problem(
        "kind: Policy\nname: p\ningres: []\n",
        &format!("3:1 unknown field `ingres` | did you mean `ingress`? | {known}"),
    );
    assert_problem(
        "kind: Policy\nname: p\nspec:\n  ingress: []\n",
        &format!("3:1 unknown field `spec` | not a field | {known}"),
    );
    let nested =
        format!("{POLICY}ingress:\n  - name: web\n    ports:\n      - {{protocol: TCP, prot: 80}}\n");
    assert_problem(
        &nested,
        "6:25 unknown field `prot` | did you mean `port`? | Port has the fields protocol, protocolNumber, port, endPort, type, code",
    );
}

#[test]
fn a_field_in_snake_case_is_unknown_and_shown_as_it_is_written() {
    let text = format!("{POLICY}default_deny: {{ingress: true}}\n");
    assert!(problem(&text).starts_with("3:1 unknown field `default_deny` | did you mean `defaultDeny`?"));
}

#[test]
fn a_field_given_twice_is_an_error_at_the_second() {
    assert_problem(
        &format!("{POLICY}ingress: []\negress: []\ningress: []\n"),
        "5:1 `ingress` is given twice | again here | -",
    );
    assert_problem(&format!("{POLICY}labels: {{a: b, a: c}}\n"), "3:16 `a` is given twice | again here | -");
}

#[test]
fn a_tier_that_is_empty_and_an_order_that_is_no_number_are_errors_at_their_place() {
    let empty = problem(&format!("{POLICY}tier: \"\"\n"));
    assert!(empty.starts_with("3:7 ") && empty.contains("tier"), "{empty}");
    let nothing = problem(&format!("{POLICY}tier:\n"));
    assert!(nothing.starts_with("3:") && nothing.contains("tier"), "{nothing}");
    let other = problem(&format!("{POLICY}tier: platform\n"));
    assert!(other.contains("admin, application, baseline"), "{other}");
    for order in ["-1", "4294967296", "1.5"] {
        let wrong = problem(&format!("{POLICY}order: {order}\n"));
        assert!(wrong.starts_with("3:8 ") && wrong.contains("order"), "{wrong}");
    }
}

#[test]
fn a_wrong_type_says_what_was_expected() {
    assert_problem(&format!("{POLICY}ingress: yes\n"), "3:10 `ingress` must be a list | this is text | -");
    assert_problem(
        &format!("{POLICY}subject: [a]\n"),
        "3:10 `subject` must be a mapping | this is a list | -",
    );
    assert_problem(
        &format!("{POLICY}order: high\n"),
        "3:8 `order` must be a whole number | this is text | -",
    );
    assert_problem(
        &format!("{POLICY}order: \"10\"\n"),
        "3:8 `order` must be a whole number | this is text | write it without quotes",
    );
    assert_problem(
        &format!("{POLICY}defaultDeny:\n  ingress: yes\n"),
        "4:12 `ingress` must be true or false | this is text | -",
    );
    assert_problem(
        &format!("{POLICY}labels:\n  - app\n"),
        "4:3 `labels` must be a mapping of text to text | this is a list | -",
    );
    assert_problem(
        "- a\n- b\n",
        "1:1 this document must be a resource: `kind`, `name` and its fields | this is a list | -",
    );
}

#[test]
fn what_yaml_does_not_read_as_text_needs_quotes() {
    assert_problem(
        &format!("{POLICY}labels:\n  build: 12\n"),
        "4:10 `build` must be text | YAML reads this as a number | write it in quotes: \"12\"",
    );
    assert_problem(
        "kind: Policy\nname: true\n",
        "2:7 `name` must be text | YAML reads this as true or false | write it in quotes: \"true\"",
    );
}

#[test]
fn nothing_is_neither_an_empty_list_nor_an_absent_one() {
    assert_problem(
        &format!("{POLICY}ingress:\negress: []\n"),
        "3:1 `ingress` must be a list | this is nothing | leave the field out, or write an empty list as []",
    );
    assert!(
        problem(&format!("{POLICY}ingress:\n  - peers: null\n"))
            .starts_with("4:12 `peers` must be a list | this is nothing")
    );
}

#[test]
fn a_number_that_the_field_cannot_hold_is_out_of_range() {
    let port = |number: &str| {
        problem(&format!("{POLICY}ingress:\n  - ports:\n      - {{protocol: TCP, port: {number}}}\n"))
    };
    assert_eq!(port("4294967296"), "5:31 `port` is out of range: 4294967296 | expected 0 to 4294967295 | -");
    assert_eq!(port("-1"), "5:31 `port` is out of range: -1 | expected 0 to 4294967295 | -");
    assert_eq!(
        port("80.5"),
        "5:31 `port` must be a whole number | expected decimal digits alone, without a leading zero | -"
    );
    assert_eq!(
        port("0x50"),
        "5:31 `port` must be a whole number | expected decimal digits alone, without a leading zero | -"
    );
    assert_eq!(
        port("080"),
        "5:31 `port` must be a whole number | expected decimal digits alone, without a leading zero | -"
    );
}

#[test]
fn an_unknown_enum_value_lists_those_that_are_allowed() {
    assert_problem(
        &format!("{POLICY}ingress:\n  - ports: [{{protocol: tcp}}]\n"),
        "4:24 `protocol` can't be `tcp` | did you mean `TCP`? | expected one of TCP, UDP, SCTP, ICMP, ICMPv6",
    );
    assert_problem(
        &format!("{POLICY}ingress:\n  - action: ALLOW\n"),
        "4:13 `action` can't be `ALLOW` | did you mean `allow`? | expected one of allow, deny, pass",
    );
    assert_problem(
        &format!("{POLICY}mode: unspecified\n"),
        "3:7 `mode` can't be `unspecified` | not one of the values | expected one of enforce, audit",
    );
}

#[test]
fn a_document_needs_a_kind_and_a_name() {
    let kinds = "kinds are Node, Endpoint, Identity, CidrSet, Policy, Service, Prefilter, EgressGateway, Bundle, Rollout, FleetConfig, Shaping";
    assert_problem(
        "name: p\n",
        &format!("1:1 this document has no `kind` | a resource starts here | {kinds}"),
    );
    assert_problem(
        "# first\nkind: policy\nname: p\n",
        &format!("2:7 unknown kind `policy` | did you mean `Policy`? | {kinds}"),
    );
    let help = "every resource has a name, unique within its kind";
    assert_problem("kind: Policy\n", &format!("1:1 this Policy has no `name` | here | {help}"));
    assert_problem("kind: Policy\nname: ''\n", &format!("2:7 this Policy has no `name` | here | {help}"));
}

#[test]
fn what_is_not_yaml_is_said_where_it_breaks() {
    let text = problem("kind: Policy\nname: p\n  ingress: []\n");
    assert!(text.starts_with("3:") && text.contains("not valid YAML"), "{text}");
    let tab = problem("kind: Policy\nname: p\ningress:\n\t- name: web\n");
    assert!(tab.starts_with("4:") && tab.contains("not valid YAML"), "{tab}");
    let open = problem("kind: Policy\nname: p\ningress: [a\n");
    assert!(open.contains("not valid YAML"), "{open}");
}

#[test]
fn anchors_aliases_merge_keys_and_tags_are_refused() {
    assert!(problem(&format!("{POLICY}labels: &x {{a: b}}\n")).contains("anchors"));
    assert!(problem(&format!("{POLICY}labels:\n  <<: {{a: b}}\n")).starts_with("4:3 merge keys"));
    assert!(problem(&format!("{POLICY}labels: {{a: !!str b}}\n")).contains("tags"));
    assert!(problem(&format!("{POLICY}labels: {{a: &x b, c: *x}}\n")).contains("anchors"));
}

#[test]
fn columns_count_characters_not_bytes() {
    assert!(
        problem("kind: Policy\nname: p\nlabels: {ключ: ü, app: 1}\n").starts_with("3:24 `app` must be text")
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let source = Source {
        name: "bad.yaml".to_owned(),
        text: format!("{POLICY}order: x\nmode: y\n---\nkind: Polcy\n"),
    };
    let other = Source { name: "worse.yaml".to_owned(), text: "kind: [".to_owned() };
    let problems = parse([source, other]).unwrap_err();
    let places: Vec<_> = problems.iter().map(|problem| problem.place.to_string()).collect();
    assert_eq!(places[..3], ["bad.yaml:3:8", "bad.yaml:4:7", "bad.yaml:6:7"]);
    assert!(places[3].starts_with("worse.yaml:1:"), "{places:?}");
}

#[test]
fn the_same_resource_twice_names_both_places() {
    assert_problem(&format!("{POLICY}---\n{POLICY}"), "4:1 Policy `p` is defined twice | again here | -");
    let source = |name: &str| Source { name: name.to_owned(), text: POLICY.to_owned() };
    let problems = parse([source("a.yaml"), source("b.yaml")]).unwrap_err();
    assert_eq!(problems[0].place.to_string(), "b.yaml:1:1");
    assert_eq!(problems[0].help.as_deref(), Some("first defined at a.yaml:1:1"));
}

#[test]
fn nesting_without_end_is_refused() {
    let nested = |levels| format!("{POLICY}labels: {}{}\n", "[".repeat(levels), "]".repeat(levels));
    assert!(problem(&nested(70)).contains("nested too deeply"), "{}", problem(&nested(70)));
    // So deep that the parser itself gives up.
    assert!(problem(&nested(100_000)).starts_with("3:"), "{}", problem(&nested(100_000)));
}
