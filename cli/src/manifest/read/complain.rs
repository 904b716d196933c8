//! Where a value stands, and what to say when it is not what it should be.
use std::sync::Arc;

use prost_reflect::MessageDescriptor;

use super::Reader;
use crate::manifest::{
    problem::{Problem, quoted},
    scalar::{Plain, classify},
    schema,
    source::{Place, Span},
    tree::{Key, Node, Value},
};

impl Reader<'_> {
    pub(crate) fn wrong_type(&mut self, node: &Node, expected: &str, key: Option<&Key>) {
        let (noun, help) = match &node.value {
            _ if node.is_null() && expected == "a list" => {
                ("nothing", Some("leave the field out, or write an empty list as []"))
            }
            _ if node.is_null() => ("nothing", key.map(|_| "leave the field out")),
            Value::Scalar { text, plain: false } => {
                let meant = matches!(classify(text), Plain::Number | Plain::Bool);
                ("text", meant.then_some("write it without quotes"))
            }
            Value::Scalar { text, .. } => (classify(text).noun(), None),
            Value::Sequence(_) => ("a list", None),
            Value::Mapping(_) => ("a mapping", None),
        };
        let what = key.map_or_else(|| "this document".to_owned(), |key| format!("`{}`", quoted(&key.text)));
        let span = match &node.value {
            Value::Scalar { .. } if !node.is_null() || key.is_none() => node.span,
            Value::Scalar { .. } => self.anchor(key, node),
            _ => node.span.first_line(&self.source.text),
        };
        let mut problem = Problem::new(self.place(span), format!("{what} must be {expected}"))
            .label(format!("this is {noun}"));
        problem.help = help.map(str::to_owned);
        self.problems.push(problem);
    }

    /// Where to point for a value: itself if it is a scalar, its key if it is a block.
    pub(crate) fn anchor(&self, key: Option<&Key>, node: &Node) -> Span {
        match (&node.value, key) {
            (Value::Scalar { .. }, _) if node.span.start < node.span.end => node.span,
            (_, Some(key)) => key.span,
            (Value::Mapping(entries), None) => {
                let first = entries.first();
                first.map_or(node.span, |(key, value)| Span {
                    start: key.span.start,
                    end: self.anchor(Some(key), value).end,
                })
            }
            (_, None) => node.span.first_line(&self.source.text),
        }
    }

    pub(crate) fn place(&self, span: Span) -> Place {
        Place { source: Arc::clone(self.source), span }
    }

    pub(super) fn remember(&mut self, span: Span) {
        let place = self.place(span);
        self.places.insert(self.path.clone(), place);
    }

    pub(super) fn unknown_field(&mut self, of: &MessageDescriptor, key: &Key) {
        let known = schema::fields(of);
        let names: Vec<_> = known.iter().map(|known| known.field.json_name()).collect();
        let near = schema::nearest(&key.text, names.iter().copied());
        let problem = Problem::new(self.place(key.span), format!("unknown field `{}`", quoted(&key.text)));
        let help = format!("{} has the fields {}", of.name(), names.join(", "));
        self.problems.push(problem.label(meant(near, "not a field")).help(help));
    }

    pub(super) fn require_name(&mut self, kind: &str, document: &Node, entries: &[(Key, Node)]) {
        let named = entries.iter().find(|(key, _)| key.text == "name");
        let empty = named.is_some_and(
            |(_, node)| matches!(&node.value, Value::Scalar { text, plain: false } if text.is_empty()),
        );
        if named.is_none() || empty {
            let span =
                named.map_or_else(|| self.anchor(None, document), |(key, node)| self.anchor(Some(key), node));
            let problem = Problem::new(self.place(span), format!("this {kind} has no `name`"));
            self.problems.push(problem.help("every resource has a name, unique within its kind"));
        }
    }
}

/// A label that suggests the nearest name.
pub(crate) fn meant(near: Option<&str>, otherwise: &str) -> String {
    near.map_or_else(|| otherwise.to_owned(), |near| format!("did you mean `{near}`?"))
}
