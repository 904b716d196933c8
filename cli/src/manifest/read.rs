//! A document → an `Object`, by the descriptors. Collects everything that is wrong, not only the first thing, and
//! remembers where each field stands, so that what the server says about a field is shown at its line too.
use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value as Proto};

use super::{
    problem::Problem,
    scalar::{Plain, classify},
    schema::{self, Field, Form},
    source::{Place, Source, Span},
    tree::{Key, Node, Value},
};

pub(super) struct Reader<'a> {
    source: &'a Arc<Source>,
    /// Of the field being read, in the API's spelling.
    path: String,
    pub(super) places: BTreeMap<String, Place>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Arc<Source>) -> Self {
        Self { source, path: String::new(), places: BTreeMap::new(), problems: Vec::new() }
    }

    /// One document, as the `index`th object of a request. None: problems say why.
    pub(super) fn object(&mut self, document: &Node, index: usize) -> Option<DynamicMessage> {
        let Value::Mapping(entries) = &document.value else {
            self.wrong_type(document, "a resource: `kind`, `name` and its fields", None);
            return None;
        };
        let (kind, field) = self.kind(document, entries)?;
        self.path = format!("objects[{index}]");
        self.remember(self.anchor(None, document));
        self.path = format!("objects[{index}].{}", field.json_name());
        self.remember(self.anchor(None, document));
        let Kind::Message(of) = field.kind() else { return None };
        let before = self.problems.len();
        let resource = self.fields(&of, entries, Some("kind"));
        self.require_name(&kind, document, entries);
        if self.problems.len() > before {
            return None;
        }
        let mut object = DynamicMessage::new(schema::message("Object"));
        object.set_field(&field, Proto::Message(resource));
        Some(object)
    }

    fn kind(&mut self, document: &Node, entries: &[(Key, Node)]) -> Option<(String, FieldDescriptor)> {
        let resources = schema::resources();
        let listed = || resources.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let Some((key, node)) = entries.iter().find(|(key, _)| key.text == "kind") else {
            let place = self.place(self.anchor(None, document));
            let problem = Problem::new(place, "this document has no `kind`");
            self.problems
                .push(problem.label("a resource starts here").help(format!("kinds are {}", listed())));
            return None;
        };
        let span = self.anchor(Some(key), node);
        let Value::Scalar { text, .. } = &node.value else {
            self.wrong_type(node, "a kind", Some(key));
            return None;
        };
        if let Some(found) = resources.iter().find(|(name, _)| name == text) {
            return Some(found.clone());
        }
        let near = schema::nearest(text, resources.iter().map(|(name, _)| name.as_str()));
        let problem = Problem::new(self.place(span), format!("unknown kind `{text}`"));
        self.problems.push(problem.label(meant(near, "not a kind")).help(format!("kinds are {}", listed())));
        None
    }

    fn require_name(&mut self, kind: &str, document: &Node, entries: &[(Key, Node)]) {
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

    fn fields(
        &mut self,
        of: &MessageDescriptor,
        entries: &[(Key, Node)],
        skip: Option<&str>,
    ) -> DynamicMessage {
        let known = schema::fields(of);
        let mut message = DynamicMessage::new(of.clone());
        // The metadata is there for every resource, written or not.
        if let Some(metadata) = schema::metadata(of) {
            message.get_field_mut(&metadata);
        }
        for (key, value) in entries {
            if skip == Some(key.text.as_str()) {
                continue;
            }
            let Some(Field { parent, field }) =
                known.iter().find(|known| known.field.json_name() == key.text)
            else {
                self.unknown_field(of, &known, key);
                continue;
            };
            let outer = self.path.len();
            self.path.push('.');
            self.path.push_str(field.json_name());
            self.remember(self.anchor(Some(key), value));
            if let Some(read) = self.field(field, key, value) {
                match parent {
                    Some(parent) => {
                        if let Some(inner) = message.get_field_mut(parent).as_message_mut() {
                            inner.set_field(field, read);
                        }
                    }
                    None => message.set_field(field, read),
                }
            }
            self.path.truncate(outer);
        }
        message
    }

    fn unknown_field(&mut self, of: &MessageDescriptor, known: &[Field], key: &Key) {
        let names: Vec<_> = known.iter().map(|known| known.field.json_name()).collect();
        let near = schema::nearest(&key.text, names.iter().copied());
        let problem = Problem::new(self.place(key.span), format!("unknown field `{}`", key.text));
        let help = format!("{} has the fields {}", of.name(), names.join(", "));
        self.problems.push(problem.label(meant(near, "not a field")).help(help));
    }

    fn field(&mut self, field: &FieldDescriptor, key: &Key, node: &Node) -> Option<Proto> {
        if field.is_map() {
            return self.map(key, node);
        }
        if field.is_list() {
            return self.list(field, key, node).map(Proto::List);
        }
        self.value(&field.kind(), key, node)
    }

    fn list(&mut self, field: &FieldDescriptor, key: &Key, node: &Node) -> Option<Vec<Proto>> {
        let Value::Sequence(items) = &node.value else {
            self.wrong_type(node, "a list", Some(key));
            return None;
        };
        let mut list = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let outer = self.path.len();
            // Writing to a String never fails.
            let _ = write!(self.path, "[{index}]");
            self.remember(self.anchor(None, item));
            let read = self.value(&field.kind(), key, item);
            self.path.truncate(outer);
            list.extend(read);
        }
        Some(list)
    }

    fn map(&mut self, key: &Key, node: &Node) -> Option<Proto> {
        let Value::Mapping(entries) = &node.value else {
            self.wrong_type(node, "a mapping of text to text", Some(key));
            return None;
        };
        let mut map = std::collections::HashMap::new();
        for (key, value) in entries {
            let outer = self.path.len();
            self.path.push('.');
            self.path.push_str(&key.text);
            self.remember(self.anchor(Some(key), value));
            if let Some(text) = self.text(key, value) {
                map.insert(MapKey::String(key.text.clone()), Proto::String(text));
            }
            self.path.truncate(outer);
        }
        Some(Proto::Map(map))
    }

    fn value(&mut self, kind: &Kind, key: &Key, node: &Node) -> Option<Proto> {
        match kind {
            Kind::String => self.text(key, node).map(Proto::String),
            Kind::Bool => self.boolean(key, node).map(Proto::Bool),
            Kind::Uint32 => self
                .number(key, node, u64::from(u32::MAX))
                .and_then(|n| u32::try_from(n).ok())
                .map(Proto::U32),
            Kind::Uint64 => self.number(key, node, u64::MAX).map(Proto::U64),
            Kind::Enum(of) => {
                let spellings = schema::spellings(of);
                self.one_of(key, node, &spellings).map(Proto::EnumNumber)
            }
            Kind::Message(of) => self.message(of, key, node).map(Proto::Message),
            // A test walks the schema and proves that no resource has a field of another kind.
            _ => {
                self.wrong_type(node, "nothing: manifests can't hold this field", Some(key));
                None
            }
        }
    }

    fn message(&mut self, of: &MessageDescriptor, key: &Key, node: &Node) -> Option<DynamicMessage> {
        let mut message = DynamicMessage::new(of.clone());
        match (schema::form(of), &node.value) {
            (Form::List(items), _) => {
                let list = self.list(&items, key, node)?;
                message.set_field(&items, Proto::List(list));
            }
            (Form::Reference(name), Value::Scalar { .. }) => {
                let text = self.text(key, node)?;
                message.set_field(&name, Proto::String(text));
            }
            (Form::Timestamp, _) => return self.timestamp(of, key, node),
            (Form::Fields | Form::Reference(_), Value::Mapping(entries)) => {
                return Some(self.fields(of, entries, None));
            }
            _ => {
                self.wrong_type(node, "a mapping", Some(key));
                return None;
            }
        }
        Some(message)
    }

    fn text(&mut self, key: &Key, node: &Node) -> Option<String> {
        match &node.value {
            Value::Scalar { text, plain: false } => Some(text.clone()),
            Value::Scalar { text, plain: true } if classify(text) == Plain::Text => Some(text.clone()),
            Value::Scalar { text, plain: true } if !node.is_null() => {
                let problem = Problem::new(self.place(node.span), format!("`{}` must be text", key.text));
                let label = format!("YAML reads this as {}", classify(text).noun());
                self.problems.push(problem.label(label).help(format!("write it in quotes: \"{text}\"")));
                None
            }
            _ => {
                self.wrong_type(node, "text", Some(key));
                None
            }
        }
    }

    fn boolean(&mut self, key: &Key, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Some(true),
            Value::Scalar { text, plain: true } if text == "false" => Some(false),
            _ => {
                self.wrong_type(node, "true or false", Some(key));
                None
            }
        }
    }

    fn number(&mut self, key: &Key, node: &Node, max: u64) -> Option<u64> {
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
            (format!("`{}` is out of range: {text}", key.text), format!("expected 0 to {max}"))
        } else {
            (
                format!("`{}` must be a whole number", key.text),
                "expected decimal digits alone, without a leading zero".to_owned(),
            )
        };
        self.problems.push(Problem::new(self.place(node.span), message).label(label));
        None
    }

    fn one_of(&mut self, key: &Key, node: &Node, allowed: &[(String, i32)]) -> Option<i32> {
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
        let problem = Problem::new(self.place(node.span), format!("`{}` can't be `{text}`", key.text));
        self.problems.push(
            problem.label(meant(near, "not one of the values")).help(format!("expected one of {}", listed())),
        );
        None
    }

    fn timestamp(&mut self, of: &MessageDescriptor, key: &Key, node: &Node) -> Option<DynamicMessage> {
        let Value::Scalar { text, .. } = &node.value else {
            self.wrong_type(node, "a point in time", Some(key));
            return None;
        };
        let Ok(time) = text.parse::<prost_types::Timestamp>() else {
            let problem =
                Problem::new(self.place(node.span), format!("`{}` must be a point in time", key.text));
            self.problems.push(problem.label("expected RFC 3339, such as 2026-11-22T20:00:00Z"));
            return None;
        };
        let mut message = DynamicMessage::new(of.clone());
        message.set_field_by_number(1, Proto::I64(time.seconds));
        message.set_field_by_number(2, Proto::I32(time.nanos));
        Some(message)
    }

    fn wrong_type(&mut self, node: &Node, expected: &str, key: Option<&Key>) {
        let (noun, help) = match &node.value {
            _ if node.is_null() => {
                ("nothing", key.map(|_| "leave the field out, or write an empty list as []"))
            }
            Value::Scalar { plain: false, .. } => (
                "text",
                (expected.contains("number") || expected.contains("true"))
                    .then_some("write it without quotes"),
            ),
            Value::Scalar { text, .. } => (classify(text).noun(), None),
            Value::Sequence(_) => ("a list", None),
            Value::Mapping(_) => ("a mapping", None),
        };
        let what = key.map_or_else(|| "this document".to_owned(), |key| format!("`{}`", key.text));
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
    fn anchor(&self, key: Option<&Key>, node: &Node) -> Span {
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

    fn place(&self, span: Span) -> Place {
        Place { source: Arc::clone(self.source), span }
    }

    fn remember(&mut self, span: Span) {
        let place = self.place(span);
        self.places.insert(self.path.clone(), place);
    }
}

fn meant(near: Option<&str>, otherwise: &str) -> String {
    near.map_or_else(|| otherwise.to_owned(), |near| format!("did you mean `{near}`?"))
}
