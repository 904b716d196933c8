//! What stands at the end of a path: text, numbers, words of an enum, points in time.
use prost_reflect::{DynamicMessage, MessageDescriptor, Value as Proto};

use super::{Reader, complain::meant};
use crate::manifest::{
    problem::{Problem, quoted},
    scalar::{Plain, classify},
    schema,
    tree::{Key, Node, Value},
};

impl Reader<'_> {
    pub(crate) fn text(&mut self, key: &Key, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { text, plain: false } => Some(text.clone()),
            Value::Scalar { text, plain: true } if classify(text) == Plain::Text => Some(text.clone()),
            Value::Scalar { text, plain: true } if !node.is_null() => {
                let problem =
                    Problem::new(self.place(node.span), format!("`{}` must be text", quoted(&key.text)));
                let label = format!("YAML reads this as {}", classify(text).noun());
                self.problems
                    .push(problem.label(label).help(format!("write it in quotes: \"{}\"", quoted(text))));
                None
            }
            _ => {
                self.wrong_type(node, "text", Some(key));
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, key: &Key, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Some(true),
            Value::Scalar { text, plain: true } if text == "false" => Some(false),
            _ => {
                self.wrong_type(node, "true or false", Some(key));
                None
            }
        }
    }

    pub(crate) fn number(&mut self, key: &Key, node: &Node, max: u64) -> Option<u64> {
        let Value::Scalar { text, plain: true } = &node.value else {
            self.wrong_type(node, "a whole number", Some(key));
            return None;
        };
        if classify(text) != Plain::Number {
            self.wrong_type(node, "a whole number", Some(key));
            return None;
        }
        let decimal =
            text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        if decimal && let Some(number) = text.parse().ok().filter(|number| *number <= max) {
            return Some(number);
        }
        let whole = text.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        let (message, label) = if whole && (decimal || text.starts_with('-')) {
            (
                format!("`{}` is out of range: {}", quoted(&key.text), quoted(text)),
                format!("expected 0 to {max}"),
            )
        } else {
            (
                format!("`{}` must be a whole number", quoted(&key.text)),
                "expected decimal digits alone, without a leading zero".to_owned(),
            )
        };
        self.problems.push(Problem::new(self.place(node.span), message).label(label));
        None
    }

    pub(super) fn one_of(&mut self, key: &Key, node: &Node, allowed: &[(String, i32)]) -> Option<i32> {
        let listed = || allowed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let text = match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => text,
            _ => {
                self.wrong_type(node, &format!("one of {}", listed()), Some(key));
                return None;
            }
        };
        if let Some((_, number)) = allowed.iter().find(|(name, _)| name == text) {
            return Some(*number);
        }
        let near = schema::nearest(text, allowed.iter().map(|(name, _)| name.as_str()));
        let problem = Problem::new(
            self.place(node.span),
            format!("`{}` can't be `{}`", quoted(&key.text), quoted(text)),
        );
        self.problems.push(
            problem.label(meant(near, "not one of the values")).help(format!("expected one of {}", listed())),
        );
        None
    }

    pub(super) fn timestamp(
        &mut self,
        of: &MessageDescriptor,
        key: &Key,
        node: &Node,
    ) -> Option<DynamicMessage> {
        let Value::Scalar { text, .. } = &node.value else {
            self.wrong_type(node, "a point in time", Some(key));
            return None;
        };
        let Ok(time) = text.parse::<prost_types::Timestamp>() else {
            let problem = Problem::new(
                self.place(node.span),
                format!("`{}` must be a point in time", quoted(&key.text)),
            );
            self.problems.push(problem.label("expected RFC 3339, such as 2026-11-22T20:00:00Z"));
            return None;
        };
        let mut message = DynamicMessage::new(of.clone());
        message.set_field_by_number(1, Proto::I64(time.seconds));
        message.set_field_by_number(2, Proto::I32(time.nanos));
        Some(message)
    }
}
