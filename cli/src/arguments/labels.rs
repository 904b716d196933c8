//! Labels as `app=web,env=prod`, and selectors as `app=web,env!=dev,tier in (a,b),!legacy`.
use std::collections::BTreeMap;

use weft_proto::v1::{LabelOperator, LabelRequirement, Selector};

/// One `key=value`.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("expected KEY=VALUE, not `{text}`")),
    }
}

/// `key=value`, separated by commas; the same key twice is an error.
pub(crate) fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for part in text.split(',') {
        let (key, value) = parse_label(part)?;
        if labels.insert(key.clone(), value).is_some() {
            return Err(format!("`{key}` is given twice"));
        }
    }
    Ok(labels)
}

/// Requirements separated by commas, all of which must hold, in the syntax of kubectl's `-l`.
pub(crate) fn parse_selector(text: &str) -> Result<Selector, String> {
    let mut match_expressions = Vec::new();
    for part in split_outside_brackets(text)? {
        match_expressions.push(requirement(part.trim())?);
    }
    Ok(Selector { match_labels: BTreeMap::new(), match_expressions })
}

fn requirement(text: &str) -> Result<LabelRequirement, String> {
    let new = |key: &str, operator: LabelOperator, values: Vec<String>| {
        let key = key.trim().to_owned();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(format!(
                "`{text}`: expected KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (A,B) or KEY notin (A,B)"
            ));
        }
        Ok(LabelRequirement { key, operator: operator.into(), values })
    };
    let value = |value: &str| vec![value.trim().to_owned()];
    if let Some((key, given)) = text.split_once("!=") {
        return new(key, LabelOperator::NotIn, value(given));
    }
    if let Some((key, given)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return new(key, LabelOperator::In, value(given));
    }
    if let Some(list) = text.strip_suffix(')')
        && let Some((head, list)) = list.split_once('(')
        && let Some((key, word)) = head.trim().rsplit_once(char::is_whitespace)
    {
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        match word {
            "in" => return new(key, LabelOperator::In, values),
            "notin" => return new(key, LabelOperator::NotIn, values),
            _ => {}
        }
    }
    match text.strip_prefix('!') {
        Some(key) => new(key, LabelOperator::DoesNotExist, Vec::new()),
        None => new(text, LabelOperator::Exists, Vec::new()),
    }
}

fn split_outside_brackets(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut open) = (0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' if open => return Err("a list cannot hold a list".to_owned()),
            '(' => open = true,
            ')' => open = false,
            ',' if !open => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if open {
        return Err("the list is not closed: expected `)`".to_owned());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_read_like_those_of_kubectl() {
        let selector =
            parse_selector("app=web,env!=dev, tier in (a, b),zone notin (x),!legacy,owner,os==linux")
                .unwrap();
        let all: Vec<_> = selector
            .match_expressions
            .iter()
            .map(|r| {
                format!(
                    "{} {} {}",
                    r.key,
                    r.operator().as_str_name().trim_start_matches("LABEL_OPERATOR_"),
                    r.values.join("|")
                )
            })
            .collect();
        let expected = [
            "app IN web",
            "env NOT_IN dev",
            "tier IN a|b",
            "zone NOT_IN x",
            "legacy DOES_NOT_EXIST ",
            "owner EXISTS ",
            "os IN linux",
        ];
        assert_eq!(all, expected);
        for wrong in ["", "=x", "a in (b", "a b", "a,,b", "a in ((b))"] {
            assert!(parse_selector(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_are_pairs_and_no_key_twice() {
        assert_eq!(
            parse_labels("app=web,env=").unwrap(),
            [("app".into(), "web".into()), ("env".into(), String::new())].into()
        );
        for wrong in ["", "app", "=web", "app=web,app=api", "app=web,"] {
            assert!(parse_labels(wrong).is_err(), "{wrong}");
        }
    }
}
