//! Values → YAML text in block style, in the order of their fields. What it writes, `tree` reads back as the same.
use std::fmt::Write;

use serde_json::Value;

use super::scalar::needs_quotes;

/// One document, ending in a newline.
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// Several documents, each but the first after `---`.
pub fn documents<'a>(values: impl IntoIterator<Item = &'a Value>) -> String {
    values.into_iter().map(document).collect::<Vec<_>>().join("---\n")
}

/// Writes a value whose first line may continue the current one; nested lines are indented by `indent`.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (at, (key, value)) in fields.iter().enumerate() {
                if at > 0 {
                    pad(indent, out);
                }
                scalar(key, out);
                out.push(':');
                nested(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    pad(indent, out);
                }
                out.push_str("- ");
                block(item, indent + 2, out);
                if !out.ends_with('\n') {
                    out.push('\n');
                }
            }
        }
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) => scalar(text, out),
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            // Writing to a String never fails.
            let _ = write!(out, "{value}");
        }
    }
}

/// A value after `key:`.
fn nested(value: &Value, indent: usize, out: &mut String) {
    let empty = match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if empty {
        out.push(' ');
        block(value, indent, out);
        out.push('\n');
    } else {
        out.push('\n');
        pad(indent + 2, out);
        block(value, indent + 2, out);
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(text: &str, out: &mut String) {
    if !needs_quotes(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            letter
                if letter.is_control()
                    || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_read_like_those_that_people_write() {
        let value = serde_json::json!({
            "kind": "Policy", "name": "api", "labels": {"build": "12"},
            "ingress": [{"name": "web", "peers": [{"endpoints": {}}, {"except": ["10.0.0.0/8"]}]}, {"ports": []}],
            "egress": [], "order": 3
        });
        let expected = "\
kind: Policy
name: api
labels:
  build: \"12\"
ingress:
  - name: web
    peers:
      - endpoints: {}
      - except:
          - 10.0.0.0/8
  - ports: []
egress: []
order: 3
";
        assert_eq!(document(&value), expected);
    }
}
